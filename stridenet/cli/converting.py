"""stridenet convert: writes MODEL with unit strides into a file that has passed its checks."""

from pathlib import Path
from typing import TYPE_CHECKING, get_args

import click

from stridenet.cli.models import COMPARED_BATCH, Factory, Request, read_model, request_of
from stridenet.cli.options import CONVERT, refuse_others, typed
from stridenet.cli.output import checked_output, wrapped
from stridenet.errors import InputError
from stridenet.files import disk_errors
from stridenet.onnx.files.options import Rearrange

if TYPE_CHECKING:
    from torch import nn

FILE, _, _, EXPORT = CONVERT
ENDINGS = (".onnx", ".pt2", ".pt")
# How the file of a strided network can be rearranged when it is converted; a twin's file has its
# rearrangement already, or leaves it to the host.
SPELLINGS = tuple(each for each in get_args(Rearrange) if each != "host")


def convert(ctx: click.Context) -> int:
    """Do what was typed. Returns the exit code."""
    model = read_model(ctx.params["model"])
    print(_convert_file(ctx, model) if isinstance(model, Path) else _convert_model(ctx, model))
    return 0


def _convert_file(ctx: click.Context, source: Path) -> str:
    target = checked_output(ctx.params["output"], (".onnx",), [source])
    refuse_others(ctx, FILE.arguments, source)
    from stridenet.onnx.files import convert_file

    return wrapped(str(convert_file(source, target, **FILE.typed(ctx))))


def _convert_model(ctx: click.Context, factory: Factory) -> str:
    request = request_of(ctx, factory)
    paths = [factory.path, Path(ctx.params["weights"] or "")]
    reads = [path for path in paths if path.is_file()]
    target = checked_output(ctx.params["output"], ENDINGS, reads)
    refuse_others(ctx, _options_with_effect(request, target))
    if request.theorem == 2 or target.suffix != ".pt":
        request.require_sizes("--theorem 2" if request.theorem == 2 else f"{target.suffix} file")
    if target.suffix == ".onnx":
        from stridenet.onnx.export import require_packages

        require_packages()  # before the work of converting the network
    write = {".onnx": _write_onnx, ".pt2": _write_program, ".pt": _write_state}[target.suffix]
    with request.model() as model:
        return write(request, model, target)


def _options_with_effect(request: Request, target: Path) -> set[str]:
    """Return the options that do something; raises InputError for values without an effect."""
    options = set(request.part.arguments)
    if target.suffix != ".onnx":
        return options | {"batch"} if target.suffix == ".pt2" else options
    rearrange = request.ctx.params["rearrange"]
    if request.theorem == 1 and rearrange == "host":
        raise InputError(
            "--rearrange host of a PyTorch model needs --theorem 2; or convert the model without it "
            "into a strided ONNX file, and then that file with --rearrange host"
        )
    if request.theorem == 2 and rearrange in SPELLINGS:
        raise InputError(
            f"--rearrange {rearrange} needs --theorem 1; converted as a whole, a network rearranges "
            "its input alone: graph or host"
        )
    if _converts_the_file(request):
        return {"rearrange", "kernel", "pooling", "batch", "tolerance"}
    return options | {"rearrange", "batch", "tolerance"}


def _converts_the_file(request: Request) -> bool:
    """Tell whether the strided network is exported and its file converted.

    Only the conversion of files offers different spellings of the rearrangement and odd kernels.
    """
    options = typed(request.ctx)
    return request.theorem == 1 and (options.get("rearrange") in SPELLINGS or "kernel" in options)


def _write_onnx(request: Request, model: "nn.Module", target: Path) -> str:
    from stridenet.onnx.export import export_onnx

    options = EXPORT.typed(request.ctx)
    if _converts_the_file(request):
        options.setdefault("rearrange", SPELLINGS[0])
        network = model
    else:
        options.pop("pooling", None)
        network = request.converted(model)
    if request.theorem == 1 and "batch" in options:
        options["input_size"] = request.sizes
    elif request.theorem == 1:  # the network takes any size, and so may its file
        options["example_inputs"] = request.inputs(COMPARED_BATCH)
    with disk_errors(target):
        return wrapped(str(export_onnx(network, target, **options)))


def _write_program(request: Request, model: "nn.Module", target: Path) -> str:
    from stridenet.cli.programs import save_program

    network, batch = request.converted(model), request.ctx.params["batch"]
    any_size = request.theorem == 1 and batch is None
    return wrapped(save_program(model, network, target, request.sizes, batch, any_size))


def _write_state(request: Request, model: "nn.Module", target: Path) -> str:
    from stridenet.cli.programs import save_state

    return f"{wrapped(save_state(request.converted(model), target))}\n\n{_loading(request, target)}"


def _loading(request: Request, target: Path) -> str:
    """Return the lines of Python that load the state_dict."""
    factory = request.factory
    outer = factory.name.split(".")[0]
    module = factory.path.stem if factory.is_file else factory.module
    lines = ["import torch"]
    if factory.is_file and factory.folder != Path.cwd():
        lines.append(f"import sys; sys.path.append({str(factory.path.parent)!r})")
    if module.replace(".", "").isidentifier():
        lines.append(f"from {module} import {outer}")
    else:
        lines.append(f"import runpy; {outer} = runpy.run_path({factory.module!r})[{outer!r}]")
    made = f"{factory.name}({_keywords(request.ctx.params['args'] or {})}).eval()"
    function = "convert_layers" if request.theorem == 1 else "eliminate_stride"
    sizes = "" if request.theorem == 1 else f"{request.sizes!r}, "
    options = _keywords({**request.options, "check": False})
    return "\n".join([
        *lines,
        f"from stridenet import {function}",
        f"network = {function}({made}, {sizes}{options})",
        f"network.load_state_dict(torch.load({str(target)!r}, weights_only=True))",
    ])  # fmt: skip


def _keywords(values: dict[str, object]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in values.items())
