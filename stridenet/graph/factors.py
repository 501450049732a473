"""Factors as constraints: by what number each axis of each feature map is rearranged.

Every operation ties the factors of its maps (a convolution of stride s: f(in) = s·f(out), Eq. 26), or
pins them to one because it has no other form. What is tied together, through whatever branches and
merges, is one component with one free scale; the solution is the smallest in positive integers.
"""

from collections.abc import Hashable
from dataclasses import dataclass, field
from fractions import Fraction
from math import gcd, lcm

Axis = Hashable  # one axis of one map


class FactorConflict(Exception):  # noqa: N818  (it is always turned into a StrideEliminationError)
    """Raised where two demands contradict each other; the message names their operations."""


@dataclass
class Factors:
    """Holds the factors of all axes, as a union-find structure whose edges carry ratios.

    >>> factors = Factors()
    >>> factors.tie("in", "a", 2, "a stride of 2")
    >>> factors.tie("in", "b", 3, "a stride of 3")
    >>> factors.solve({})
    {'in': 6, 'a': 3, 'b': 2}
    """

    _above: dict[Axis, tuple[Axis, Fraction]] = field(default_factory=dict)  # f = ratio·f(above)
    # Each root has f, and who asked for it.
    _pins: dict[Axis, tuple[Fraction, str]] = field(default_factory=dict)
    # All axes, in the order in which they were named.
    _axes: dict[Axis, None] = field(default_factory=dict)

    def mention(self, axis: Axis) -> None:
        """Make `solve` give this axis a factor, even if nothing is ever demanded of it."""
        self._find(axis)

    def tie(self, axis: Axis, to: Axis, ratio: int | Fraction, who: str) -> None:
        """Demand f(axis) = ratio·f(to), for the operation `who`.

        Raises FactorConflict if that contradicts an earlier demand.
        """
        (root, own), (other, its) = self._find(axis), self._find(to)
        if root == other:
            if own != ratio * its:
                raise FactorConflict(
                    f"{who}: the strides on the ways to it do not agree (one map would be rearranged "
                    f"by {own} and by {ratio * its} at once)"
                )
            return
        self._above[root] = (other, ratio * its / own)
        if root in self._pins:
            value, by = self._pins.pop(root)
            self._pin(other, value * own / ratio / its, by)

    def pin(self, axis: Axis, who: str) -> None:
        """Demand f(axis) = 1, for the operation and the reason `who`.

        Raises FactorConflict if that contradicts an earlier demand.
        """
        root, own = self._find(axis)
        self._pin(root, 1 / own, who)

    def solve(self, multiples: dict[Axis, int]) -> dict[Axis, int]:
        """Return the factor of every axis: the smallest positive integers of each component.

        multiples: for some axes, a number by which the factors of their whole components are
            multiplied.

        Raises FactorConflict if such a component is pinned, or if a pinned one has no solution in
        integers.
        """
        found = {axis: self._find(axis) for axis in self._axes}
        ratios: dict[Axis, list[Fraction]] = {}
        for root, ratio in found.values():
            ratios.setdefault(root, []).append(ratio)
        scales = {
            root: self._pins[root][0]
            if root in self._pins
            else Fraction(lcm(*(r.denominator for r in own)), gcd(*(r.numerator for r in own)))
            for root, own in ratios.items()
        }
        for root, multiple in {found[axis][0]: many for axis, many in multiples.items()}.items():
            if multiple != 1 and root in self._pins:
                raise FactorConflict(f"{self._pins[root][1]}, so that no larger factor is possible")
            scales[root] *= multiple
        for root, ratio in found.values():
            if (ratio * scales[root]).denominator != 1:
                raise FactorConflict(f"{self._pins[root][1]}, but it comes before a stride")
        return {axis: int(ratio * scales[root]) for axis, (root, ratio) in found.items()}

    def _find(self, axis: Axis) -> tuple[Axis, Fraction]:
        """Return the root of the axis's component, and f(axis) / f(root).

        Every axis on the way to the root is hung directly below it (path compression), nearest to the
        root first: a network of a thousand layers is one chain, which is then walked once, not once
        for each of its axes.
        """
        self._axes.setdefault(axis)
        way, root = [], axis
        while root in self._above:
            way.append(root)
            root, _ = self._above[root]
        ratio = Fraction(1)
        for below in reversed(way):
            ratio *= self._above[below][1]
            self._above[below] = (root, ratio)
        return root, ratio

    def _pin(self, root: Axis, value: Fraction, who: str) -> None:
        known, by = self._pins.setdefault(root, (value, who))
        if known != value:
            raise FactorConflict(f"{by}, but a stride lies between it and {who.split(':')[0]}")
