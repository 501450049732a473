"""Each rule by itself: between phase forms of any factor, the twin computes what plain loops do.

The oracle is tests/reference.py, on ordinary maps. Where a layer only adds, multiplies and compares,
its entries are small integers and equality is exact.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from stridenet import UnitStrideNetwork, convert_layers, depth_to_space, eliminate_stride
from stridenet.layers import Broadcast, PhantomMask, RepeatPhases, WindowAverage, WindowMaximum
from stridenet.phases import FeatureMap, expand_bias, expand_filter
from stridenet.pixels import OverPixels, PhaseBatchNorm, Pixels, SharedBatchNorm
from stridenet.plan import LayerPlan
from stridenet.taps import TapMap, TransposedTapMap, phase_size
from tests import reference
from tests.examples import examples

some = examples(40)
many = examples(100)
# Added to a rule's input in half of the examples, so that phantoms hold no zeros. Sums stay above zero.
SHIFT = 20
LARGEST = {1: 11, 2: 6, 3: 4}
CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
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
BATCH_NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


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


def integers(shape: Sequence[int], seed: int = 0) -> np.ndarray:
    """Entries from −9 to 9, without 0."""
    random = np.random.default_rng(seed)
    return random.integers(1, 10, shape) * random.choice([-1, 1], shape)


def tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.asarray(array)).double()


def equal(obtained: Any, expected: Any) -> bool:
    return np.array_equal(obtained.detach(), expected)


def close(obtained: Any, expected: Any) -> bool:
    """Up to rounding, for numbers below a hundred."""
    return obtained.shape == expected.shape and np.allclose(
        obtained.detach(), expected, rtol=0, atol=1e-10
    )


def twin_of(layer: nn.Module, size: Sequence[int], factor: Sequence[int]) -> UnitStrideNetwork:
    """With the output in phase form of this factor, as far as the layer has a phase form there."""
    return eliminate_stride(layer, size, output_factor=tuple(factor))


def parts(twin: nn.Module, kind: type) -> list:
    return [module for module in twin.modules() if isinstance(module, kind)]


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


@many
@given(transposed_tap_maps())
def test_transposed_taps_are_where_a_transposed_convolution_writes(case: tuple) -> None:
    """Phase q of the twin's output j is strided output j·S + q, tap a on block j − before + a."""
    tap_map, _ = case
    outputs, phases = tap_map.output_factor, tap_map.input_factor
    before, _ = tap_map.twin_padding
    assert outputs == phases * tap_map.stride
    assert tap_map.taps.shape == (outputs, phases, tap_map.twin_kernel)
    for j, (q, p, a) in itertools.product((0, 1, 5), np.ndindex(tap_map.taps.shape)):
        position = (j - before + a) * phases + p
        behind = [
            k
            for k in range(tap_map.kernel)
            if tap_map.stride * position + tap_map.dilation * k - tap_map.padding == j * outputs + q
        ]
        assert [tap_map.taps[q, p, a]] == (behind or [-1])


@many
@given(transposed_tap_maps())
def test_every_input_phase_writes_with_each_tap_exactly_once(case: tuple) -> None:
    tap_map, _ = case
    for p in range(tap_map.input_factor):
        column = tap_map.taps[:, p]
        assert sorted(column[column >= 0]) == list(range(tap_map.kernel))
    assert (tap_map.taps[:, :, 0] >= 0).any()  # as small as can be
    assert (tap_map.taps[:, :, -1] >= 0).any()


@many
@given(transposed_tap_maps())
def test_the_twin_of_a_transposed_convolution_has_all_outputs(case: tuple) -> None:
    tap_map, output_padding = case
    geometry = (tap_map.stride, tap_map.dilation, tap_map.padding, output_padding)
    length = reference.transposed_length(tap_map.size, tap_map.kernel, *geometry)
    blocks = math.ceil(tap_map.size / tap_map.input_factor) + sum(tap_map.twin_padding)
    assert blocks - tap_map.twin_kernel + 1 == math.ceil(length / tap_map.output_factor)


