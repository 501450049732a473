"""Runs a user's code apart: what it prints, raises or ends is not mistaken for the command's own."""

import contextlib
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stridenet.errors import InputError, StrideEliminationError


class Stopped(BaseException):
    """Raised where a signal asks the command to stop; no user's code raises it itself."""

    def __init__(self, signal: int) -> None:
        super().__init__(f"stopped by signal {signal}")
        self.signal = signal


class _Left(BaseException):
    """Raised where the user's code calls os._exit; no `except Exception` in it may catch this."""


@contextlib.contextmanager
def users_code(folder: Path, name: str, cure: str = "") -> Iterator[None]:
    """Import, make or run a user's network within this.

    folder: modules in it can be imported, before those that are installed.
    name: the code's name, for messages; cure: what helps most often, after what the code raised.

    What is printed meanwhile, by the code or by torch's compiled parts, goes to the standard error
    after all went well; after an error, only its last line is shown. Raises InputError where the code
    leaves the program (sys.exit, os._exit) or raises an error that is not one of this library's.
    """
    with tempfile.TemporaryFile() as printed:
        try:
            with _captured(printed), _importable(folder), _without_leaving():
                yield
        except (InputError, StrideEliminationError, MemoryError, Stopped):
            raise
        except BaseException as error:  # the code may raise anything, SystemExit and the like too
            what = _what_it_did(error, cure)
            raise InputError(f"{name} {what}{_last_line(printed)}") from error
        printed.seek(0)
        sys.stderr.write(printed.read().decode(errors="replace"))


def kind_and_message(error: BaseException) -> str:
    """Return the kind of an error and what it says."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(": ")


def _what_it_did(error: BaseException, cure: str) -> str:
    if isinstance(error, SystemExit):
        return f"called sys.exit({'' if error.code is None else repr(error.code)})"
    return str(error) if isinstance(error, _Left) else f"failed: {kind_and_message(error)}{cure}"


def _last_line(printed: Any) -> str:
    printed.seek(0)
    content = printed.read().decode(errors="replace")
    if os.environ.get("STRIDENET_TRACEBACK") == "1":
        sys.stderr.write(content)
    lines = [" ".join(line.split()) for line in content.splitlines() if line.strip()]
    return f" (it printed: {lines[-1][:200]})" if lines else ""


@contextlib.contextmanager
def _captured(printed: Any) -> Iterator[None]:
    """Send all output into a file, also that of compiled code, which does not pass through Python."""
    before = sys.stdout, sys.stderr
    for stream in before:
        stream.flush()
    copies = [(number, os.dup(number)) for number in (1, 2)]
    stream = os.fdopen(os.dup(printed.fileno()), "w", 1, encoding="utf-8", errors="replace")
    try:
        for number, _ in copies:
            os.dup2(printed.fileno(), number)
        sys.stdout = sys.stderr = stream
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        sys.stdout, sys.stderr = before
        with contextlib.suppress(ValueError, OSError):  # the code may have closed it
            stream.close()
        for number, copy in copies:
            os.dup2(copy, number)
            os.close(copy)


@contextlib.contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Let modules in a folder be imported."""
    before = list(sys.path)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path[:] = before


@contextlib.contextmanager
def _without_leaving() -> Iterator[None]:
    """Let os._exit raise _Left in this process; a process that was forked from it may still leave."""
    leave, process = os._exit, os.getpid()

    def refuse(code: int) -> Any:
        if os.getpid() != process:
            leave(code)
        raise _Left(f"called os._exit({code})")

    os._exit = refuse  # type: ignore[assignment]
    try:
        yield
    finally:
        os._exit = leave
