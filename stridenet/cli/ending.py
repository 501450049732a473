"""How the command ends: with an exit code, and of an error, with one line in a terminal's words."""

import contextlib
import os
import re
import signal
import sys
import traceback
from collections.abc import Iterator
from typing import Any

import click

from stridenet.cli.options import CONVERT, PLAN, VERIFY
from stridenet.cli.users import one_line, stops
from stridenet.errors import InputError, NotEqualError, StrideEliminationError

NOT_EQUAL, BAD_INPUT = 1, 2
# What the library calls otherwise than the command, as regular expressions.
SPOKEN = {
    r"input_size=… instead of example_inputs": "--batch 1",
    r"convert_layers\(model(, only=\[…\])?\)": "--theorem 1",
    r"only=\[…\]": "--only NAME",
}


@contextlib.contextmanager
def signals() -> Iterator[list[int]]:
    """Let Ctrl-C and a request to end stop what runs, with an exception; yields which of them came."""
    came: list[int] = []

    def stop(number: int, _: Any) -> None:
        came.append(number)
        stops(number)
        raise KeyboardInterrupt

    before = {}
    for each in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(ValueError):  # not in the main thread, where none arrives
            before[each] = signal.signal(each, stop)
    try:
        yield came
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def ended(error: BaseException, stopped: list[int]) -> int:
    """Say what an error was; returns the exit code.

    stopped: signals that asked the process to end.
    """
    if os.environ.get("STRIDENET_TRACEBACK") == "1":
        traceback.print_exception(error)
    if isinstance(error, KeyboardInterrupt) and stopped:
        print("stopped: nothing was written", file=sys.stderr)
        return 128 + stopped[-1]  # as shells have it
    if isinstance(error, BrokenPipeError):  # as of `| head`, which has seen enough
        _forget_output()
        return 128 + 13
    if isinstance(error, OSError):
        _forget_output()
    print(f"error: {_line(error)}", file=sys.stderr)
    return NOT_EQUAL if isinstance(error, NotEqualError) else BAD_INPUT


def _forget_output() -> None:
    """What could not be printed is not tried once more as Python ends."""
    with contextlib.suppress(ValueError, OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _line(error: BaseException) -> str:
    if isinstance(error, click.ClickException):
        return _of_click(error)
    if isinstance(error, (InputError, StrideEliminationError)):
        return as_typed(" ".join(str(error).split()))
    if isinstance(error, MemoryError):
        return "there is no memory left for it; a smaller --input-size, or --no-check, needs less"
    if isinstance(error, OSError) and error.strerror:
        return f"{f'{error.filename}: ' if error.filename else ''}{error.strerror}"
    return f"{one_line(error)} (STRIDENET_TRACEBACK=1 shows where)"


def _of_click(error: click.ClickException) -> str:
    text = " ".join(error.format_message().split()).rstrip(".")
    text = f"{text[0].lower()}{text[1:]}".replace("? did", "?; did")
    where = getattr(error, "ctx", None)
    if (
        isinstance(error, click.UsageError)
        and where is not None
        and "did you mean" not in text.lower()
    ):
        text += f"; {where.command_path} --help lists what there is"
    return text


def as_typed(text: str) -> str:
    """A message of the library with options as they are typed: pooling=True as --pooling."""
    for pattern, spoken in SPOKEN.items():
        text = re.sub(pattern, spoken, text)
    for name in _names():
        typed = name.replace("_", "-")
        text = re.sub(rf"^{name}: ", f"--{typed}: ", text)
        text = re.sub(rf"(?<![\w.-]){name}=True\b", f"--{typed}", text)
        text = re.sub(rf"(?<![\w.-]){name}=False\b", f"--no-{typed}", text)
        text = re.sub(rf"(?<![\w.-]){name}='([^']*)'", rf"--{typed} \1", text)
        text = re.sub(rf"(?<![\w.-]){name}=", f"--{typed} ", text)
    return text


def _names() -> list[str]:
    """Arguments of the library's functions that are options."""
    parts = (*PLAN, *CONVERT, *VERIFY)
    return sorted({"input_size", *(name for part in parts for name in part.arguments)})
