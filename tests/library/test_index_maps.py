"""Positions that move or mix between phase forms: pixel shuffles, padding with positions, upsampling.

The oracles are plain loops on ordinary maps, where there are any, and PyTorch's own forward.
"""

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from stridenet import StrideEliminationError, eliminate_stride, plan_elimination
from stridenet.index_maps import PositionMap
from stridenet.phases import FeatureMap
from tests.between_strides import SIZES, between, check, check_training, images
from tests.examples import examples
from tests.networks import Forward, randomise

BLOCKS: dict[str, tuple[Callable | nn.Module, int, int]] = {
    "PixelShuffle": (nn.PixelShuffle(2), 8, 2),
    "shuffled by three and back": (
        lambda x: F.pixel_unshuffle(torch.pixel_shuffle(x, 3), 3), 9, 9,
    ),
    "ReflectionPad2d": (nn.ReflectionPad2d((2, 1, 0, 3)), 6, 6),
    "reflect": (lambda x: F.pad(x, (1, 2, 3, 4), "reflect"), 6, 6),
    "ReplicationPad2d": (nn.ReplicationPad2d((9, 0, 1, 2)), 6, 6),
    "replicate": (lambda x: F.pad(x, [1, 2, 3, 4], mode="replicate"), 6, 6),
    "CircularPad2d": (nn.CircularPad2d(2), 6, 6),
    "circular": (lambda x: F.pad(input=x, pad=(1, 0, 0, 1), mode="circular"), 6, 6),
    "a reflecting convolution": (nn.Conv2d(6, 6, 3, padding=1, padding_mode="reflect"), 6, 6),
    "a strided circular one": (
        nn.Conv2d(6, 6, (3, 5), 2, (1, 2), padding_mode="circular", bias=False), 6, 6,
    ),
    "a replicating one, same": (
        nn.Conv2d(6, 6, (4, 2), padding="same", dilation=(1, 2), padding_mode="replicate"), 6, 6,
    ),
    "bilinear": (nn.Upsample(scale_factor=2, mode="bilinear"), 6, 6),
    "bilinear, corners aligned": (
        lambda x: F.interpolate(x, scale_factor=(3, 2), mode="bilinear", align_corners=True), 6, 6,
    ),
    "bilinear, by size": (
        lambda x: F.interpolate(x, [2 * n for n in x.shape[2:]], mode="bilinear"), 6, 6,
    ),
}  # fmt: skip


@pytest.mark.sample(6)
@pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")
@pytest.mark.parametrize("name", BLOCKS)
def test_what_moves_or_mixes_positions(name: str) -> None:
    block, channels, after = BLOCKS[name]
    model = between(block, channels, after=after)
    for size in SIZES:
        check(model, (2, *size))
    check_training(model, (2, *SIZES[0]))


@pytest.mark.parametrize("size", [(12, 8), (6, 10)])
def test_pixel_unshuffle(size: tuple) -> None:
    model = between(nn.PixelUnshuffle(2), 3, after=12)
    check(model, (2, *size))
    check_training(model, (2, *size))


def test_a_network_that_pads_with_its_map_first() -> None:
    """Nothing is padded with zeros before the rearrangement then."""
    for mode in ("reflect", "replicate", "circular"):
        model = nn.Sequential(
            nn.Conv2d(2, 3, 5, 2, 2, padding_mode=mode), nn.ReLU(), nn.Conv2d(3, 2, 3, 2, 1)
        )
        twin = check(randomise(model), (2, 9, 8))
        assert twin.plan.inputs[0].padding == ((0, 0), (0, 0))
        check_training(model, (2, 9, 8))


