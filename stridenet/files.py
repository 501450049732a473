"""Writes files that appear whole or not at all, and replace nothing but an ordinary file.

Everything that is written for a user, by the library and by the experiments, goes through here. A link
is followed to the file that it names; a device, a pipe, a socket or a folder is refused and stays.
"""

import contextlib
import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from stridenet.errors import InputError, StrideEliminationError

FILE_TYPES = {
    stat.S_IFDIR: "a folder",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
}
NAME_KEPT = 40  # characters of a file's name in its half-written file's, as names have a limit


def destination(path: str | os.PathLike[str]) -> Path:
    """Return the ordinary file that writing to this path replaces or makes, links followed.

    Raises InputError where the path is empty or names anything else, before anything is written.
    """
    text = os.fspath(path)
    if not text.strip():
        raise InputError("the path of a file is empty; name one, as in outputs/net.onnx")
    kind = _kind(path)
    if kind == stat.S_IFDIR or text.endswith(os.sep):
        raise InputError(f"{text} is a folder; name the file, as in {Path(path) / 'file'}")
    if kind not in (None, stat.S_IFREG):
        raise InputError(
            f"{text} is {FILE_TYPES[kind]}, which no file replaces; name another place"
        )
    target = Path(os.path.realpath(path))
    now = _kind(target)  # another process may have made the file meanwhile
    # A name such as /dev/stdout may lead to a file that has been removed.
    if now not in (None, stat.S_IFREG) or (kind == stat.S_IFREG and now is None):
        raise InputError(f"{text} names no place that a file could have; name another one")
    return target


def make_folder(path: str | os.PathLike[str]) -> Path:
    """Make a folder and those above it where they are missing. Raises InputError, OSError."""
    folder = Path(path)
    if not os.fspath(path).strip():
        raise InputError("the path of a folder is empty; name one, as in outputs")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise InputError(
            f"{folder} cannot be made: part of this path is a file; remove it, or name another folder"
        ) from None
    return folder


@contextlib.contextmanager
def folder_for(path: Path) -> Iterator[None]:
    """Make the folder of a file that is written within; if that fails, remove what was made for it."""
    missing = [each for each in path.absolute().parents if not each.exists()]
    make_folder(path.absolute().parent)
    try:
        yield
    except BaseException:
        for each in missing:  # the innermost first
            with contextlib.suppress(OSError):  # something else has been put there meanwhile
                each.rmdir()
        raise


def write(path: Path, content: bytes) -> None:
    """Write all of a file or nothing of it, whatever happens meanwhile. Raises InputError, OSError.

    A new file has the permissions that the umask leaves, a replaced one those that it had.
    """
    with _replacing(path) as file:
        file.write(content)


def move(source: Path, path: Path) -> None:
    """Move a finished file to its place, under the rules of `write`. Raises InputError, OSError."""
    target = destination(path)
    with source.open("rb") as file:
        os.fsync(file.fileno())
    try:
        _keep_permissions(target, source)
        os.replace(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise OSError(error.errno, error.strerror, str(path)) from error
        # A link at this path has led to another disk, to which a file can only be copied.
        with _replacing(path) as file, source.open("rb") as whole:
            shutil.copyfileobj(whole, file)
        source.unlink()


@contextlib.contextmanager
def disk_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Raise InputError for this path where the system refuses to write what is written within.

    What writes a file may have wrapped the system's error in one of its own.
    """
    try:
        yield
    except (InputError, StrideEliminationError):
        raise
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and not (isinstance(cause, OSError) and cause.errno):
            cause = cause.__cause__
        if not isinstance(cause, OSError) or not cause.errno:
            raise
        if cause.errno in (errno.ENOSPC, errno.EDQUOT):
            why = "no room on its disk; free some, or"
        else:
            why = f"{os.strerror(cause.errno)};"
        raise InputError(f"{os.fspath(path)} cannot be written: {why} write elsewhere") from error


def read(path: Path) -> bytes:
    """Return the content of an ordinary file, links followed.

    Raises InputError for anything else, as reading a pipe or a device might never end, and OSError
    where the file cannot be read.
    """
    kind = _kind(path)
    if kind not in (None, stat.S_IFREG):
        raise InputError(f"{path} is {FILE_TYPES[kind]}, and a file is needed there; remove it")
    return path.read_bytes()


def remove_half_written(folder: Path) -> None:
    """Remove what writing left in a folder when its process was killed.

    No other process may be writing into this folder, as its half-written files would be removed, too.
    """
    for path in folder.glob(".*-????????"):
        if stat.S_ISREG(path.lstat().st_mode):
            path.unlink()


def _kind(path: str | os.PathLike[str]) -> int | None:
    """Return the type of what is at a path, links followed, as stat.S_IFMT; None if nothing is."""
    try:
        return stat.S_IFMT(os.stat(path).st_mode)
    except FileNotFoundError:
        return None
    except ValueError as error:  # a zero byte
        raise InputError(f"{os.fspath(path)!r} is no path ({error}); name another one") from error
    except NotADirectoryError as error:
        raise InputError(
            f"{os.fspath(path)}: part of this path is a file; remove it, or name another place"
        ) from error


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """Yield a file beside the destination, which takes its place once it is whole and on the disk."""
    target = destination(path)
    half = target.parent / f".{target.name[:NAME_KEPT]}-{secrets.token_hex(4)}"
    try:
        # A file that tempfile opens would not get the permissions that the umask leaves.
        with open(os.open(half, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        _keep_permissions(target, half)
        os.replace(half, target)
    except OSError as error:  # the error of a full disk does not name the file
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        half.unlink(missing_ok=True)


def _keep_permissions(target: Path, new: Path) -> None:
    """Give a new file the permissions of the one that it replaces, if there is one."""
    if target.exists():
        os.chmod(new, stat.S_IMODE(target.stat().st_mode) & 0o777)
