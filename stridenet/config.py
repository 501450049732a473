"""What a command is given: its settings, their permitted values, and the identity of a run.

Imports nothing heavy, so that the command line answers at once.
"""

import hashlib
import json
import math
import os
import re
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

ACTIVATIONS = ("relu", "leaky_relu", "elu", "gelu", "silu", "softplus", "sigmoid", "tanh")
DATA_SETS = ("mnist", "fashion_mnist")
STARTING_WEIGHTS = ("scratch", "copy", "fine_tune")
SHARING = ("tied", "masked", "free")


class InputError(ValueError):
    """What the user gave, or the machine lacks; one line that names the value and the cure."""


@dataclass
class Layer:
    """One layer of the strided network; sizes along the axes are written as one number or [h, w]."""

    kind: str = "conv"  # conv | fc
    channels: int = MISSING  # output channels; of a fully connected layer, its features
    kernel: Any = 1
    stride: Any = 1
    dilation: Any = 1
    padding: Any = 0  # zeros on both sides
    groups: int = 1
    bias: bool = True


@dataclass
class Model:
    """The strided network, and whether one of two others is to be derived from it: its unit-stride
    twin, or the network with pooling layers that it stands for."""

    eliminate_stride: bool = False
    max_pooling: bool = False  # in place of each strided convolution
    activation: str = "relu"  # after every layer but the last
    # A Layer each, once resolved; fully connected ones follow all convolutions. Typed as Any because
    # Hydra cannot add (+model.layers.conv5=…) to a dictionary of dataclasses.
    layers: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Which of the three networks it is, in folders and tables."""
        if self.max_pooling:
            return "pooling"
        return "unit_stride" if self.eliminate_stride else "strided"


@dataclass
class Data:
    """The images; the official split is 60,000 for training and 10,000 for testing."""

    name: str = MISSING  # mnist | fashion_mnist
    image_size: Any = field(default_factory=lambda: [28, 28])  # resized if not their own
    train_size: int | None = None  # the first so many training images; null: all
    validation_size: int = 0  # so many of the last training images are kept apart
    download_timeout: float = 300.0  # seconds


@dataclass
class Recipe:
    """How a network is trained: stochastic gradient descent on the cross-entropy."""

    name: str = MISSING
    epochs: int | None = None  # either epochs or steps; 0 evaluates the starting weights
    steps: int | None = None
    batch_size: int = 64
    learning_rate: float = 0.01  # at step t: learning_rate * (1 + rate_decay * t) ** -rate_power
    rate_decay: float = 0.0
    rate_power: float = 0.75
    bias_rate_factor: float = 1.0  # rate of the biases over that of the weights
    momentum: float = 0.9
    weight_decay: float = 0.0005
    initialisation: str = "pytorch"  # pytorch | xavier (as Caffe's: by fan-in, biases zero)
    # Of a twin; like its sharing, part of a run's identity but not of an experiment's.
    fan_in: str = "nonzero"  # nonzero | filter: entries of a masked filter that count as its inputs
    rate_by_copies: bool = False  # rates times the copies of each strided weight
    pixels: str = "standardised"  # standardised (mean 0, deviation 1) | scaled (by 1/256)
    note: str = ""  # what a reader of its results should know; part of no identity


@dataclass
class Experiment:
    """One strided network, data set and recipe: what may stand in one table."""

    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    recipe: Recipe = field(default_factory=Recipe)
    outputs: str = "outputs"


@dataclass
class Report(Experiment):
    """Tables and figures of an experiment's runs."""

    reference: str | None = None  # folder of published results to show beside them


@dataclass
class Figures:
    """What is drawn: the paper's figures, and how one layer's weights are shared."""

    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    layer: str = "conv1"
    outputs: str = "outputs"


@dataclass
class Config(Experiment):
    """One run. Model, data, recipe, seed, weights and sharing decide its numbers, and so its
    identity."""

    seed: int = 0
    weights: str = "scratch"  # scratch | copy (evaluate only) | fine_tune | a file of weights
    sharing: str = "free"  # of a twin's parameters: tied | masked | free
    device: str = "auto"  # auto | cpu | cuda | mps
    threads: int = 1


