"""stridenet verify: tells whether two networks are equal, and which strides are left."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from stridenet.cli.models import COMPARED_BATCH, Factory, read_model, request_of
from stridenet.cli.options import VERIFY, refuse_others, typed
from stridenet.cli.output import counted, table, wrapped
from stridenet.errors import InputError

if TYPE_CHECKING:
    from stridenet.checking.reports import LayerReport

FILES, _, _, TIMES = VERIFY
MOST_ROWS = 10
HEADING = ("layer", "operation", "largest value", "error", "of bound", "equal")


def verify(ctx: click.Context) -> int:
    """Do what was typed. Returns the exit code: 1 if the networks are not equal."""
    model, other = read_model(ctx.params["model"]), ctx.params["converted"]
    if isinstance(model, Path):
        return _verify_files(ctx, model, other)
    if other is not None:
        raise InputError(
            f"{other}: a PyTorch model is compared with what is made of it here, and is given alone"
        )
    return _verify_model(ctx, model)


def _verify_files(ctx: click.Context, original: Path, other: str | None) -> int:
    if other is None:
        raise InputError(
            f"{original} is compared with another file: stridenet verify {original} CONVERTED.onnx"
        )
    converted = read_model(other)
    if not isinstance(converted, Path):
        raise InputError(f"{other} is no ONNX file, which {original} could be compared with")
    benchmark = ctx.params["benchmark"]
    refuse_others(ctx, {*FILES.arguments, *(TIMES.arguments if benchmark else ())}, original)
    if "every" in typed(ctx):
        raise InputError("--all has no effect on ONNX files: it is for PyTorch models")
    from stridenet.onnx.files import benchmark_files, verify_files

    report = verify_files(original, converted, **FILES.typed(ctx))
    print(wrapped(str(report)), flush=True)
    if benchmark:
        options = {**FILES.typed(ctx), **TIMES.typed(ctx)}
        print(wrapped(str(benchmark_files(original, converted, **options))))
    return 0 if report.passed else 1


def _verify_model(ctx: click.Context, factory: Factory) -> int:
    request = request_of(ctx, factory)
    refuse_others(ctx, request.part.arguments)
    if ctx.params["benchmark"]:
        raise InputError("--benchmark times two ONNX files, and this is a PyTorch model")
    if request.theorem == 2:
        request.require_sizes("--theorem 2")
    from stridenet.by_layer.check import strides_left
    from stridenet.checking.reports import nearest_first
    from stridenet.verification import verify as compare

    with request.model() as model:
        twin = request.converted(model, check=False)  # it is compared here
        report = compare(model, twin, request.inputs(COMPARED_BATCH))
        left = strides_left(twin, request.inputs(1))
    print(_layers_table(nearest_first(report.layers), ctx.params["every"]))
    print(wrapped(f"strides above 1: {', '.join(left) or 'none'}"))
    verdict = str(report).splitlines()[-1]
    print(wrapped(verdict))
    return 0 if report.passed else 1


def _layers_table(layers: "list[LayerReport]", every: bool) -> str:
    """Return the layers as a table: the first ten, which are nearest to their bounds, or all."""
    shown = layers if every else layers[:MOST_ROWS]
    lines = [table(HEADING, list(map(_row, shown)), names=2)] if shown else []
    if len(shown) < len(layers):
        more = counted(len(layers) - len(shown), "layer that uses", "layers that use")
        lines.append(f"and {more} less of the bound on rounding: --all shows every one")
    return "\n".join([*lines, ""])


def _row(layer: "LayerReport") -> list[str]:
    numbers = (layer.largest_value, layer.largest_error, layer.share_of_bound)
    return [layer.layer, layer.operation, *(f"{number:.2g}" for number in numbers),
            "yes" if layer.passed else "NO"]  # fmt: skip
