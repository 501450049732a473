"""MODEL on the command line: an ONNX file, or a function that makes a PyTorch network.

Nothing is unpickled, and what a function does is kept apart from what the command says.
"""

import ast
import difflib
import importlib
import importlib.util
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stridenet.cli.users import one_line
from stridenet.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor, nn

FORMS = "file.onnx, package.module:function or file.py:function"


@dataclass(frozen=True)
class Named:
    """A function that makes a PyTorch network, as it was named."""

    typed: str
    place: str  # of a file, or of a module
    name: str  # of the function, or class

    @property
    def is_file(self) -> bool:
        """Whether it is in a file, not in a module that can be imported."""
        return self.place.endswith(".py")

    @property
    def folder(self) -> Path:
        """From where its modules are imported."""
        return Path(self.place).resolve().parent if self.is_file else Path.cwd()


def read_model(typed: str) -> Named | Path:
    """What MODEL names: a function, or an ONNX file. Raises InputError for anything else."""
    if typed.lower().endswith(".onnx"):
        return Path(typed)
    place, colon, name = typed.rpartition(":")
    if not colon:
        raise InputError(f"{typed} is no MODEL: give {FORMS}{_meant(typed)}")
    if not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*", name):
        raise InputError(f"{typed}: {name or 'nothing'} after the colon is no function's name")
    if place.endswith(".py"):
        if not Path(place).is_file():
            raise InputError(f"{place} is not a file{_similar_file(Path(place))}")
    elif not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*", place):
        raise InputError(
            f"{typed} is no MODEL: {place} is neither FILE.py nor a module; give {FORMS}"
        )
    return Named(typed, place, name)


def _meant(typed: str) -> str:
    """What a user may have wanted who gave no function."""
    path = Path(typed)
    if path.suffix == ".py" and path.is_file():
        found = _functions_in(path)
        has = f" ({typed} has {', '.join(found[:5])}{', …' if found[5:] else ''})" if found else ""
        return f", as in {typed}:{(found or ['make_network'])[0]}{has}"
    if path.suffix in (".pt", ".pth", ".bin", ".ckpt", ".safetensors", ".pkl", ".pickle"):
        return "; a file of weights is no network: give its function, and --weights FILE"
    if path.suffix in (".tflite", ".pb", ".keras", ".h5", ".pt2"):
        return f"; {path.suffix} files are not read, see docs/deploy.md"
    if path.parent.is_dir():
        near = _did_you_mean(path.name, [each.name for each in path.parent.glob("*.onnx")])
        if near:
            return near
    module, dot, name = typed.rpartition(".")
    is_name = dot and re.fullmatch(r"\w+(\.\w+)+", typed) and not path.exists()
    return f"; did you mean {module}:{name}?" if is_name else ""


def _functions_in(path: Path) -> list[str]:
    """Functions of a file, then classes, for which nothing of it is run."""
    try:
        body = ast.parse(path.read_text(encoding="utf-8")).body
    except (OSError, ValueError, SyntaxError):
        return []
    kinds = (ast.FunctionDef, ast.ClassDef)
    named = (n.name for kind in kinds for n in body if isinstance(n, kind))
    return [name for name in named if not name.startswith("_")]


def _similar_file(path: Path) -> str:
    if not path.parent.is_dir():
        return f": there is no folder {path.parent}"
    return _did_you_mean(path.name, [each.name for each in path.parent.glob("*.py")])


def _did_you_mean(name: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def load(named: Named, arguments: dict[str, Any], weights: str | None, seed: int) -> "nn.Module":
    """The network that a function makes, in evaluation mode.

    arguments: of the function.
    weights: a file with its state_dict, of which nothing is executed; None: as they are drawn.
    seed: of what is drawn.

    To be called within users_code. Raises InputError where there is no such function, where it fails or
    gives no network, and where the weights do not fit.
    """
    import torch
    from torch import nn

    from stridenet.cli.torchvision_import import watch

    watch()
    made = _attribute(named, _module(named))
    torch.manual_seed(seed)
    if isinstance(made, nn.Module) or not callable(made):
        raise InputError(
            f"{named.typed} is a {type(made).__name__}, not a function: name one that returns the "
            "network, or its class"
        )
    made = _called(named, made, arguments)
    if not isinstance(made, nn.Module):
        raise InputError(
            f"{named.typed} gives {type(made).__name__}, not a torch.nn.Module; name a class of "
            "networks, or a function that returns one"
        )
    if weights is not None:
        _load_weights(Path(weights), made)
    return made.eval()


def _module(named: Named) -> Any:
    try:
        if not named.is_file:
            return importlib.import_module(named.place)
        path = Path(named.place).resolve()
        # Under its own name, as its classes refer to it, unless that is another module's.
        name = path.stem if path.stem not in sys.modules else f"stridenet_model_{path.stem}"
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    except Exception as error:
        raise InputError(f"{named.place} cannot be imported: {one_line(error)}") from error
    return module


def _attribute(named: Named, module: Any) -> Any:
    found = module
    for part in named.name.split("."):
        if not hasattr(found, part):
            near = _did_you_mean(part, [n for n in dir(found) if not n.startswith("_")])
            raise InputError(f"{named.place} has no {named.name}{near}")
        found = getattr(found, part)
    return found


def _called(named: Named, function: Any, arguments: dict[str, Any]) -> Any:
    try:
        return function(**arguments)
    except Exception as error:
        raise InputError(
            f"{named.typed} failed: {one_line(error)}; its arguments are given as in --args "
            "'{\"num_classes\": 10}'"
        ) from error


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
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"--weights {path} is of another network: {reason}") from error


def random_inputs(
    sizes: Sequence[tuple[int, ...]], batch: int, seed: int
) -> "tuple[Tensor, ...] | None":
    """Normally distributed tensors (batch, c, h, w), one an input; None where no size was given."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    drawn = tuple(torch.randn(batch, *size, generator=generator) for size in sizes)
    return drawn or None