@dataclass
class Bench(Experiment):
    """What is timed: both networks and the recipe's steps, round by round."""

    rounds: int = 10
    steps: int = 30  # of each loop and network in a round
    device: str = "auto"  # auto | cpu | cuda | mps
    threads: int = 1


@dataclass
class ConversionBench:
    """What is timed: two conversions of one network, and the stems of several beside their twins."""

    rounds: int = 20
    steps: int = 3  # forward passes of each stem and of its twin in a round
    batch_size: int = 8
    device: str = "auto"  # of the stems: auto | cpu | cuda | mps
    threads: int = 1
    outputs: str = "outputs"


@dataclass
class Conversion:
    """Any network, and how its strides are to be eliminated."""

    # What makes the network, and its arguments: a function or class that hydra.utils.instantiate finds.
    model: dict[str, Any] = field(default_factory=lambda: {"_target_": "stridenet.zoo.lenet"})
    input_size: Any = field(
        default_factory=lambda: [1, 28, 28]
    )  # without batch; or a list of sizes
    weights: str | None = None  # a file with the network's state_dict; null: drawn from the seed
    scope: str = "network"  # network | layer
    only: Any = None  # name of a layer, or a list of names; null: all
    pooling: bool = False
    output_factor: Any = 1
    batch_norm: str = "shared"  # shared | per_phase
    max_parameters: int = 300_000_000  # of the twin
    seed: int = 0
    outputs: str = "outputs"


@dataclass
class Zoo(Conversion):
    """What is converted, verified and timed: models of stridenet.zoo, or one of the user's own."""

    models: Any = None  # names; null: all. None of them where model._target_ is given
    force: bool = False  # measure again what has been measured
    rounds: int = 20  # of a forward pass of each network
    threads: int = 1

    @property
    def of_user(self) -> bool:
        """Whether it is one model of the user's own."""
        return self.model.get("_target_") is not None


@dataclass
class Export(Conversion):
    """What is written as an ONNX file."""

    network: str = "unit_stride"  # unit_stride | strided
    rearrange: str = "graph"  # graph | host: what rearranges the twin's images
    batch: int | None = None  # images at once; null: any
    file: str | None = None  # null: outputs/onnx/MODEL-NETWORK.onnx

    @property
    def path(self) -> Path:
        """The file to write."""
        model = self.model["_target_"].rpartition(".")[2]
        return Path(self.file or Path(self.outputs) / "onnx" / f"{model}-{self.network}.onnx")


Settings = TypeVar("Settings", bound=Experiment | Figures | Conversion | ConversionBench)


def resolve(settings: DictConfig, schema: type[Settings]) -> Settings:
    """Settings as a checked dataclass, everything written in one way only: sizes as [h, w],
    convolutions before fully connected layers. Raises InputError."""
    config = _typed(schema, OmegaConf.to_container(settings), "")
    if isinstance(config, Experiment):
        _check_experiment(config)
    if isinstance(config, Figures):
        _check_network(config)
        convolutions = [name for name, layer in config.model.layers.items() if layer.kind == "conv"]
        require_convolution(config.layer, convolutions)
    if isinstance(config, Zoo):
        _check_zoo(config)
    elif isinstance(config, Conversion):
        _check_conversion(config)
    if isinstance(config, Export):
        _check_export(config)
    if isinstance(config, ConversionBench):
        for key in ("rounds", "steps", "batch_size"):
            _at_least(key, getattr(config, key), 1)
        _check_machine(config)
    return config


def _check_experiment(config: Experiment) -> None:
    if not re.fullmatch(r"\w+", config.recipe.name):  # part of a folder's name
        raise InputError(f"recipe.name={config.recipe.name} must be made of letters, digits and _")
    _check_network(config)
    _check_recipe(config.recipe)
    if isinstance(config, Config):
        _check_run(config)
    if isinstance(config, Bench):
        _at_least("rounds", config.rounds, 1)
        _at_least("steps", config.steps, 1)
    if isinstance(config, (Config, Bench)):
        _check_machine(config)


