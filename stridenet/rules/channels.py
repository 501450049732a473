"""Rules of what splits channels in several dimensions, merges them, or works along one of them."""

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import fx, nn

from stridenet.graph.nodes import BATCH, channel, plain, shape, spatial
from stridenet.layers import MovedPhases, ReshapedChannels
from stridenet.plan import LayerPlan
from stridenet.rules.base import Call, Rule, sequence
from stridenet.rules.pointwise import OfChannels
from stridenet.sizes import Size


@dataclass(frozen=True)
class _Reshaping:
    """Describes how the dimensions between the `first` and the `last`, which stay, are reshaped."""

    source: fx.Node
    after: Size
    first: int  # how many stay at the beginning
    last: int  # and at the end

    @property
    def before(self) -> Size:
        """Return the shape of the map that is reshaped."""
        return shape(self.source)

    @property
    def ends(self) -> tuple[int, int]:
        """Return where the dimensions that change end, before and after."""
        return len(self.before) - self.last, len(self.after) - self.last

    def place(self, dimension: int) -> int | None:
        """Return where a dimension that stays is afterwards; None if it does not stay."""
        if dimension < self.first:
            return dimension
        end, new_end = self.ends
        return dimension - end + new_end if dimension >= end else None

    @property
    def channel(self) -> int | None:
        """Return the dimension that has the phases with its channels afterwards: the last new one.

        Returns 0 if no dimension has channels, and None if the phases have no place.
        """
        where = channel(self.source)
        stays = self.place(where) if where else None
        if stays is not None:
            return stays
        many = self.ends[1] - self.first
        if many == 0:
            return 0 if self.first else None
        batch = self.first == 0  # images are among what changes
        return self.ends[1] - 1 if many > batch else None

    @property
    def is_possible(self) -> bool:
        """Tell whether all positions stay, in their order, and images come first."""
        if self.last < 0 or min(self.ends) < self.first:
            return False
        end, new_end = self.ends
        if self.before[: self.first] + self.before[end:] != (
            self.after[: self.first] + self.after[new_end:]
        ):
            return False
        positions = [self.place(d) for d in spatial(self.source)]
        whole = self.after[:1] and self.after[0] % BATCH == 0
        others = all(size % BATCH for size in self.after[1:])
        return bool(whole and others) and None not in positions and self.channel is not None


class Reshape(Rule):
    """Splits channels in several dimensions, or merges them; images and positions stay.

    The phases are with the last of the dimensions that the channels are split in, so that no
    rearrangement is needed but that of the channels themselves.
    """

    moves_channels = True

    several_channel_axes = no_channel_axis = True

    @staticmethod
    def _reshaping(call: Call) -> _Reshaping:
        source, after = call.maps[0], shape(call.node)
        rank, dim = len(shape(source)), call.arguments("dim").get("dim")
        if call.operation in (torch.unsqueeze, "unsqueeze"):
            place = int(cast(int, dim)) % (rank + 1)
            return _Reshaping(source, after, place, rank - place)
        if call.operation in (torch.squeeze, "squeeze"):
            place = dim % rank if isinstance(dim, int) and len(after) < rank else rank
            return _Reshaping(source, after, place, rank - place - 1)
        at_end = at_start = 0  # positions: all channels lie between these
        while rank - 1 - at_end in spatial(source):
            at_end += 1
        while at_start + 1 in spatial(source) and at_start + 1 < rank - at_end:
            at_start += 1
        same_images = shape(source)[0] == after[0]
        return _Reshaping(source, after, 1 + at_start if same_images else 0, at_end)

    def applies(self, call: Call) -> bool:
        source = call.maps[0]
        return len(call.maps) == 1 and bool(spatial(source)) and self._reshaping(call).is_possible

    def why_not(self, call: Call) -> str:
        return "it puts positions in other dimensions, as tokens or as parts of a vector"

    def channel(self, call: Call) -> int:
        return self._reshaping(call).channel or 0

    def plain(self, call: Call) -> tuple[int, ...]:
        reshaping = self._reshaping(call)
        others = {reshaping.place(d) for d in spatial(call.maps[0])} | {0, reshaping.channel}
        return tuple(d for d in range(len(shape(call.node))) if d not in others)

    def replaces(self, call: Call, layer: LayerPlan) -> bool:
        return layer.input.phases > 1

    def build(self, call: Call, layer: LayerPlan) -> nn.Module | None:
        reshaping = self._reshaping(call)
        first, (end, new_end) = reshaping.first, reshaping.ends
        between = list(reshaping.after[first:new_end])
        if first == 0:
            between[0] = -1  # images, however many
        return ReshapedChannels(
            (first, end), between, channel(call.maps[0]), self.channel(call), layer.input.phases
        )


class AlongPlain(Rule):
    """Works along plain dimensions (sums, softmax, indices), and stays as it is."""

    several_channel_axes = True

    @staticmethod
    def _dimensions(call: Call) -> list[int]:
        arguments = call.arguments("dim", "keepdim")
        given = arguments.get("dim", arguments.get("axis", None))
        given = (given,) if isinstance(given, int) else given
        if not isinstance(given, (tuple, list)):
            return []
        return [dim % len(shape(call.maps[0])) for dim in given]

    def applies(self, call: Call) -> bool:
        along = self._dimensions(call)
        return len(call.maps) == 1 and bool(along) and set(along) <= set(plain(call.maps[0]))

    def _left(self, call: Call) -> list[int]:
        """Return the dimensions that the operation leaves."""
        rank = len(shape(call.maps[0]))
        if len(shape(call.node)) == rank:
            return list(range(rank))
        return [d for d in range(rank) if d not in self._dimensions(call)]

    def channel(self, call: Call) -> int:
        return self._left(call).index(channel(call.maps[0]))

    def plain(self, call: Call) -> tuple[int, ...]:
        left = self._left(call)
        return tuple(left.index(d) for d in plain(call.maps[0]) if d in left)


