"""stridenet plan: what a conversion would cost, layer by layer, the dearest first."""

import csv
import io
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import click

from stridenet.cli.models import Named, read_model
from stridenet.cli.options import PLAN, arguments_for, purposes, refuse_others
from stridenet.cli.output import appearing, checked_output
from stridenet.cli.printing import compact, counted, table, wrapped
from stridenet.cli.request import Request, refuse_of_models
from stridenet.sizes import Size, format_size

MOST_ROWS = 10
HEADING = ("filter", "weights", "zeros", "multiply-adds")


@dataclass(frozen=True)
class Row:
    """One layer, before and after."""

    name: str
    operation: str
    maps: tuple[str, str]
    filters: tuple[Size, Size]
    weights: tuple[int, int]
    zeros: int
    multiply_adds: tuple[int, int] | None

    @property
    def cost(self) -> tuple[int, int]:
        """By what the dearest come first: multiply-adds, or weights where those are not known."""
        return (self.multiply_adds[1] if self.multiply_adds else -1), self.weights[1]


def plan(ctx: click.Context) -> int:
    """Do what was typed. Returns the exit code."""
    model = read_model(ctx.params["model"])
    place = ctx.params["csv"]
    if place not in (None, "-"):
        reads = model if isinstance(model, Path) else Path(model.place)
        checked_output(place, (".csv",), [reads])
    found = _of_file(ctx, model) if isinstance(model, Path) else _of_model(ctx, model)
    if place != "-":
        print(show(found, ctx.params["every"]))
    if place is not None:
        print(write_csv(found, place), end="")
    return 0


def _of_file(ctx: click.Context, file: Path) -> Any:
    refuse_of_models(ctx, file)
    part = PLAN[0]
    refuse_others(ctx, part.arguments, purposes(PLAN))
    from stridenet.onnx.files import plan_file

    return plan_file(file, **arguments_for(ctx, part))


def _of_model(ctx: click.Context, named: Named) -> Any:
    request = Request(ctx, named, *PLAN[1:])
    refuse_others(ctx, request.part.arguments, purposes(PLAN))
    if request.theorem == 2:
        request.require_sizes("--theorem 2")
    from stridenet.by_layer.plan import plan_layers
    from stridenet.elimination import plan_elimination

    with request.model() as model:
        if request.theorem == 2:
            return plan_elimination(model, request.sizes, **request.how)
        return plan_layers(model, example_inputs=request.inputs(1), **request.how)


def show(plan: Any, every: bool) -> str:
    """A plan of either theorem as text.

    every: all rows, not the dearest ten alone.
    """
    rows, reads = rows_of(plan)
    rows = sorted(rows, key=lambda row: row.cost, reverse=True)
    shown = rows if every else rows[:MOST_ROWS]
    lines = []
    if shown:
        heading = (
            "layer",
            "in, out" if reads else "map",
            "filter",
            "weights",
            "zeros",
            "multiply-adds",
        )
        lines += [table(heading, [line for row in shown for line in _lines(row, reads)]), ""]
    if len(shown) < len(rows):
        more = counted(len(rows) - len(shown), "cheaper layer")
        lines += [f"and {more}: --all shows every one", ""]
    lines += _totals(plan, rows, reads)
    return "\n".join(map(wrapped, lines))


def rows_of(plan: Any) -> tuple[list[Row], bool]:
    """The rows, and whether their maps are what a layer reads and gives.

    Of Theorem 2 they are instead what it gives in the strided network and in the twin, and layers
    without filters that do not change have no row.
    """
    from stridenet.layers_plan import LayersPlan

    if isinstance(plan, LayersPlan):
        return [_row_of_layer(each) for each in plan.layers], True
    return [_row_of_plan(each) for each in plan.layers if each.weight_size], False


def _row_of_layer(each: Any) -> Row:
    several = f" ×{len(each.maps)}" if each.maps[1:] else ""
    maps = tuple(format_size(size) for size in each.maps[0]) if each.maps else ("", "")
    return Row(
        each.layer,
        each.operation + several,
        maps,  # type: ignore[arg-type]
        (each.strided_filter, each.unit_stride_filter),
        each.weights,
        each.structural_zeros,
        each.multiply_adds,
    )


def _row_of_plan(each: Any) -> Row:
    filters = each.weight_size, each.unit_stride_weight_size
    return Row(
        each.name,
        each.operation,
        (format_size(each.output.size), format_size(each.output.unit_stride_size)),
        filters,
        (prod(filters[0]), prod(filters[1])),
        each.structural_zeros,
        each.multiply_adds,
    )


def _lines(row: Row, reads: bool) -> list[list[str]]:
    """Two lines: the strided layer, and below it what it becomes."""
    weights = [compact(n) if row.filters[0] else "" for n in row.weights]
    costs = [compact(n) for n in row.multiply_adds or (None, None)]
    first, second = (
        [name, map_, format_size(filter_), weight, zeros, cost]
        for name, map_, filter_, weight, zeros, cost in zip(
            (row.name, f"  -> {row.operation}"),
            row.maps,
            row.filters,
            weights,
            ("", compact(row.zeros) if row.filters[0] else ""),
            costs,
            strict=True,
        )
    )
    stays = row.filters[0] == row.filters[1] and (reads or row.maps[0] == row.maps[1])
    return [first, second[:2] + [""] * 4 if stays else second]


def _totals(plan: Any, rows: list[Row], reads: bool) -> list[str]:
    zeros = sum(row.zeros for row in rows)
    strided = (
        f"{len(rows):,}" if reads else f"{plan.strided_layers:,} of {len(rows):,} with filters"
    )
    lines = [
        f"strided layers  {strided}; each above what it becomes",
        f"parameters      {_change(*plan.parameters)}, {zeros:,} zeros",
    ]
    known = [row.multiply_adds for row in rows if row.multiply_adds]
    if not known:
        return [*lines, "multiply-adds   not known, as no size of the input is"]
    costs = [sum(pair[side] for pair in known) for side in (0, 1)]
    of = "of these layers, one image" if reads else "of one image"
    return [*lines, f"multiply-adds   {_change(costs[0], costs[1], compact)}, {of}"]


def _change(before: int, after: int, written: Callable[[int], str] = "{:,}".format) -> str:
    times = f" ({after / before:.2f} times)" if before else ""
    return f"{written(before)} -> {written(after)}{times}"


def write_csv(plan: Any, place: str) -> str:
    """All rows with exact numbers, the dearest first, into a file, or for "-" to the standard output.

    Returns what there is to say of it.
    """
    records = sorted(plan.records(), key=_cost, reverse=True)
    text = _as_csv(records)
    if place == "-":
        sys.stdout.write(text)
        return ""
    with appearing(Path(place)) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")
    return f"\n{place}: {counted(len(records), 'layer')}\n"


def _cost(record: dict[str, Any]) -> tuple[int, int]:
    known = record["unit_stride_multiply_adds"]
    return -1 if known is None else known, record["unit_stride_weights"]


def _as_csv(records: Iterable[dict[str, Any]]) -> str:
    records = list(records)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(records[0]) if records else ["layer"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()
