"""Settings of the explorer, and what the library says of them."""

from itertools import product
from typing import Any, NamedTuple

import numpy as np

from stridenet.taps import TapMap, phase_size

LARGEST = 9216  # places of a filter that the explorer draws


class Layer(NamedTuple):
    kernel: int
    stride: int
    dilation: int
    padding: int


class Settings(NamedTuple):
    axes: int
    size: int
    later: int
    first: Layer
    second: Layer

    def as_json(self) -> dict[str, Any]:
        """The settings as Explorer.compute takes them."""
        layers = [self.first._asdict(), self.second._asdict()]
        return {
            "axes": self.axes, "size": self.size, "later": self.later,
            "channels": [3, 5, 7], "layers": layers,
        }  # fmt: skip

    def tap_maps(self) -> list[TapMap]:
        """One axis of either layer; of the second alone sizes below one are possible."""
        (k, s, d, p), (kernel, stride, dilation, padding) = self.first, self.second
        one = TapMap(k, s, d, (p, p), self.size, stride * self.later)
        pads = (padding, padding)
        return [one, TapMap(kernel, stride, dilation, pads, one.output_size, self.later)]

    def wrong_field(self) -> str | None:
        """Which field has to say that it is wrong."""
        for number, taps in enumerate(self.tap_maps(), 1):
            places = taps.output_factor * taps.input_factor * taps.twin_kernel
            if taps.output_size < 1:
                return f"kernel{number}"
            if places**self.axes > LARGEST:
                return f"stride{number}"
        return None


def systematic() -> list[Settings]:
    """Every small first layer before some second ones, on maps that are divided and that are not."""
    firsts = [Layer(*each) for each in product((1, 2, 3, 5), (1, 2, 3), (1, 2), (0, 1, 2))]
    seconds = [Layer(*each) for each in product((1, 2, 3), (1, 2), (1,), (0, 1))]
    pairs = enumerate(product(firsts, seconds))
    return [Settings(1 + n % 2, 9 + n % 4, 1 + n // 2 % 2, *pair) for n, pair in pairs]


def random(number: int) -> list[Settings]:
    draw = np.random.default_rng(18).integers

    def layer() -> Layer:
        return Layer(*(int(draw(low, high)) for low, high in ((1, 7), (1, 4), (1, 4), (0, 5))))

    return [
        Settings(int(draw(1, 3)), int(draw(3, 25)), int(draw(1, 4)), layer(), layer())
        for _ in range(number)
    ]


def map_sizes(settings: Settings) -> dict[str, list[list[int]]]:
    """Channels and sizes of the three maps in both networks."""
    one, two = settings.tap_maps()
    maps = [(one.size, one.input_factor), (two.size, two.input_factor)]
    maps.append((two.output_size, two.output_factor))
    axes = settings.axes
    strided = [[c, *[n] * axes] for c, (n, _) in zip((3, 5, 7), maps, strict=True)]
    twin = [
        [c * f**axes, *phase_size([n] * axes, [f] * axes)]
        for c, (n, f) in zip((3, 5, 7), maps, strict=True)
    ]
    return {"strided": strided, "twin": twin}
