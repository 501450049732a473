"""The settings of the commands that convert networks: defaults, meanings, choices and checks.

Each dataclass checks itself with its `check`, which schema.py describes.
"""

import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from experiments.settings.fields import (
    as_names,
    at_least,
    check_seed,
    check_threads,
    is_size,
    setting,
)
from experiments.settings.schema import DEVICES
from stridenet.errors import InputError
from stridenet.options import BATCH_NORM, DEPTHWISE, MOST_PARAMETERS

# Settings that only one of the two conversions has.
_OF_THEOREM = {
    1: ("only", "pooling", "depthwise"),
    2: ("output_factor", "batch_norm", "max_parameters"),
}


@dataclass
class ConversionBenchmarkConfig:
    """Says how conversions are timed, and first layers beside their unit-stride twins."""

    rounds: int = setting(20, "rounds; in each, everything is timed in turn")
    steps: int = setting(3, "forward passes of each first layer and of its twin in a round")
    batch_size: int = setting(8, "images in a forward pass")
    device: str = setting(
        "auto", "where the first layers are; auto takes an accelerator if there is one", DEVICES
    )
    threads: int = setting(1, "threads that torch uses")
    outputs: str = setting("outputs", "folder of the results")

    def check(self) -> None:
        """Check how often what is timed."""
        for key in ("rounds", "steps", "batch_size"):
            at_least(key, getattr(self, key), 1)
        check_threads(self.threads)


@dataclass
class ConversionConfig:
    """Describes any network, and how its strides are to be eliminated."""

    model: dict[str, Any] = setting(
        {"_target_": "stridenet.zoo.lenet"},
        "a function or class that makes a network; its arguments beside it, as in model.num_classes=10",
    )
    input_size: Any = setting([1, 28, 28], "without the batch; of several inputs, a list of sizes")
    weights: str | None = setting(
        None, "a file with the network's state_dict; null: drawn from the seed"
    )
    theorem: int = setting(
        2,
        "1 converts each layer by itself (convert_layers), 2 the whole (eliminate_stride)",
        (1, 2),
    )
    only: Any = setting(None, "theorem=1: name of a layer, or a list of names; null: all")
    pooling: bool = setting(False, "theorem=1: also the strides of pooling layers")
    depthwise: str = setting(
        "phases", "theorem=1: how a depthwise convolution is computed", DEPTHWISE
    )
    output_factor: Any = setting(1, "theorem=2: of the phase form in which the output is wanted")
    batch_norm: str = setting(
        "shared", "theorem=2: the statistics of a channel's phases", BATCH_NORM
    )
    max_parameters: int = setting(
        MOST_PARAMETERS, "theorem=2: a larger twin is refused", most=2**53
    )
    seed: int = setting(0, "decides the weights and inputs that are drawn", most=math.inf)
    outputs: str = setting("outputs", "folder of the results")

    def check(self) -> None:
        """Check the network and its inputs, and that no setting is of the other conversion."""
        target = self.model.get("_target_")
        if not isinstance(target, str):
            raise InputError(f"model._target_={target} must be package.function")
        sizes = self.input_size
        nested = isinstance(sizes, list) and any(isinstance(size, list) for size in sizes)
        if not all(is_size(size) for size in (sizes if nested else [sizes])):
            raise InputError(
                f"input_size={sizes} must be the positive sizes of one input without its batch, as in "
                "[3,224,224], or a list of these for several inputs"
            )
        if self.weights is not None and not Path(self.weights).is_file():
            raise InputError(f"weights={self.weights} is not a file; null: drawn from the seed")
        self.only = as_names("only", self.only)
        if not is_size(self.output_factor) and not is_size([self.output_factor]):
            raise InputError(
                f"output_factor={self.output_factor} must be one positive whole number, or one an axis"
            )
        at_least("max_parameters", self.max_parameters, 1)
        check_seed(self.seed)
        other = 3 - self.theorem
        for name in _OF_THEOREM[other]:
            if getattr(self, name) != getattr(ConversionConfig(), name):
                raise InputError(
                    f"{name}={getattr(self, name)} has no effect: it needs theorem={other}"
                )


@dataclass
class ZooConfig(ConversionConfig):
    """Says which models are converted, verified and timed: those of stridenet.zoo, or a user's own."""

    models: Any = setting(None, "some of the zoo, as in [lenet,resnet18]; null: all")
    force: bool = setting(False, "measure again what has been measured")
    rounds: int = setting(20, "forward passes of each network that are timed")
    threads: int = setting(1, "threads that torch uses")

    @property
    def of_user(self) -> bool:
        """Tell whether it is one model of the user's own."""
        return self.model.get("_target_") is not None

    def check(self) -> None:
        """Check the user's model, or that the zoo's models, which have settings, are given none."""
        self.models = as_names("models", self.models)
        if self.of_user:
            super().check()
            if self.models is not None:
                raise InputError(
                    f"models={self.models} are of the zoo, and model._target_ is a model of your "
                    "own: give one of the two"
                )
        else:
            default = ConversionConfig(model={"_target_": None}, input_size=None)
            free = ("seed", "max_parameters", "outputs")
            for name in (one.name for one in fields(default) if one.name not in free):
                if getattr(self, name) != getattr(default, name):
                    raise InputError(
                        f"{name}={getattr(self, name)}: the zoo's models have settings of their own; "
                        "give model._target_ and input_size too, or leave it out"
                    )
            check_seed(self.seed)
        at_least("rounds", self.rounds, 1)
        check_threads(self.threads)


@dataclass
class SurveyConfig:
    """Says which of other people's networks are converted, and with what limits."""

    sources: Any = setting(
        None,
        "packages, as in [timm,monai], or package.module:Class of a source of your own; null: all",
    )
    models: Any = setting(None, "names of models in those sources; null: one of each family")
    all: bool = setting(False, "every model of each family")
    every: int = setting(1, "only the first of so many families")
    pooling: bool = setting(True, "also convert with pooling")
    network: bool = setting(True, "also plan the unit-stride network (Theorem 2)")
    seconds: float = setting(120.0, "seconds for each model, in a process of its own")
    gigabytes: float = setting(8.0, "GiB of memory for each model")
    jobs: int = setting(1, "models at once")
    threads: int = setting(1, "threads that torch uses for each model")
    seed: int = setting(0, "decides weights and inputs", most=math.inf)
    force: bool = setting(False, "measure again what has been measured")
    outputs: str = setting("outputs", "folder of the results")

    def check(self) -> None:
        """Check which networks are asked for, and the limits."""
        self.sources = as_names("sources", self.sources)
        self.models = as_names("models", self.models)
        if self.all and self.models is not None:
            raise InputError(f"models={self.models} and all=true: give one of the two")
        for key in ("every", "jobs", "seconds", "gigabytes"):
            at_least(key, getattr(self, key), 1)
        check_seed(self.seed)
        check_threads(self.threads)
