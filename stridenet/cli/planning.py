"""stridenet plan: shows what a conversion would cost, layer by layer, the dearest first."""

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from stridenet.cli.models import Factory, read_model, request_of
from stridenet.cli.options import PLAN, refuse_others
from stridenet.cli.output import checked_output, compact, counted, table, wrapped
from stridenet.files import disk_errors, write

MOST_ROWS = 10
HEADING = ("filter", "weights", "zeros", "multiply-adds")
Record = dict[str, Any]  # of one layer, as the records of a plan have it


def plan(ctx: click.Context) -> int:
    """Do what was typed. Returns the exit code."""
    model = read_model(ctx.params["model"])
    place = ctx.params["csv"]
    if place not in (None, "-"):
        checked_output(place, (".csv",), [model if isinstance(model, Path) else model.path])
    found = _plan_file(ctx, model) if isinstance(model, Path) else _plan_model(ctx, model)
    if place != "-":
        print(show(found, ctx.params["every"]))
    if place is not None:
        print(write_csv(found, place), end="")
    return 0


def _plan_file(ctx: click.Context, file: Path) -> Any:
    part = PLAN[0]
    refuse_others(ctx, part.arguments, file)
    from stridenet.onnx.files import plan_file

    return plan_file(file, **part.typed(ctx))


def _plan_model(ctx: click.Context, factory: Factory) -> Any:
    request = request_of(ctx, factory)
    refuse_others(ctx, request.part.arguments)
    if request.theorem == 2:
        request.require_sizes("--theorem 2")
    from stridenet.by_layer.plan import plan_layers
    from stridenet.elimination import plan_elimination

    with request.model() as model:
        if request.theorem == 2:
            return plan_elimination(model, request.sizes, **request.options)
        return plan_layers(model, example_inputs=request.inputs(1), **request.options)


def show(plan: Any, every: bool) -> str:
    """Return a plan of either theorem as text.

    every: whether all layers are shown, not the dearest ten alone.

    A plan of Theorem 2 shows only the layers that have filters.
    """
    by_layer = _is_by_layer(plan)
    records = [each for each in _dearest_first(plan) if by_layer or each["strided_filter"]]
    shown = records if every else records[:MOST_ROWS]
    lines = []
    if shown:
        heading = ("layer", "in, out" if by_layer else "map", *HEADING)
        lines += [table(heading, [row for each in shown for row in _rows(each, by_layer)]), ""]
    if len(shown) < len(records):
        more = counted(len(records) - len(shown), "cheaper layer")
        lines += [f"and {more}: --all shows every one", ""]
    return "\n".join(map(wrapped, [*lines, *_totals(plan, records, by_layer)]))


def _is_by_layer(plan: Any) -> bool:
    """Tell whether a plan is of Theorem 1: its maps are then those that a layer reads and gives.

    The maps of Theorem 2 are those that a layer gives in the strided network and in the twin.
    """
    from stridenet.layers_plan import LayersPlan

    return isinstance(plan, LayersPlan)


def _dearest_first(plan: Any) -> list[Record]:
    """Return the plan's records by their multiply-adds, or weights where those are not known."""

    def cost(record: Record) -> tuple[int, int]:
        known = record["unit_stride_multiply_adds"]
        return -1 if known is None else known, record["unit_stride_weights"]

    return sorted(plan.records(), key=cost, reverse=True)


def _rows(record: Record, by_layer: bool) -> list[list[str]]:
    """Return two rows of the table: the strided layer, and below it what it becomes."""
    keys = ("input_map", "output_map") if by_layer else ("strided_map", "unit_stride_map")
    maps = [record[key].split() for key in keys]  # one for each call of the layer
    calls = f" ×{len(maps[0])}" if len(maps[0]) > 1 else ""
    before, after = (each[0] if each else "" for each in maps)

    def numbers(network: str, zeros: str) -> list[str]:
        size = record[f"{network}_filter"]
        weights = [compact(record[f"{network}_weights"]), zeros] if size else ["", ""]
        return [size, *weights, compact(record[f"{network}_multiply_adds"])]

    strided = numbers("strided", "")
    twin = numbers("unit_stride", compact(record["structural_zeros"]))
    stays = strided[0] == twin[0] and (by_layer or before == after)
    return [
        [record["layer"], before, *strided],
        [f"  -> {record['operation']}{calls}", after, *([""] * 4 if stays else twin)],
    ]


def _totals(plan: Any, records: list[Record], by_layer: bool) -> list[str]:
    zeros = sum(record["structural_zeros"] for record in records)
    count = f"{len(records):,}"
    strided = count if by_layer else f"{plan.strided_layers:,} of {count} with filters"
    lines = [
        f"strided layers  {strided}; each above what it becomes",
        f"parameters      {_change(*plan.parameters)}, {zeros:,} zeros",
    ]
    known = [each for each in records if each["strided_multiply_adds"] is not None]
    if not known:
        return [*lines, "multiply-adds   not known, as no size of the input is"]
    before, after = (
        sum(each[f"{network}_multiply_adds"] for each in known)
        for network in ("strided", "unit_stride")
    )
    of = "of these layers, one image" if by_layer else "of one image"
    return [*lines, f"multiply-adds   {_change(before, after, compact)}, {of}"]


def _change(before: int, after: int, text: Callable[[int], str] = "{:,}".format) -> str:
    times = f" ({after / before:.2f} times)" if before else ""
    return f"{text(before)} -> {text(after)}{times}"


def write_csv(plan: Any, place: str) -> str:
    """Write all layers with exact numbers, the dearest first, into a file, and return what to print.

    For "-" that is the table itself, and nothing is written.
    """
    records = _dearest_first(plan)
    text = io.StringIO()
    columns = list(records[0]) if records else ["layer"]
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    if place == "-":
        return text.getvalue()
    with disk_errors(place):
        write(Path(place), text.getvalue().encode())
    return f"\n{place}: {counted(len(records), 'layer')}\n"