@many
@given(transposed_tap_maps())
def test_a_transposed_twin_reads_phantoms_where_a_real_output_depends_on_one(case: tuple) -> None:
    """Maps that are zero but for ones in the phantoms, filters of ones: what comes out was read."""
    tap_map, _ = case
    phantoms = 1 - reference.phase_form(np.ones((1, 1, tap_map.size), int), [tap_map.input_factor])
    filter_ = expand_filter(torch.ones(1, 1, tap_map.kernel), [tap_map]).numpy()
    maps = reference.convolve(phantoms, filter_, None, [1], [1], [tap_map.twin_padding])
    outputs = depth_to_space(torch.from_numpy(maps), [tap_map.output_factor], [tap_map.output_size])
    assert tap_map.reads_phantoms == bool(outputs.any())


@pytest.mark.parametrize(
    ("tap_map", "taps"),
    [
        pytest.param(TransposedTapMap(2, 2, 1, 0, 5, 10, 1), [[[0]], [[1]]], id="side by side"),
        pytest.param(
            TransposedTapMap(3, 2, 1, 0, 5, 11, 1), [[[2, 0]], [[-1, 1]]], id="overlapping"
        ),
        pytest.param(
            TransposedTapMap(3, 2, 1, 1, 5, 9, 1), [[[1, -1]], [[2, 0]]], id="with padding"
        ),
        pytest.param(
            TransposedTapMap(2, 3, 1, 0, 5, 14, 1), [[[0]], [[1]], [[-1]]], id="with gaps"
        ),
    ],
)
def test_taps_of_small_transposed_convolutions(tap_map: TransposedTapMap, taps: list) -> None:
    assert tap_map.taps.tolist() == taps


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


# Positions in any order


@some
@given(maps_and_factors(channels=6), st.sampled_from([1, 2, 3, 6]))
def test_channel_shuffle(case: tuple, groups: int) -> None:
    twin = check(nn.ChannelShuffle(groups), case, lambda x: reference.shuffle_channels(x, groups))
    assert bool(parts(twin, OverPixels)) == (math.prod(case[1]) > 1)


def group_norm(x: np.ndarray, groups: int) -> np.ndarray:
    """Each group of channels of each image, as one channel of one image."""
    together = x.reshape(1, len(x) * groups, -1)
    mean, variance, _ = reference.statistics(together)
    return reference.normalise(together, mean, variance, 1e-5).reshape(x.shape)


def mean_of_channels(x: np.ndarray) -> np.ndarray:
    return reference.statistics(x.reshape(1, x.shape[0] * x.shape[1], -1))[0].reshape(x.shape[:2])


ANY_ORDER: dict[str, tuple[Callable, Callable]] = {
    "GroupNorm": (lambda axes: nn.GroupNorm(2, 4), lambda x: group_norm(x, 2)),
    "InstanceNorm": (
        lambda axes: {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}[axes](4),
        lambda x: group_norm(x, 4),
    ),
    "softmax over channels": (
        lambda axes: nn.Softmax(1),
        lambda x: np.exp(x - x.max()) / np.exp(x - x.max()).sum(1, keepdims=True),
    ),
    "global mean": (lambda axes: Function(lambda x: x.mean(spatial(axes))), mean_of_channels),
    "global mean that keeps axes": (
        lambda axes: Function(lambda x: torch.mean(x, spatial(axes), keepdim=True)),
        lambda x: mean_of_channels(x).reshape(*x.shape[:2], *[1] * (x.ndim - 2)),
    ),
    "global maximum": (
        lambda axes: Function(lambda x: x.amax(spatial(axes))),
        lambda x: x.reshape(*x.shape[:2], -1).max(2),
    ),
    "mean of all channels and positions": (
        lambda axes: Function(lambda x: x.mean((1, *spatial(axes)))),
        lambda x: mean_of_channels(x).mean(1),
    ),
    "mean over channels": (
        lambda axes: Function(lambda x: x.mean(1, keepdim=True)),
        lambda x: x.mean(1, keepdims=True),
    ),
}


