"""Writes ONNX files of networks, which are checked before they appear."""
