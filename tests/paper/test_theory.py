"""The paper's statements up to Lemma 1, right and as printed: the fast path agrees with the right."""

import ast
import inspect
import itertools
import math
import re

import numpy as np
import pytest
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.signal import correlate2d

from experiments.paper import theory
from tests.arrays import equal, integers, tensor
from tests.paper.integers import Case, cases, many, samplings, some


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
