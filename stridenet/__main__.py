"""The command stridenet as a module: python -m stridenet."""

from stridenet.cli import main

if __name__ == "__main__":
    main()
