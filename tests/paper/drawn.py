"""What is drawn in a figure: texts and colours."""

from collections.abc import Callable

import numpy as np
import pytest
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from torch import nn

from stridenet.zoo import lenet


def printed(figure: Figure, name: str) -> np.ndarray:
    """The numbers in the cells of this name, as they stand on the page."""
    (axes,) = figure.axes
    texts = [text for text in axes.texts if text.get_label() == name]
    places = [text.get_position()[::-1] for text in texts]
    rows, columns = (sorted(set(along)) for along in zip(*places, strict=True))
    assert len(texts) == len(rows) * len(columns)
    numbers = np.full((len(rows), len(columns)), -1)
    for text, (row, column) in zip(texts, places, strict=True):
        numbers[rows.index(row), columns.index(column)] = int(text.get_text())
    assert np.diff(rows) == pytest.approx(1)
    assert np.diff(columns) == pytest.approx(1)
    return numbers


def colours(figure: Figure, name: str) -> np.ndarray:
    """Red, green and blue of the cell behind each of these numbers."""
    (axes,) = figure.axes
    behind = {
        tuple(np.round(path.get_extents().get_points().mean(0), 6)): face[:3]
        for cells in axes.collections
        if isinstance(cells, PatchCollection)
        for path, face in zip(cells.get_paths(), cells.get_facecolors(), strict=True)
    }
    texts = [text for text in axes.texts if text.get_label() == name]
    texts.sort(key=lambda text: text.get_position()[::-1])
    found = [behind[tuple(np.round(text.get_position(), 6))] for text in texts]
    return np.array(found).reshape(*printed(figure, name).shape, 3)


def words(figure: Figure) -> list[str]:
    """All that is written, from top to bottom and left to right, but for the numbers in cells."""
    (axes,) = figure.axes
    texts = sorted(axes.texts, key=lambda text: text.get_position()[::-1])
    return [text.get_text() for text in texts if not text.get_text().isdigit()]


# The sharing map


def network(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(*layers)


Case = tuple[Callable[[], nn.Module], tuple[int, ...], str, tuple[int, int]]


CASES: dict[str, Case] = {  # a network, its input, a layer, and how many of its channels are shown
    "conv1": (lenet, (1, 28, 28), "conv1", (1, 1)),
    "conv2": (lenet, (1, 28, 28), "conv2", (1, 1)),  # 1x1 in the twin
    "conv3": (lenet, (1, 28, 28), "conv3", (1, 1)),
    "conv4": (lenet, (1, 28, 28), "conv4", (1, 1)),  # one output phase
    "alexnet": (
        lambda: network(nn.Conv2d(3, 8, 11, stride=4, padding=2)), (3, 60, 60), "0", (1, 1)
    ),
    "dilated": (
        lambda: network(nn.Conv2d(2, 5, 3, dilation=2), nn.Conv2d(5, 2, 2, stride=2)),
        (2, 12, 12), "0", (1, 1),
    ),
    "oblong": (
        lambda: network(nn.Conv2d(1, 2, (2, 3)), nn.Conv2d(2, 2, 1, stride=(3, 2))),
        (1, 13, 14), "0", (2, 1),
    ),
    "whole": (
        lambda: network(nn.Conv2d(2, 3, 2), nn.Conv2d(3, 2, 2, stride=2)), (2, 9, 9), "0", (3, 2)
    ),
    "grouped": (
        lambda: network(nn.Conv2d(4, 4, 3, stride=2, padding=1, groups=4)), (4, 8, 8), "0", (4, 1)
    ),
    "1-D": (lambda: network(nn.Conv1d(2, 2, 5, stride=3)), (2, 20), "0", (2, 2)),
    "3-D": (lambda: network(nn.Conv3d(1, 9, (2, 3, 3), stride=2)), (1, 7, 7, 7), "0", (1, 1)),
    "unchanged": (lambda: network(nn.Conv2d(4, 4, 3)), (4, 8, 8), "0", (1, 1)),
}  # fmt: skip
