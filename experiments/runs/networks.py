"""From a model's settings to a network, and from a generator to its weights."""

import math
from collections.abc import Mapping

import torch
from torch import nn

from experiments.settings.schema import DataConfig, LayerConfig, ModelConfig, RecipeConfig
from stridenet.elimination import eliminate_stride, plan_elimination
from stridenet.errors import InputError
from stridenet.options import MOST_PARAMETERS
from stridenet.sharing import share
from stridenet.sharing_measures import fan_in
from stridenet.sizes import format_size
from stridenet.twin import UnitStrideNetwork

_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
}


def build_strided(
    model: ModelConfig, input_size: tuple[int, int, int], max_pooling: bool = False
) -> nn.Sequential:
    """Return the network that the settings describe, before any stride is eliminated.

    Takes images (n, c, h, w) of `input_size` (c, h, w) and returns scores (n, classes). With
    max_pooling, it has the pooling layers that its strided convolutions stand for (Springenberg et al.,
    2014). Raises InputError where the layers do not fit each other or the images.
    """
    convolutions = [name for name, layer in model.layers.items() if layer.kind == "conv"]
    network = nn.Sequential()
    channels, size = input_size[0], list(input_size[1:])
    if not convolutions:
        channels = _flatten(network, channels, size)
    for name, layer in model.layers.items():
        pooled = max_pooling and max(layer.stride) > 1
        _add(network, name, (_pooling if pooled else _layer)(name, layer, channels))
        channels = layer.channels
        if layer.kind == "conv":
            size = _size_after(name, layer, size, input_size)
        last = name == next(reversed(model.layers))
        activation = layer.activation or ("identity" if last else model.activation)
        if activation != "identity" and not pooled:
            _add(network, f"{name}_{activation}", _ACTIVATIONS[activation]())
        if [name] == convolutions[-1:]:
            channels = _flatten(network, channels, size)
    return network


def require_scores(network: nn.Module, data: DataConfig) -> None:
    """Raise InputError unless the network gives a score for each class of the data set."""
    with torch.no_grad():
        scores = network(torch.zeros(1, *data.input_size)).shape[1]
    if scores < data.facts.classes:
        raise InputError(
            f"the last of model.layers gives {scores} scores, but there are {data.facts.classes} "
            "classes; give it more channels"
        )


def build_network(
    model: ModelConfig, input_size: tuple[int, int, int], sharing: str = "free"
) -> nn.Module:
    """Return the network that the settings name: strided, with pooling, or the unit-stride twin.

    Its weights are arbitrary; a twin's are copies of a strided network's, and shared as `sharing` says.
    """
    strided = build_strided(model, input_size, model.max_pooling)
    if not model.eliminate_stride:
        return strided
    return share(twin_of(strided, input_size), sharing)


def twin_of(strided: nn.Module, input_size: tuple[int, int, int]) -> UnitStrideNetwork:
    """Return the unit-stride twin of what `build_strided` made.

    Raises InputError if it is too large.
    """
    before, after = plan_elimination(strided, input_size).parameters
    if after > MOST_PARAMETERS:
        raise InputError(
            f"model.layers: the unit-stride twin has {after:,} parameters, {before:,} before, of at "
            f"most {MOST_PARAMETERS:,}; give the layers smaller strides or fewer channels"
        )
    return eliminate_stride(strided, input_size)


def draw_network(
    model: ModelConfig,
    input_size: tuple[int, int, int],
    recipe: RecipeConfig,
    sharing: str,
    generator: torch.Generator,
) -> nn.Module:
    """Return the network that the settings name, its weights drawn as the recipe says.

    A tied twin starts from the strided network's draw. A masked one draws by the inputs that its
    filters' non-zero entries have (recipe.fan_in=nonzero) or by all; a free one by all.
    """
    scheme = recipe.initialisation
    if sharing == "tied":
        strided = build_strided(model, input_size)
        initialise(strided, scheme, generator)
        return share(twin_of(strided, input_size), sharing)
    network = build_network(model, input_size)
    if not isinstance(network, UnitStrideNetwork):
        initialise(network, scheme, generator)
        return network
    by_nonzero = sharing == "masked" and recipe.fan_in == "nonzero"
    initialise(network.network, scheme, generator, fan_in(network) if by_nonzero else None)
    return share(network, sharing, project=True)


