"""A rule between phase forms of any factor, held against the plain loops of tests/reference.py."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st
from torch import Tensor, nn

from stridenet import UnitStrideNetwork, convert_layers, eliminate_stride
from stridenet.taps import TransposedTapMap
from tests import reference
from tests.arrays import integers, tensor
from tests.examples import examples

some = examples(40)


many = examples(100)


LARGEST = {1: 11, 2: 6, 3: 4}


def close(obtained: Any, expected: Any) -> bool:
    """Up to rounding, for numbers below a hundred."""
    return obtained.shape == expected.shape and np.allclose(
        obtained.detach(), expected, rtol=0, atol=1e-10
    )


def twin_of(layer: nn.Module, size: Sequence[int], factor: Sequence[int]) -> UnitStrideNetwork:
    """Give the output the phase form of this factor, as far as the layer has a phase form there."""
    return eliminate_stride(layer, size, output_factor=tuple(factor))


@st.composite
def maps_and_factors(
    draw: st.DrawFn, channels: int = 2, largest_factor: int = 4
) -> tuple[np.ndarray, tuple[int, ...], bool]:
    """An ordinary map, a factor for its axes, and whether it is shifted before the layer."""
    axes = draw(st.sampled_from([1, 2, 2, 3]))
    size = draw(st.tuples(*[st.integers(1, LARGEST[axes])] * axes))
    most = min(largest_factor, {1: 4, 2: 3, 3: 2}[axes])
    factor = draw(st.tuples(*[st.integers(1, most)] * axes))
    return integers((2, channels, *size), draw(st.integers(0, 99))), factor, draw(st.booleans())


# Transposed taps


@st.composite
def transposed_tap_maps(
    draw: st.DrawFn, largest_size: int = 12, largest_stride: int = 4
) -> tuple[TransposedTapMap, int]:
    """Any axis of a transposed convolution that has at least one output, and its output padding."""
    stride, factor = draw(st.tuples(*[st.integers(1, largest_stride)] * 2))
    dilation, kernel = draw(st.integers(1, 3)), draw(st.integers(1, 5))
    size = draw(st.integers(1, largest_size))
    output_padding = draw(st.integers(0, max(stride, dilation) - 1))
    whole = reference.transposed_length(size, kernel, stride, dilation, 0, output_padding)
    padding = draw(st.integers(0, min(4, (whole - 1) // 2)))
    return (
        TransposedTapMap(kernel, stride, dilation, padding, size, whole - 2 * padding, factor),
        output_padding,
    )


# Added to a rule's input in half of the examples, so that phantoms hold no zeros. Sums stay above zero.
SHIFT = 20


class Function(nn.Module):
    """A forward that is the given function of the map, with the layers that it may use."""

    def __init__(self, function: Callable[..., Any], *layers: nn.Module) -> None:
        super().__init__()
        self.function = function
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Any:
        return self.function(x, *self.layers)


class Shifted(nn.Module):
    """A layer on maps whose phantoms are not zero once they are rearranged."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Any:
        return self.layer(x + SHIFT)


def equal(obtained: Any, expected: Any) -> bool:
    return np.array_equal(obtained.detach(), expected)


def parts(twin: nn.Module, kind: type) -> list:
    return [module for module in twin.modules() if isinstance(module, kind)]


def check(
    layer: nn.Module,
    case: tuple[np.ndarray, tuple[int, ...], bool],
    oracle: Callable[[np.ndarray], np.ndarray],
    same: Callable[[Any, Any], bool] = equal,
    layer_by_layer: bool = False,
) -> UnitStrideNetwork:
    """The layer and its twin against the oracle; returns the twin.

    A PReLU of slope one, which changes nothing, follows: the twin has the model's type from it.
    """
    x, factor, shifted = case
    layer = nn.Sequential(layer, nn.PReLU(1, init=1))
    model = (Shifted(layer) if shifted else layer).double().eval()
    expected = oracle(x + SHIFT if shifted else x)
    assert same(model(tensor(x)), expected)
    twin = twin_of(model, x.shape[1:], factor)
    received: list[Tensor] = []
    handle = parts(twin, nn.PReLU)[-1].register_forward_pre_hook(
        lambda _, args: received.append(args[0])
    )
    assert same(twin(tensor(x)), expected)
    handle.remove()
    # Phantoms too: a structural zero times one that is infinite would be no zero.
    assert received[0].isfinite().all() or not np.isfinite(expected).all()
    if layer_by_layer:
        alone = convert_layers(model, pooling=True, check=False)
        assert same(alone(tensor(x)), expected)
    return twin
