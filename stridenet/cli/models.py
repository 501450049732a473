"""Reads MODEL on the command line: an ONNX file, or a function that makes a PyTorch network.

Nothing is unpickled, and what a function does is kept apart from what the command says.
"""

import ast
import importlib
import importlib.util
import re
import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stridenet.cli.options import Command, Part
from stridenet.cli.users import kind_and_message, users_code
from stridenet.errors import InputError
from stridenet.onnx.files.options import did_you_mean

if TYPE_CHECKING:
    from torch import Tensor, nn

FORMS = "file.onnx, package.module:function or file.py:function"
NAMES = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")  # names with dots between them
WEIGHTS = (".pt", ".pth", ".bin", ".ckpt", ".safetensors", ".pkl", ".pickle")
OTHER_FORMATS = (".tflite", ".pb", ".keras", ".h5", ".pt2")
COMPARED_BATCH = 2  # images on which a network is compared


@dataclass(frozen=True)
class Factory:
    """Names a function, or a class, that makes a PyTorch network."""

    typed: str
    module: str  # the name of a module that can be imported, or the path of a file
    name: str  # of the function; with dots if it is an attribute of something else

    @property
    def is_file(self) -> bool:
        """Tell whether the function is in a file, not in a module that can be imported."""
        return self.module.endswith(".py")

    @property
    def path(self) -> Path:
        """Return the path of the file."""
        return Path(self.module)

    @property
    def folder(self) -> Path:
        """Return the folder from which its modules are imported."""
        return self.path.resolve().parent if self.is_file else Path.cwd()


def read_model(typed: str) -> Factory | Path:
    """Return the function or the ONNX file that MODEL names. Raises InputError for anything else."""
    if typed.lower().endswith(".onnx"):
        return Path(typed)
    module, colon, name = typed.rpartition(":")
    if not colon:
        raise InputError(f"{typed} is no MODEL: give {FORMS}{_suggestion(typed)}")
    if not NAMES.fullmatch(name):
        raise InputError(f"{typed}: {name or 'nothing'} after the colon is no function's name")
    factory = Factory(typed, module, name)
    if factory.is_file and not factory.path.is_file():
        raise InputError(f"{module} is not a file{_similar_file(factory.path, '*.py')}")
    if not factory.is_file and not NAMES.fullmatch(module):
        raise InputError(
            f"{typed} is no MODEL: {module} is neither FILE.py nor a module; give {FORMS}"
        )
    return factory


def _suggestion(typed: str) -> str:
    """Return a half sentence on what may have been meant by a MODEL without a colon."""
    path = Path(typed)
    if path.suffix == ".py" and path.is_file():
        found = _functions_in(path)
        has = f" ({typed} has {', '.join(found[:5])}{', …' if found[5:] else ''})" if found else ""
        return f", as in {typed}:{(found or ['make_network'])[0]}{has}"
    if path.suffix in WEIGHTS:
        return "; a file of weights is no network: give its function, and --weights FILE"
    if path.suffix in OTHER_FORMATS:
        return f"; {path.suffix} files are not read, see docs/deploy.md"
    if path.parent.is_dir() and (near := _similar_file(path, "*.onnx")):
        return near
    module, _, name = typed.rpartition(".")
    is_dotted = module and NAMES.fullmatch(typed) and not path.exists()
    return f"; did you mean {module}:{name}?" if is_dotted else ""


def _functions_in(path: Path) -> list[str]:
    """Return the names of a file's functions, then of its classes, without running it."""
    try:
        body = ast.parse(path.read_text(encoding="utf-8")).body
    except (OSError, ValueError, SyntaxError):
        return []
    names = [
        n.name for kind in (ast.FunctionDef, ast.ClassDef) for n in body if isinstance(n, kind)
    ]
    return [name for name in names if not name.startswith("_")]


def _similar_file(path: Path, pattern: str) -> str:
    if not path.parent.is_dir():
        return f": there is no folder {path.parent}"
    return did_you_mean(path.name, [each.name for each in path.parent.glob(pattern)])