def _check_network(config: Experiment | Figures) -> None:
    config.model = _resolve_model(config.model)
    if config.model.max_pooling and config.model.eliminate_stride:
        raise InputError(
            "model.max_pooling and model.eliminate_stride: only one of them can be true"
        )
    _one_of("data.name", config.data.name, DATA_SETS)
    config.data.image_size = _per_axis("data.image_size", config.data.image_size, least=1)
    _at_least("data.validation_size", config.data.validation_size, 0)
    _at_least("data.train_size", 1 if config.data.train_size is None else config.data.train_size, 1)
    _at_least("data.download_timeout", config.data.download_timeout, 0)


def _check_zoo(config: Zoo) -> None:
    config.models = _names("models", config.models)
    if config.of_user:
        _check_conversion(config)
        if config.models is not None:
            raise InputError(
                f"models={config.models} are of the zoo, and model._target_ is a model of your own: "
                "give one of the two"
            )
    else:
        default = Conversion(model={"_target_": None}, input_size=None)
        free = ("seed", "max_parameters", "outputs")
        for name in (one.name for one in fields(Conversion) if one.name not in free):
            if getattr(config, name) != getattr(default, name):
                raise InputError(
                    f"{name}={getattr(config, name)}: the zoo's models have settings of their own; "
                    "give model._target_ and input_size too, or leave it out"
                )
        _check_seed(config.seed)
    _at_least("rounds", config.rounds, 1)
    _check_threads(config.threads)


def _check_conversion(config: Conversion) -> None:
    target = config.model.get("_target_")
    if not isinstance(target, str):
        raise InputError(f"model._target_={target} must be package.function")
    sizes = config.input_size
    nested = isinstance(sizes, list) and any(isinstance(size, list) for size in sizes)
    if not all(_is_size(size) for size in (sizes if nested else [sizes])):
        raise InputError(
            f"input_size={sizes} must be the positive sizes of one input without its batch, as in "
            "[3,224,224], or a list of these for several inputs"
        )
    if config.weights is not None and not Path(config.weights).is_file():
        raise InputError(f"weights={config.weights} is not a file; null: drawn from the seed")
    _one_of("scope", config.scope, ("network", "layer"))
    _one_of("batch_norm", config.batch_norm, ("shared", "per_phase"))
    config.only = _names("only", config.only)
    if not _is_size(config.output_factor) and not _is_size([config.output_factor]):
        raise InputError(
            f"output_factor={config.output_factor} must be one positive whole number, or one an axis"
        )
    _at_least("max_parameters", config.max_parameters, 1)
    _check_seed(config.seed)


def _check_export(config: Export) -> None:
    _one_of("network", config.network, ("unit_stride", "strided"))
    _one_of("rearrange", config.rearrange, ("graph", "host"))
    if config.rearrange == "host" and config.network == "strided":
        raise InputError(
            "rearrange=host: the strided network takes ordinary images; it needs network=unit_stride"
        )
    _at_least("batch", 1 if config.batch is None else config.batch, 1)


def _typed(schema: type[Any], content: Any, place: str) -> Any:
    """A dataclass from plain content; unknown keys and wrong types are errors."""
    try:
        typed = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), content))
    except (OmegaConfBaseException, TypeError, ValueError) as error:
        key = ".".join(filter(None, [place, getattr(error, "full_key", None)]))
        raise InputError(f"{key}: {str(error).splitlines()[0]}") from error
    assert isinstance(typed, schema)
    return typed


