"""What you run from the repository root, one command a file: python -m experiments.NAME."""
