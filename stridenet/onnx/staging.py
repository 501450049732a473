"""Lets the files of an export appear together and whole, or not at all."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from stridenet.files import NAME_KEPT, destination, folder_for, move
from stridenet.onnx.layout import layout_path


@contextlib.contextmanager
def staged(path: Path) -> Iterator[Path]:
    """Yield a folder for all files of an export, which take their places if nothing fails.

    The companions of an earlier model at this path (its data, its layout) are removed with it unless
    the new one replaces them.
    """
    companions = (path.with_name(f"{path.name}.data"), layout_path(path))
    places = [*companions, path]  # the model last, when what it refers to is there
    with (
        folder_for(path),
        tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name[:NAME_KEPT]}-") as name,
    ):
        folder = Path(name)
        yield folder
        new = [place for place in places if (folder / place.name).exists()]
        replaces = path.exists()
        _take_places(folder, new)
        for place in companions:
            if replaces and place not in new and place.is_file() and not place.is_symlink():
                place.unlink()


def _take_places(folder: Path, places: list[Path]) -> None:
    """Move the files to their places. If one fails, those that replaced nothing are removed again."""
    new = [place for place in places if not os.path.lexists(place)]
    for place in places:
        destination(place)
    try:
        for place in places:
            move(folder / place.name, place)
    except BaseException:
        for place in new:
            place.unlink(missing_ok=True)
        raise
