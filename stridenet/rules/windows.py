"""What the rules of operations share that read a window at each position and step by a stride."""

from dataclasses import replace

from torch import nn

from stridenet.graph.factors import Factors
from stridenet.graph.nodes import axes, channel, extents
from stridenet.layers import PhantomMask, WindowMaximum
from stridenet.plan import LayerPlan
from stridenet.rules.base import Call, Rule, device_of, sequence
from stridenet.windows import Window


class Windowed(Rule):
    """Reads a window around each of its positions, and steps by its stride: f(in) = s·f(out)."""

    puts_channels_first = True

    def windows(self, call: Call) -> list[Window]:
        """Return one window for each spatial axis."""
        raise NotImplementedError

    def lengths(self, call: Call) -> list[int]:
        """Return the sizes of the map that the windows move on."""
        return extents(call.maps[0])

    def outside(self, call: Call) -> float:
        """Return the number that a window reads outside the map."""
        return 0.0

    def applies(self, call: Call) -> bool:
        return super().applies(call) and channel(call.maps[0]) == 1

    def _effective(self, call: Call) -> list[Window]:
        """Return the windows, with stride 1 and no room to move on axes that have a single output.

        A stride that is never taken asks for no factor, so that a global average needs no
        rearrangement, whatever its stride is said to be.
        """
        effective = []
        for window, size, length in zip(
            self.windows(call), self.lengths(call), extents(call.node), strict=True
        ):
            if length == 1:
                before = window.padding[0]
                window = replace(window, stride=1, padding=(before, window.reach - size - before))
            effective.append(window)
        return effective

    def tie(self, call: Call, factors: Factors) -> None:
        lengths = extents(call.node)
        for a, b, window, length in zip(
            axes(call.maps[0]), axes(call.node), self.windows(call), lengths, strict=True
        ):
            if length > 1:  # a single output is where it is in any form
                factors.tie(a, b, window.stride, call.label)

    def is_strided(self, call: Call) -> bool:
        return any(window.stride > 1 for window in self.windows(call))

    def plan(self, call: Call, layer: LayerPlan) -> LayerPlan:
        maps = tuple(
            window.on(size, output, source if length == 1 else None)
            for window, size, length, source, output in zip(
                self._effective(call),
                self.lengths(call),
                extents(call.node),
                layer.input.factor,
                layer.output.factor,
                strict=True,
            )
        )
        return replace(layer, maps=maps, masked=any(tap_map.reads_phantoms for tap_map in maps))

    def build(self, call: Call, layer: LayerPlan) -> nn.Module | None:
        """Return what `parts` gives, behind a mask where a window reads phantoms.

        Phantoms are the positions by which a phase form is larger than the strided map, where the
        factor does not divide its size. The strided network has padding there, or nothing; the twin
        has whatever the layer before computed from its own padding: a bias, or a large number. A
        window that reaches beyond the map would read that, so that phantoms are first filled with
        what the strided window reads outside the map.
        """
        parts: dict[str, nn.Module] = {}
        if layer.masked:
            parts["mask"] = PhantomMask(layer.input, device_of(call), self.outside(call))
        return sequence(**parts, **self.parts(call, layer))

    def parts(self, call: Call, layer: LayerPlan) -> dict[str, nn.Module]:
        """Return the modules that follow the mask, by name."""
        return {"maximum": WindowMaximum(layer.maps, self.outside(call))}

    def reads_zeros_outside(self, call: Call) -> bool:
        return self.outside(call) == 0