def spatial(axes: int) -> tuple[int, ...]:
    return tuple(range(2, 2 + axes))


@pytest.mark.parametrize("name", ANY_ORDER)
@examples(20)
@given(maps_and_factors(channels=4))
def test_what_treats_all_positions_alike(name: str, case: tuple) -> None:
    layer, oracle = ANY_ORDER[name]
    if math.prod(case[0].shape[2:]) == 1:
        return  # torch refuses to normalise a single number
    check(layer(case[0].ndim - 2), case, oracle, close)


@some
@given(maps_and_factors(channels=3))
def test_layers_of_channels_last(case: tuple) -> None:
    axes = case[0].ndim - 2
    last, first = (0, *spatial(axes), 1), (0, axes + 1, *range(1, axes + 1))
    linear = nn.Linear(3, 4)
    weight, bias = integers((4, 3)), integers((4,), 1)
    with torch.no_grad():
        linear.weight.copy_(tensor(weight))
        linear.bias.copy_(tensor(bias))
    check(
        Function(lambda x, layer: layer(x.permute(last)).permute(*first), linear),
        case,
        lambda x: (x.transpose(last) @ weight.T + bias).transpose(first),
    )

    def normalised(x: np.ndarray) -> np.ndarray:
        rows = x.transpose(last)
        numbers = rows.reshape(1, -1, 3)
        mean, variance, _ = reference.statistics(numbers)
        return reference.normalise(numbers, mean, variance, 1e-5).reshape(rows.shape)

    check(
        Function(lambda x, layer: layer(x.permute(last)), nn.LayerNorm(3)), case, normalised, close
    )


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


@many
@given(maps_and_factors(channels=3), st.sampled_from([0, 1, -math.inf]))
def test_a_mask_fills_phantoms_and_nothing_else(case: tuple, fill: float) -> None:
    x, factor, _ = case
    feature_map = FeatureMap(x.shape[1:], factor)
    real = reference.phase_form(np.ones(x.shape), factor)
    garbage = np.where(real, reference.phase_form(x, factor), math.nan)
    mask = PhantomMask(feature_map, torch.device("cpu"), fill)
    assert equal(mask(tensor(garbage)), np.where(real, reference.phase_form(x, factor), fill))


# Several maps


OPERATIONS: dict[str, tuple[Callable, Callable]] = {
    "gate": (lambda x, corner: x * corner(x), lambda x, corner: x * corner(x)),
    "gate first": (lambda x, corner: corner(x) - x, lambda x, corner: corner(x) - x),
    "one channel for all": (lambda x, corner: x[:, :1] * x, lambda x, corner: x[:, :1] * x),
    "quotient": (lambda x, corner: x / x[:, 1:2], lambda x, corner: x / x[:, 1:2]),
    "quotient by a gate": (lambda x, corner: x / corner(x), lambda x, corner: x / corner(x)),
    "itself": (lambda x, corner: torch.div(x, x), lambda x, corner: x / x),
    "maximum": (
        lambda x, corner: torch.maximum(x, corner(x)),
        lambda x, corner: np.maximum(x, corner(x)),
    ),
    "number": (lambda x, corner: 3 - x, lambda x, corner: 3 - x),
    "number's quotient": (lambda x, corner: 3 / x, lambda x, corner: 3 / x),
    "logarithm": (lambda x, corner: torch.log(x.abs()), lambda x, corner: np.log(abs(x))),
}


@pytest.mark.parametrize("name", OPERATIONS)
@examples(20)
@given(maps_and_factors(channels=3))
def test_arithmetic_with_broadcasting(name: str, case: tuple) -> None:
    corner = (slice(None), slice(None), *[slice(0, 1)] * (case[0].ndim - 2))
    operation, oracle = OPERATIONS[name]
    twin = check(
        Function(lambda x: operation(x, lambda x: x[corner])),
        case,
        lambda x: oracle(x, lambda x: x[corner]),
        close if name in ("logarithm", "number's quotient") else equal,
    )
    if name.startswith(("gate", "one", "quotient")):
        assert parts(twin, Broadcast) or 1 in (math.prod(case[1]), math.prod(case[0].shape[2:]))