def _add(network: nn.Sequential, name: str, module: nn.Module) -> None:
    if hasattr(network, name):
        raise InputError(f"model.layers: the name {name} is taken; give the layer another")
    network.add_module(name, module)


def _flatten(network: nn.Sequential, channels: int, size: list[int]) -> int:
    """Add what turns maps into a vector; returns its length."""
    _add(network, "flatten", nn.Flatten())
    return channels * math.prod(size)


def _size_after(
    name: str, layer: LayerConfig, size: list[int], input_size: tuple[int, int, int]
) -> list[int]:
    """Return the size of the map after a convolution, or after the pooling in its place."""
    padded = [extent + 2 * zeros for extent, zeros in zip(size, layer.padding, strict=True)]
    window = [d * (k - 1) + 1 for d, k in zip(layer.dilation, layer.kernel, strict=True)]
    if any(w > p for w, p in zip(window, padded, strict=True)):
        raise InputError(
            f"model.layers.{name}: its window of {format_size(window)} (kernel, dilated) is larger "
            f"than its map of {format_size(padded)} (with padding), which the layers before it leave "
            f"of data.image_size={list(input_size[1:])}; give them smaller kernels and strides, or "
            "larger images"
        )
    return [(p - w) // s + 1 for p, w, s in zip(padded, window, layer.stride, strict=True)]


def _layer(name: str, layer: LayerConfig, channels: int) -> nn.Module:
    if layer.kind == "fc":
        return nn.Linear(channels, layer.channels, bias=layer.bias)
    try:
        return nn.Conv2d(
            channels,
            layer.channels,
            tuple(layer.kernel),
            tuple(layer.stride),
            tuple(layer.padding),
            tuple(layer.dilation),
            layer.groups,
            layer.bias,
        )
    except ValueError as error:
        raise InputError(
            f"model.layers.{name}.groups={layer.groups} does not divide the {channels} channels "
            f"before the layer and its own {layer.channels}"
        ) from error


def _pooling(name: str, layer: LayerConfig, channels: int) -> nn.Module:
    """Return max pooling with the window and stride of the strided convolution that replaced it."""
    if layer.channels != channels:
        raise InputError(
            f"model.layers.{name}.channels={layer.channels}: pooling in its place keeps the {channels} "
            "channels that it is given"
        )
    if any(2 * zeros > extent for zeros, extent in zip(layer.padding, layer.kernel, strict=True)):
        raise InputError(
            f"model.layers.{name}.padding={layer.padding}: pooling in its place takes at most half "
            f"its kernel {layer.kernel}"
        )
    sizes = (layer.kernel, layer.stride, layer.padding, layer.dilation)
    return nn.MaxPool2d(*map(tuple, sizes))  # type: ignore[arg-type]


@torch.no_grad()
def initialise(
    network: nn.Module,
    scheme: str,
    generator: torch.Generator,
    fan_in: Mapping[str, int] | None = None,
) -> None:
    """Draw all weights anew, each layer by its own fan-in, from `generator` alone.

    pytorch: weights and biases uniform within ±1/sqrt(fan-in), as torch's layers start.
    xavier: weights uniform within ±sqrt(3/fan-in), biases zero, as in Caffe.
    fan_in: of the layers, by name, that have another one than all inputs of a filter.
    """
    for name, module in network.named_modules():
        if not isinstance(module, (nn.Conv2d, nn.Linear)):
            continue
        inputs = (fan_in or {}).get(name, module.weight[0].numel())
        bound = math.sqrt((1 if scheme == "pytorch" else 3) / inputs)
        module.weight.uniform_(-bound, bound, generator=generator)
        if module.bias is not None:
            bias_bound = bound if scheme == "pytorch" else 0.0
            module.bias.uniform_(-bias_bound, bias_bound, generator=generator)
