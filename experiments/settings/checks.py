"""From what was typed to settings that hold together: types, ranges, choices."""

import math
import os
import re
from collections.abc import Collection, Iterable
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from experiments.settings.guide import advice
from experiments.settings.identity import rate_of
from experiments.settings.schema import (
    MOST,
    RATED,
    STARTING_WEIGHTS,
    BenchmarkConfig,
    ConversionBenchmarkConfig,
    ConversionConfig,
    EvidenceConfig,
    ExperimentConfig,
    FiguresConfig,
    LayerConfig,
    ModelConfig,
    NetworkConfig,
    RecipeConfig,
    ReportConfig,
    RunConfig,
    SurveyConfig,
    ZooConfig,
)
from stridenet.errors import InputError

PATHS = ("outputs", "published", "reference", "file")  # to be written to, or a folder
NO_VALUE = "{} has no value yet: give it, or make the search that its comment in conf/ names"
PUBLISHED = "outputs/reference"
MOST_SIZE = 65_536  # of an image, a kernel, a stride: along one axis
Settings = TypeVar(
    "Settings",
    bound=NetworkConfig
    | EvidenceConfig
    | ConversionConfig
    | ConversionBenchmarkConfig
    | SurveyConfig,
)


def resolve(settings: DictConfig, schema: type[Settings]) -> Settings:
    """Settings as a checked dataclass, everything written in one way only: sizes as [h, w],
    convolutions before fully connected layers. Raises InputError."""
    config = _typed(schema, OmegaConf.to_container(settings), "")
    _check_choices(config)
    for key in PATHS:
        if getattr(config, key, None) is not None:
            named(key, getattr(config, key))
    if isinstance(config, NetworkConfig):
        _check_network(config)
    if isinstance(config, ExperimentConfig):
        _check_experiment(config)
    if isinstance(config, FiguresConfig):
        convolutions = [name for name, layer in config.model.layers.items() if layer.kind == "conv"]
        require_convolution(config.layer, convolutions)
    if isinstance(config, (EvidenceConfig, ReportConfig)):
        _check_folders(config)
    if isinstance(config, ZooConfig):
        _check_zoo(config)
    elif isinstance(config, ConversionConfig):
        _check_conversion(config)
    if isinstance(config, SurveyConfig):
        _check_survey(config)
    if isinstance(config, ConversionBenchmarkConfig):
        for key in ("rounds", "steps", "batch_size"):
            at_least(key, getattr(config, key), 1)
        _check_threads(config.threads)
    _check_numbers(config)
    return config


def named(key: str, path: str) -> str:
    """The path of a setting. Raises InputError where it names nothing, or nothing that can be."""
    if not path.strip() or "\0" in path:
        raise InputError(f"{key}={path!r} names no file or folder; name one, or leave {key}= out")
    return path


def _check_choices(config: Any, place: str = "") -> None:
    """Raise InputError unless each setting that has choices is one of them, here and below."""
    for one in fields(config):
        key, value = f"{place}{one.name}", getattr(config, one.name)
        if is_dataclass(value):
            _check_choices(value, f"{key}.")
        elif (choices := one.metadata.get("choices")) and value is not None:
            one_of(key, value, choices)


def _check_numbers(config: Any, place: str = "") -> None:
    """Raise InputError for a number too large for its place, here or below; -0.0 becomes 0.0."""
    for one in fields(config):
        key, value = f"{place}{one.name}", getattr(config, one.name)
        if is_dataclass(value):
            _check_numbers(value, f"{key}.")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            most = one.metadata["most"]
            if not abs(value) <= most:  # not a number fails too
                raise InputError(f"{key}={value} must be at most {most:,}, and finite")
            setattr(config, one.name, value + type(value)(0))


def _check_experiment(config: ExperimentConfig) -> None:
    if not re.fullmatch(r"\w{1,64}", config.recipe.name):  # part of a folder's name
        raise InputError(
            f"recipe.name={config.recipe.name} must be made of letters, digits and _, 64 at most"
        )
    _check_recipe(config.recipe)
    if isinstance(config, RunConfig):
        _check_run(config)
    if isinstance(config, BenchmarkConfig):
        at_least("rounds", config.rounds, 1)
        at_least("steps", config.steps, 1)
    if isinstance(config, (RunConfig, BenchmarkConfig)):
        _check_threads(config.threads)