def _resolve_model(model: Model) -> Model:
    _one_of("model.activation", model.activation, ACTIVATIONS)
    if not model.layers:
        raise InputError("model.layers is empty; give at least one layer")
    layers = {}
    for name, content in model.layers.items():
        key = f"model.layers.{name}"
        layer = _typed(Layer, content, key)
        if not re.fullmatch(r"[A-Za-z]\w*", name):
            raise InputError(f"{key}: a layer's name is a letter, then letters, digits and _")
        _one_of(f"{key}.kind", layer.kind, ("conv", "fc"))
        _at_least(f"{key}.channels", layer.channels, 1)
        _at_least(f"{key}.groups", layer.groups, 1)
        if layer.kind == "fc" and layer.groups != 1:
            raise InputError(f"{key}.groups={layer.groups}: a fully connected layer has no groups")
        for size, least in {"kernel": 1, "stride": 1, "dilation": 1, "padding": 0}.items():
            value = _per_axis(f"{key}.{size}", getattr(layer, size), least)
            if layer.kind == "fc" and value != [least, least]:
                raise InputError(f"{key}.{size}={value}: a fully connected layer has no {size}")
            setattr(layer, size, value)
        layers[name] = layer
    return replace(
        model, layers=dict(sorted(layers.items(), key=lambda item: item[1].kind == "fc"))
    )


def _check_recipe(recipe: Recipe) -> None:
    if (recipe.epochs is None) == (recipe.steps is None):
        raise InputError(
            f"recipe.epochs={recipe.epochs} and recipe.steps={recipe.steps}: give one of the two, "
            "and null for the other"
        )
    for key in ("epochs", "steps"):
        _at_least(f"recipe.{key}", getattr(recipe, key) or 0, 0)
    _at_least("recipe.batch_size", recipe.batch_size, 1)
    for key in ("rate_decay", "rate_power", "bias_rate_factor", "momentum", "weight_decay"):
        _at_least(f"recipe.{key}", getattr(recipe, key), 0)
    if not recipe.momentum < 1:
        raise InputError(f"recipe.momentum={recipe.momentum} must be below 1")
    if not 0 < recipe.learning_rate < math.inf:
        raise InputError(f"recipe.learning_rate={recipe.learning_rate} must be above 0, and finite")
    _one_of("recipe.initialisation", recipe.initialisation, ("pytorch", "xavier"))
    _one_of("recipe.fan_in", recipe.fan_in, ("nonzero", "filter"))
    _one_of("recipe.pixels", recipe.pixels, ("standardised", "scaled"))


def _check_run(config: Config) -> None:
    _check_seed(config.seed)
    twin = config.model.eliminate_stride
    if config.weights == "copy" and not twin:
        raise InputError(
            "weights=copy copies a strided network's weights into its twin: it needs model=unit_stride"
        )
    if config.weights == "fine_tune" and config.model.max_pooling:
        raise InputError(
            "weights=fine_tune goes on from a strided network's weights, which model=pooling has not"
        )
    _one_of("sharing", config.sharing, SHARING)
    if config.sharing != "free" and not twin:
        raise InputError(
            f"sharing={config.sharing} is of a twin's parameters: it needs model=unit_stride"
        )
    # Where these change nothing, they are to make no other run.
    if config.sharing == "tied" or not twin or config.weights == "copy":
        config.recipe = replace(config.recipe, rate_by_copies=False)
    if config.sharing != "masked" or config.weights != "scratch":
        config.recipe = replace(config.recipe, fan_in="nonzero")
    if config.weights not in STARTING_WEIGHTS and not Path(config.weights).is_file():
        raise InputError(
            f"weights={config.weights} is neither {', '.join(STARTING_WEIGHTS)} nor a file"
        )


def _check_seed(seed: int) -> None:
    if not 0 <= seed < 2**32:
        raise InputError(f"seed={seed} must be from 0 to {2**32 - 1}")


def _check_threads(threads: int) -> None:
    cores = os.cpu_count() or 1
    if not 1 <= threads <= cores:
        raise InputError(f"threads={threads} must be from 1 to {cores}, the cores there are")


