"""stridenet verify: whether two networks are equal, and which strides are left."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from stridenet.cli.models import Named, read_model
from stridenet.cli.options import VERIFY, arguments_for, given, purposes, refuse_others
from stridenet.cli.printing import counted, table, wrapped
from stridenet.cli.request import BATCH, Request, refuse_of_models
from stridenet.errors import InputError

if TYPE_CHECKING:
    from stridenet.reports import LayerReport, VerificationReport

FILES, TIMES, LAYERS, WHOLE = VERIFY
MOST_ROWS = 10


def verify(ctx: click.Context) -> int:
    """Do what was typed. Returns the exit code: 1 if they are not equal."""
    model, other = read_model(ctx.params["model"]), ctx.params["converted"]
    if isinstance(model, Path):
        return _verify_files(ctx, model, other)
    if other is not None:
        raise InputError(
            f"{other}: a PyTorch model is compared with what is made of it here, and is given alone"
        )
    return _verify_model(Request(ctx, model, LAYERS, WHOLE))


def _verify_files(ctx: click.Context, original: Path, other: str | None) -> int:
    if other is None:
        raise InputError(
            f"{original} is compared with another file: stridenet verify {original} CONVERTED.onnx"
        )
    converted = read_model(other)
    if isinstance(converted, Named):
        raise InputError(f"{other} is no ONNX file, which {original} could be compared with")
    refuse_of_models(ctx, original)
    benchmark = ctx.params["benchmark"]
    allowed = {*FILES.arguments, *(TIMES.arguments if benchmark else ())}
    refuse_others(ctx, allowed, purposes(VERIFY))
    if given(ctx, "every"):
        raise InputError("--all has no effect on ONNX files: it is for PyTorch models")
    from stridenet.onnx.files import benchmark_files, verify_files

    how = arguments_for(ctx, FILES)
    report = verify_files(original, converted, **how)
    print(wrapped(str(report)), flush=True)
    if benchmark:
        times = benchmark_files(original, converted, **how, **arguments_for(ctx, TIMES))
        print(wrapped(str(times)))
    return 0 if report.passed else 1


def _verify_model(request: Request) -> int:
    refuse_others(request.ctx, request.part.arguments, purposes(VERIFY))
    if request.ctx.params["benchmark"]:
        raise InputError("--benchmark times two ONNX files, and this is a PyTorch model")
    if request.theorem == 2:
        request.require_sizes("--theorem 2")
    from stridenet.by_layer.check import strides_left
    from stridenet.verification import verify as compare

    with request.model() as model:
        twin = request.converted(model, check=False)  # it is compared here
        report = compare(model, twin, request.inputs(BATCH))
        left = strides_left(twin, request.inputs(1))
    print(_shown(report, request.ctx.params["every"]))
    print(wrapped(f"strides above 1: {', '.join(left) or 'none'}"))
    print(wrapped(_verdict(report)))
    return 0 if report.passed else 1


def _shown(report: "VerificationReport", every: bool) -> str:
    """A table of layers: those that are nearest to their bounds, or beyond, unless all."""
    from stridenet.reports import nearest_first

    layers = nearest_first(report.layers)
    kept = layers if every else layers[:MOST_ROWS]
    heading = ("layer", "operation", "largest value", "error", "of bound", "equal")
    lines = [table(heading, list(map(_row, kept)), names=2)] if kept else []
    if len(kept) < len(layers):
        more = counted(len(layers) - len(kept), "layer that uses", "layers that use")
        lines.append(f"and {more} less of the bound on rounding: --all shows every one")
    return "\n".join([*lines, ""])


def _row(layer: "LayerReport") -> list[str]:
    numbers = (layer.largest_value, layer.largest_error, layer.share_of_bound)
    return [layer.layer, layer.operation, *(f"{number:.2g}" for number in numbers),
            "yes" if layer.passed else "NO"]  # fmt: skip


def _verdict(report: "VerificationReport") -> str:
    return str(report).splitlines()[-1]