def load(
    factory: Factory, arguments: dict[str, Any], weights: str | None, seed: int
) -> "nn.Module":
    """Return the network that a function makes, in evaluation mode.

    arguments: of the function.
    weights: a file with its state_dict, loaded with weights_only=True; None: as they are drawn.
    seed: of what is drawn.

    To be called within users_code. Raises InputError where there is no such function, where it fails
    or returns no network, and where the weights do not fit.
    """
    import torch
    from torch import nn

    from stridenet.cli.torchvision_import import watch

    watch()
    function = _attribute(factory, _import(factory))
    torch.manual_seed(seed)
    if isinstance(function, nn.Module) or not callable(function):
        raise InputError(
            f"{factory.typed} is a {type(function).__name__}, not a function: name one that returns "
            "the network, or its class"
        )
    try:
        network = function(**arguments)
    except Exception as error:
        raise InputError(
            f"{factory.typed} failed: {kind_and_message(error)}; its arguments are given as in --args "
            "'{\"num_classes\": 10}'"
        ) from error
    if not isinstance(network, nn.Module):
        raise InputError(
            f"{factory.typed} gives {type(network).__name__}, not a torch.nn.Module; name a class of "
            "networks, or a function that returns one"
        )
    if weights is not None:
        _load_weights(Path(weights), network)
    return network.eval()


def _import(factory: Factory) -> Any:
    try:
        if not factory.is_file:
            return importlib.import_module(factory.module)
        path = factory.path.resolve()
        # It is imported under its own name, by which its classes refer to it, unless another module
        # that has been imported has this name.
        name = path.stem if path.stem not in sys.modules else f"stridenet_model_{path.stem}"
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    except Exception as error:
        raise InputError(
            f"{factory.module} cannot be imported: {kind_and_message(error)}"
        ) from error
    return module


def _attribute(factory: Factory, module: Any) -> Any:
    found = module
    for part in factory.name.split("."):
        if not hasattr(found, part):
            near = did_you_mean(part, [n for n in dir(found) if not n.startswith("_")])
            raise InputError(f"{factory.module} has no {factory.name}{near}")
        found = getattr(found, part)
    return found


def _load_weights(path: Path, network: "nn.Module") -> None:
    import torch

    if not path.is_file():
        raise InputError(f"--weights {path} is not a file")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what torch raises of a foreign or cut-off file varies
        raise InputError(
            f"--weights {path} is not a whole file of tensors; write it by "
            "torch.save(network.state_dict(), …)"
        ) from error
    try:
        network.load_state_dict(state)
    except Exception as error:  # likewise, of whatever else it may hold
        reason = textwrap.shorten(str(error), 200, placeholder=" …")
        raise InputError(f"--weights {path} is of another network: {reason}") from error


def random_inputs(sizes: Sequence[tuple[int, ...]], batch: int, seed: int) -> "tuple[Tensor, ...]":
    """Return normally distributed tensors (batch, c, h, w), one for each size."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(batch, *size, generator=generator) for size in sizes)


@dataclass(frozen=True)
class Request:
    """Says which PyTorch model is to be converted, and how."""

    ctx: click.Context
    factory: Factory
    theorem: int  # 1 for a conversion layer by layer, 2 for one as a whole
    part: Part  # the options of the theorem
    options: dict[str, Any]  # those that were typed, as arguments of the theorem's function
    sizes: tuple[tuple[int, ...], ...]  # of one image of each input; () if none was typed

    @contextmanager
    def model(self) -> Iterator["nn.Module"]:
        """Make the network, within which the user's code may run."""
        import torch  # noqa: F401  before the user's folder comes first among those of modules

        params = self.ctx.params
        cure = "; see that --input-size is what it takes" if self.sizes else ""
        with users_code(self.factory.folder, self.factory.typed, cure):
            yield load(self.factory, params["args"] or {}, params["weights"], params["seed"])

    def inputs(self, batch: int) -> "tuple[Tensor, ...] | None":
        """Return random inputs; None if no size was typed."""
        return random_inputs(self.sizes, batch, self.ctx.params["seed"]) or None

    def require_sizes(self, what: str) -> None:
        """Raise InputError unless a size of the input was typed."""
        if not self.sizes:
            raise InputError(
                f"{what} needs the size of the input: --input-size 3,224,224, once for each input"
            )

    def converted(self, model: "nn.Module", check: bool | None = None) -> "nn.Module":
        """Return the model with unit strides; check=False if it will be compared afterwards."""
        from stridenet.by_layer.conversion import convert_layers
        from stridenet.elimination import eliminate_stride

        options = {**self.options, **({} if check is None else {"check": check})}
        if self.theorem == 2:
            return eliminate_stride(model, self.sizes, **options)
        if options.get("check", True):
            options["example_inputs"] = self.inputs(COMPARED_BATCH)
        return convert_layers(model, **options)


def request_of(ctx: click.Context, factory: Factory) -> Request:
    """Return what was typed of a PyTorch model, with the options of the theorem that was chosen."""
    assert isinstance(ctx.command, Command)
    theorem = int(ctx.params["theorem"])
    part = ctx.command.parts[theorem]
    return Request(ctx, factory, theorem, part, part.typed(ctx), ctx.params["input_size"])