class AlongChannels(AlongPlain):
    """Works along the dimension that the phases are with, after these were moved to another one."""

    @staticmethod
    def _goal(call: Call) -> int:
        """Return the dimension that the phases move to: the last plain one."""
        return max(plain(call.maps[0]))

    def applies(self, call: Call) -> bool:
        along, source = self._dimensions(call), call.maps[0]
        return len(call.maps) == 1 and along == [channel(source)] and bool(plain(source))

    def channel(self, call: Call) -> int:
        return self._left(call).index(self._goal(call))

    def plain(self, call: Call) -> tuple[int, ...]:
        left, source = self._left(call), call.maps[0]
        others = {channel(source), *plain(source)} - {self._goal(call)}
        return tuple(left.index(d) for d in sorted(others) if d in left)

    def replaces(self, call: Call, layer: LayerPlan) -> bool:
        return layer.input.phases > 1

    def build(self, call: Call, layer: LayerPlan) -> nn.Module | None:
        ends = channel(call.maps[0]), self._goal(call)
        return sequence(phases=MovedPhases(ends, layer.input.phases), operation=call.as_module())


def parts_of(index: Any, rank: int) -> list[Any]:
    """Return an index as a part for each dimension of a map.

    Returns [] if the index has more than numbers and slices.
    """
    parts: list[Any] = list(index) if isinstance(index, (tuple, list)) else [index]
    if any(part is Ellipsis for part in parts):
        at = next(n for n, part in enumerate(parts) if part is Ellipsis)
        parts[at : at + 1] = [slice(None)] * (rank - len(parts) + 1)
    parts += [slice(None)] * (rank - len(parts))

    def is_number(part: Any) -> bool:
        return isinstance(part, int) and not isinstance(part, bool)

    plain_parts = all(
        is_number(part)
        or (
            isinstance(part, slice)
            and all(e is None or is_number(e) for e in (part.start, part.stop, part.step))
        )
        for part in parts
    )
    return parts if plain_parts and len(parts) == rank else []


class PlainIndex(AlongPlain):
    """Takes one entry of a plain dimension, or a slice of it."""

    @staticmethod
    def _parts(call: Call) -> list[Any]:
        return parts_of(call.node.args[1], len(shape(call.maps[0])))

    def applies(self, call: Call) -> bool:
        if len(call.maps) != 1 or not hasattr(call.maps[0].meta["value"], "shape"):
            return False
        parts = self._parts(call)
        chosen = {d for d, part in enumerate(parts) if part != slice(None)}
        return bool(parts) and chosen <= set(plain(call.maps[0])) and bool(plain(call.maps[0]))

    def _left(self, call: Call) -> list[int]:
        return [d for d, part in enumerate(self._parts(call)) if isinstance(part, slice)]


class ChannelIndex(AlongChannels):
    """Takes one entry of the dimension that the phases are with."""

    @staticmethod
    def _dimensions(call: Call) -> list[int]:
        if not hasattr(call.maps[0].meta["value"], "shape"):
            return []
        parts = parts_of(call.node.args[1], len(shape(call.maps[0])))
        return [d for d, part in enumerate(parts) if part != slice(None)]


class OneChannel(OfChannels):
    """Takes one channel by its number, which leaves a map without channels."""

    def applies(self, call: Call) -> bool:
        if len(call.maps) != 1 or not hasattr(call.maps[0].meta["value"], "shape"):
            return False
        source = call.maps[0]
        parts = parts_of(call.node.args[1], len(shape(source)))
        chosen = [d for d, part in enumerate(parts) if part != slice(None)]
        return (
            bool(spatial(source))
            and chosen == [channel(source)]
            and isinstance(parts[chosen[0]], int)
        )


class NewChannel(Rule):
    """Gives a map without channels one channel, as x[:, None] does."""

    no_channel_axis = True

    @staticmethod
    def _place(call: Call) -> int | None:
        index: Any = call.node.args[1]
        parts = list(index) if isinstance(index, tuple) else [index]
        whole = all(part is None or part is Ellipsis or part == slice(None) for part in parts)
        if not whole or sum(part is None for part in parts) != 1:
            return None
        at = parts.index(None)
        if Ellipsis in parts[:at]:
            return len(shape(call.node)) - len(parts) + at
        return at

    def applies(self, call: Call) -> bool:
        return (
            len(call.maps) == 1
            and hasattr(call.maps[0].meta["value"], "shape")
            and channel(call.maps[0]) == 0
            and bool(self._place(call))
        )

    def channel(self, call: Call) -> int:
        return self._place(call) or 0

    def replaces(self, call: Call, layer: LayerPlan) -> bool:
        return layer.input.phases > 1

    def build(self, call: Call, layer: LayerPlan) -> nn.Module | None:
        place = self.channel(call)
        return ReshapedChannels((place, place), [1], 0, place, layer.input.phases)
