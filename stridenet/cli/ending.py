"""Ends the command: stops it on a signal, prints an error in one line, and gives the exit code."""

import contextlib
import os
import re
import signal
import sys
import traceback
from collections.abc import Iterator
from typing import Any

import click

from stridenet.cli.options import CONVERT, PLAN, VERIFY, flag
from stridenet.cli.users import Stopped, kind_and_message
from stridenet.errors import InputError, NotEqualError, StrideEliminationError

NOT_EQUAL, BAD_INPUT = 1, 2
# What the library's messages advise, as regular expressions, and what the command has for it.
ADVICE = {
    r"input_size=… instead of example_inputs": "--batch 1",
    r"convert_layers\(model(, only=\[…\])?\)": "--theorem 1",
    r"only=\[…\]": "--only NAME",
}


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Let Ctrl-C and a request to end stop what runs within, by raising Stopped."""

    def stop(number: int, _: Any) -> None:
        raise Stopped(number)

    before = {}
    for each in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(ValueError):  # outside of the main thread, where no signal arrives
            before[each] = signal.signal(each, stop)
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def exit_code_of(error: BaseException) -> int:
    """Print an error in one line, and return the exit code that stands for it."""
    if os.environ.get("STRIDENET_TRACEBACK") == "1":
        traceback.print_exception(error)
    if isinstance(error, Stopped):
        print("stopped: nothing was written", file=sys.stderr)
        return 128 + error.signal  # as shells have it
    if isinstance(error, OSError):
        _discard_output()
    if isinstance(error, BrokenPipeError):  # as after `| head`, which reads no further
        return 128 + signal.SIGPIPE
    print(f"error: {_message(error)}", file=sys.stderr)
    return NOT_EQUAL if isinstance(error, NotEqualError) else BAD_INPUT


def _discard_output() -> None:
    """Keep Python from trying once more, as it ends, to print what could not be printed."""
    with contextlib.suppress(ValueError, OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _message(error: BaseException) -> str:
    if isinstance(error, click.ClickException):
        return _click_message(error)
    if isinstance(error, (InputError, StrideEliminationError)):
        return with_options(" ".join(str(error).split()))
    if isinstance(error, MemoryError):
        return "there is not enough memory; a smaller --input-size, or --no-check, needs less"
    if isinstance(error, OSError) and error.strerror:
        return f"{f'{error.filename}: ' if error.filename else ''}{error.strerror}"
    return f"{kind_and_message(error)} (STRIDENET_TRACEBACK=1 shows where)"


def _click_message(error: click.ClickException) -> str:
    text = " ".join(error.format_message().split()).rstrip(".")
    text = f"{text[0].lower()}{text[1:]}".replace("? did", "?; did")
    ctx = getattr(error, "ctx", None)
    if ctx is not None and "did you mean" not in text.lower():
        text += f"; {ctx.command_path} --help lists what there is"
    return text


def with_options(text: str) -> str:
    """Return a message of the library with options as they are typed: pooling=True as --pooling."""
    for pattern, option in ADVICE.items():
        text = re.sub(pattern, option, text)
    arguments = {name for part in (*PLAN, *CONVERT, *VERIFY) for name in part.arguments}
    for name in sorted({"input_size", *arguments}):
        text = re.sub(rf"^{name}: ", f"{flag(name)}: ", text)
        text = re.sub(rf"(?<![\w.-]){name}=True\b", flag(name), text)
        text = re.sub(rf"(?<![\w.-]){name}=False\b", flag(f"no_{name}"), text)
        text = re.sub(rf"(?<![\w.-]){name}='([^']*)'", rf"{flag(name)} \1", text)
        text = re.sub(rf"(?<![\w.-]){name}=", f"{flag(name)} ", text)
    return text
