"""Where in the user's own code something happens: file and line, as errors name them."""

import inspect
import re
import sys
import sysconfig
from pathlib import Path
from types import CodeType, FrameType, TracebackType

import einops
import numpy as np
import torch
from torch import nn

_HERE = Path(__file__).parent.parent
_NOT_THE_USERS = tuple(
    f"{folder}/"
    for folder in (
        _HERE,
        *(Path(package.__file__ or "").parent for package in (torch, np, einops)),
    )
)
_STANDARD = sysconfig.get_path("stdlib")


def _is_the_users(file: str) -> bool:
    standard = file.startswith(_STANDARD) and "site-packages" not in file
    return not (file.startswith((*_NOT_THE_USERS, "<")) or standard)


def _is_tracers(code: CodeType) -> bool:
    return code.co_name == "run" and code.co_filename.endswith("stridenet/graph/tracer.py")


def users_line(traceback: TracebackType | None = None) -> str:
    """Return the innermost line of the user's code, as errors name it: " (net.py, line 12)".

    traceback: of an error; None for the line that runs now. Returns "" if no line below the call of
    stridenet is the user's.
    """
    frames: list[tuple[str, int, bool]] = []
    if traceback is not None:
        while traceback is not None:
            code = traceback.tb_frame.f_code
            frames.append((code.co_filename, traceback.tb_lineno, False))
            traceback = traceback.tb_next
        frames.reverse()
    else:
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            code = frame.f_code
            frames.append((code.co_filename, frame.f_lineno, _is_tracers(code)))
            frame = frame.f_back
    for file, line, ours in frames:
        if ours:
            break  # from here on it is who called us
        if _is_the_users(file):
            return f" ({Path(file).name}, line {line})"
    return ""


def line_of_assignment(module: nn.Module, attribute: str) -> str:
    """Return " (net.py, line 12)", where the class of a module assigns to self.attribute; else ""."""
    pattern = re.compile(rf"\bself\.{re.escape(attribute)}\b[^=\n]*=[^=]")
    for owner in type(module).__mro__:
        for name, method in vars(owner).items():
            if not inspect.isfunction(method) or name.startswith("__"):
                continue
            try:
                lines, start = inspect.getsourcelines(method)
            except (OSError, TypeError):
                continue
            for offset, line in enumerate(lines):
                if pattern.search(line) or re.search(
                    rf"\bself\.{re.escape(attribute)}\.\w+_?\(", line
                ):
                    return f" ({Path(method.__code__.co_filename).name}, line {start + offset})"
    return ""
