"""Theorem 1 at each strided layer of a network, at whatever size comes; nothing is traced."""