def _check_network(config: NetworkConfig) -> None:
    config.model = _resolve_model(config.model)
    if config.model.max_pooling and config.model.eliminate_stride:
        raise InputError(
            "model.max_pooling and model.eliminate_stride: only one of them can be true"
        )
    config.data.image_size = _per_axis("data.image_size", config.data.image_size, least=1)
    at_least("data.validation_size", config.data.validation_size, 0)
    at_least("data.train_size", 1 if config.data.train_size is None else config.data.train_size, 1)
    at_least("data.download_timeout", config.data.download_timeout, 0)


def _check_folders(config: EvidenceConfig | ReportConfig) -> None:
    """Raise InputError where published results are to be read from a folder that is not there.

    The repository's own may be missing, where a command is called from another folder.
    """
    key = "published" if isinstance(config, EvidenceConfig) else "reference"
    folder = getattr(config, key)
    if folder not in (None, PUBLISHED) and not Path(folder).is_dir():
        raise InputError(f"{key}={folder} is no folder; published results are in {PUBLISHED}")


def _check_zoo(config: ZooConfig) -> None:
    config.models = _names("models", config.models)
    if config.of_user:
        _check_conversion(config)
        if config.models is not None:
            raise InputError(
                f"models={config.models} are of the zoo, and model._target_ is a model of your own: "
                "give one of the two"
            )
    else:
        default = ConversionConfig(model={"_target_": None}, input_size=None)
        free = ("seed", "max_parameters", "outputs")
        for name in (one.name for one in fields(ConversionConfig) if one.name not in free):
            if getattr(config, name) != getattr(default, name):
                raise InputError(
                    f"{name}={getattr(config, name)}: the zoo's models have settings of their own; "
                    "give model._target_ and input_size too, or leave it out"
                )
        _check_seed(config.seed)
    at_least("rounds", config.rounds, 1)
    _check_threads(config.threads)


def _check_survey(config: SurveyConfig) -> None:
    config.sources = _names("sources", config.sources)
    config.models = _names("models", config.models)
    if config.all and config.models is not None:
        raise InputError(f"models={config.models} and all=true: give one of the two")
    for key in ("every", "jobs", "seconds", "gigabytes"):
        at_least(key, getattr(config, key), 1)
    _check_seed(config.seed)
    _check_threads(config.threads)


def _check_conversion(config: ConversionConfig) -> None:
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
    config.only = _names("only", config.only)
    if not _is_size(config.output_factor) and not _is_size([config.output_factor]):
        raise InputError(
            f"output_factor={config.output_factor} must be one positive whole number, or one an axis"
        )
    at_least("max_parameters", config.max_parameters, 1)
    _check_seed(config.seed)
    defaults = ConversionConfig()
    other = 3 - config.theorem
    for name in _OF_THEOREM[other]:
        value = getattr(config, name)
        if value != getattr(defaults, name):
            raise InputError(f"{name}={value} has no effect: it needs theorem={other}")


# What only one of the two conversions has.
_OF_THEOREM = {
    1: ("only", "pooling", "depthwise"),
    2: ("output_factor", "batch_norm", "max_parameters"),
}


def _typed(schema: type[Any], content: Any, place: str) -> Any:
    """A dataclass from plain content; unknown keys and wrong types are errors."""
    try:
        typed = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), content))
    except MissingMandatoryValue as error:
        key = ".".join(filter(None, [place, error.full_key]))
        raise InputError(NO_VALUE.format(key)) from error
    except (OmegaConfBaseException, TypeError, ValueError) as error:
        key = ".".join(filter(None, [place, getattr(error, "full_key", None)]))
        advised = advice(error, place)
        raise InputError(advised or f"{key}: {str(error).splitlines()[0]}") from error
    assert isinstance(typed, schema)
    return typed


def _resolve_model(model: ModelConfig) -> ModelConfig:
    if not model.layers:
        raise InputError("model.layers is empty; give at least one layer")
    layers = {}
    for name, content in model.layers.items():
        key = f"model.layers.{name}"
        if not isinstance(content, dict):
            raise InputError(f"{key}={content} must be a layer, as in {{kernel: 3, channels: 20}}")
        layer = _typed(LayerConfig, content, key)
        _check_numbers(layer, f"{key}.")
        if not re.fullmatch(r"[A-Za-z]\w*", name):
            raise InputError(f"{key}: a layer's name is a letter, then letters, digits and _")
        _check_choices(layer, f"{key}.")
        at_least(f"{key}.channels", layer.channels, 1)
        at_least(f"{key}.groups", layer.groups, 1)
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


