"""What all figures share: colours, markers, axes."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLOURS = {  # Okabe and Ito's colours, which are safe for colour-blind readers
    "strided": "#0072B2",
    "unit_stride": "#D55E00",
    "unit_stride tied": "#56B4E9",
    "unit_stride masked": "#009E73",
    "unit_stride masked by_copies": "#CC79A7",
    "unit_stride by_copies": "#E69F00",
    "unit_stride by_effective": "#8B4513",
    "unit_stride masked fan_in=filter": "#F0E442",
    "pooling": "#000000",
}
MARKERS = dict(zip(COLOURS, "osD^vP<X*", strict=True))


def colour_of(network: str) -> str:
    return COLOURS.get(network, "0.5")


def order_of(network: str) -> tuple[int, str]:
    return [*COLOURS, network].index(network), network


def new_figure(width: float = 6.4) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.grid(axis="y", color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes
