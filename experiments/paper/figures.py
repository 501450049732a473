"""The paper's Figures 1 to 4 drawn anew.

All that they show is computed: from a toy's numbers, or from the plan of a network.
"""

import textwrap
from collections.abc import Callable, Sequence
from itertools import product
from math import log2
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import nn

from experiments.paper.theory import T, convolutional_tensor
from experiments.reporting.style import COLOURS
from stridenet.elimination import plan_elimination
from stridenet.phases import FeatureMap
from stridenet.plan import LayerPlan

# Okabe and Ito's: blue is what the odd phase takes, orange what the even one does.
TAPS = {0: "white", 1: "#0072B2", 2: "#D55E00", 3: "#56B4E9", 4: "#E69F00"}
PALE = ("#FBE3D0", "#D6E8F5")  # of even and odd places of the signal
SAMPLES = {(1, 1): "#56B4E9", (1, 2): "#E69F00", (2, 1): "#009E73", (2, 2): "#CC79A7"}
BROKEN = "#B00020"
FAINT = "0.45"  # of zeros: it recedes, and has a contrast of 4.8 on white

ARROW = {"arrowstyle": "-|>", "lw": 2, "mutation_scale": 18, "color": "0.3"}
Colour = Any  # a name, or red, green and blue


class Cells(NamedTuple):
    """Describes a matrix or a column of numbers, each in a coloured cell."""

    name: str
    values: np.ndarray
    colour: Callable[[Any], Colour] = lambda value: "white"


def new_page(
    width: float, height: float, title: str, caption: str, unit: float = 0.42
) -> tuple[Figure, Axes]:
    """Return an empty page, whose coordinates are in units from its upper left corner.

    unit: its length in inches.
    """
    figure = Figure(figsize=(width * unit, height * unit))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()
    axes.text(1, 0.5, title, fontsize=14, fontweight="bold", va="top")
    lines = textwrap.fill(caption, int((width - 2) * unit * 14))
    axes.text(1, height - 0.5, lines, fontsize=10, va="bottom", color="0.25", linespacing=1.35)
    return figure, axes


def _cells(axes: Axes, left: float, top: float, cells: Cells) -> None:
    """Draw cells of one unit; their numbers are texts that bear the cells' name."""
    places = list(np.ndindex(cells.values.shape))
    colours = [mpl.colors.to_rgb(cells.colour(cells.values[place])) for place in places]
    squares = [Rectangle((left + column, top + row), 1, 1) for row, column in places]
    axes.add_collection(
        PatchCollection(squares, facecolor=colours, edgecolor="0.75", linewidth=0.6)
    )
    for (row, column), colour in zip(places, colours, strict=True):
        value = cells.values[row, column]
        x, y = left + column + 0.5, top + row + 0.5
        ink = FAINT if value == 0 else ink_on(colour)
        axes.text(x, y, str(value), ha="center", va="center", color=ink, label=cells.name)
    rows, columns = cells.values.shape
    axes.add_patch(Rectangle((left, top), columns, rows, fill=False, edgecolor="0.3", lw=1))


def _equation(axes: Axes, left: float, middle: float, terms: Sequence[Cells | str]) -> None:
    """Draw matrices and the signs between them on one line."""
    for term in terms:
        if isinstance(term, str):
            axes.text(left + 0.5, middle, term, ha="center", va="center", fontsize=15)
            left += 1
        else:
            rows, columns = term.values.shape
            _cells(axes, left + 0.2, middle - rows / 2, term)
            left += columns + 0.4


def ink_on(colour: Colour) -> str:
    """Return "black" or "white", whichever has more contrast on the colour: at least 4.5."""
    return max(("black", "white"), key=lambda ink: contrast(ink, colour))


def contrast(one: Colour, other: Colour) -> float:
    """Return the contrast of two colours as WCAG 2 defines it, from 1 to 21."""
    low, high = sorted((_luminance(one), _luminance(other)))
    return (high + 0.05) / (low + 0.05)


