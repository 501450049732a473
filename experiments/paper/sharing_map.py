"""The sharing map: which strided weight each entry of a twin's filter is.

Phases, channels and weights are written as the paper counts them, from 1.
"""

from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from einops import rearrange
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.paper.figures import ink_on, new_page, with_times
from experiments.settings.fields import require_convolution
from stridenet.phases import filter_entries
from stridenet.plan import EliminationPlan, LayerPlan

MOST_WEIGHTS = 36  # of a filter that is shown whole, not one pair of channels alone
MOST_PHASES = 16  # of its twin, in either direction
UNIT = 0.27  # inches, of a sharing map; all below are in it
LEGIBLE = 0.4  # a cell with a number in it
SMALLEST_TILE = 0.5  # a tile without lines and a label


class Phases(NamedTuple):
    """Describes the twin's channels along one side of a sharing map."""

    side: str
    channels: int  # of the strided network, each with all phases
    factor: Sequence[int]
    letters: str

    @property
    def labels(self) -> list[str]:
        """Return the phase of each channel, behind the strided channel if there are several."""
        phases = [f"({','.join(str(p + 1) for p in phase)})" for phase in np.ndindex(*self.factor)]
        if self.channels == 1:
            return phases
        return [f"{channel + 1}: {phase}" for channel in range(self.channels) for phase in phases]

    @property
    def title(self) -> str:
        """Return a title that says what the labels stand for."""
        phase = f"phase ({', '.join(self.letters[: len(self.factor)])})"
        return f"{self.side} {phase}" if self.channels == 1 else f"{self.side} channel: {phase}"


def sharing_map(plan: EliminationPlan, name: str) -> Figure:
    """Draw which strided weight each entry of a twin's filter is, in the weight's colour.

    Rows are the twin's output channels, columns its input channels, each pair of phases a tile of
    K̃ taps; blank where the filter has a structural zero. Of a larger filter, only the first output
    and input channel are shown. Raises InputError unless a convolution of the plan has this name.
    """
    layer = _convolution(plan, name)
    size, maps = layer.weight_size, layer.maps
    whole = prod(size) <= MOST_WEIGHTS and max(layer.unit_stride_weight_size[:2]) <= MOST_PHASES
    shown = size[:2] if whole else (1, 1)
    once = [1] * len(size[2:])  # the factors of maps that keep their form
    outputs = Phases("output", shown[0], [axis.output_factor for axis in maps] or once, "mno")
    inputs = Phases("input", shown[1], [axis.input_factor for axis in maps] or once, "pqr")
    weights = np.arange(prod(size)).reshape(size)
    entries = filter_entries(size, maps).numpy() if maps else weights
    strided = weights[: shown[0], : shown[1]]
    twin = entries[: len(outputs.labels), : len(inputs.labels)]
    return _draw_sharing(layer, strided, twin, outputs, inputs)


def _draw_sharing(
    layer: LayerPlan, strided: np.ndarray, twin: np.ndarray, outputs: Phases, inputs: Phases
) -> Figure:
    """Draw the twin's filter, and beside it the strided one as its key."""
    (rows, columns), (key_rows, key_columns) = _picture(twin).shape, _picture(strided).shape
    key, cell = min(1, 9 / max(key_rows, key_columns)), min(1, 28 / max(rows, columns))
    title = max(outputs.title.split(" phase"), key=len)  # stands beside that of the key
    top, left = 5.0, 5.5 + max(3, key * key_columns) + max(0, len(title) - 12) * 0.4
    bottom = top + max(cell * rows, key * key_rows)
    figure, axes = new_page(
        max(left + cell * columns + 1, 33),
        bottom + 4.2,
        f"Layer {layer.name}: which strided weight each entry of the twin's filter is",
        _about_sharing(layer, strided, twin),
        UNIT,
    )
    order = np.argsort(_picture(strided), axis=None)
    colours = mpl.colors.ListedColormap(_palette(key_rows, key_columns)[order])
    axes.text(1, top - 0.3, "strided filter", va="bottom")
    _tiles(axes, 1, top, key, strided, colours)
    _tiles(axes, left, top, cell, twin, colours)
    _label_rows(axes, left, top, cell * rows, outputs)
    _label_columns(axes, left, top, cell * columns, inputs)
    return figure


def _convolution(plan: EliminationPlan, name: str) -> LayerPlan:
    convolutions = {layer.name: layer for layer in plan.layers if len(layer.weight_size) > 2}
    require_convolution(name, convolutions)
    return convolutions[name]


