"""Figures as files."""

import io
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from stridenet.files import write


def save_figure(figure: Figure, path: Path) -> None:
    """Write `path` with .png and .svg, the same bytes for the same figure.

    The background is white and opaque, so that black words are legible on a dark page, too.
    """
    for suffix, metadata in ((".png", {}), (".svg", {"Date": None})):
        content = io.BytesIO()
        with mpl.rc_context({"svg.hashsalt": path.name}):
            figure.savefig(content, format=suffix[1:], dpi=150, metadata=metadata, facecolor="white",
                           transparent=False)  # fmt: skip
        write(path.with_suffix(suffix), content.getvalue())