def _luminance(colour: Colour) -> float:
    """Return the relative luminance of an sRGB colour, from 0 (black) to 1 (white)."""
    rgb = np.array(mpl.colors.to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))


def figure_1() -> Figure:
    """Draw how a convolution of stride two in one dimension is the sum of two of stride one."""
    taps, signal = np.arange(1, 5), np.arange(1, 9)
    shifted = np.pad(taps, (0, len(signal) - len(taps)))
    matrix = np.array([np.roll(shifted, 2 * output) for output in range(3)])
    halves = {"odd": np.arange(0, 8, 2), "even": np.arange(1, 8, 2)}
    order = np.concatenate([*halves.values()])
    parts = {name: matrix[:, half] @ signal[half] for name, half in halves.items()}

    def column(name: str, values: np.ndarray) -> Cells:
        return Cells(name, values[:, None])

    def product_of(name: str, places: np.ndarray) -> list[Cells]:
        """Return the columns of the matrix at these places, and the signal there."""
        return [
            Cells(f"{name} matrix", matrix[:, places], lambda tap: TAPS[tap]),
            Cells(f"{name} signal", signal[places, None], lambda place: PALE[place % 2]),
        ]

    figure, axes = new_page(
        28,
        19.4,
        "A convolution of stride 2 is the sum of two convolutions of stride 1",
        "The filter [1, 2, 3, 4] moves over the signal [1, …, 8] by two places at a time; a colour is "
        "a tap of the filter. Sorted into odd and even places, the matrix falls into two ordinary "
        "convolutions, each with half of the filter and half of the signal: two channels instead of a "
        "stride.",
        unit=0.38,
    )
    steps = {
        (1.0, 2.0): "1   Stride 2: every row is the filter, two places further on",
        (15.0, 2.0): "2   Odd columns first, then even ones: the same sums",
        (1.0, 11.8): "3   Either half is a filter of two taps, one place further on in every row",
    }
    for (x, y), step in steps.items():
        axes.text(x, y, step, va="center", fontsize=11, fontweight="bold", color="0.25")
    _equation(axes, 0.8, 6.8, [*product_of("strided", np.arange(8)), "=",
                             column("strided result", matrix @ signal)])  # fmt: skip
    _equation(axes, 14.8, 6.8, [*product_of("sorted", order), "=",
                              column("sorted result", matrix[:, order] @ signal[order])])  # fmt: skip
    _equation(axes, 0.8, 14.6, [
        *product_of("odd", halves["odd"]), "+", *product_of("even", halves["even"]), "=",
        column("odd result", parts["odd"]), "+", column("even result", parts["even"]), "=",
        column("sum", parts["odd"] + parts["even"]),
    ])  # fmt: skip
    for x, half in zip((3.7, 10.5), halves.values(), strict=True):
        written = f"{taps[half[:2]].tolist()}  ∗  {signal[half].tolist()}"
        axes.text(x, 17.1, written, ha="center")
    return figure


