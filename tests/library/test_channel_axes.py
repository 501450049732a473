"""Channels in several dimensions, or in none, between strides: hand-written shuffles, stacks, maxima.

The oracle is PyTorch's own forward of the model, in float64.
"""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stridenet import StrideEliminationError, eliminate_stride
from stridenet.layers import DepthToSpace, ReshapedChannels
from stridenet.phases import FeatureMap
from tests.between_strides import SIZES, between, check, check_training

Shuffle = Callable[[Tensor, int, int, int, int, int], Tensor]


def in_groups(shuffle: Shuffle, groups: int = 3) -> Callable[[Tensor], Tensor]:
    return lambda x: shuffle(x, *x.shape, groups)


SHUFFLES: dict[str, Shuffle] = {
    "view, transpose, contiguous": lambda x, b, c, h, w, g: (
        x.view(b, g, c // g, h, w).transpose(1, 2).contiguous().view(b, c, h, w)
    ),
    "sizes left open": lambda x, b, c, h, w, g: (
        torch.transpose(x.view(b, g, -1, h, w), 1, 2).contiguous().view(b, -1, h, w)
    ),
    "reshape, permute, flatten": lambda x, b, c, h, w, g: (
        x.reshape(b, g, c // g, h, w).permute(0, 2, 1, 3, 4).flatten(1, 2)
    ),
    "unflatten, negative dimensions": lambda x, b, c, h, w, g: (
        x.unflatten(1, (g, c // g)).transpose(-4, -3).reshape(-1, c, h, w)
    ),
    "functions": lambda x, b, c, h, w, g: torch.flatten(
        torch.swapaxes(torch.unflatten(x, 1, (g, c // g)), 1, 2), 1, 2
    ),
    "three dimensions": lambda x, b, c, h, w, g: (
        x.view(b, g, 2, c // g // 2, h, w).permute(0, 3, 1, 2, 4, 5).relu().reshape(b, c, h, w)
    ),
    "positions first": lambda x, b, c, h, w, g: (
        x.view(b, g, c // g, h, w).permute(0, 3, 2, 1, 4).contiguous().movedim(1, 3).flatten(1, 2)
    ),
    "channels last": lambda x, b, c, h, w, g: (
        x.permute(0, 2, 3, 1).unflatten(3, (g, c // g)).transpose(3, 4).flatten(3).permute(0, 3, 1, 2)
    ),
    "into the images and out": lambda x, b, c, h, w, g: (
        F.relu(x.view(b * g, c // g, h, w)).view(b, g, c // g, h, w).transpose(1, 2).reshape(x.shape)
    ),
}  # fmt: skip


@pytest.mark.sample(9)
@pytest.mark.parametrize("name", SHUFFLES)
@pytest.mark.parametrize("size", SIZES)
def test_a_shuffle_of_channels_written_by_hand(name: str, size: tuple) -> None:
    model = between(in_groups(SHUFFLES[name]), 12)
    twin = check(model, (2, *size))
    assert [m for m in twin.modules() if isinstance(m, ReshapedChannels)]
    assert not [m for m in twin.network.modules() if isinstance(m, DepthToSpace)]


def split_attention(x: Tensor) -> Tensor:
    """ResNeSt's, with two parts."""
    b, c, h, w = x.shape
    parts = x.view(b, 2, c // 2, h, w)
    gap = parts.sum(1).mean((2, 3), keepdim=True)
    gates = torch.cat((gap, 2 - gap), 1).view(b, 2, c // 2, 1, 1).softmax(1)
    return (parts * gates).sum(dim=1)


def selective_kernels(x: Tensor) -> Tensor:
    """SKNet's, with a stack and gates that come from a vector."""
    ways = torch.stack((x, x.relu()), dim=1)
    gates = ways.sum(1).mean((2, 3)).view(x.size(0), 1, -1, 1, 1)
    return (ways * torch.cat((gates, 1 - gates), 1)).sum(1)


def spatial_attention(x: Tensor) -> Tensor:
    """CBAM's, as it was published."""
    both = torch.cat((torch.max(x, 1)[0].unsqueeze(1), torch.mean(x, 1).unsqueeze(1)), dim=1)
    return x * torch.sigmoid(both.sum(1, keepdim=True))


def spatial_groups(x: Tensor) -> Tensor:
    """SGE's, whose groups are among the images."""
    b, c, h, w = x.shape
    groups = x.view(b * 3, -1, h, w)
    similar = (groups * F.adaptive_avg_pool2d(groups, 1)).sum(1, keepdim=True)
    return (groups * torch.sigmoid(similar)).view(b, c, h, w)


BLOCKS: dict[str, tuple[Callable, int]] = {
    "split attention": (split_attention, 6),
    "selective kernels": (selective_kernels, 12),
    "spatial attention": (spatial_attention, 12),
    "spatial groups": (spatial_groups, 12),
    "stack at the end": (lambda x: torch.stack((x, 2 * x, x.relu()), -1).mean(-1), 12),
    "stack, flattened": (lambda x: torch.stack((x, x.relu()), 2).flatten(1, 2), 24),
    "a maximum of parts": (lambda x: x.unflatten(1, (4, 3)).max(2)[0], 4),
    "a maximum over parts": (lambda x: x.unflatten(1, (4, 3)).amax(1), 3),
    "a softmax within parts": (lambda x: x.unflatten(1, (4, 3)).softmax(2).flatten(1, 2), 12),
    "parts one by one": (lambda x: torch.cat(x.unflatten(1, (4, 3)).unbind(1)[::-1], 1), 12),
    "chunks of parts": (
        lambda x: torch.cat([p.squeeze(1) for p in x.unflatten(1, (4, 3)).chunk(4, 1)][::-1], 1), 12,
    ),
    "a part by its number": (lambda x: x.unflatten(1, (4, 3))[:, 1], 3),
    "each third by its number": (lambda x: x.unflatten(1, (4, 3))[:, :, 2], 4),
    "parts by a slice": (lambda x: x.unflatten(1, (4, 3))[:, 1:3].flatten(1, 2), 6),
    "maxima with names": (lambda x: x * torch.max(x, 1).values.unsqueeze(1), 12),
    "maxima that keep the axis": (lambda x: torch.cat(x.max(1, keepdim=True)[:1], 1) + x, 12),
    "the largest channel": (lambda x: x * x.argmax(1, keepdim=True).to(x.dtype), 12),
    "its number, without an axis": (lambda x: x + torch.argmin(x, dim=1)[:, None].type_as(x), 12),
    "a minimum of two": (lambda x: torch.min(x, 1 - x) + torch.max(x, x.mean(1, True)), 12),
    "a sum without an axis": (lambda x: x + torch.tanh(x.sum(1) / 3).unsqueeze(1), 12),
    "a quotient without an axis": (lambda x: x + (1 / (1 + x[:, 0].square())).unsqueeze(1), 12),
    "one channel": (lambda x: x * x[:, -1].sigmoid()[:, None], 12),
    "one channel, squeezed": (lambda x: x * (2 * x[:, 3:4].squeeze(1)).relu().unsqueeze(1), 12),
    "over channels that are last": (lambda x: x * x.permute(0, 2, 3, 1).amax(-1)[:, None], 12),
}  # fmt: skip


@pytest.mark.sample(4)
@pytest.mark.parametrize("name", BLOCKS)
def test_what_works_along_a_dimension_of_channels(name: str) -> None:
    block, after = BLOCKS[name]
    model = between(block, 12, after=after)
    for size in SIZES:
        check(model, (2, *size))
    check_training(model, (2, *SIZES[0]))


@pytest.mark.parametrize("axes", [1, 3])
def test_a_shuffle_on_other_numbers_of_axes(axes: int) -> None:
    model = between(lambda x: x.unflatten(1, (3, 2)).transpose(1, 2).flatten(1, 2), 6, axes=axes)
    check(model, (2, *(7, 5, 4)[:axes]))


def test_a_number_for_each_pixel_may_be_the_result() -> None:
    """A map without channels, from one that was rearranged, is restored."""
    model = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 3, 2, 2)).double()

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = model

        def forward(self, x: Tensor) -> tuple:
            x = self.layers[0](x)
            return x.argmax(1), torch.max(x, 1), x[:, 1], self.layers[1](x)

    twin = check(Both().double().eval(), (2, 7, 9))
    x = torch.randn(2, 2, 7, 9, dtype=torch.float64)
    assert torch.equal(twin(x)[0], Both().double()(x)[0])
    assert twin(x)[1].indices.shape == (2, 7, 9)


@pytest.mark.parametrize(
    "block",
    [
        lambda x: x.flatten(2).transpose(1, 2).softmax(1).transpose(1, 2).view(x.shape),
        lambda x: x.view(x.size(0), 6, 2, -1).cumsum(2).view(x.shape),
        lambda x: x.transpose(0, 1).reshape(x.shape),
        lambda x: x.reshape(x.size(0), x.size(1) * x.size(2), -1).view(x.shape),
    ],
    ids=["tokens", "positions in a row", "images and channels", "channels and rows"],
)
def test_what_moves_positions_before_a_stride_is_refused_with_a_way_out(block: Callable) -> None:
    model = between(block, 12)
    with pytest.raises(StrideEliminationError, match=r"before a stride.*convert_layers\(model\)"):
        eliminate_stride(model, (2, 8, 8))


@pytest.mark.parametrize(
    "block",
    [lambda x, layer: layer(x), lambda x, layer: F.prelu(x, layer.weight)],
    ids=["PReLU", "F.prelu"],
)
def test_one_slope_for_all_channels_wherever_they_are(block: Callable) -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.slope = nn.PReLU()

        def forward(self, x: Tensor) -> Tensor:
            return block(x.permute(0, 2, 3, 1), self.slope).permute(0, 3, 1, 2)

    check(between(Last(), 6), (2, 7, 9))


CHANNELS_FIRST: dict[str, tuple[Callable, nn.Module]] = {
    "BatchNorm": (lambda x, layer: layer(x), nn.BatchNorm2d(8)),
    "F.batch_norm": (
        lambda x, norm: F.batch_norm(x, norm.running_mean, norm.running_var),
        nn.BatchNorm2d(8),
    ),
    "PReLU": (lambda x, layer: layer(x), nn.PReLU(8)),
    "F.prelu": (lambda x, slopes: F.prelu(x, slopes.weight), nn.PReLU(8)),
    "nearest upsampling": (lambda x, layer: layer(x), nn.Upsample(scale_factor=2)),
    "linear upsampling": (
        lambda x, layer: layer(x),
        nn.Upsample(scale_factor=2, mode="bilinear"),
    ),
}


@pytest.mark.parametrize("name", CHANNELS_FIRST)
def test_what_needs_channels_in_front_is_refused_where_they_are_last(name: str) -> None:
    """It takes the rows of the permuted map for channels, of which there are as many: eight."""
    function, layer = CHANNELS_FIRST[name]

    class Rows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.before, self.layer = nn.Conv2d(2, 8, 1), layer
            self.after = nn.LazyConv2d(3, 3, stride=2)

        def forward(self, x: Tensor) -> Tensor:
            rows = function(self.before(x).permute(0, 2, 3, 1), self.layer)
            return self.after(rows.permute(0, 3, 1, 2))

    model = Rows().eval()
    model(torch.zeros(1, 2, 8, 8))
    with pytest.raises(StrideEliminationError, match=r"before a stride.*convert_layers\(model\)"):
        eliminate_stride(model, (2, 8, 8))


@pytest.mark.parametrize("channel", [None, 0, 1, 2])
@pytest.mark.parametrize("plain", [(), (0,), (1,), (2,), (0, 2)])
def test_phase_forms_and_back_with_dimensions_of_other_kinds(
    channel: int | None, plain: tuple[int, ...]
) -> None:
    if channel in plain:
        return
    size = (3, 4, 5, 2)
    factor = tuple(range(2, 2 + len(size) - len(plain) - (channel is not None)))
    feature_map = FeatureMap(size, factor, channel, plain)
    maps = torch.arange(2.0 * 3 * 4 * 5 * 2).view(2, *size)
    phases = feature_map.to_phases(maps)
    assert phases.shape == (2, *feature_map.unit_stride_size)
    assert torch.equal(feature_map.to_maps(phases), maps)
    for where in plain:  # each by itself is a map of its own
        rest = tuple(a - (a > where) for a in plain if a != where)
        without = None if channel is None else channel - (channel > where)
        alone = FeatureMap(size[:where] + size[where + 1 :], factor, without, rest)
        axis = 1 + where + (channel is None)
        for number in range(size[where]):
            expected = alone.to_phases(maps.select(1 + where, number))
            assert torch.equal(phases.select(axis, number), expected)
