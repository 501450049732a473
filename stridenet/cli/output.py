"""Where a command writes: looked at before any work, and written whole or not at all."""

import contextlib
import difflib
import errno
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from stridenet.errors import InputError, NotEqualError, StrideEliminationError


def checked_output(typed: str, endings: Sequence[str], reads: Iterable[Path]) -> Path:
    """The file that a command may write. Raises InputError where it may not.

    endings: what its name may end in.
    reads: files that the command reads, none of which may be written over.
    """
    path = Path(typed)
    if path.suffix not in endings:
        near = difflib.get_close_matches(path.suffix, endings, n=1, cutoff=0.5)
        meant = f"did you mean {path.with_suffix(near[0])}" if near and path.stem else "name it so"
        raise InputError(
            f"{typed} must end in {' or '.join(endings)}; {meant}?".replace("so?", "so")
        )
    if path.is_symlink():
        raise InputError(f"{path} is a link to {os.readlink(path)}; name the file itself")
    if path.is_dir():
        raise InputError(f"{path} is a folder; name the file, as in {path / f'net{endings[0]}'}")
    if path.exists() and not path.is_file():
        raise InputError(f"{path} is no regular file; name another, as in net{endings[0]}")
    if not path.parent.is_dir():
        raise InputError(
            f"there is no folder {path.parent} for {path.name}: mkdir -p {path.parent}"
        )
    for read in reads:
        if _is_same(path, read):
            raise InputError(
                f"{path} would be written over {read}, which is read from; name another"
            )
    return path


def _is_same(path: Path, read: Path) -> bool:
    if path.exists() and read.exists():
        return path.samefile(read)  # hard links too
    return path.resolve() == read.resolve()


@contextlib.contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """A file in a hidden folder beside its place, which it takes if nothing fails."""
    with (
        writing(path),
        tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as folder,
    ):
        temporary = Path(folder) / path.name
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """What the disk refuses while a file is written, as an InputError."""
    try:
        yield
    except (InputError, NotEqualError, StrideEliminationError):
        raise
    except Exception as error:
        cause = _of_disk(error)
        if cause is None:
            raise
        raise InputError(f"{path} cannot be written: {cause}; write elsewhere") from error


def _of_disk(error: BaseException | None) -> str | None:
    """What the operating system said; None if the error is of another kind."""
    while error is not None:
        if isinstance(error, OSError) and error.errno is not None:
            no_room = error.errno in (errno.ENOSPC, errno.EDQUOT)
            return "no room on its disk" if no_room else os.strerror(error.errno)
        error = error.__cause__
    return None
