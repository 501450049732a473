"""Processes that do not outlive the one that started them, on every system that has parents.

Linux could send a signal at the parent's end, but at that of the thread that started the process; so a
thread looks who the parent is.
"""

import os
import threading
import time

LOOK = 0.5  # seconds between two looks
_parents: set[int] = set()  # that are looked after


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
