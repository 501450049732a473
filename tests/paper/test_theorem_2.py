"""The paper's Theorem 2, its proof and its counts, right and as printed."""

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from experiments.paper import theory
from stridenet import eliminate_stride, space_to_depth
from stridenet.phases import expand_filter
from stridenet.taps import TapMap
from tests.arrays import equal, integers, tensor
from tests.paper.integers import Case, cases, many, samplings, some


def all_equal(obtained: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> bool:
    return len(obtained) == len(expected) and all(map(equal, obtained, expected))


# §5: eliminating stride from CNN


@many
@given(samplings(), st.integers(1, 4), st.tuples(*[st.integers(1, 20)] * 2))
def test_two_samplings_are_one(
    sampling: tuple[int, int, int], stride: int, shape: tuple[int, int]
) -> None:
    x = integers(shape)
    m, n, s = theory.composed(*sampling, stride)
    assert max(m, n) <= s  # so that it is a sampling function again
    twice = x[::stride, ::stride][sampling[0] - 1 :: sampling[2], sampling[1] - 1 :: sampling[2]]
    assert equal(theory.T(*sampling, theory.T(1, 1, stride, x)), twice)
    assert equal(theory.T(m, n, s, x), twice)


def rectified(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)


def shifted(x: np.ndarray) -> np.ndarray:
    """Element-wise, and not 0 where x is."""
    return abs(x) + 1


def normalised(x: np.ndarray) -> np.ndarray:
    """Not element-wise."""
    return x - x.max(initial=0)


@some
@given(cases(), cases(), samplings(3), st.integers(1, 3), st.sampled_from([rectified, shifted]))
def test_equations_23_to_28_are_equal_line_by_line(
    case: Case,
    other: Case,
    sampling: tuple[int, int, int],
    stride: int,
    eta: theory.Activation,
) -> None:
    h, x = case
    filters, images = (h, integers(h.shape, 5)), (x, integers(x.shape, 6))
    m_, n_, s_ = theory.composed(*sampling, stride)

    def summed(function: Callable[..., np.ndarray]) -> np.ndarray:
        return np.sum([function(*pair) for pair in zip(filters, images, strict=True)], axis=0)

    strided = summed(lambda h, x: theory.correlate_strided(stride, h, x))
    inside = summed(
        lambda h, x: theory.T(*sampling, theory.T(1, 1, stride, theory.correlate(h, x)))
    )
    once = summed(lambda h, x: theory.T(m_, n_, s_, theory.correlate(h, x)))
    left = theory.T(*sampling, eta(strided))
    assert equal(left, eta(theory.T(*sampling, strided)))  # Eq. 23
    assert equal(left, eta(inside))  # Eq. 24
    assert equal(left, eta(once))  # Eq. 27
    assert equal(left, eta(summed(lambda h, x: theory.lemma_1(m_, n_, s_, h, x))))  # Eq. 28


def test_equation_23_needs_an_element_wise_activation() -> None:
    x = np.array([[1, 5], [2, 3]])
    assert equal(theory.T(1, 1, 2, rectified(x)), rectified(theory.T(1, 1, 2, x)))
    assert not equal(theory.T(1, 1, 2, normalised(x)), normalised(theory.T(1, 1, 2, x)))


STRIDES = [
    (1,),
    (2,),
    (3,),
    (1, 2),
    (2, 1),
    (2, 2),
    (3, 1),
    (1, 3),
    (1, 2, 1),
    (2, 1, 2),
    (1, 1, 3),
]


@st.composite
def networks(draw: st.DrawFn, least: int = 1) -> tuple[list[theory.Layer], theory.Maps]:
    """Layers and an image, also of sizes that the strides do not divide; `least`: of the last map."""
    strides = draw(st.sampled_from(STRIDES))
    channels = draw(st.tuples(*[st.integers(1, 2)] * (len(strides) + 1)))
    size = np.array(draw(st.tuples(*[st.integers(least, 2)] * 2)))
    layers = []
    for depth, s in reversed(list(enumerate(strides))):
        kernel = draw(st.tuples(*[st.integers(1, 3)] * 2))
        unread = draw(st.tuples(*[st.integers(0, s - 1)] * 2))
        shape = (channels[depth + 1], channels[depth], *kernel)
        weights = integers(shape, draw(st.integers(0, 99)), largest=3)
        layers.append(theory.Layer([list(of_channel) for of_channel in weights], s))
        size = (size - 1) * s + kernel + unread
    return layers[::-1], list(integers((channels[0], *size), largest=3))


def torch_forward(layers: Sequence[theory.Layer], x: theory.Maps) -> torch.Tensor:
    maps = tensor(x)[None]
    for layer in layers:
        maps = F.conv2d(maps, tensor(layer.H), stride=layer.s).relu()
    return maps[0]


@some
@given(networks())
def test_equation_18_is_a_layer_of_a_network(
    network: tuple[list[theory.Layer], theory.Maps],
) -> None:
    layers, x = network
    assert equal(theory.forward(layers, rectified, x)[-1], torch_forward(layers, x))


def test_equation_18_as_printed_has_no_output_channel() -> None:
    """Its right-hand side does not depend on c: all channels of a layer would be equal."""
    layer = theory.Layer([[np.array([[1]])], [np.array([[2]])]])
    _, (first, second) = theory.forward([layer], rectified, [np.array([[3]])])
    assert (first.item(), second.item()) == (3, 6)


@many
@given(networks(), st.sampled_from([rectified, shifted]))
def test_theorem_2(network: tuple[list[theory.Layer], theory.Maps], eta: theory.Activation) -> None:
    layers, x = network
    unit_stride, strides = theory.twin(layers)
    assert all(layer.s == 1 for layer in unit_stride)
    assert strides == [math.prod(layer.s for layer in layers[i:]) for i in range(len(layers) + 1)]
    strided_maps = theory.forward(layers, eta, x)
    twin_maps = theory.forward(unit_stride, eta, theory.reshaped(strides[0], x))
    for s, maps, maps_tilde in zip(strides, strided_maps, twin_maps, strict=True):
        assert all_equal(maps_tilde, theory.reshaped(s, maps))
    assert all_equal(twin_maps[-1], strided_maps[-1])


def test_theorem_2_needs_an_element_wise_activation() -> None:
    layers = [theory.Layer([[np.array([[1]])]]), theory.Layer([[np.array([[1]])]], 2)]
    x = [np.array([[1, 5], [2, 3]])]
    unit_stride, strides = theory.twin(layers)
    outputs = {
        eta: [
            theory.forward(layers, eta, x)[1][0][0, 0],
            theory.forward(unit_stride, eta, theory.reshaped(strides[0], x))[1][0][0, 0],
        ]
        for eta in (rectified, normalised)
    }
    assert outputs == {rectified: [1, 1], normalised: [-4, 0]}


@many
@given(st.integers(1, 4), st.integers(1, 3), st.tuples(*[st.integers(1, 9)] * 2))
def test_the_reshaped_input_is_a_bijection_of_the_input(
    s: int, channels: int, shape: tuple[int, int]
) -> None:
    x = list(np.arange(channels * math.prod(shape)).reshape(channels, *shape))
    x_tilde = theory.reshaped(s, x)
    assert len(x_tilde) == channels * s * s
    entries = [entry for sample in x_tilde for entry in sample.ravel()]
    assert sorted(entries) == list(range(channels * math.prod(shape)))
    assert all_equal(theory.reshaped_back(s, x_tilde), x)


@some
@given(networks())
def test_the_channels_of_a_reshaped_filter_are_those_of_its_own_layer(
    network: tuple[list[theory.Layer], theory.Maps],
) -> None:
    """C_ℓ·s′·s′, not C_{L−1}·s_{L−1}·s_{L−1} as after Eq. 30."""
    layers, _ = network
    unit_stride, strides = theory.twin(layers)
    for layer, filters, s, s_ in zip(layers, unit_stride, strides[1:], strides[:-1], strict=True):
        assert len(filters.H) == s * s * len(layer.H)
        assert {len(channels) for channels in filters.H} == {s_ * s_ * len(layer.H[0])}


def test_the_channels_printed_after_equation_30_are_too_few() -> None:
    filter_ = np.ones((2, 2))
    layers = [theory.Layer([[filter_] * 3] * 5, 2), theory.Layer([[filter_] * 5] * 7, 2)]
    (first, last), _ = theory.twin(layers)
    as_printed = 5 * 2 * 2  # C_{L−1}·s_{L−1}·s_{L−1}
    assert len(last.H[0]) == as_printed
    assert len(first.H[0]) == 3 * 4 * 4 != as_printed


# §6: discussion and implication


def common_size(filters: theory.Layer) -> tuple[int, int, int, int]:
    """Input and output channels, height and width of filters filled up to the largest."""
    heights, widths = zip(*(h.shape for of_channel in filters.H for h in of_channel), strict=True)
    return len(filters.H[0]), len(filters.H), max(heights), max(widths)


@pytest.fixture(scope="module")
def figure_4() -> tuple[theory.Layer, theory.Layer]:
    """Conv-1, 3×32×5×5, as it is, and as it is before a stride of two."""
    conv_1 = theory.Layer([list(of_channel) for of_channel in integers((32, 3, 5, 5))])
    return conv_1, theory.Layer(theory.reshaped_filters(conv_1, 2))


def test_figure_4_theorem_1_alone_breaks_the_connection(
    figure_4: tuple[theory.Layer, theory.Layer],
) -> None:
    conv_1, conv_1_tilde = figure_4
    conv_2 = theory.Layer([[np.ones((2, 2))] * 32], 2)
    wanted = len(theory.reshaped_filters(conv_2, 1)[0])  # channels of Y′, which Conv-2′ reads
    assert (len(conv_1.H), len(conv_1_tilde.H), wanted) == (32, 128, 128)


def test_section_6_counts_less_than_the_filters_of_its_own_example(
    figure_4: tuple[theory.Layer, theory.Layer],
) -> None:
    conv_1, conv_1_tilde = figure_4
    size = common_size(conv_1_tilde)
    assert common_size(conv_1) == (3, 32, 5, 5)
    assert size == (12, 128, 3, 3)
    assert (theory.weights_of_section_6(conv_1, 2), math.prod(size)) == (9600, 13824)
    weights = sum(np.count_nonzero(h) for of_channel in conv_1_tilde.H for h in of_channel)
    assert weights == 9600  # what the formula does count: all entries but structural zeros


@some
@given(networks())
def test_filters_of_different_m_and_n_share_all_their_weights(
    network: tuple[list[theory.Layer], theory.Maps],
) -> None:
    """Each of the s·s filters of an output channel has each weight of the strided one exactly once."""
    layers, _ = network
    unit_stride, strides = theory.twin(layers)
    for layer, filters, s, s_ in zip(layers, unit_stride, strides[1:], strides[:-1], strict=True):
        assert sum(np.count_nonzero(h) for of_c in filters.H for h in of_c) == (
            theory.weights_of_section_6(layer, s)
        )
        for c, k in itertools.product(range(len(filters.H)), range(len(layer.H[0]))):
            samples = filters.H[c][k * s_ * s_ : (k + 1) * s_ * s_]
            shared = [w for sample in samples for w in sample.ravel().tolist() if w]
            assert sorted(shared) == sorted(layer.H[c // (s * s)][k].ravel().tolist())


# The fast path


def filled(matrix: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Return the map with zeros behind."""
    return np.pad(
        matrix, [(0, size - extent) for size, extent in zip(shape, matrix.shape, strict=True)]
    )


@some
@given(networks())
def test_rearranged_images_and_filters_are_those_of_theorem_2(
    network: tuple[list[theory.Layer], theory.Maps],
) -> None:
    layers, x = network
    unit_stride, (first, *after) = theory.twin(layers)
    rearranged = space_to_depth(tensor(x)[None], (first, first))[0].numpy()
    x_tilde = [filled(sample, rearranged.shape[1:]) for sample in theory.reshaped(first, x)]
    assert equal(rearranged, x_tilde)
    for layer, filters, s in zip(layers, unit_stride, after, strict=True):
        weight = tensor(layer.H)
        maps = [TapMap(kernel, layer.s, 1, (0, 0), 99, s) for kernel in weight.shape[2:]]
        expanded = expand_filter(weight, maps).numpy()
        assert equal(expanded, [[filled(h, expanded.shape[2:]) for h in H] for H in filters.H])


@some
@given(networks(least=2))
def test_the_twin_of_a_model_is_that_of_theorem_2(
    network: tuple[list[theory.Layer], theory.Maps],
) -> None:
    layers, x = network
    model = nn.Sequential()
    for layer in layers:
        weight = tensor(layer.H)
        convolution = nn.Conv2d(*weight.shape[1::-1], weight.shape[2:], layer.s, bias=False)
        convolution.weight = nn.Parameter(weight)
        model.extend([convolution, nn.ReLU()])
    fast = eliminate_stride(model, tuple(tensor(x).shape))
    literal, strides = theory.twin(layers)
    weights = [module.weight for module in fast.modules() if isinstance(module, nn.Conv2d)]
    for weight, filters in zip(weights, literal, strict=True):
        expected = [[filled(h, weight.shape[2:]) for h in H] for H in filters.H]
        assert equal(weight.detach(), expected)
    outputs = theory.forward(literal, rectified, theory.reshaped(strides[0], x))[-1]
    assert equal(fast(tensor(x)[None]).detach()[0], outputs)
