"""From the settings of a conversion to the user's network, its inputs, and its unit-stride twin."""

from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import torch
from hydra.utils import instantiate
from torch import Tensor, nn

from experiments.runs.files import load_weights
from experiments.settings.conversions import ConversionConfig
from stridenet.by_layer.conversion import convert_layers
from stridenet.cli import torchvision_import
from stridenet.elimination import eliminate_stride
from stridenet.errors import InputError


def load_model(config: ConversionConfig) -> nn.Module:
    """Return the network that `model` describes, in evaluation mode.

    Its weights are drawn from `seed`, or read from the file `weights`.

    Raises InputError where the target is not there, does not take the arguments beside it or gives
    no network, and where the file of weights does not fit.
    """
    target = config.model["_target_"]
    torchvision_import.watch()
    _require(target)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        try:
            model = instantiate(config.model, _convert_="all")
        except (Exception, SystemExit) as error:  # the user's function may raise anything
            raise InputError(
                f"model._target_={target} failed: {_reason(error.__cause__ or error)}; its arguments "
                "stand beside it, as in model.num_classes=10"
            ) from error
    if not isinstance(model, nn.Module):
        raise InputError(
            f"model._target_={target} gives {type(model).__name__}, not a torch.nn.Module; name a "
            "class of networks, or a function that returns one"
        )
    if config.weights is not None:
        load_weights(Path(config.weights), model)
    return model.eval()


def input_size(config: ConversionConfig) -> Any:
    """Return one size (channels, height, width), or a tuple of one for each input."""
    sizes = config.input_size
    return tuple(map(tuple, sizes)) if isinstance(sizes[0], list) else tuple(sizes)


def convert(model: nn.Module, config: ConversionConfig, check: bool = True) -> nn.Module:
    """Return the model with unit strides, as the settings say.

    Raises StrideEliminationError where that fails.

    check: see that it is equal, which is not needed where it is verified afterwards.
    """
    if config.theorem == 1:
        inputs = random_inputs(config, 2) if check else None
        how = {name: getattr(config, name) for name in ("only", "pooling", "depthwise")}
        return convert_layers(model, example_inputs=inputs, check=check, **how)
    how = {
        name: getattr(config, name) for name in ("output_factor", "batch_norm", "max_parameters")
    }
    return eliminate_stride(model, input_size(config), check=check, **how)


def random_inputs(config: ConversionConfig, batch: int) -> tuple[Tensor, ...]:
    """Return one normally distributed tensor (batch, c, h, w) for each input, always the same."""
    sizes = input_size(config)
    generator = torch.Generator().manual_seed(config.seed)
    several = sizes if isinstance(sizes[0], tuple) else (sizes,)
    return tuple(torch.randn(batch, *size, generator=generator) for size in several)


def _require(target: str) -> None:
    try:
        resolve_name(target)
    except (Exception, SystemExit) as error:  # importing runs the user's file: it may do anything
        raise InputError(
            f"model._target_={target} cannot be imported: {_reason(error)}; write it as "
            "package.function, or as my_file.function for my_file.py in the current folder"
        ) from error


def _reason(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return f"it calls sys.exit({error.code!r})"
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
