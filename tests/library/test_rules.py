"""Rules of windows and positions, between phase forms of any factor: as plain loops do."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from stridenet import UnitStrideNetwork, depth_to_space
from stridenet.layers import RepeatPhases, WindowAverage, WindowMaximum
from stridenet.phases import FeatureMap, expand_bias, expand_filter
from stridenet.pixels import Pixels
from stridenet.plan import LayerPlan
from stridenet.taps import TapMap, phase_size
from tests import reference
from tests.library.between_phases import (
    Function,
    check,
    close,
    equal,
    integers,
    many,
    maps_and_factors,
    parts,
    some,
    tensor,
    transposed_tap_maps,
)

TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


MAXIMUM = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}


AVERAGE = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}


AVERAGE_FUNCTION = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


ADAPTIVE = {
    (1, False): nn.AdaptiveAvgPool1d,
    (2, False): nn.AdaptiveAvgPool2d,
    (3, False): nn.AdaptiveAvgPool3d,
    (1, True): nn.AdaptiveMaxPool1d,
    (2, True): nn.AdaptiveMaxPool2d,
    (3, True): nn.AdaptiveMaxPool3d,
}


@some
@given(
    st.one_of(
        st.tuples(transposed_tap_maps(9, 3)),
        st.tuples(transposed_tap_maps(4, 2), transposed_tap_maps(4, 2)),
    ),
    st.sampled_from([(1, 1), (2, 1)]),
)
def test_a_transposed_convolution_is_a_plain_one_between_phase_forms(
    axes: tuple, channels: tuple[int, int]
) -> None:
    maps = [tap_map for tap_map, _ in axes]
    inputs, outputs = channels
    x = integers((1, inputs, *(m.size for m in maps)))
    weight = integers((inputs, outputs, *(m.kernel for m in maps)), 1)
    bias = integers((outputs,), 2)
    numbers = ([getattr(m, name) for m in maps] for name in ("stride", "dilation", "padding"))
    transposed = reference.convolve_transposed(x, weight, bias, *numbers, [o for _, o in axes])
    plain = reference.convolve(
        reference.phase_form(x, [m.input_factor for m in maps]),
        expand_filter(tensor(weight).transpose(0, 1), maps).numpy(),
        expand_bias(tensor(bias), maps).numpy(),
        [1] * len(maps),
        [1] * len(maps),
        [m.twin_padding for m in maps],
    )
    factor = [m.output_factor for m in maps]
    expected = reference.phase_form(transposed, factor)
    assert plain.shape == expected.shape
    assert np.array_equal(plain * reference.phase_form(np.ones_like(transposed), factor), expected)


# Windows


@st.composite
def transposed_convolutions(draw: st.DrawFn) -> tuple:
    inputs, outputs, groups = draw(st.sampled_from([(1, 2, 1), (2, 1, 1), (2, 4, 2), (4, 2, 2)]))
    case = draw(maps_and_factors(inputs, largest_factor=3))
    size = case[0].shape[2:]
    numbers = []
    for length in size:
        kernel, stride, dilation = draw(st.tuples(*[st.integers(1, 3)] * 2, st.integers(1, 2)))
        if len(size) == 3:
            kernel, stride = min(kernel, 2), min(stride, 2)
        output_padding = draw(st.integers(0, max(stride, dilation) - 1))
        whole = reference.transposed_length(length, kernel, stride, dilation, 0, output_padding)
        padding = draw(st.integers(0, min(2, (whole - 1) // 2)))
        numbers.append((kernel, stride, padding, output_padding, dilation))
    kernel, stride, padding, output_padding, dilation = zip(*numbers, strict=True)
    layer = TRANSPOSED[len(size)](
        inputs, outputs, kernel, stride, padding, output_padding, groups, dilation=dilation,
        bias=draw(st.booleans()),
    )  # fmt: skip
    with torch.no_grad():
        for seed, parameter in enumerate(layer.parameters()):
            parameter.copy_(tensor(integers(parameter.shape, seed)))
    return layer, case


@some
@given(transposed_convolutions())
def test_a_transposed_convolution(example: tuple) -> None:
    layer, case = example
    layer.double()
    bias = None if layer.bias is None else layer.bias.detach().numpy()
    numbers = (layer.stride, layer.dilation, layer.padding, layer.output_padding, layer.groups)
    twin = check(
        layer,
        case,
        lambda x: reference.convolve_transposed(x, layer.weight.detach().numpy(), bias, *numbers),
        layer_by_layer=True,
    )
    assert not parts(twin, TRANSPOSED[len(layer.stride)]) or not layer_in(twin).maps


@st.composite
def windows(draw: st.DrawFn, dilated: bool, channels: int = 2) -> tuple:
    """A map, and windows of pooling that fit on it: kernel, stride, dilation, padding, out, ceil."""
    case = draw(maps_and_factors(channels, largest_factor=3))
    ceil = draw(st.booleans())
    numbers = []
    for length in case[0].shape[2:]:
        dilation = draw(st.integers(1, 2 if dilated else 1))
        padding = draw(st.integers(0, 2))
        kernel = draw(st.integers(1, 4))
        padding = min(padding, kernel // 2)
        # AvgPool3d wants kernels that fit on the map without padding.
        whole = case[0].ndim == 5 and not dilated
        while dilation * (kernel - 1) + 1 > length + (0 if whole else 2 * padding):
            kernel -= 1
            padding = min(padding, kernel // 2)
        stride = draw(st.integers(1, 3))
        out = reference.pooled_length(length, kernel, stride, dilation, padding, ceil)
        numbers.append((kernel, stride, dilation, padding, out))
    return case, *zip(*numbers, strict=True), ceil


def layer_in(twin: UnitStrideNetwork) -> LayerPlan:
    """The layer that is tested, before the PReLU."""
    return twin.plan.layers[-2]


def check_tied(twin: UnitStrideNetwork, stride: Sequence[int], factor: Sequence[int]) -> None:
    """The maps around the last layer are as wide as was asked for."""
    layer = layer_in(twin)
    for axis, length in enumerate(layer.output.spatial):
        assert length == 1 or layer.output.factor[axis] == factor[axis]
        assert layer.input.factor[axis] % factor[axis] == 0
        assert length == 1 or layer.input.factor[axis] == factor[axis] * stride[axis]


@some
@given(windows(dilated=True))
def test_max_pooling(example: tuple) -> None:
    case, kernel, stride, dilation, padding, out, ceil = example
    layer = MAXIMUM[len(kernel)](kernel, stride, padding, dilation, ceil_mode=ceil)
    numbers = (kernel, stride, dilation, padding, out)
    twin = check(layer, case, lambda x: reference.maximum(x, *numbers), layer_by_layer=True)
    check_tied(twin, stride, case[1])
    if math.prod(layer_in(twin).output.factor) > 1:
        assert parts(twin, WindowMaximum)


@some
@given(windows(dilated=False), st.booleans(), st.sampled_from([None, None, 3]), st.booleans())
def test_average_pooling(
    example: tuple, include_padding: bool, divisor: int | None, as_function: bool
) -> None:
    case, kernel, stride, _, padding, out, ceil = example
    axes = len(kernel)
    divisor = None if axes == 1 else divisor  # AvgPool1d has none
    extra = () if axes == 1 else (divisor,)
    arguments = (kernel, stride, padding, ceil, include_padding, *extra)
    layer: nn.Module = AVERAGE[axes](*arguments)
    if as_function:
        layer = Function(lambda x: AVERAGE_FUNCTION[axes](x, *arguments))
    numbers = (kernel, stride, padding, out, include_padding, divisor)
    twin = check(layer, case, lambda x: reference.average(x, *numbers), close, layer_by_layer=True)
    check_tied(twin, stride, case[1])
    if math.prod(layer_in(twin).output.factor) > 1:
        assert parts(twin, WindowAverage)


@some
@given(maps_and_factors(), st.booleans(), st.data())
def test_adaptive_pooling_to_a_divisor_of_the_size(
    case: tuple, largest: bool, data: st.DataObject
) -> None:
    size = case[0].shape[2:]
    out = tuple(
        data.draw(st.sampled_from([m for m in range(1, n + 1) if n % m == 0])) for n in size
    )
    layer = ADAPTIVE[len(size), largest](out if len(out) > 1 else out[0])
    twin = check(
        layer, case, lambda x: reference.adaptive(x, out, largest), close, layer_by_layer=True
    )
    check_tied(twin, [n // m for n, m in zip(size, out, strict=True)], case[1])


@some
@given(maps_and_factors(largest_factor=3), st.booleans(), st.booleans(), st.data())
def test_nearest_upsampling(case: tuple, exact: bool, by_size: bool, data: st.DataObject) -> None:
    size = case[0].shape[2:]
    scale = tuple(data.draw(st.integers(1, 3 if len(size) < 3 else 2)) for _ in size)
    to = [n * r for n, r in zip(size, scale, strict=True)] if by_size else None
    layer = nn.Upsample(to, None if by_size else scale, "nearest-exact" if exact else "nearest")
    twin = check(layer, case, lambda x: reference.upsample(x, scale))
    layer_plan = layer_in(twin)
    assert layer_plan.input.factor == case[1]
    assert layer_plan.output.factor == tuple(f * r for f, r in zip(case[1], scale, strict=True))
    if max(layer_plan.output.factor) > 1:
        assert parts(twin, RepeatPhases)


@some
@given(maps_and_factors(), st.sampled_from([0, 5, -2]), st.booleans(), st.data())
def test_constant_padding(case: tuple, value: int, channels: bool, data: st.DataObject) -> None:
    x = case[0]
    pairs = [(0, 0)]
    if channels:
        pairs = [data.draw(st.tuples(*[st.integers(-1, 2)] * 2).filter(lambda p: sum(p) > -2))]
    for length in x.shape[2:]:
        fits = st.tuples(*[st.integers(-2, 3)] * 2).filter(lambda p, n=length: sum(p) + n > 0)
        pairs.append((0, 0) if channels else data.draw(fits))
    fits_torch = [-min(low, 0) - min(high, 0) for low, high in pairs]
    if any(cut >= n for cut, n in zip(fits_torch, x.shape[1:], strict=True)):
        return  # torch crops before it pads, and nothing would be left
    flat = [number for pair in reversed(pairs) for number in pair]
    layer = Function(lambda x: F.pad(x, flat, value=value))
    check(layer, case, lambda x: reference.pad(x, pairs, value))


@some
@given(maps_and_factors(), st.data())
def test_slices_of_positions_with_steps(case: tuple, data: st.DataObject) -> None:
    size = case[0].shape[2:]
    slices = []
    for n in size:
        start = data.draw(st.one_of(st.none(), st.integers(-n, n - 1)))
        first = range(n)[slice(start, None)][0]
        stop = data.draw(st.sampled_from([None, first + 1, n, n + 3]))
        slices.append(slice(start, stop, data.draw(st.sampled_from([None, 1, 2, 3]))))
    index = (Ellipsis, *slices) if data.draw(st.booleans()) else (slice(None), slice(None), *slices)
    spans = [range(n)[part] for n, part in zip(size, slices, strict=True)]
    check(Function(lambda x: x[index]), case, lambda x: reference.positions(x, spans))


@some
@given(maps_and_factors(channels=5), st.data())
def test_slices_of_channels(case: tuple, data: st.DataObject) -> None:
    start, stop = data.draw(st.sampled_from([(0, 2), (None, -1), (-3, None), (1, 5)]))
    channels = slice(start, stop, data.draw(st.sampled_from([None, 2])))
    check(Function(lambda x: x[:, channels]), case, lambda x: x[:, range(5)[channels]])


@pytest.mark.parametrize("channel", [0, 1, 2])
@many
@given(maps_and_factors(channels=3))
def test_pixels_are_the_real_positions_in_some_order(channel: int, case: tuple) -> None:
    x, factor, _ = case
    channel = min(channel, len(factor))
    maps = tensor(np.moveaxis(x, 1, 1 + channel))
    feature_map = FeatureMap(tuple(maps.shape[1:]), factor, channel)
    pixels = Pixels(feature_map, torch.device("cpu"))
    phases = feature_map.to_phases(maps)
    poisoned = feature_map.to_phases(maps)
    poisoned[feature_map.to_phases(torch.ones_like(maps)) == 0] = math.nan
    gathered = pixels.gather(poisoned)
    assert gathered.shape == (2, 3, math.prod(x.shape[2:]))
    assert torch.equal(gathered.sort(-1).values, tensor(x).flatten(2).sort(-1).values)
    assert torch.equal(pixels.scatter(gathered), phases)  # zeros in the phantoms
    twice = gathered.repeat_interleave(2, 1)  # another number of channels
    assert torch.equal(
        FeatureMap((6, *x.shape[2:]), factor).to_maps(
            pixels.scatter(twice).movedim(1 + channel, 1)
        ),
        tensor(x).repeat_interleave(2, 1),
    )


# Windows by themselves


@many
@given(
    st.integers(1, 4), st.integers(1, 3), st.integers(1, 2), st.tuples(*[st.integers(0, 2)] * 2),
    st.integers(1, 12), st.integers(1, 3),
)  # fmt: skip
def test_the_largest_number_under_each_tap(
    kernel: int, stride: int, dilation: int, padding: tuple, size: int, factor: int
) -> None:
    """Outside the map is what the maximum is filled with; phantoms that are read are filled too."""
    tap_map = TapMap(kernel, stride, dilation, padding, size, factor)
    if tap_map.output_size < 1:
        return
    x, fill = integers((1, 2, size)), -100
    input_factor = [tap_map.input_factor]
    real = reference.phase_form(np.ones(x.shape), input_factor)
    phases = np.where(real, reference.phase_form(x, input_factor), fill)
    found = WindowMaximum([tap_map], fill)(tensor(phases))
    expected = reference.maximum(
        np.pad(x, ((0, 0), (0, 0), padding), constant_values=fill),
        [kernel], [stride], [dilation], [0], [tap_map.output_size],
    )  # fmt: skip
    assert found.shape[2:] == phase_size([tap_map.output_size], [factor])
    assert equal(depth_to_space(found, [factor], [tap_map.output_size]), expected)
