"""ONNX files of networks: written, and checked before they appear."""
