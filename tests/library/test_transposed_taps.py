"""The taps of transposed convolutions: which weight writes where, in integers."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given

from stridenet import depth_to_space
from stridenet.phases import expand_filter
from stridenet.taps import TransposedTapMap
from tests import reference
from tests.library.between_phases import many, transposed_tap_maps


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
