"""Reports of a comparison of two networks, layer by layer, however they were run."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from stridenet.tables import aligned, data_frame

if TYPE_CHECKING:
    import pandas as pd

_HEADINGS = ("layer", "operation", "largest", "error", "of bound", "passed")
_WIDEST = (32, 20)  # names of layers and operations, in the table as text
_MOST_ROWS = 40


@dataclass(frozen=True)
class LayerReport:
    """Says how far one layer of the twin is from the strided one, over all real positions."""

    layer: str
    operation: str  # and what is wrong with it, where numbers do not say that
    largest_value: float  # of the strided layer's result: zero would show nothing
    largest_error: float
    share_of_bound: float  # largest error over its rounding bound, taken position by position
    passed: bool


@dataclass(frozen=True)
class VerificationReport:
    """Holds what verify found."""

    layers: tuple[LayerReport, ...]
    output_difference: float  # largest, between the two networks' outputs

    @property
    def passed(self) -> bool:
        """Tell whether every layer is within its rounding bound."""
        return all(layer.passed for layer in self.layers)

    @property
    def first_failure(self) -> str | None:
        """Return the name of the first layer that differs by more than rounding; None if none does."""
        return next((layer.layer for layer in self.layers if not layer.passed), None)

    def to_frame(self) -> "pd.DataFrame":
        """Return a row for each layer."""
        return data_frame(vars(layer) for layer in self.layers)

    def __str__(self) -> str:
        verdict = "equal up to rounding"
        if not self.passed:
            first = next(layer for layer in self.layers if not layer.passed)
            verdict = f"NOT equal, from {first.layer} on ({first.operation})"
        shown = self._shown()
        lines = [aligned(_HEADINGS, [_row(layer) for layer in shown])]
        if len(shown) < len(self.layers):
            lines.append(
                f"... and {len(self.layers) - len(shown)} layers that use less of their bounds"
            )
        lines.append(f"{verdict}; largest difference of an output {self.output_difference:.2g}")
        return "\n".join(lines)

    def _shown(self) -> list[LayerReport]:
        """Return as many layers as a terminal has room for.

        They are those beyond their bounds, or nearest to them.
        """
        order = nearest_first(self.layers)[:_MOST_ROWS]
        kept = set(map(id, order))
        return [layer for layer in self.layers if id(layer) in kept]


def nearest_first(layers: Iterable[LayerReport]) -> list[LayerReport]:
    """Sort reports: layers beyond their bounds first, then those that are nearest to them."""
    return sorted(layers, key=_how_bad, reverse=True)


def _row(layer: LayerReport) -> list[str]:
    names = (layer.layer, layer.operation)
    short = [_shortened(name, most) for name, most in zip(names, _WIDEST, strict=True)]
    numbers = (layer.largest_value, layer.largest_error, layer.share_of_bound)
    return [*short, *(f"{number:.2g}" for number in numbers), "yes" if layer.passed else "NO"]


def _shortened(name: str, most: int) -> str:
    """Return a name's end, with an ellipsis before it: names differ at their ends."""
    return name if len(name) <= most else f"…{name[1 - most :]}"


def _how_bad(layer: LayerReport) -> tuple[bool, float, float]:
    numbers = (layer.share_of_bound, layer.largest_value)
    share, value = (math.inf if math.isnan(number) else number for number in numbers)
    return not layer.passed, share, value


def compared(
    layer: str, operation: str, expected: Tensor, obtained: Tensor, bound: Tensor
) -> LayerReport:
    """Compare one tensor of a layer's result with the strided layer's.

    bound: how far they may lie apart, position by position; its dtype is that of the comparison.

    Positions where both are NaN, or the same infinity, are equal. Another shape is a failure.
    """
    if expected.shape != obtained.shape:
        shapes = f"{tuple(obtained.shape)}, not {tuple(expected.shape)}"
        return failed(layer, f"{operation}: of shape {shapes}")
    if expected.is_complex():
        expected, obtained = torch.view_as_real(expected), torch.view_as_real(obtained)
        bound = bound.unsqueeze(-1)
    if not expected.numel():
        return LayerReport(layer, operation, 0.0, 0.0, 0.0, True)
    bound = bound.to(expected.device)
    expected, obtained = expected.to(bound.dtype), obtained.to(expected.device, bound.dtype)
    same = (expected == obtained) | (expected.isnan() & obtained.isnan())
    error = torch.where(same, 0, (obtained - expected).abs())
    share = torch.where(same, 0, error / bound)
    finite = torch.where(expected.isfinite(), expected, 0)
    value, difference, worst_share = (float(t.max()) for t in (finite.abs(), error, share))
    return LayerReport(
        layer, operation, value, difference, worst_share, bool((same | (error <= bound)).all())
    )


def equal_to_the_bit(
    layer: str, operation: str, expected: Tensor, obtained: Tensor
) -> LayerReport | None:
    """Return the report if the two are equal, which needs no bound; else None."""
    alike = (expected.shape, expected.dtype, expected.device)
    if alike != (obtained.shape, obtained.dtype, obtained.device):
        return None
    if not torch.equal(expected, obtained):
        return None
    value = float(expected.abs().max()) if expected.numel() and expected.dtype != torch.bool else 0
    return LayerReport(layer, operation, float(value), 0.0, 0.0, True)


def failed(layer: str, what: str) -> LayerReport:
    """Return the report of a layer that is wrong in a way without numbers; `what` says how."""
    return LayerReport(layer, what, math.nan, math.inf, math.inf, False)


def worst(reports: Iterable[LayerReport]) -> LayerReport:
    """Return the report that differs most, of several of one layer."""
    return max(reports, key=_how_bad)