def shuffled(x: np.ndarray, r: int) -> np.ndarray:
    """Y[c, r·i + p, r·j + q] = X[c·r² + p·r + q, i, j]."""
    n, channels, height, width = x.shape
    y = np.zeros((n, channels // r**2, height * r, width * r))
    for c, i, p, j, q in itertools.product(
        range(channels // r**2), range(height), range(r), range(width), range(r)
    ):
        y[:, c, r * i + p, r * j + q] = x[:, c * r**2 + p * r + q, i, j]
    return y


@examples(30)
@given(st.integers(1, 3), st.tuples(*[st.integers(1, 5)] * 2), st.tuples(*[st.integers(1, 3)] * 2))
def test_pixel_shuffles_by_loops(r: int, size: tuple[int, int], factor: tuple[int, int]) -> None:
    x = images((r * r, *size))
    expected = torch.from_numpy(shuffled(x.numpy(), r))
    shuffle = eliminate_stride(nn.PixelShuffle(r), (r * r, *size), output_factor=factor)
    assert torch.equal(shuffle(x), expected)
    back = eliminate_stride(nn.PixelUnshuffle(r), tuple(expected.shape[1:]), output_factor=factor)
    assert torch.equal(back(expected), x)


def place(mode: str, position: int, size: int) -> int:
    """Which position of an axis stands at one before, on or behind it."""
    if mode == "circular":
        return position % size
    if mode == "replicate":
        return min(max(position, 0), size - 1)
    position = abs(position)
    return position if position < size else 2 * (size - 1) - position


@examples(60)
@given(
    st.sampled_from(["reflect", "replicate", "circular"]), st.integers(2, 7),
    st.tuples(*[st.integers(0, 6)] * 2), st.integers(1, 4),
)  # fmt: skip
def test_padding_by_loops(mode: str, size: int, pair: tuple[int, int], factor: int) -> None:
    most = {"reflect": size - 1, "circular": size, "replicate": 6}[mode]
    before, after = (min(p, most) for p in pair)
    x = images((2, size))
    taken = [place(mode, u - before, size) for u in range(before + size + after)]
    model = Forward(lambda _, x: F.pad(x, (before, after), mode=mode))
    twin = eliminate_stride(model, (2, size), output_factor=factor)
    assert torch.equal(twin(x), x[..., taken])


@pytest.mark.parametrize("corners", [False, True])
@examples(40)
@given(st.integers(1, 7), st.integers(1, 4), st.integers(1, 3))
def test_linear_upsampling_by_loops(corners: bool, size: int, scale: int, factor: int) -> None:
    x, length = images((2, size)), size * scale
    expected = torch.zeros(2, 2, length, dtype=torch.float64)
    for u in range(length):
        at = u * (size - 1) / max(length - 1, 1) if corners else (u + 0.5) / scale - 0.5
        at = min(max(at, 0), size - 1)
        low = min(int(at), size - 1)
        high = min(low + 1, size - 1)
        expected[..., u] = x[..., low] * (1 - (at - low)) + x[..., high] * (at - low)
    model = nn.Upsample(scale_factor=scale, mode="linear", align_corners=corners)
    twin = eliminate_stride(model, (2, size), output_factor=factor)
    torch.testing.assert_close(twin(x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("mode", ["linear", "trilinear"])
def test_linear_upsampling_on_other_numbers_of_axes(mode: str) -> None:
    axes = 1 if mode == "linear" else 3
    model = between(nn.Upsample(scale_factor=2, mode=mode), 3, axes=axes)
    check(model, (2, *(7, 4, 3)[:axes]))


def test_a_u_net_with_bilinear_upsampling_on_a_ragged_map() -> None:
    class UNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.top, self.down = nn.Conv2d(2, 3, 3, 1, 1), nn.Conv2d(3, 4, 2, 2)
            self.up, self.last = nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(7, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.top(x)
            y = self.up(self.down(x))
            y = F.pad(y, (0, x.shape[3] - y.shape[3], 0, x.shape[2] - y.shape[2]), "replicate")
            return self.last(torch.cat((x, y), 1))

    for size in ((8, 6), (9, 7)):
        check(randomise(UNet()), (2, *size))


def test_phantoms_of_the_result_are_finite_and_never_read() -> None:
    source, result = FeatureMap((1, 5), (3,)), FeatureMap((1, 8), (2,))
    taken = torch.tensor([4, 3, 2, 1, 0, 0, 1, 2])
    x = torch.arange(5.0).view(1, 1, 5)
    phases = source.to_phases(x)
    phases[source.to_phases(torch.ones_like(x)) == 0] = float("nan")
    moved = PositionMap(source, result, [taken], "cpu")(phases)
    assert moved.isfinite().all()
    assert torch.equal(result.to_maps(moved), x[..., taken])


@pytest.mark.parametrize(
    ("block", "why"),
    [
        (nn.Upsample(scale_factor=1.5, mode="bilinear"), "scales by a number that is not whole"),
        (nn.Upsample(scale_factor=2, mode="bicubic"), "mode='bicubic' has no rule"),
        (nn.AdaptiveAvgPool2d(5), "windows differ in size"),
        (lambda x: F.softmax(x, 3), "over positions, not over channels"),
        (lambda x: F.glu(x, 3), "its halves are of positions, not of channels"),
        (lambda x: torch.baddbmm(x[:, 0], x[:, 1], x[:, 2])[:, None].expand_as(x), "ordinary form"),
    ],
)
def test_what_declines_says_why_and_what_helps(block: Callable, why: str) -> None:
    model = between(block, 6)
    with pytest.raises(StrideEliminationError, match=rf"{why}.*stride.*convert_layers\(model\)"):
        plan_elimination(model, (2, 8, 8))
