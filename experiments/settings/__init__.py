"""What a command is given. Imports no torch, so that `--help` answers at once."""
