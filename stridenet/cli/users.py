"""Running a user's code: what it prints, raises or ends is not mistaken for what this command says."""

import contextlib
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stridenet.errors import InputError, StrideEliminationError


@contextlib.contextmanager
def users_code(folder: Path, what: str, cure: str = "") -> Iterator[None]:
    """Import, make or run a user's network within this.

    folder: modules in it can be imported, before those that are installed.
    what: the code's name, for messages; cure: what helps most often, after what the code raised.

    What is printed meanwhile, by the code or by torch's compiled parts, goes to the standard error, and
    only if all went well: of an error, the last line is told. Raises InputError where the code leaves
    the program (sys.exit, os._exit) or raises what is no error of this library's.
    """
    stopped = stops()
    with tempfile.TemporaryFile() as printed:
        try:
            with _into(printed), _importable(folder), _without_leaving():
                yield
        except (InputError, StrideEliminationError, MemoryError):
            raise
        except BaseException as error:  # the code may raise anything, SystemExit and the like too
            if isinstance(error, KeyboardInterrupt) and stops() != stopped:
                raise
            raise InputError(f"{what} {_told(error, cure)}{_last_line(printed)}") from error
        printed.seek(0)
        sys.stderr.write(printed.read().decode(errors="replace"))


_stops: list[int] = []  # numbers of signals that asked this process to stop


def stops(*number: int) -> int:
    """How many signals have asked this process to stop; one more where its number is given."""
    _stops.extend(number)
    return len(_stops)


def one_line(error: BaseException) -> str:
    """The kind of an error and what it says."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(": ")


class _Left(BaseException):
    """The code wanted to leave the program; no code that catches errors is to catch this."""


def _told(error: BaseException, cure: str) -> str:
    if isinstance(error, SystemExit):
        return f"called sys.exit({'' if error.code is None else repr(error.code)})"
    return str(error) if isinstance(error, _Left) else f"failed: {one_line(error)}{cure}"


def _last_line(printed: Any) -> str:
    printed.seek(0)
    content = printed.read().decode(errors="replace")
    if os.environ.get("STRIDENET_TRACEBACK") == "1":
        sys.stderr.write(content)
    lines = content.split("\n")
    last = next((" ".join(line.split()) for line in reversed(lines) if line.strip()), "")
    return f" (it printed: {last[:200]})" if last else ""


@contextlib.contextmanager
def _into(printed: Any) -> Iterator[None]:
    """Send all output into a file, also what does not pass through Python."""
    before = sys.stdout, sys.stderr
    for stream in before:
        stream.flush()
    kept = [(number, os.dup(number)) for number in (1, 2)]
    stream = os.fdopen(os.dup(printed.fileno()), "w", 1, encoding="utf-8", errors="replace")
    try:
        for number, _ in kept:
            os.dup2(printed.fileno(), number)
        sys.stdout = sys.stderr = stream
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        sys.stdout, sys.stderr = before
        with contextlib.suppress(ValueError, OSError):  # the code may have closed it
            stream.close()
        for number, copy in kept:
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
    """Let os._exit raise in this process; in one that was forked from it, it ends that one."""
    leave, process = os._exit, os.getpid()

    def refused(code: int) -> Any:
        if os.getpid() != process:
            leave(code)
        raise _Left(f"called os._exit({code})")

    os._exit = refused  # type: ignore[assignment]
    try:
        yield
    finally:
        os._exit = leave