def _check_recipe(recipe: RecipeConfig) -> None:
    if recipe.epochs is None and recipe.steps is None:
        raise InputError(
            "recipe.steps has no value yet, nor has recipe.epochs: give one of the two"
        )
    if recipe.epochs is not None and recipe.steps is not None:
        raise InputError(
            f"recipe.epochs={recipe.epochs} and recipe.steps={recipe.steps}: give one of the two, "
            "and null for the other"
        )
    for key in ("epochs", "steps"):
        at_least(f"recipe.{key}", getattr(recipe, key) or 0, 0)
    at_least("recipe.batch_size", recipe.batch_size, 1)
    for key in ("rate_decay", "rate_power", "bias_rate_factor", "momentum", "weight_decay"):
        at_least(f"recipe.{key}", getattr(recipe, key), 0)
    if not recipe.momentum < 1:
        raise InputError(f"recipe.momentum={recipe.momentum} must be below 1")
    recipe.learning_rate = _rates(recipe.learning_rate)
    at_least("recipe.evaluations", 1 if recipe.evaluations is None else recipe.evaluations, 1)


def _rates(given: Any) -> float | dict[str, float]:
    """One positive number, or one for each of some networks."""
    rates = given if isinstance(given, dict) else {"": given}
    for name, rate in rates.items():
        key = f"recipe.learning_rate{name and '.'}{name}"
        if name not in ("", *RATED):
            raise InputError(f"{key} is of no network; a rate is for one of {', '.join(RATED)}")
        if rate is None:
            raise InputError(NO_VALUE.format(key))
        if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 < rate <= MOST:
            raise InputError(f"{key}={rate} must be a number above 0, and at most {MOST:,}")
    if not rates:
        raise InputError("recipe.learning_rate={} has no rate for any network")
    numbers = {name: float(rate) for name, rate in sorted(rates.items())}
    return numbers if isinstance(given, dict) else numbers[""]


def _check_run(config: RunConfig) -> None:
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
    if config.sharing != "free" and not twin:
        raise InputError(
            f"sharing={config.sharing} is of a twin's parameters: it needs model=unit_stride"
        )
    # Where these change nothing, they are to make no other run.
    if config.sharing == "tied" or not twin or config.weights == "copy":
        config.recipe = replace(config.recipe, rate_scaling="none")
    if config.sharing != "masked" or config.weights != "scratch":
        config.recipe = replace(config.recipe, fan_in="nonzero")
    at_least("rho_every", config.rho_every, 0)
    if config.weights != "copy":
        rate_of(config)  # says so where there is none
    if config.weights not in STARTING_WEIGHTS and not Path(config.weights).is_file():
        raise InputError(
            f"weights={config.weights} is neither {', '.join(STARTING_WEIGHTS)} nor a file"
        )


def with_seed(config: RunConfig, text: str) -> RunConfig:
    """Return the run with the seed that was typed. Raises InputError where it is no seed."""
    try:
        seed = int(text)
    except ValueError as error:
        raise InputError(f"seed={text} must be a whole number") from error
    _check_seed(seed)
    return replace(config, seed=seed)


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
    if names == []:
        raise InputError(f"{key}=[] names nothing; name one at least, or leave {key}= out for all")
    if names is None or (isinstance(names, list) and all(map(_is_text, names))):
        return names
    raise InputError(f"{key}={value} must be a name, or a list of names as in [one,other]")


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _is_size(value: Any) -> bool:
    """Whether these are positive whole numbers, one an axis."""
    return isinstance(value, list) and value != [] and all(map(_is_positive, value))


def _is_positive(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= MOST


def _per_axis(key: str, value: Any, least: int) -> list[int]:
    """One number for both axes, or [h, w], as a list of two."""
    axes = value if isinstance(value, list) else [value, value]
    whole = all(isinstance(extent, int) and not isinstance(extent, bool) for extent in axes)
    if len(axes) != 2 or not whole or min(axes) < least or max(axes) > MOST_SIZE:
        raise InputError(
            f"{key}={value} must be one whole number or [h, w], at least {least}, at most {MOST_SIZE:,}"
        )
    return axes


def at_least(key: str, value: float, least: int) -> None:
    if not least <= value < math.inf:  # not a number fails too
        raise InputError(f"{key}={value} must be at least {least}, and finite")


def one_of(key: str, value: Any, known: Iterable[Any]) -> None:
    if value not in known:
        raise InputError(f"{key}={value} is unknown; take one of {', '.join(map(str, known))}")


def require_convolution(name: str, convolutions: Collection[str]) -> None:
    """Raise InputError unless the layer is one of the network's convolutions."""
    if name not in convolutions:
        cure = f"take one of {', '.join(convolutions)}" if convolutions else "the network has none"
        raise InputError(f"layer={name} is no convolution; {cure}")
