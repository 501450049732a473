"""Ends a process together with the one that started it, on every system whose processes have parents.

Linux can send a signal when the parent ends, but it does so when the parent's thread ends that started
the process, which may be much earlier. So a thread looks, twice a second, who the parent is.
"""

import os
import threading
import time

LOOK = 0.5  # seconds between two looks
_parents: set[int] = set()  # that a thread watches


def end_with(parent: int) -> None:
    """Let this process end, with all that it does, once its parent is another than that one.

    parent: the process that started this one. Whatever ended the parent, it can no longer be asked.
    """
    if parent not in _parents:
        _parents.add(parent)
        threading.Thread(target=_watch, args=(parent,), daemon=True, name="parent").start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(LOOK)
    os._exit(1)
