"""The settings of the commands that train and report: defaults, meanings, choices and checks.

`--help` and `resolve` read them here. Imports nothing heavy, so that the command line answers at once.
Each dataclass has a `check`, which raises InputError where its settings do not hold together, and
writes them in one way only.
"""

import math
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from experiments.settings.data_sets import DATA_SETS, DataSetFacts
from experiments.settings.fields import (
    PUBLISHED,
    as_names,
    as_rates,
    at_least,
    check_choices,
    check_numbers,
    check_published,
    check_seed,
    check_threads,
    per_axis,
    require_convolution,
    setting,
)
from stridenet.errors import InputError
from stridenet.options import SHARING

ACTIVATIONS = (
    "relu", "leaky_relu", "elu", "gelu", "silu", "softplus", "sigmoid", "tanh", "identity"
)  # fmt: skip
DEVICES = ("auto", "cpu", "cuda", "mps")
STARTING_WEIGHTS = ("scratch", "copy", "fine_tune")
RATED = ("strided", "unit_stride", "tied", "masked", "pooling")  # unit_stride: the free twin


@dataclass
class LayerConfig:
    """Describes one layer of the strided network; sizes are one number, or [h, w]."""

    kind: str = setting("conv", "a convolution, or fully connected", ("conv", "fc"))
    channels: int = setting(MISSING, "output channels; of a fully connected layer, its features")
    kernel: Any = setting(1, "one number or [h,w], as the next three")
    stride: Any = setting(1, "steps between two of its places")
    dilation: Any = setting(1, "steps between two of its taps")
    padding: Any = setting(0, "zeros on both sides")
    groups: int = setting(1, "parts into which the channels are divided")
    bias: bool = setting(True, "whether it adds a bias")
    activation: str | None = setting(
        None, "after this layer; null: model.activation, after all but the last", ACTIVATIONS
    )

    def check(self, key: str) -> None:
        """Check the layer that stands at `key`, and write its sizes as [h, w]."""
        check_numbers(self, f"{key}.")
        check_choices(self, f"{key}.")
        at_least(f"{key}.channels", self.channels, 1)
        at_least(f"{key}.groups", self.groups, 1)
        if self.kind == "fc" and self.groups != 1:
            raise InputError(f"{key}.groups={self.groups}: a fully connected layer has no groups")
        for size, least in {"kernel": 1, "stride": 1, "dilation": 1, "padding": 0}.items():
            value = per_axis(f"{key}.{size}", getattr(self, size), least)
            if self.kind == "fc" and value != [least, least]:
                raise InputError(f"{key}.{size}={value}: a fully connected layer has no {size}")
            setattr(self, size, value)


@dataclass
class ModelConfig:
    """Describes the strided network, and whether its twin, or one with pooling, is derived from it."""

    eliminate_stride: bool = setting(False, "take its unit-stride twin, whose sizes are derived")
    max_pooling: bool = setting(False, "max pooling in place of each strided convolution")
    activation: str = setting("relu", "after every layer but the last", ACTIVATIONS)
    # Each is a LayerConfig once it is resolved; fully connected ones follow all convolutions. The type
    # is Any, because Hydra cannot add (+model.layers.conv5=…) to a dictionary of dataclasses.
    layers: dict[str, Any] = setting({}, "the strided network's layers by name, in order")

    @property
    def name(self) -> str:
        """Return which of the three networks it is, in folders and tables."""
        if self.max_pooling:
            return "pooling"
        return "unit_stride" if self.eliminate_stride else "strided"

    @property
    def convolutions(self) -> list[str]:
        """Return the names of the convolutions, in order."""
        return [name for name, layer in self.layers.items() if layer.kind == "conv"]

    def check(self) -> None:
        """Check every layer, and put the convolutions before the fully connected layers."""
        if not self.layers:
            raise InputError("model.layers is empty; give at least one layer")
        for name, layer in self.layers.items():
            if not re.fullmatch(r"[A-Za-z]\w*", name):
                raise InputError(
                    f"model.layers.{name}: a layer's name is a letter, then letters, digits and _"
                )
            layer.check(f"model.layers.{name}")
        self.layers = dict(sorted(self.layers.items(), key=lambda item: item[1].kind == "fc"))
        if self.max_pooling and self.eliminate_stride:
            raise InputError(
                "model.max_pooling and model.eliminate_stride: only one of them can be true"
            )


@dataclass
class DataConfig:
    """Describes the images: a data set, and what is taken of it."""

    name: str = setting(MISSING, "the data set", DATA_SETS)
    image_size: Any = setting([28, 28], "images of another size are resized to this")
    train_size: int | None = setting(
        None, "how many training images are drawn, by the run's seed; null: all"
    )
    validation_size: int = setting(
        5000, "how many of the last training images are kept apart, for the curves"
    )
    download_timeout: float = setting(300.0, "seconds that each source may take")

    @property
    def facts(self) -> DataSetFacts:
        """Return the channels, the classes and the numbers of images of the data set."""
        return DATA_SETS[self.name]

    @property
    def input_size(self) -> tuple[int, int, int]:
        """Return the size (channels, height, width) of one image, as the networks get it."""
        height, width = self.image_size
        return self.facts.channels, height, width

    def check(self) -> None:
        """Check sizes and numbers, and write the size of the images as [h, w]."""
        self.image_size = per_axis("data.image_size", self.image_size, least=1)
        at_least("data.validation_size", self.validation_size, 0)
        at_least("data.train_size", 1 if self.train_size is None else self.train_size, 1)
        at_least("data.download_timeout", self.download_timeout, 0)


