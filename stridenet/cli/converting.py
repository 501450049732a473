"""stridenet convert: MODEL with unit strides, in a file that has passed its checks."""

from pathlib import Path
from typing import TYPE_CHECKING, get_args

import click

from stridenet.cli.models import Named, read_model
from stridenet.cli.options import CONVERT, arguments_for, given, purposes, refuse_others
from stridenet.cli.output import checked_output, writing
from stridenet.cli.printing import wrapped
from stridenet.cli.request import BATCH, Request, refuse_of_models
from stridenet.errors import InputError
from stridenet.onnx.files.options import Rearrange

if TYPE_CHECKING:
    from torch import nn

FILE, LAYERS, WHOLE, EXPORT = CONVERT
ENDINGS = (".onnx", ".pt2", ".pt")
# A strided network's file is converted to have these; a twin's has another, or none.
SPELLINGS = tuple(each for each in get_args(Rearrange) if each != "host")


def convert(ctx: click.Context) -> int:
    """Do what was typed. Returns the exit code."""
    model = read_model(ctx.params["model"])
    if isinstance(model, Path):
        _convert_file(ctx, model)
    else:
        _convert_model(Request(ctx, model, LAYERS, WHOLE), model)
    return 0


def _convert_file(ctx: click.Context, source: Path) -> None:
    refuse_of_models(ctx, source)
    target = checked_output(ctx.params["output"], (".onnx",), [source])
    refuse_others(ctx, FILE.arguments, purposes(CONVERT))
    from stridenet.onnx.files import convert_file

    print(wrapped(str(convert_file(source, target, **arguments_for(ctx, FILE)))))


def _convert_model(request: Request, named: Named) -> None:
    weights = request.ctx.params["weights"]
    reads = [Path(path) for path in (named.place, weights) if path and Path(path).is_file()]
    target = checked_output(request.ctx.params["output"], ENDINGS, reads)
    refuse_others(request.ctx, _allowed(request, target), purposes(CONVERT))
    if request.theorem == 2 or target.suffix != ".pt":
        request.require_sizes("--theorem 2" if request.theorem == 2 else f"{target.suffix} file")
    if target.suffix == ".onnx":
        from stridenet.onnx.export import require_packages

        require_packages()  # says so before the network is converted
    write = {".onnx": _write_onnx, ".pt2": _write_program, ".pt": _write_state}[target.suffix]
    with request.model() as model:
        told = write(request, model, target)
    print(told)


def _allowed(request: Request, target: Path) -> set[str]:
    """Options that do something; raises InputError for spellings that the theorem does not have."""
    allowed = set(request.part.arguments)
    if target.suffix == ".pt2":
        return allowed | {"batch"}
    if target.suffix == ".pt":
        return allowed
    rearrange = request.ctx.params["rearrange"]
    if request.theorem == 1 and rearrange == "host":
        raise InputError(
            "--rearrange host of a PyTorch model needs --theorem 2; or convert it without, and then "
            "the strided ONNX file, of which the first layer's rearrangement can be left to the host"
        )
    if request.theorem == 2 and rearrange in SPELLINGS:
        raise InputError(
            f"--rearrange {rearrange} needs --theorem 1; as a whole, a network rearranges its input "
            "alone: graph or host"
        )
    if _by_file(request):
        return {"rearrange", "kernel", "pooling", "batch", "tolerance"}
    return allowed | {"rearrange", "batch", "tolerance"}


def _by_file(request: Request) -> bool:
    """Whether the strided network is written, and its file is converted: for how that is spelled."""
    ctx = request.ctx
    return request.theorem == 1 and (ctx.params["rearrange"] in SPELLINGS or given(ctx, "kernel"))


def _write_onnx(request: Request, model: "nn.Module", target: Path) -> str:
    from stridenet.onnx.export import export_onnx

    how = arguments_for(request.ctx, EXPORT)
    if _by_file(request):
        how.setdefault("rearrange", SPELLINGS[0])
        network = model
    else:
        how.pop("pooling", None)
        network = request.converted(model)
    if request.theorem == 1:
        # Layer by layer it takes any size; so may its file, unless the batch is to be fixed.
        fixed = "batch" in how
        sizes = (
            {"input_size": request.sizes} if fixed else {"example_inputs": request.inputs(BATCH)}
        )
        how.update(sizes)
    with writing(target):
        return wrapped(str(export_onnx(network, target, **how)))


def _write_program(request: Request, model: "nn.Module", target: Path) -> str:
    from stridenet.cli.programs import save_program

    network = request.converted(model)
    free = request.theorem == 1 and not given(request.ctx, "batch")
    batch = request.ctx.params["batch"]
    return wrapped(save_program(model, network, target, request.sizes, batch, free))


def _write_state(request: Request, model: "nn.Module", target: Path) -> str:
    from stridenet.cli.programs import save_state

    network = request.converted(model)
    return f"{wrapped(save_state(network, target))}\n\n{_loading(request, target)}"


def _loading(request: Request, target: Path) -> str:
    """The lines of Python that load the state_dict."""
    named, place = request.named, Path(request.named.place)
    outer, *inner = named.name.split(".")
    module = place.stem if named.is_file else named.place
    lines = ["import torch"]
    if named.is_file and place.resolve().parent != Path.cwd():
        lines.append(f"import sys; sys.path.append({str(place.parent)!r})")
    if module.replace(".", "").isidentifier():
        lines.append(f"from {module} import {outer}")
    else:
        lines.append(f"import runpy; {outer} = runpy.run_path({named.place!r})[{outer!r}]")
    arguments = request.ctx.params["args"] or {}
    typed = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
    made = f"{'.'.join([outer, *inner])}({typed}).eval()"
    function = "convert_layers" if request.theorem == 1 else "eliminate_stride"
    first = [made] if request.theorem == 1 else [made, repr(request.sizes)]
    how = [f"{name}={value!r}" for name, value in {**request.how, "check": False}.items()]
    lines.append(f"from stridenet import {function}")
    lines.append(f"network = {function}({', '.join([*first, *how])})")
    lines.append(f"network.load_state_dict(torch.load({str(target)!r}, weights_only=True))")
    return "\n".join(lines)
