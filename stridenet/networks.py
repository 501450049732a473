"""From a model's settings to a network, and from a generator to its weights."""

import math

import torch
from torch import nn

from stridenet.config import InputError, Layer, Model
from stridenet.elimination import eliminate_stride, plan_elimination

CLASSES = 10  # of MNIST and of Fashion-MNIST
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


def build_strided(model: Model, input_size: tuple[int, int, int]) -> nn.Sequential:
    """The network that the settings describe, before any stride is eliminated.

    Takes images (n, c, h, w) of `input_size` (c, h, w) and returns scores (n, classes). Raises
    InputError or StrideEliminationError where the layers do not fit each other or the images.
    """
    activation = _ACTIVATIONS[model.activation]
    convolutions = [name for name, layer in model.layers.items() if layer.kind == "conv"]
    network = nn.Sequential()
    channels = input_size[0]
    if not convolutions:
        channels = _flatten(network, input_size)
    for name, layer in model.layers.items():
        _add(network, name, _layer(name, layer, channels))
        channels = layer.channels
        if name != next(reversed(model.layers)):
            _add(network, f"{name}_{model.activation}", activation())
        if [name] == convolutions[-1:]:
            channels = _flatten(network, input_size)
    if channels < CLASSES:
        raise InputError(
            f"the last of model.layers gives {channels} scores, but there are {CLASSES} classes; "
            "give it more channels"
        )
    return network


def build_network(model: Model, input_size: tuple[int, int, int]) -> nn.Module:
    """The strided network, or its unit-stride twin, as the settings say; its weights are arbitrary."""
    strided = build_strided(model, input_size)
    return eliminate_stride(strided, input_size) if model.eliminate_stride else strided


def _add(network: nn.Sequential, name: str, module: nn.Module) -> None:
    if hasattr(network, name):
        raise InputError(f"model.layers: the name {name} is taken; give the layer another")
    network.add_module(name, module)


def _flatten(network: nn.Sequential, input_size: tuple[int, int, int]) -> int:
    """Add what turns maps into a vector; returns its length."""
    _add(network, "flatten", nn.Flatten())
    return plan_elimination(network, input_size).layers[-1].output.size[0]


def _layer(name: str, layer: Layer, channels: int) -> nn.Module:
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


@torch.no_grad()
def initialise(network: nn.Module, scheme: str, generator: torch.Generator) -> None:
    """Draw all weights anew, each layer by its own fan-in, from `generator` alone.

    pytorch: weights and biases uniform within ±1/sqrt(fan-in), as torch's layers start.
    xavier: weights uniform within ±sqrt(3/fan-in), biases zero, as in Caffe.
    """
    for module in network.modules():
        if not isinstance(module, (nn.Conv2d, nn.Linear)):
            continue
        fan_in = module.weight[0].numel()
        bound = math.sqrt((1 if scheme == "pytorch" else 3) / fan_in)
        module.weight.uniform_(-bound, bound, generator=generator)
        if module.bias is not None:
            bias_bound = bound if scheme == "pytorch" else 0.0
            module.bias.uniform_(-bias_bound, bias_bound, generator=generator)