@dataclass
class RecipeConfig:
    """Says how a network is trained: by gradients of the cross-entropy, in whole batches."""

    name: str = setting(MISSING, "part of the runs' names: letters, digits, _")
    epochs: int | None = setting(
        None, "passes over the training images; null where steps are given"
    )
    steps: int | None = setting(None, "batches in all; null where epochs are given")
    evaluations: int | None = setting(
        None, "number of points of the curves, evenly spread; null: one an epoch"
    )
    batch_size: int = setting(
        64, "images in a step; what is left behind an epoch's last whole batch is not trained on"
    )
    optimizer: str = setting("sgd", "what takes the steps", ("sgd", "adam"))
    # null: not chosen yet. (???, over another recipe's rates, would leave those.)
    learning_rate: Any = setting(
        0.01,
        "one number, or one for each network: {strided: 0.01, unit_stride: 0.02, masked: 0.02}",
    )
    schedule: str = setting(
        "linear",
        "how the rate goes on: to zero, unchanged, or (1 + rate_decay * t) ** -rate_power at step t",
        ("linear", "constant", "inverse"),
    )
    rate_decay: float = setting(0.0001, "the decay of schedule=inverse")
    rate_power: float = setting(0.75, "the power of schedule=inverse")
    bias_rate_factor: float = setting(1.0, "rate of the biases over that of the weights")
    momentum: float = setting(0.9, "from 0 to below 1; of adam, its beta_1")
    weight_decay: float = setting(0.0005, "share of a parameter that is added to its gradient")
    initialisation: str = setting(
        "pytorch", "as torch's layers start, or as Caffe's", ("pytorch", "xavier")
    )
    # fan_in and rate_scaling concern twins. Like sharing, they are part of a run's identity but
    # not of an experiment's.
    fan_in: str = setting(
        "nonzero", "entries of a masked filter that count as its inputs", ("nonzero", "filter")
    )
    rate_scaling: str = setting(
        "none",
        "a twin's rates times the copies of each strided weight, or by the step account of "
        "docs/protocol.md",
        ("none", "copies", "effective"),
    )
    pixels: str = setting(
        "standardised",
        "mean 0 and deviation 1, or by 1/256",
        ("standardised", "scaled"),
    )
    note: str = setting("", "what a reader of the results should know; changes no run")

    def rate_for(self, network: str) -> float:
        """Return the learning rate of one of RATED. Raises InputError where there is none."""
        rates = self.learning_rate
        if not isinstance(rates, dict):
            return float(rates)
        if network not in rates:
            raise InputError(
                f"recipe.learning_rate has rates for {', '.join(rates)}, but none for {network}; "
                f"+recipe.learning_rate.{network}=RATE adds one"
            )
        return float(rates[network])

    def check(self) -> None:
        """Check name, length and numbers, and write the rates as floating-point numbers."""
        if not re.fullmatch(r"\w{1,64}", self.name):  # part of a folder's name
            raise InputError(
                f"recipe.name={self.name} must be made of letters, digits and _, 64 at most"
            )
        if self.epochs is None and self.steps is None:
            raise InputError(
                "recipe.steps has no value yet, nor has recipe.epochs: give one of the two"
            )
        if self.epochs is not None and self.steps is not None:
            raise InputError(
                f"recipe.epochs={self.epochs} and recipe.steps={self.steps}: give one of the two, "
                "and null for the other"
            )
        for key in ("epochs", "steps"):
            at_least(f"recipe.{key}", getattr(self, key) or 0, 0)
        at_least("recipe.batch_size", self.batch_size, 1)
        for key in ("rate_decay", "rate_power", "bias_rate_factor", "momentum", "weight_decay"):
            at_least(f"recipe.{key}", getattr(self, key), 0)
        if not self.momentum < 1:
            raise InputError(f"recipe.momentum={self.momentum} must be below 1")
        self.learning_rate = as_rates(self.learning_rate, RATED)
        at_least("recipe.evaluations", 1 if self.evaluations is None else self.evaluations, 1)


