"""Table 2: the networks' layers and the sizes of their feature maps, and their figure."""

import math

import matplotlib as mpl
import pandas as pd
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from experiments.reporting.formats import NETWORKS, PRINTED
from experiments.reporting.published import PAPER
from experiments.reporting.section import Section
from experiments.reporting.style import COLOURS
from stridenet.phases import FeatureMap
from stridenet.plan import EliminationPlan, LayerPlan
from stridenet.sizes import format_size
from stridenet.taps import phase_size


def table2(plan: EliminationPlan, pooling: EliminationPlan | None = None) -> pd.DataFrame:
    """Return the input and every feature map of the networks, as channels x height x width."""
    columns = ["network", "input", *(layer.name for layer in layers_of_table(plan)[:-1])]
    plans = dict.fromkeys(NETWORKS, plan) | ({"pooling": pooling} if pooling else {})
    return pd.DataFrame([[name, *maps_of(of, name)] for name, of in plans.items()], columns=columns)


def is_the_papers(plan: EliminationPlan, data: str) -> bool:
    """Tell whether these are the paper's networks on its data, so that its numbers compare."""
    return data == "mnist" and [" ".join(maps_of(plan, name)) for name in NETWORKS] == [*PAPER.maps]


def layers_of_table(plan: EliminationPlan) -> list[LayerPlan]:
    return [layer for layer in plan.layers if layer.weight_size or layer.operation == "MaxPool2d"]


def maps_of(plan: EliminationPlan, network: str) -> list[str]:
    """Return the input and the result of each layer but the last, whose result is the scores."""
    strided = network != "unit_stride"
    first = plan.input_size if strided else plan.input.unit_stride_size
    outputs = [layer.output for layer in layers_of_table(plan)[:-1]]
    return [
        format_size(first),
        *(format_size(o.size if strided else o.unit_stride_size) for o in outputs),
    ]


def layers_text(plan: EliminationPlan, network: str) -> str:
    """Return the layers as the paper writes them: "5x5 conv 20, 2x2 conv 20 stride 2, …"."""
    return ", ".join(_layer(layer, network != "unit_stride") for layer in layers_of_table(plan))


def _layer(layer: LayerPlan, strided: bool) -> str:
    if not layer.weight_size:
        kernel, stride = ([getattr(m, key) for m in layer.maps] for key in ("kernel", "stride"))
        same = len({*stride}) == 1
        return f"{format_size(kernel)} max pooling stride {format_size(stride[:1] if same else stride)}"
    out_channels, _, *kernel = layer.weight_size if strided else layer.unit_stride_weight_size
    if not layer.maps:
        return f"fc {out_channels}"
    options = {"groups": [layer.input.size[0] // layer.weight_size[1]]}
    if strided:
        options |= {
            "stride": [tap_map.stride for tap_map in layer.maps],
            "dilation": [tap_map.dilation for tap_map in layer.maps],
        }
    named = [
        f" {name} {format_size(sizes if len(set(sizes)) > 1 else sizes[:1])}"
        for name, sizes in options.items()
        if set(sizes) != {1}
    ]
    return f"{format_size(kernel)} conv {out_channels}{''.join(named)}"


def table2_section(plan: EliminationPlan, pooling: EliminationPlan | None) -> Section:
    table = table2(plan, pooling)
    caption = "Feature maps, channels x height x width."
    return Section("table2", "Table 2", caption, "", table, table)


GAP = 0.1  # between channels and between phases, over the size of one


def feature_maps(plan: EliminationPlan) -> Figure:
    """Draw every map of both networks, each channel a rectangle, all to one scale.

    A channel's phases stand where the channel stands in the strided network: the twin computes the
    same maps, cut up. The single values of a vector would be too small to see, and are one area.
    """
    layers = [layer for layer in plan.layers if layer.weight_size][:-1]
    maps = {"input": plan.input, **{layer.name: layer.output for layer in layers}}
    tiles = {name: _channels(feature_map, strided=False) for name, feature_map in maps.items()}
    height = max(tile.get_y() + tile.get_height() for row in tiles.values() for tile in row)
    widths = [max(tile.get_x() + tile.get_width() for tile in row) for row in tiles.values()]
    room = max(sum(widths) / 9, 1)  # for a label

    figure = Figure(figsize=(10, 6), layout="constrained")
    grid = figure.subplots(2, 1, sharex=True, sharey=True)
    for axes, network in zip(grid, NETWORKS, strict=True):
        left = 0.0
        for (name, feature_map), width in zip(maps.items(), widths, strict=True):
            strided = network == "strided"
            size = feature_map.size if strided else feature_map.unit_stride_size
            middle = left + max(width, room) / 2
            shift = mpl.transforms.Affine2D().translate(middle - width / 2, 0) + axes.transData
            patches = PatchCollection(_channels(feature_map, strided), facecolor=COLOURS[network])
            patches.set(transform=shift, linewidth=0)
            axes.add_collection(patches)
            label = f"{name}\n{format_size(size)}"
            axes.text(middle, -height / 30, label, ha="center", va="bottom", fontsize=10)
            left += max(width, room) + room / 4
        axes.set(xlim=(0, left), ylim=(height, -height / 5), aspect="equal", xticks=[], yticks=[])
        axes.set_title(PRINTED[network], loc="left", fontsize=11, fontweight="bold")
        axes.spines[:].set_visible(False)
    vectors = " and ".join(name for name, each in maps.items() if len(each.size) == 1)
    title = "Feature maps to scale: equal areas hold equally many values"
    if vectors:
        title += f"\n(all values of {vectors} are one area: single ones would be too small to see)"
    figure.suptitle(title, fontsize=12)
    return figure


def _channels(feature_map: FeatureMap, strided: bool) -> list[Rectangle]:
    """Return a rectangle for each channel of a strided map, or for each phase of each channel.

    The phases of a channel stand where the channel stands in the strided network. A map without
    height and width is one area: lines between single values would make a moiré.
    """
    channels, *size = feature_map.size
    if not size:
        return _area(channels)
    height, width = size
    f_h, f_w = (1, 1) if strided else feature_map.factor
    # The maps have phantoms where sizes are ragged.
    block_h, block_w = phase_size((height, width), (f_h, f_w))
    columns = math.ceil(math.sqrt(channels))
    return [
        Rectangle(
            (
                channel % columns * f_w * block_w * (1 + GAP) + q * block_w,
                channel // columns * f_h * block_h * (1 + GAP) + p * block_h,
            ),
            block_w * (1 - GAP),
            block_h * (1 - GAP),
        )
        for channel in range(channels)
        for p in range(f_h)
        for q in range(f_w)
    ]


def _area(values: int) -> list[Rectangle]:
    """Return a nearly square area for so many values: its whole rows, and what is in the last one."""
    columns = math.ceil(math.sqrt(values))
    rows, rest = divmod(values, columns)
    side = 1 - GAP  # of a value, as in the other maps
    whole = Rectangle((0, 0), columns * side, rows * side)
    return [whole, Rectangle((0, rows * side), rest * side, side)] if rest else [whole]
