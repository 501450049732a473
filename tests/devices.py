"""A device that tests may attack: if the code is broken, and run as root, nothing of the machine breaks.

Never name a real one, as /dev/null, in a test of writing: code that replaces it takes it from everybody.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def harmless_device() -> Iterator[Path]:
    """A terminal of our own. Its file system lets nobody, not even root, make or replace a file there."""
    ours, theirs = os.openpty()
    try:
        yield Path(os.ttyname(theirs))
    finally:
        os.close(ours)
        os.close(theirs)