def _names(key: str, value: Any) -> list[str] | None:
    """One name or several, as a list."""
    names = [value] if isinstance(value, str) else value
    if names is None or (isinstance(names, list) and all(isinstance(n, str) for n in names)):
        return names
    raise InputError(f"{key}={value} must be a name, or a list of names as in [one,other]")


def _is_size(value: Any) -> bool:
    """Whether these are positive whole numbers, one an axis."""
    return isinstance(value, list) and value != [] and all(map(_is_positive, value))


def _is_positive(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _check_machine(config: Config | Bench | ConversionBench) -> None:
    _check_threads(config.threads)
    _one_of("device", config.device, ("auto", "cpu", "cuda", "mps"))


def _per_axis(key: str, value: Any, least: int) -> list[int]:
    """One number for both axes, or [h, w], as a list of two."""
    axes = value if isinstance(value, list) else [value, value]
    whole = all(isinstance(extent, int) and not isinstance(extent, bool) for extent in axes)
    if len(axes) != 2 or not whole or min(axes) < least:
        raise InputError(f"{key}={value} must be one whole number or [h, w], at least {least}")
    return axes


def _at_least(key: str, value: float, least: int) -> None:
    if not least <= value < math.inf:  # not a number fails too
        raise InputError(f"{key}={value} must be at least {least}, and finite")


def _one_of(key: str, value: str, known: Iterable[str]) -> None:
    if value not in known:
        raise InputError(f"{key}={value} is unknown; take one of {', '.join(known)}")


def require_convolution(name: str, convolutions: Collection[str]) -> None:
    """Raise InputError unless the layer is one of the network's convolutions."""
    if name not in convolutions:
        cure = f"take one of {', '.join(convolutions)}" if convolutions else "the network has none"
        raise InputError(f"layer={name} is no convolution; {cure}")


def experiment_identity(experiment: Experiment) -> str:
    """The same for all runs that may stand in one table: one strided network, data and recipe."""
    data, recipe = asdict(experiment.data), asdict(experiment.recipe)
    del data["download_timeout"], recipe["note"], recipe["fan_in"], recipe["rate_by_copies"]
    return _hash([*_model(experiment.model), data, recipe])


def model_identity(experiment: Experiment) -> str:
    """The same wherever the strided network and the size of the images are the same."""
    return _hash([*_model(experiment.model), experiment.data.image_size])


def _model(model: Model) -> list[Any]:
    content = asdict(model)
    del content["eliminate_stride"], content["max_pooling"]
    return [list(content.pop("layers").items()), content]  # the layers' order counts


def variant(config: Config) -> str:
    """How the network is treated otherwise than in the paper, in words; "" if in no way."""
    parts = {
        config.sharing: config.sharing != "free",
        "fan_in=filter": config.recipe.fan_in == "filter",
        "rate_by_copies": config.recipe.rate_by_copies,
    }
    return " ".join(part for part, applies in parts.items() if applies)


def run_name(config: Config) -> str:
    """A run's folder, as in unit_stride-scratch-paper-s3-3f4611ee or unit_stride-tied-scratch-….

    The last part is the identity: a hash of what decides the numbers. Device, threads, folders and
    the way in which settings were written are not in it; of a file of weights, the content is.
    """
    weights, content = config.weights, ""
    if weights not in STARTING_WEIGHTS:
        with Path(weights).open("rb") as file:
            weights, content = "file", hashlib.file_digest(file, "sha256").hexdigest()
    name, treated = config.model.name, variant(config)
    decides = [experiment_identity(config), name, weights, content, config.seed]
    identity = _hash([*decides, *filter(None, [treated])])
    words = re.split("[ =]", treated)
    parts = [name, *words, weights, config.recipe.name, f"s{config.seed}", identity]
    return "-".join(filter(None, parts))


def strided_source(config: Config) -> Config:
    """The run whose weights `weights=copy` and `fine_tune` start from."""
    model = replace(config.model, eliminate_stride=False)
    recipe = replace(config.recipe, rate_by_copies=False, fan_in="nonzero")
    return replace(config, model=model, recipe=recipe, weights="scratch", sharing="free")


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]
