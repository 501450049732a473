"""A device that tests may attack: where the code is broken, and root's, the machine keeps its own.

Never name one of those, as /dev/null, in a test of writing: who replaces it takes it from everybody.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def harmless_device() -> Iterator[Path]:
    """A terminal of our own. Its file system lets nobody, not even root, make or replace a file."""
    ours, theirs = os.openpty()
    try:
        yield Path(os.ttyname(theirs))
    finally:
        os.close(ours)
        os.close(theirs)