class WithParameters(nn.Module):
    """A number for each channel: those of the model broadcast over positions."""

    def __init__(self, axes: int) -> None:
        super().__init__()
        shape = (3, *[1] * axes)
        self.scale = nn.Parameter(tensor(integers(shape)))
        self.register_buffer("shift", tensor(integers((1, *shape), 1)))
        self.register_buffer("number", torch.tensor(7.0, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return (self.shift - x * self.scale) + self.number


@some
@given(maps_and_factors(channels=3))
def test_the_model_s_own_tensors_broadcast(case: tuple) -> None:
    layer = WithParameters(case[0].ndim - 2)
    scale, shift = layer.scale.detach().numpy(), layer.shift.numpy()
    check(layer, case, lambda x: shift - x * scale + 7)


@some
@given(maps_and_factors(channels=4))
def test_channels_side_by_side_and_in_parts(case: tuple) -> None:
    def forward(x: Tensor) -> Tensor:
        a, b = torch.split(x, [1, 3], 1)
        c, d = b.chunk(2, dim=1)
        return torch.cat((d, a, x, c), dim=1)

    order = [3, 0, 0, 1, 2, 3, 1, 2]
    check(Function(forward), case, lambda x: x[:, order])


@some
@given(maps_and_factors(channels=3))
def test_a_map_is_flattened_in_its_own_order(case: tuple) -> None:
    check(nn.Flatten(), case, lambda x: x.reshape(len(x), -1))


@some
@given(maps_and_factors(channels=3), st.booleans())
def test_a_slope_for_each_channel(case: tuple, one: bool) -> None:
    layer = nn.PReLU(1 if one else 3)
    slopes = integers((1 if one else 3,))
    with torch.no_grad():
        layer.weight.copy_(tensor(slopes))
    by_channel = slopes.reshape(1, -1, *[1] * (case[0].ndim - 2))
    check(layer, case, lambda x: np.where(x > 0, x, x * by_channel))


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


# Batch normalisation


@st.composite
def batch_norms(draw: st.DrawFn) -> tuple:
    case = draw(maps_and_factors(channels=3))
    options = {
        "momentum": draw(st.sampled_from([0.1, 0.7, None])),
        "affine": draw(st.booleans()),
        "track_running_stats": draw(st.sampled_from([True, True, False])),
        "eps": 1e-3,
    }
    layer = BATCH_NORMS[case[0].ndim - 2](3, **options).double()
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(generator=generator)
        for name, buffer in layer.named_buffers():
            if name.endswith("mean"):
                buffer.normal_(generator=generator)
            elif name.endswith("var"):
                buffer.uniform_(0.5, 2, generator=generator)
    return layer, case


def weigh(result: Tensor) -> Tensor:
    """One number that depends on each of the result's."""
    return (result * torch.arange(1.0, result.numel() + 1).view(result.shape).cos()).sum()


@some
@given(batch_norms())
def test_batch_normalisation_with_the_statistics_of_all_phases(example: tuple) -> None:
    layer, case = example
    model = nn.Sequential(layer).train()
    twin = twin_of(model, case[0].shape[1:], case[1]).train()
    own = twin.network.get_submodule("0")
    assert isinstance(own, SharedBatchNorm) or math.prod(case[1]) == 1
    for seed in (1, 2):  # the second step tells what momentum=None has counted
        x = integers(case[0].shape, seed)
        mean, variance, count = reference.statistics(x)
        old = {name: buffer.clone() for name, buffer in layer.named_buffers()}
        results, gradients = [], []
        for network in (model, twin):
            given = tensor(x).requires_grad_()
            network.zero_grad()
            results.append(network(given))
            weigh(results[-1]).backward()
            gradients.append([given.grad, *(p.grad for p in network.parameters())])
        shape = (1, 3, *[1] * len(case[1]))
        expected = tensor(reference.normalise(x, mean, variance, layer.eps))
        if layer.affine:
            expected = expected * layer.weight.view(shape) + layer.bias.view(shape)
        assert close(results[0], expected.detach())
        assert close(results[1], expected.detach())
        assert len(gradients[0]) == len(gradients[1]) == (3 if layer.affine else 1)
        for strided, unit_stride in zip(*gradients, strict=True):
            torch.testing.assert_close(unit_stride, strided, rtol=1e-9, atol=1e-9)
        assert dict(own.named_buffers(recurse=False)).keys() == old.keys()
        if layer.track_running_stats:
            step = 1 / seed if layer.momentum is None else layer.momentum
            followed = {
                "running_mean": mean,
                "running_var": variance * count / (count - 1),
            }
            assert own.num_batches_tracked == layer.num_batches_tracked == seed
            for name, value in followed.items():
                new = (1 - step) * old[name] + step * tensor(value)
                torch.testing.assert_close(own.get_buffer(name), new, rtol=1e-10, atol=1e-10)
                torch.testing.assert_close(layer.get_buffer(name), new, rtol=1e-10, atol=1e-10)
    assert close(twin.eval()(tensor(x)), model.eval()(tensor(x)).detach())


def phases_of(size: Sequence[int], factor: Sequence[int]) -> dict[tuple, tuple]:
    """The index of each phase of a map that has a position at all."""
    starts = itertools.product(*(range(min(f, n)) for f, n in zip(factor, size, strict=True)))
    return {
        phase: (..., *(slice(p, None, f) for p, f in zip(phase, factor, strict=True)))
        for phase in starts
    }


@some
@given(batch_norms())
def test_batch_normalisation_of_each_phase_by_itself(example: tuple) -> None:
    """What torch does with each phase as a batch of its own, and loops say of its statistics."""
    layer, case = example
    factor = case[1]
    twin = eliminate_stride(
        nn.Sequential(layer), case[0].shape[1:], output_factor=factor, batch_norm="per_phase"
    ).train()
    own = twin.network.get_submodule("0")
    ragged = any(n % f for n, f in zip(case[0].shape[2:], factor, strict=True))
    assert isinstance(own, PhaseBatchNorm) == ragged
    place = {phase: i for i, phase in enumerate(itertools.product(*map(range, factor)))}
    for seed in (1, 2):
        x = tensor(integers(case[0].shape, seed)).requires_grad_()
        old = {name: buffer.clone() for name, buffer in own.named_buffers(recurse=False)}
        twin.zero_grad()
        obtained = twin(x)
        weigh(obtained).backward()
        found = x.grad
        alone = x.detach().clone().requires_grad_()
        parameters = [p.detach().clone().requires_grad_() for p in layer.parameters()]
        expected = torch.zeros_like(alone)
        for phase, index in phases_of(x.shape[2:], factor).items():
            part = alone[index]
            expected[index] = F.batch_norm(
                part, None, None, *parameters, training=True, eps=layer.eps
            )
            if not layer.track_running_stats:
                continue
            mean, variance, count = reference.statistics(part.detach().numpy())
            step = 1 / seed if layer.momentum is None else layer.momentum
            for name, value in (
                ("running_mean", mean), ("running_var", variance * count / (count - 1)),
            ):  # fmt: skip
                before, after = (
                    b.unflatten(0, (3, len(place)))[:, place[phase]]
                    for b in (old[name], own.get_buffer(name))
                )
                torch.testing.assert_close(
                    after, (1 - step) * before + step * tensor(value), rtol=1e-10, atol=1e-10
                )
        weigh(expected).backward()
        assert close(obtained, expected.detach())
        torch.testing.assert_close(found, alone.grad, rtol=1e-9, atol=1e-9)
        for one, all_phases in zip(parameters, own.parameters(), strict=True):
            summed = all_phases.grad.unflatten(0, (3, len(place))).sum(1)
            torch.testing.assert_close(summed, one.grad, rtol=1e-9, atol=1e-9)
        if layer.track_running_stats:
            assert own.num_batches_tracked == seed
    twin.eval()
    assert twin(x).isfinite().all()
