"""The theorem as stridenet's phase forms, taps and filters say it, beside the paper's own symbols.

Entries are small integers, so that every equality here is exact.
"""

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from experiments.paper import theory
from stridenet import depth_to_space, space_to_depth
from stridenet.phases import expand_bias, expand_filter
from stridenet.taps import TapMap, phase_size
from tests import reference
from tests.arrays import equal, integers, tensor
from tests.examples import examples

many = examples(300)


@st.composite
def filters_and_images(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    (a, b), seed = draw(st.tuples(*[st.integers(1, 5)] * 2)), draw(st.integers(0, 99))
    c, d = draw(st.integers(a, 9)), draw(st.integers(b, 9))
    return integers((a, b), seed), integers((c, d), seed + 1)


@st.composite
def tap_maps(draw: st.DrawFn, largest_size: int = 20, largest_stride: int = 4) -> TapMap:
    """Any axis of a convolution that has at least one output."""
    stride, output_factor = draw(st.tuples(*[st.integers(1, largest_stride)] * 2))
    dilation, padding = draw(st.integers(1, 3)), draw(st.tuples(*[st.integers(0, 5)] * 2))
    size = draw(st.integers(1, largest_size))
    kernel = draw(st.integers(1, min(6, 1 + (size + sum(padding) - 1) // dilation)))
    return TapMap(kernel, stride, dilation, padding, size, output_factor)


def geometry(maps: Sequence[TapMap]) -> tuple[list[int], list[int], list[tuple[int, int]]]:
    """Strides, dilations and paddings of the strided convolution."""
    return [m.stride for m in maps], [m.dilation for m in maps], [m.padding for m in maps]


def unit_stride_geometry(
    maps: Sequence[TapMap],
) -> tuple[list[int], list[int], list[tuple[int, int]]]:
    """Return what its twin gives."""
    return [1] * len(maps), [1] * len(maps), [m.twin_padding for m in maps]


def test_the_oracle_convolves_as_torch_does() -> None:
    x, weight, bias = integers((2, 4, 9, 7)), integers((6, 2, 3, 2), 1), integers((6,), 2)
    obtained = reference.convolve(x, weight, bias, (2, 3), (1, 2), ((1, 2), (0, 3)), groups=2)
    padded = F.pad(tensor(x), (0, 3, 1, 2))
    expected = F.conv2d(padded, tensor(weight), tensor(bias), (2, 3), 0, (1, 2), groups=2)
    assert equal(obtained, expected)


# Phase form


@many
@given(st.lists(st.tuples(st.integers(1, 7), st.integers(1, 4)), min_size=1, max_size=3))
def test_space_to_depth_is_the_paper_s_rearrangement(axes: list[tuple[int, int]]) -> None:
    size, factor = zip(*axes, strict=True)
    images = integers((2, 3, *size))
    obtained = space_to_depth(tensor(images), factor)
    assert equal(obtained, reference.phase_form(images, factor))
    assert obtained.shape[2:] == phase_size(size, factor)


def test_channels_of_a_phase_form_are_the_samples_in_order() -> None:
    images = integers((1, 2, 5, 7))
    maps = space_to_depth(tensor(images), (3, 3))[0]
    for channel, (c, p, q) in enumerate(itertools.product((0, 1), (1, 2, 3), (1, 2, 3))):
        sample = theory.T(p, q, 3, images[0, c])
        assert equal(maps[channel, : sample.shape[0], : sample.shape[1]], sample)


@pytest.mark.parametrize(("factor", "size"), [(2, (6, 8)), (3, (3, 12)), (1, (5, 4))])
def test_space_to_depth_is_pixel_unshuffle_where_the_factor_divides(
    factor: int, size: tuple[int, int]
) -> None:
    images = tensor(integers((2, 3, *size)))
    assert equal(space_to_depth(images, (factor, factor)), F.pixel_unshuffle(images, factor))


@many
@given(st.lists(st.tuples(st.integers(1, 7), st.integers(1, 4)), min_size=1, max_size=3))
def test_depth_to_space_inverts_space_to_depth(axes: list[tuple[int, int]]) -> None:
    size, factor = zip(*axes, strict=True)
    images = tensor(integers((2, 3, *size)))
    maps = space_to_depth(images, factor)
    phantoms = tensor(reference.phase_form(np.ones_like(images.numpy()), factor)) == 0
    assert equal(depth_to_space(maps.masked_fill(phantoms, torch.nan), factor, size), images)


# Taps


@many
@given(tap_maps())
def test_taps_are_where_the_strided_convolution_reads(tap_map: TapMap) -> None:
    """Phase m of the twin's output j is strided output j·S + m, tap a on block j − before + a."""
    outputs, phases = tap_map.output_factor, tap_map.input_factor
    before, _ = tap_map.twin_padding
    assert phases == outputs * tap_map.stride  # Eq. 26
    assert tap_map.taps.shape == (outputs, phases, tap_map.twin_kernel)
    for j, (m, p, a) in itertools.product((0, 1, 5), np.ndindex(tap_map.taps.shape)):
        position = (j - before + a) * phases + p
        behind = [
            k
            for k in range(tap_map.kernel)
            if tap_map.stride * (j * outputs + m) + tap_map.dilation * k - tap_map.padding[0]
            == position
        ]
        assert [tap_map.taps[m, p, a]] == (behind or [-1])


@many
@given(tap_maps())
def test_every_output_phase_has_each_tap_exactly_once(tap_map: TapMap) -> None:
    for row in tap_map.taps:
        assert sorted(row[row >= 0]) == list(range(tap_map.kernel))
    assert tap_map.taps.min() >= -1


@many
@given(tap_maps())
def test_the_twin_s_kernel_is_as_small_as_can_be(tap_map: TapMap) -> None:
    assert (tap_map.taps[:, :, 0] >= 0).any()
    assert (tap_map.taps[:, :, -1] >= 0).any()


@many
@given(tap_maps())
def test_without_padding_and_dilation_the_twin_s_kernel_has_a_closed_form(tap_map: TapMap) -> None:
    plain = replace(tap_map, dilation=1, padding=(0, 0))
    reach = plain.kernel + plain.stride * (plain.output_factor - 1)
    assert plain.twin_kernel == math.ceil(reach / plain.input_factor)


@many
@given(tap_maps())
def test_the_twin_has_all_outputs_and_none_too_many(tap_map: TapMap) -> None:
    strided = sum(  # outputs whose every tap lies on the map or its padding
        tap_map.stride * u + tap_map.dilation * (tap_map.kernel - 1)
        < tap_map.size + sum(tap_map.padding)
        for u in range(99)
    )
    assert tap_map.output_size == strided
    blocks = math.ceil(tap_map.size / tap_map.input_factor) + sum(tap_map.twin_padding)
    assert blocks - tap_map.twin_kernel + 1 == math.ceil(strided / tap_map.output_factor)


@many
@given(tap_maps())
def test_reads_phantoms_where_a_real_output_depends_on_one(tap_map: TapMap) -> None:
    """Maps that are zero but for ones in the phantoms, filters of ones: what comes out was read."""
    real = np.ones((1, 1, tap_map.size), int)
    phantoms = 1 - reference.phase_form(real, [tap_map.input_factor])
    filter_ = expand_filter(torch.ones(1, 1, tap_map.kernel), [tap_map]).numpy()
    maps = reference.convolve(phantoms, filter_, None, *unit_stride_geometry([tap_map]))
    outputs = depth_to_space(torch.from_numpy(maps), [tap_map.output_factor], [tap_map.output_size])
    assert tap_map.reads_phantoms == bool(outputs.any())


@pytest.mark.parametrize(
    ("padding", "size", "reads"),
    [
        pytest.param((0, 0), 10, False, id="no phantoms"),
        pytest.param((0, 0), 9, False, id="a phantom behind the last output"),
        pytest.param((1, 1), 9, True, id="a phantom in the place of padding"),
        pytest.param((2, 0), 9, False, id="padding before does not matter"),
    ],
)
def test_reads_phantoms_of_a_stride_2_convolution(
    padding: tuple[int, int], size: int, reads: bool
) -> None:
    assert TapMap(3, 2, 1, padding, size, 1).reads_phantoms == reads


@pytest.mark.parametrize(
    ("tap_map", "taps"),
    [
        pytest.param(TapMap(4, 2, 1, (0, 0), 8, 1), [[[0, 2], [1, 3]]], id="Figure 1"),
        pytest.param(
            TapMap(3, 1, 1, (0, 0), 8, 2),
            [[[0, 2], [1, -1]], [[-1, 1], [0, 2]]],
            id="before a stride of 2",
        ),
        pytest.param(TapMap(3, 2, 1, (1, 1), 8, 1), [[[-1, 1], [0, 2]]], id="padded"),
        pytest.param(TapMap(2, 2, 3, (0, 0), 8, 1), [[[0, -1], [-1, 1]]], id="dilated"),
    ],
)
def test_taps_of_small_convolutions(tap_map: TapMap, taps: list) -> None:
    assert tap_map.taps.tolist() == taps


@pytest.mark.parametrize(
    ("kernel", "stride", "size", "output_factor", "shape"),
    [
        pytest.param(5, 1, 28, 4, (4, 4, 2), id="conv1"),
        pytest.param(2, 2, 24, 2, (2, 4, 1), id="conv2"),
        pytest.param(5, 1, 12, 2, (2, 2, 3), id="conv3"),
        pytest.param(2, 2, 8, 1, (1, 2, 1), id="conv4"),
    ],
)
def test_tap_shapes_of_lenet(
    kernel: int, stride: int, size: int, output_factor: int, shape: tuple[int, int, int]
) -> None:
    tap_map = TapMap(kernel, stride, 1, (0, 0), size, output_factor)
    assert tap_map.taps.shape == shape


def test_padding_inside_alexnet_s_first_layer_costs_weights() -> None:
    assert TapMap(11, 4, 1, (2, 2), 224, 1).twin_kernel == 4
    assert TapMap(11, 4, 1, (0, 0), 228, 1).twin_kernel == 3


# Filters


def leading_corner(sample: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """A sampled filter, filled up with zeros to the shape that all the twin's filters share."""
    padded = np.zeros(shape, sample.dtype)
    padded[: sample.shape[0], : sample.shape[1]] = sample
    return padded


@many
@given(filters_and_images(), st.integers(1, 4))
def test_before_ordinary_outputs_the_twin_s_filters_are_samples_of_the_filter(
    case: tuple[np.ndarray, np.ndarray], s: int
) -> None:
    h, x = case
    maps = [TapMap(k, s, 1, (0, 0), n, 1) for k, n in zip(h.shape, x.shape, strict=True)]
    (filters,) = expand_filter(tensor(h)[None, None], maps).numpy()
    assert filters.shape == (s * s, *(math.ceil(k / s) for k in h.shape))
    for filter_, (p, q) in zip(filters, np.ndindex(s, s), strict=True):
        expected = theory.T(p + 1, q + 1, s, h)  # Eq. 13 and 21
        assert equal(filter_, leading_corner(expected, filter_.shape))


@many
@given(filters_and_images(), st.integers(1, 3), st.integers(1, 3))
def test_before_a_stride_the_twin_s_filters_are_those_of_equation_29(
    case: tuple[np.ndarray, np.ndarray], stride: int, s: int
) -> None:
    h, x = case
    maps = [TapMap(k, stride, 1, (0, 0), n, s) for k, n in zip(h.shape, x.shape, strict=True)]
    filters = expand_filter(tensor(h)[None, None], maps).numpy()
    s_prime = s * stride
    assert filters.shape[:2] == (s**2, s_prime**2)
    for (m, n), of_output in zip(np.ndindex(s, s), filters, strict=True):
        padded = theory.O(m * stride, n * stride, h)  # m′ − 1 and n′ − 1 of Eq. 26
        for (p, q), filter_ in zip(np.ndindex(s_prime, s_prime), of_output, strict=True):
            expected = theory.T(p + 1, q + 1, s_prime, padded)
            assert equal(filter_, leading_corner(expected, filter_.shape))


def test_channels_are_expanded_each_by_itself_and_stay_together() -> None:
    weight = tensor(integers((3, 2, 4, 5)))
    maps = [TapMap(4, 2, 1, (1, 1), 9, 3), TapMap(5, 1, 2, (0, 2), 11, 2)]
    twin = expand_filter(weight, maps)
    assert twin.shape[:2] == (3 * 6, 2 * 12)
    for o, i in np.ndindex(3, 2):
        alone = expand_filter(weight[o, i][None, None], maps)
        assert equal(twin[o * 6 : o * 6 + 6, i * 12 : i * 12 + 12], alone)


def test_each_bias_stands_once_for_each_output_phase() -> None:
    maps = [TapMap(1, 5, 1, (0, 0), 9, 3), TapMap(1, 7, 1, (0, 0), 9, 2)]
    assert expand_bias(torch.tensor([4.0, 7.0]), maps).tolist() == [4.0] * 6 + [7.0] * 6


@many
@given(
    st.one_of(st.tuples(tap_maps(20, 4)), st.tuples(tap_maps(8, 2), tap_maps(8, 2))),
    st.sampled_from([(1, 1, 1), (2, 2, 1), (2, 2, 2), (4, 2, 2)]),
)
def test_a_strided_convolution_is_a_unit_stride_one_between_phase_forms(
    maps: tuple[TapMap, ...], channels: tuple[int, int, int]
) -> None:
    """The induction step of Theorem 2, and the dilation, padding and groups that it leaves out."""
    inputs, outputs, groups = channels
    x = integers((1, inputs, *(m.size for m in maps)))
    weight = integers((outputs, inputs // groups, *(m.kernel for m in maps)), 1)
    bias = integers((outputs,), 2)
    strided = reference.convolve(x, weight, bias, *geometry(maps), groups=groups)
    unit_stride = reference.convolve(
        reference.phase_form(x, [m.input_factor for m in maps]),
        expand_filter(tensor(weight), maps).numpy(),
        expand_bias(tensor(bias), maps).numpy(),
        *unit_stride_geometry(maps),
        groups=groups,
    )
    output_factor = [m.output_factor for m in maps]
    expected = reference.phase_form(strided, output_factor)
    real = reference.phase_form(np.ones_like(strided), output_factor)
    assert unit_stride.shape == expected.shape
    assert equal(unit_stride * real, expected)


@pytest.mark.parametrize("factor", [2, (2,), (2, 0), (2, 2, 2)])
def test_a_factor_that_does_not_fit_the_axes_is_an_error(factor: Any) -> None:
    with pytest.raises(ValueError, match=f"factor {re.escape(str(factor))} .* 2 axes"):
        space_to_depth(torch.ones(1, 1, 4, 4), factor)
    with pytest.raises(ValueError, match=f"factor {re.escape(str(factor))} .* 2 axes"):
        depth_to_space(torch.ones(1, 4, 2, 2), factor, (4, 4))


def test_a_size_that_the_phase_form_does_not_have_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"\(1, 4, 3, 3\) is not one of size \(2, 2\)"):
        depth_to_space(torch.ones(1, 4, 3, 3), (2, 2), (2, 2))