def figure_2() -> Figure:
    """Draw the convolutional tensor of a 3×3 filter and a 5×5 image: what each output reads."""
    filter_ = np.arange(1, 10).reshape(3, 3)
    scale = mpl.cm.ScalarMappable(mpl.colors.Normalize(1, 9), "viridis")

    def colour(value: int) -> Colour:
        return mpl.colormaps["viridis"]((value - 1) / 8)[:3] if value else "white"

    figure, axes = new_page(
        27,
        24.6,
        "A convolution as a tensor: the filter at every place of the image",
        "Slice (i, j) of the convolutional tensor has the size of the 5×5 image. It is zero but for "
        "the filter H, which stands where output (i, j) of the convolution reads the image.",
        unit=0.36,
    )
    axes.text(2.5, 10.2, "$H$", ha="center", va="center", fontsize=13)
    _cells(axes, 1, 10.8, Cells("H", filter_, colour))
    bar = figure.colorbar(scale, axes.inset_axes((1, 15.4, 3, 0.7), transform=axes.transData),
                          orientation="horizontal", ticks=[1, 3, 5, 7, 9])  # fmt: skip
    bar.set_label("weight")
    tensor = convolutional_tensor(filter_, 5, 5)
    for i, j in product(range(3), repeat=2):
        left, top = 7.2 + 6.7 * j, 3.1 + 6.7 * i
        name = f"H({i + 1},{j + 1},:,:)"
        written = rf"$\mathcal{{H}}({i + 1},{j + 1},:,:)$"
        axes.text(left + 2.5, top - 0.6, written, ha="center", va="center", fontsize=12)
        _cells(axes, left, top, Cells(name, tensor[i, j], colour))
        axes.add_patch(Rectangle((left + j, top + i), 3, 3, fill=False, lw=2))
    return figure


def figure_3() -> Figure:
    """Draw the four samplings of a 6×6 matrix by two: each takes every second row and column."""
    row, column = np.indices((6, 6)) + 1
    matrix = 10 * row + column

    def colour(entry: int) -> Colour:
        row, column = divmod(entry, 10)
        return SAMPLES[(row - 1) % 2 + 1, (column - 1) % 2 + 1]

    figure, axes = new_page(
        20.5,
        13.7,
        "Sampling a matrix by two, in four ways",
        "Entry 35 is in row 3, column 5. Sampling (m, n) starts at row m, column n and takes every "
        "second row and column. Together the four take every entry, and none of them twice.",
        unit=0.45,
    )
    axes.text(4, 3.1, "$X$", ha="center", va="center", fontsize=14)
    _cells(axes, 1, 3.8, Cells("X", matrix, colour))
    axes.annotate("", (10.3, 6.8), (7.8, 6.8), arrowprops=ARROW)
    for m, n in SAMPLES:
        left, top = 11.5 + 4.4 * (n - 1), 3 + 4.8 * (m - 1)
        written = rf"$\mathcal{{T}}^{{(2)}}_{{{m},{n}}}(X)$"
        axes.text(left + 1.5, top - 0.7, written, ha="center", va="center", fontsize=13)
        _cells(axes, left, top, Cells(f"T({m},{n})", T(m, n, 2, matrix), colour))
    return figure


def figure_4() -> Figure:
    """Draw three layers: with a stride, with the stride eliminated in one place, and everywhere."""
    with torch.device("meta"):  # no weights are needed
        conv1, conv2 = nn.Conv2d(3, 32, 5), nn.Conv2d(32, 64, 5, stride=2)
    plan = plan_elimination(nn.Sequential(conv1, nn.ReLU(), conv2), (3, 32, 32))
    convolutions = [layer for layer in plan.layers if layer.weight_size]
    maps = [plan.input, *(layer.output for layer in convolutions)]
    figure, axes = new_page(
        29,
        26.3,
        "A stride cannot go alone: the layer before it must change too",
        "Blue: as in the original. Orange: rearranged, and with filters to match. A primed map holds "
        "the numbers of the unprimed one, every map of it cut into four of half the size. Sizes are "
        "channels × height × width; those of filters begin with channels in × channels out. The sides "
        "of a map are to scale; its sheets are drawn schematically, and are not to be counted.",
        unit=0.37,
    )
    steps = {
        "(a)  The original: Conv-2 has stride 2": (False, False),
        "(b)  Conv-2′ has stride 1, but reads Y′, which Conv-1 does not give": (False, True),
        "(c)  Conv-1′ gives Y′ and reads X′: the same outputs, and every stride is 1": (True, True),
    }
    for row, (step, twins) in enumerate(steps.items()):
        top = 2 + 7.5 * row
        axes.text(1, top, step, va="center", fontsize=12, fontweight="bold", color="0.25")
        _network(axes, top + 3.3, convolutions, maps, twins)
    return figure


