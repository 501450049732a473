"""Files that appear together, whole, or not at all."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from stridenet.onnx.layout import layout_path


@contextlib.contextmanager
def staged(path: Path) -> Iterator[Path]:
    """A folder for all files of a conversion, which take their places if nothing fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as temporary:
        folder = Path(temporary)
        yield folder
        made = {file.name for file in folder.iterdir()}
        companions = (path.with_name(f"{path.name}.data"), layout_path(path))
        for place in (*companions, path):  # the model last, when what it refers to is there
            if place.name in made:
                with (folder / place.name).open("rb") as file:
                    os.fsync(file.fileno())
                os.replace(folder / place.name, place)
        for place in companions:
            if place.name not in made:  # it is of an export that this one replaces
                place.unlink(missing_ok=True)