def _picture(weights: np.ndarray) -> np.ndarray:
    """Return a filter (out, in, *taps) in one plane, its channels below and beside each other."""
    planes = weights.reshape(*weights.shape[:2], -1, weights.shape[-1])
    return rearrange(planes, "o i h w -> (o h) (i w)")


def _palette(rows: int, columns: int) -> np.ndarray:
    """Return a colour for each place: its column decides the hue, its row how light it is."""
    hues = mpl.colormaps["turbo"](np.linspace(0.08, 0.92, columns))[:, :3]
    light = np.linspace(-0.4, 0.65, rows)[:, None, None] if rows > 1 else np.zeros((1, 1, 1))
    return np.where(light < 0, hues * (1 + light), hues + (1 - hues) * light).reshape(-1, 3)


def _tiles(
    axes: Axes, left: float, top: float, cell: float, weights: np.ndarray, colours: Any
) -> None:
    """Draw a filter as coloured cells; lines part its channels.

    weights: the number of the weight in each place, counted from 0; −1 is blank.
    """
    picture = np.ma.masked_less(_picture(weights), 0)
    rows, columns = picture.shape
    xs, ys = left + cell * np.arange(columns + 1), top + cell * np.arange(rows + 1)
    image = axes.imshow(picture, cmap=colours, norm=mpl.colors.NoNorm(), aspect="auto")
    image.set(extent=(xs[0], xs[-1], ys[-1], ys[0]), interpolation="none")
    tile = rows // weights.shape[0], columns // weights.shape[1]
    if cell > LEGIBLE:
        _grid(axes, xs, ys, color="0.85", lw=0.5)
        _numbers(axes, xs, ys, picture, colours)
    height, width = tile if cell * min(tile) > SMALLEST_TILE else (rows, columns)
    _grid(axes, xs[::width], ys[::height], color="0.3", lw=0.8)


def _grid(axes: Axes, xs: np.ndarray, ys: np.ndarray, **style: Any) -> None:
    axes.vlines(xs, ys[0], ys[-1], **style)
    axes.hlines(ys, xs[0], xs[-1], **style)


def _numbers(
    axes: Axes, xs: np.ndarray, ys: np.ndarray, picture: np.ma.MaskedArray, colours: Any
) -> None:
    half = (xs[1] - xs[0]) / 2
    size = 22 * half * min(1, 2.5 / len(str(picture.max() + 1)))
    for row, column in zip(*np.nonzero(~np.ma.getmaskarray(picture)), strict=True):
        weight = picture[row, column]
        axes.text(xs[column] + half, ys[row] + half, str(weight + 1), ha="center",
                  va="center", fontsize=size, color=ink_on(colours(weight)[:3]))  # fmt: skip


def _label_rows(axes: Axes, left: float, top: float, height: float, phases: Phases) -> None:
    step = height / len(phases.labels)
    for place, label in enumerate(phases.labels) if step > SMALLEST_TILE else ():
        y = top + step * (place + 0.5)
        axes.text(left - 0.2, y, label, ha="right", va="center", fontsize=9)
    title = phases.title.replace(" phase", "\nphase")
    axes.text(left - 0.3, top - 0.2, title, ha="right", va="bottom")


def _label_columns(axes: Axes, left: float, top: float, width: float, phases: Phases) -> None:
    step, length = width / len(phases.labels), 0.3 * len(phases.labels[-1])  # of a label
    turned = step < length
    for place, label in enumerate(phases.labels) if step > SMALLEST_TILE else ():
        x = left + step * (place + 0.5)
        angle = 90 if turned else 0
        axes.text(x, top - 0.2, label, ha="center", va="bottom", fontsize=9, rotation=angle)
    away = 0.4 + (length if turned else 0.5) * (step > SMALLEST_TILE)
    axes.text(left, top - away, phases.title, va="bottom")


def _about_sharing(layer: LayerPlan, strided: np.ndarray, twin: np.ndarray) -> str:
    others = prod(layer.weight_size[:2]) - prod(strided.shape[:2])
    shown = f"Of each, one pair of channels is shown, and the other {others:,} look the same"
    places = int((twin >= 0).sum())
    return (
        f"The filter is {with_times(layer.weight_size)} (out × in × taps), the unit-stride twin's "
        f"{with_times(layer.unit_stride_weight_size)}. Each entry of the twin's is one of the strided "
        "weights (same number, same colour) or a structural zero (blank). "
        f"{shown if others else 'Both are shown whole'}: {strided.size} weights in {places:,} places, "
        f"and {twin.size - places:,} zeros."
    )