def _network(
    axes: Axes,
    middle: float,
    convolutions: Sequence[LayerPlan],
    maps: Sequence[FeatureMap],
    twins: Sequence[bool],
) -> None:
    """Draw a row of maps, and between them the convolutions, each as it was or the twin's."""
    rearranged = (*twins, False)
    sizes = [
        m.unit_stride_size if twin else m.size for m, twin in zip(maps, rearranged, strict=True)
    ]
    sides = [
        _sheets(axes, 3.5 + 10.7 * place, middle, "XYZ"[place], size, twin)
        for place, (size, twin) in enumerate(zip(sizes, rearranged, strict=True))
    ]
    for place, (layer, twin) in enumerate(zip(convolutions, twins, strict=True)):
        gives = layer.output.unit_stride_size if twin else layer.output.size
        fits = gives == sizes[place + 1]
        start, end = sides[place][1] + 0.3, sides[place + 1][0] - 0.3
        style = ARROW if fits else ARROW | {"color": BROKEN, "linestyle": "--"}
        axes.annotate("", (end, middle), (start, middle), arrowprops=style,
                      label="connection" if fits else "broken connection")  # fmt: skip
        _filter(axes, (start + end) / 2, middle, f"Conv-{place + 1}", layer, twin)
        if not fits:
            axes.plot([(start + end) / 2], [middle], "x", color=BROKEN, ms=22, mew=5)
            told = f"gives {with_times(gives)},\nnot {with_times(sizes[place + 1])}"
            axes.text((start + end) / 2, middle + 1.9, told, ha="center", va="center", color=BROKEN)


def _filter(axes: Axes, x: float, middle: float, name: str, layer: LayerPlan, twin: bool) -> None:
    """Write name, filter and stride of a convolution around its arrow."""
    out_channels, in_channels, *kernel = (
        layer.unit_stride_weight_size if twin else layer.weight_size
    )
    stride = 1 if twin else layer.maps[0].stride
    size = with_times((in_channels, out_channels, *kernel))
    text = {"ha": "center", "color": _ink(twin)}
    axes.text(x, middle - 1.6, _primed(name, twin), fontweight="bold", fontsize=12, **text)
    axes.text(x, middle - 0.8, size, fontsize=11, **text)
    weight = "bold" if stride > 1 else "normal"
    axes.text(x, middle + 1, f"stride {stride}", fontsize=11, fontweight=weight, **text)


def _sheets(
    axes: Axes, x: float, middle: float, name: str, size: Sequence[int], twin: bool
) -> tuple[float, float]:
    """Draw a map as a stack of sheets, and return where it begins and ends.

    Its sides are to scale; more channels have more sheets, but not one sheet each.
    """
    height, width = size[1] / 10, size[2] / 10
    sheets = round(2 * log2(size[0]))
    shift = 0.13
    left, top = x - (width + shift * sheets) / 2, middle - (height - shift * sheets) / 2
    for sheet in reversed(range(sheets)):
        corner = (left + shift * sheet, top - shift * sheet)
        axes.add_patch(
            Rectangle(corner, width, height, facecolor=_colour(twin), edgecolor="white", lw=0.8)
        )
    label = f"{_primed(name, twin)}  {with_times(size)}"
    axes.text(x, middle + 2.8, label, ha="center", fontsize=12, color=_ink(twin))
    return left, left + width + shift * (sheets - 1)


def _colour(twin: bool) -> Colour:
    return COLOURS["unit_stride" if twin else "strided"]


def _ink(twin: bool) -> Colour:
    """Return the colour, dark enough for words on white."""
    return tuple(0.85 * part for part in mpl.colors.to_rgb(_colour(twin)))


def _primed(name: str, twin: bool) -> str:
    return f"{name}′" if twin else name


def with_times(size: Sequence[int]) -> str:
    return "×".join(map(str, size))
