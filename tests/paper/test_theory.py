"""The paper's statements, right and as printed: scipy, torch and the fast path agree with the right.

Entries are small integers, so that every equality here is exact.
"""

import ast
import inspect
import itertools
import math
import re
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.signal import correlate2d
from torch import nn

from experiments.paper import theory
from stridenet import eliminate_stride, space_to_depth
from stridenet.phases import expand_filter
from stridenet.taps import TapMap
from tests.examples import examples

many = examples(200)
some = examples(50)
Case = tuple[np.ndarray, np.ndarray]


def integers(shape: Sequence[int], seed: int = 0, largest: int = 9) -> np.ndarray:
    """Entries from −largest to largest, without 0."""
    random = np.random.default_rng(seed)
    return random.integers(1, largest + 1, shape) * random.choice([-1, 1], shape)


def equal(obtained: Sequence | np.ndarray, expected: Sequence | np.ndarray) -> bool:
    return np.array_equal(np.asarray(obtained), np.asarray(expected))


def all_equal(obtained: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> bool:
    return len(obtained) == len(expected) and all(map(equal, obtained, expected))


def tensor(array: Sequence | np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.asarray(array)).double()


@st.composite
def cases(draw: st.DrawFn, largest: int = 9) -> Case:
    """A filter and an image on which it fits."""
    (a, b), seed = draw(st.tuples(*[st.integers(1, 4)] * 2)), draw(st.integers(0, 99))
    c, d = draw(st.integers(a, largest)), draw(st.integers(b, largest))
    return integers((a, b), seed), integers((c, d), seed + 1)


@st.composite
def samplings(draw: st.DrawFn, largest: int = 4) -> tuple[int, int, int]:
    """m, n and s."""
    s = draw(st.integers(1, largest))
    return draw(st.integers(1, s)), draw(st.integers(1, s)), s


def test_the_paper_shares_no_code_with_what_is_tested_against_it() -> None:
    imports = [
        node
        for node in ast.walk(ast.parse(inspect.getsource(theory)))
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    names = {getattr(node, "module", None) or node.names[0].name for node in imports}
    assert names == {"collections.abc", "dataclasses", "numpy"}


# §1 and Figure 1


def test_figure_1_splits_a_strided_convolution_into_two_of_stride_one() -> None:
    h, x = np.array([[1, 2, 3, 4]]).T, np.array([[1, 2, 3, 4, 5, 6, 7, 8]]).T
    terms = [theory.correlate(theory.T(p, 1, 2, h), theory.T(p, 1, 2, x)).ravel() for p in (1, 2)]
    assert equal(theory.correlate_strided(2, h, x).ravel(), [30, 50, 70])
    assert equal(terms, [[10, 18, 26], [20, 32, 44]])


# §3: convolution as tensor product


@many
@given(cases())
def test_property_3_convolution_is_a_tensor_product(case: Case) -> None:
    h, x = case
    tensor_of_h = theory.convolutional_tensor(h, *x.shape)
    expected = correlate2d(x, h, mode="valid")
    assert equal(theory.correlate(h, x), expected)
    assert equal(theory.tensor_product(tensor_of_h, x), expected)


@some
@given(cases(6))
def test_definition_1_as_printed_convolves_with_the_transposed_image(case: Case) -> None:
    h, x = case
    turned = x.T
    tensor_of_h = theory.convolutional_tensor(h, *x.shape)  # m×n×d×c for the image c×d of Eq. 1
    obtained = theory.tensor_product_as_printed(tensor_of_h, turned)
    assert equal(obtained, correlate2d(turned.T, h, mode="valid"))


def test_property_3_is_false_with_definition_1_as_printed() -> None:
    h, x = np.array([[1, 2]]), np.array([[1, 2], [3, 4]])
    tensor_of_h = theory.convolutional_tensor(h, 2, 2)
    assert equal(theory.correlate(h, x), [[5], [11]])
    assert equal(theory.tensor_product(tensor_of_h, x), [[5], [11]])
    assert equal(theory.tensor_product_as_printed(tensor_of_h, x), [[7], [10]])


@some
@given(cases(6))
def test_definition_2_covers_all_shifts_of_the_filter(case: Case) -> None:
    h, x = case
    (a, b), (c, d) = h.shape, x.shape
    tensor_of_h = theory.convolutional_tensor(h, c, d)
    assert tensor_of_h.shape == (c - a + 1, d - b + 1, c, d)
    for i, j, k, l in np.ndindex(tensor_of_h.shape):  # noqa: E741
        inside = 0 <= k - i < a and 0 <= l - j < b
        assert tensor_of_h[i, j, k, l] == (h[k - i, l - j] if inside else 0)


def test_figure_2_is_the_tensor_of_a_3x3_filter_for_5x5_images() -> None:
    h = np.arange(1, 10).reshape(3, 3)
    tensor_of_h = theory.convolutional_tensor(h, 5, 5)
    assert tensor_of_h.shape == (3, 3, 5, 5)
    assert equal(tensor_of_h[1, 2, 1:4, 2:5], h)
    assert tensor_of_h[1, 2].sum() == h.sum()
    assert equal(theory.filter_of(tensor_of_h), h)


@some
@given(cases(6))
def test_property_1(case: Case) -> None:
    h, x = case
    assert theory.is_shift_invariant(theory.convolutional_tensor(h, *x.shape))


@st.composite
def tensors(draw: st.DrawFn) -> np.ndarray:
    """m×n×c×d, often convolutional or shift-invariant and sometimes neither."""
    m, n = draw(st.tuples(*[st.integers(1, 3)] * 2))
    c, d = draw(st.integers(m, 4)), draw(st.integers(n, 4))
    small = st.integers(0, 1)
    a, b = (c - m + 1, d - n + 1) if draw(st.booleans()) else (c, d)
    diagonals = {(k, l): draw(small) for k in range(1 - m, a) for l in range(1 - n, b)}  # noqa: E741
    if a == c - m + 1 and b == d - n + 1:
        diagonals = {key: value * (min(key) >= 0) for key, value in diagonals.items()}
    drawn = np.zeros((m, n, c, d), int)
    for i, j, k, l in np.ndindex(drawn.shape):  # noqa: E741
        drawn[i, j, k, l] = diagonals.get((k - i, l - j), 0)
    if draw(st.booleans()):
        drawn[tuple(draw(st.integers(0, extent - 1)) for extent in drawn.shape)] += 1
    return drawn


@many
@given(tensors())
def test_properties_1_and_2_together_characterise_convolutional_tensors(drawn: np.ndarray) -> None:
    """With "zero unless 0 ≤ k−i < a and 0 ≤ l−j < b", the condition is sufficient and necessary."""
    of_its_filter = theory.convolutional_tensor(theory.filter_of(drawn), *drawn.shape[2:])
    assert theory.is_convolutional(drawn) == equal(drawn, of_its_filter)


@many
@given(tensors())
def test_equation_4_is_what_it_says(drawn: np.ndarray) -> None:
    places = set(np.ndindex(drawn.shape))
    shifts = ((1, 0, 1, 0), (0, 1, 0, 1))
    pairs = [(at, tuple(np.add(at, shift))) for at in places for shift in shifts]
    expected = all(drawn[at] == drawn[to] for at, to in pairs if to in places)
    assert theory.is_shift_invariant(drawn) == expected


def test_property_2_is_false_as_printed() -> None:
    ones = np.ones((2, 2, 2, 2), int)
    assert theory.is_shift_invariant(ones)
    assert not theory.is_convolutional(ones)
    filters = [np.array([[entry]]) for entry in (-1, 0, 1, 2)]  # of a 2×2 image with 2×2 outputs
    assert not any(equal(theory.convolutional_tensor(h, 2, 2), ones) for h in filters)
    assert theory.is_convolutional(theory.convolutional_tensor(filters[2], 2, 2))


# §3: sampling


def test_figure_3_samples_each_entry_exactly_once() -> None:
    x = np.arange(36).reshape(6, 6)
    samples = [theory.T(m, n, 2, x) for m, n in itertools.product((1, 2), repeat=2)]
    assert [sample.shape for sample in samples] == [(3, 3)] * 4
    assert sorted(np.concatenate(samples).ravel()) == list(range(36))
    assert equal(samples[1], [[1, 3, 5], [13, 15, 17], [25, 27, 29]])


@many
@given(st.integers(1, 4), st.tuples(*[st.integers(1, 9)] * 2))
def test_the_samples_of_a_matrix_of_any_size_have_each_entry_exactly_once(
    s: int, shape: tuple[int, int]
) -> None:
    x = np.arange(math.prod(shape)).reshape(shape)
    entries = [entry for m, n in theory.grid(s) for entry in theory.T(m, n, s, x).ravel()]
    assert sorted(entries) == list(range(x.size))
    for (m, n), (i, j) in itertools.product(theory.grid(s), np.ndindex(2, 2)):
        sample = theory.T(m, n, s, x)
        if i < sample.shape[0] and j < sample.shape[1]:
            assert sample[i, j] == x[i * s + m - 1, j * s + n - 1]


@pytest.mark.parametrize(("m", "n"), [(0, 1), (1, 0), (3, 1), (1, 3)])
def test_a_grid_of_stride_s_begins_from_1_to_s(m: int, n: int) -> None:
    with pytest.raises(ValueError, match=re.escape(f"from 1 to 2, not at ({m}, {n})")):
        theory.T(m, n, 2, np.ones((5, 5)))
    with pytest.raises(ValueError, match=re.escape(f"from 1 to 2, not at ({m}, {n})")):
        theory.S(3, 4, m, n, 2, np.ones((2, 2, 5, 5)))


@some
@given(samplings(3), st.tuples(*[st.integers(1, 5)] * 4))
def test_definition_4_samples_each_plane_as_definition_3(
    sampling: tuple[int, int, int], shape: tuple[int, int, int, int]
) -> None:
    entries = np.arange(math.prod(shape)).reshape(shape)
    matrix = entries[:, :, :1, :1]
    assert equal(
        theory.S(1, 2, *sampling, matrix)[..., 0, 0], theory.T(*sampling, matrix[..., 0, 0])
    )
    sampled = theory.S(3, 4, *sampling, entries)
    for i, j in np.ndindex(shape[:2]):
        assert equal(sampled[i, j], theory.T(*sampling, entries[i, j]))
    s = sampling[2]
    all_samples = [theory.S(3, 4, p, q, s, entries).ravel() for p, q in theory.grid(s)]
    assert sorted(np.concatenate(all_samples)) == list(range(entries.size))


@some
@given(cases(7), samplings(3), st.data())
def test_property_4_a_sampled_tensor_is_that_of_a_sampled_filter(
    case: Case, sampling: tuple[int, int, int], data: st.DataObject
) -> None:
    h, x = case
    m, n, s = sampling
    p, q = data.draw(st.integers(1, s)), data.draw(st.integers(1, s))
    tensor_of_h = theory.convolutional_tensor(h, *x.shape)
    sampled = theory.sampled_tensor(p, q, m, n, s, tensor_of_h)
    assume(min(sampled.shape[:2]) > 0)
    for i, j, k, l in np.ndindex(sampled.shape):  # noqa: E741, as the proof begins
        at = (i * s + m - 1, j * s + n - 1, k * s + p - 1, l * s + q - 1)
        assert sampled[i, j, k, l] == tensor_of_h[at]
    assert theory.is_convolutional(sampled)
    filter_ = theory.sampled_filter(p, q, m, n, s, h)
    behind = [
        size - extent
        for size, extent in zip(theory.filter_of(sampled).shape, filter_.shape, strict=True)
    ]
    assert set(behind) <= {0, 1}  # zeros: the shifts that are missing
    assert equal(theory.filter_of(sampled), np.pad(filter_, [(0, zeros) for zeros in behind]))


def test_property_4_is_false_as_printed_where_a_shift_is_missing() -> None:
    """Of 5 rows the stride takes 3, on which the sampled filter has 3 shifts; the tensor has 2."""
    h = np.array([[1], [2]])
    sampled = theory.sampled_tensor(1, 1, 1, 1, 2, theory.convolutional_tensor(h, 5, 1))
    filter_ = theory.sampled_filter(1, 1, 1, 1, 2, h)
    all_shifts = theory.convolutional_tensor(filter_, 3, 1)
    assert equal(filter_, [[1]])
    assert (sampled.shape[0], all_shifts.shape[0]) == (2, 3)
    assert equal(sampled, theory.convolutional_tensor(np.array([[1], [0]]), 3, 1))


# §4: eliminating stride from convolution


@many
@given(cases(), st.integers(1, 4))
def test_equation_11_is_what_libraries_call_a_strided_convolution(case: Case, s: int) -> None:
    h, x = case
    expected = F.conv2d(tensor(x)[None, None], tensor(h)[None, None], stride=s)[0, 0]
    assert equal(theory.correlate_strided(s, h, x), expected)


@many
@given(cases(), st.integers(1, 4))
def test_theorem_1(case: Case, s: int) -> None:
    h, x = case
    expected = F.conv2d(tensor(x)[None, None], tensor(h)[None, None], stride=s)[0, 0]
    assert equal(theory.theorem_1(s, h, x), expected)


@many
@given(cases(), st.integers(1, 4))
def test_theorem_1_as_printed_needs_sizes_whose_difference_s_divides(case: Case, s: int) -> None:
    h, x = case
    divides = all((size - extent) % s == 0 for size, extent in zip(x.shape, h.shape, strict=True))
    if divides:
        assert equal(theory.theorem_1_as_printed(s, h, x), theory.correlate_strided(s, h, x))
    else:
        with pytest.raises(ValueError, match="have no sum"):
            theory.theorem_1_as_printed(s, h, x)


def test_theorem_1_is_false_as_printed() -> None:
    h, x = np.array([[1, 2]]), np.array([[1, 2, 3, 4, 5]])
    assert [term.tolist() for term in theory.terms(2, h, x)[:2]] == [[[1, 3, 5]], [[4, 8]]]
    with pytest.raises(ValueError, match=re.escape("[(1, 2), (1, 3)] have no sum")):
        theory.theorem_1_as_printed(2, h, x)
    assert equal(theory.theorem_1(2, h, x), [[5, 11]])


@many
@given(cases(), samplings())
def test_lemma_1(case: Case, sampling: tuple[int, int, int]) -> None:
    h, x = case
    m, n, s = sampling
    expected = correlate2d(x, h, mode="valid")[m - 1 :: s, n - 1 :: s]
    assert equal(theory.T(m, n, s, theory.correlate(h, x)), expected)
    assert equal(theory.lemma_1(m, n, s, h, x), expected)


@many
@given(cases(), st.integers(1, 4))
def test_lemma_1_as_printed_holds_for_one_sampling_of_all(case: Case, s: int) -> None:
    h, x = case
    assume(all(size - extent >= s - 1 for size, extent in zip(x.shape, h.shape, strict=True)))
    holds = []
    for m, n in theory.grid(s):
        try:
            obtained = theory.lemma_1_as_printed(m, n, s, h, x)
        except ValueError:
            continue
        assert equal(obtained, theory.lemma_1(m, n, s, h, x))
        holds.append((m, n))
    assert holds == [tuple((np.subtract(x.shape, h.shape) % s + 1).tolist())]


@some
@given(cases(7), samplings(3))
def test_equations_16_and_17(case: Case, sampling: tuple[int, int, int]) -> None:
    h, x = case
    m, n, s = sampling
    expected = correlate2d(x, h, mode="valid")[m - 1 :: s, n - 1 :: s]
    assert equal(theory.equation_16(*sampling, h, x), expected)
    assert equal(theory.equation_17(*sampling, h, x), expected)


def test_convolution_is_not_commutative_so_that_equations_22_and_31_exchange_its_sides() -> None:
    h, x = integers((2, 2)), integers((3, 4), 1)
    assert theory.correlate(h, x).shape == (2, 3)
    assert theory.correlate(x, h).size == 0  # X̃ ∗ H̃ as printed: an image laid on a filter


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
    """With zeros behind."""
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
