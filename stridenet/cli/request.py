"""What was typed of a PyTorch model, and the library's functions called with it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stridenet.cli.models import Named, load, random_inputs
from stridenet.cli.options import Part, arguments_for, flag, given
from stridenet.cli.users import users_code
from stridenet.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor, nn

BATCH = 2  # images on which a network is compared
# Options that a command has for PyTorch models, beside those of functions.
OF_MODELS = ("input_size", "args", "weights", "seed", "theorem")


@dataclass(frozen=True)
class Request:
    """A PyTorch model, and how it is to be converted."""

    ctx: click.Context
    named: Named
    layers: Part  # options of Theorem 1
    whole: Part  # of Theorem 2

    @property
    def theorem(self) -> int:
        """1: layer by layer; 2: as a whole."""
        return int(self.ctx.params["theorem"])

    @property
    def part(self) -> Part:
        """The options of the theorem."""
        return self.layers if self.theorem == 1 else self.whole

    @property
    def how(self) -> dict[str, Any]:
        """Arguments of the theorem's function that were typed."""
        return arguments_for(self.ctx, self.part)

    @property
    def sizes(self) -> tuple[tuple[int, ...], ...]:
        """Return the size of one image of each input; () where none was typed."""
        return tuple(self.ctx.params["input_size"])

    @contextmanager
    def model(self) -> Iterator["nn.Module"]:
        """The network, within which the user's code may run."""
        params = self.ctx.params
        arguments = params["args"] or {}
        import torch  # noqa: F401  before the user's folder comes first among those of modules

        cure = "; see that --input-size is what it takes" if self.sizes else ""
        with users_code(self.named.folder, self.named.typed, cure):
            yield load(self.named, arguments, params["weights"], params["seed"])

    def inputs(self, batch: int) -> "tuple[Tensor, ...] | None":
        """Random ones; None where no size was typed."""
        return random_inputs(self.sizes, batch, self.ctx.params["seed"])

    def require_sizes(self, what: str) -> None:
        """Raise InputError unless a size of the input was typed."""
        if not self.sizes:
            raise InputError(
                f"{what} needs the size of the input: --input-size 3,224,224, once for each input"
            )

    def converted(self, model: "nn.Module", check: bool | None = None) -> "nn.Module":
        """The model with unit strides; check=False: not compared, as it will be."""
        from stridenet.by_layer.conversion import convert_layers
        from stridenet.elimination import eliminate_stride

        how = self.how if check is None else {**self.how, "check": check}
        if self.theorem == 1:
            if how.get("check", True):
                how["example_inputs"] = self.inputs(BATCH)
            return convert_layers(model, **how)
        return eliminate_stride(model, self.sizes, **how)


def refuse_of_models(ctx: click.Context, file: Path) -> None:
    """Raise InputError for options of PyTorch models beside an ONNX file."""
    for name in OF_MODELS:
        if given(ctx, name):
            raise InputError(f"{flag(name)} has no effect on {file}: it is for PyTorch models")
