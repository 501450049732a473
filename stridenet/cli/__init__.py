"""The command stridenet plans, converts and verifies networks from a terminal."""

import sys
from importlib.util import find_spec


def main() -> None:
    """Run the command and leave with its exit code: 0 done, 1 not equal, 2 bad input, 130 Ctrl-C."""
    if find_spec("click") is None:
        print(
            "error: the command stridenet needs click, which is not installed: "
            "pip install '.[onnx]' in stridenet's folder",
            file=sys.stderr,
        )
        sys.exit(2)
    try:
        from stridenet.cli.app import run
    except KeyboardInterrupt:  # while Python still reads its modules
        sys.exit(130)
    sys.exit(run())