@dataclass
class NetworkConfig:
    """Describes the strided network and the images that it is for."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)

    def check(self) -> None:
        """Check the model and the data."""
        self.model.check()
        self.data.check()


@dataclass
class ExperimentConfig(NetworkConfig):
    """Describes an experiment: one strided network, data set and recipe, whose runs make one table."""

    recipe: RecipeConfig = field(default_factory=RecipeConfig)
    outputs: str = setting("outputs", "folder of data, runs and reports")

    def check(self) -> None:
        """Check the model, the data and the recipe."""
        super().check()
        self.recipe.check()


@dataclass
class ReportConfig(ExperimentConfig):
    """Says of which runs tables and figures are made."""

    reference: str | None = setting(
        None, "folder of published results to show beside them; null: none"
    )

    def check(self) -> None:
        """Check the experiment, and that published results can be read."""
        super().check()
        check_published("reference", self.reference)


@dataclass
class EvidenceConfig:
    """Says where the published runs of docs/protocol.md are, and where the report goes."""

    published: str = setting(PUBLISHED, "what is published: a folder for each experiment")
    outputs: str = setting("outputs", "folder of the report")
    documents: Any = setting(
        None, "[README.md,…]: documents whose marked tables are written anew; null: none"
    )

    def check(self) -> None:
        """Check that published results, and the documents, can be read."""
        check_published("published", self.published)
        self.documents = as_names("documents", self.documents or None)
        for path in self.documents or []:
            if not Path(path).is_file():
                raise InputError(f"documents={path}: there is no such file; name one that is there")


@dataclass
class FiguresConfig(NetworkConfig):
    """Says of which network and layer the figures are drawn."""

    layer: str = setting("conv1", "the layer whose sharing map is drawn")
    outputs: str = setting("outputs", "folder of the figures")

    def check(self) -> None:
        """Check the network, and that the layer is one of its convolutions."""
        super().check()
        require_convolution(self.layer, self.model.convolutions)


@dataclass
class RunConfig(ExperimentConfig):
    """Describes one run.

    Model, data, recipe, seed, weights and sharing decide its numbers, and so its identity.
    """

    seed: int = setting(0, "decides the weights and the images' order", most=math.inf)
    weights: str = setting(
        "scratch",
        f"{' | '.join(STARTING_WEIGHTS)} | a file of weights: what it starts from; to copy is to "
        "evaluate only, to fine-tune is to copy and then train",
    )
    sharing: str = setting(
        "free",
        "what a twin's parameters keep: one weight in several places, zeros that stay, or neither",
        SHARING,
    )
    rho_every: int = setting(
        0, "steps between two looks at a twin's gradients (docs/protocol.md); 0: never"
    )
    published: str | None = setting(
        None, "a folder of published results: a run in it counts as done, and those done are added"
    )
    device: str = setting(
        "auto", "where it is done; auto takes an accelerator if there is one", DEVICES
    )
    threads: int = setting(
        1, "threads that torch uses; with one, numbers are the same on any number of cores"
    )

    @property
    def rate(self) -> float:
        """Return the learning rate of this run's network: that of its sharing where it has one.

        Raises InputError where the recipe has none.
        """
        shared = self.model.eliminate_stride and self.sharing != "free"
        return self.recipe.rate_for(self.sharing if shared else self.model.name)

    def check(self) -> None:
        """Check the run, and set what has no effect on it to its default, so that it is one run."""
        super().check()
        check_seed(self.seed)
        twin = self.model.eliminate_stride
        if self.weights == "copy" and not twin:
            raise InputError(
                "weights=copy copies a strided network's weights into its twin: it needs "
                "model=unit_stride"
            )
        if self.weights == "fine_tune" and self.model.max_pooling:
            raise InputError(
                "weights=fine_tune goes on from a strided network's weights, which model=pooling "
                "has not"
            )
        if self.sharing != "free" and not twin:
            raise InputError(
                f"sharing={self.sharing} is of a twin's parameters: it needs model=unit_stride"
            )
        if self.sharing == "tied" or not twin or self.weights == "copy":
            self.recipe = replace(self.recipe, rate_scaling="none")
        if self.sharing != "masked" or self.weights != "scratch":
            self.recipe = replace(self.recipe, fan_in="nonzero")
        at_least("rho_every", self.rho_every, 0)
        if self.weights != "copy":
            _ = self.rate  # raises where the recipe has none for this network
        if self.weights not in STARTING_WEIGHTS and not Path(self.weights).is_file():
            raise InputError(
                f"weights={self.weights} is neither {', '.join(STARTING_WEIGHTS)} nor a file"
            )
        check_threads(self.threads)

    def with_seed(self, text: str) -> "RunConfig":
        """Return the run with the seed that was typed. Raises InputError where it is no seed."""
        try:
            seed = int(text)
        except ValueError as error:
            raise InputError(f"seed={text} must be a whole number") from error
        check_seed(seed)
        return replace(self, seed=seed)


@dataclass
class BenchmarkConfig(ExperimentConfig):
    """Says how the training steps of both networks are timed, round by round."""

    rounds: int = setting(10, "rounds; in each, everything is timed in turn")
    steps: int = setting(30, "steps of each network and loop in a round")
    device: str = setting(
        "auto", "where it is done; auto takes an accelerator if there is one", DEVICES
    )
    threads: int = setting(1, "threads that torch uses")

    def check(self) -> None:
        """Check the experiment, and how often what is timed."""
        super().check()
        at_least("rounds", self.rounds, 1)
        at_least("steps", self.steps, 1)
        check_threads(self.threads)
