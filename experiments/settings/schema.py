"""What a command is given: its settings, their defaults, meanings and choices.

`--help` and the checks read them here. Imports nothing heavy, so that the command line answers at once.
"""

import copy
import math
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from experiments.settings.data_sets import DATA_SETS, DataSetFacts
from stridenet.options import MOST_PARAMETERS, SHARING

ACTIVATIONS = (
    "relu", "leaky_relu", "elu", "gelu", "silu", "softplus", "sigmoid", "tanh", "identity"
)  # fmt: skip
DEVICES = ("auto", "cpu", "cuda", "mps")
STARTING_WEIGHTS = ("scratch", "copy", "fine_tune")
MOST = 10**9  # for a number whose place sets no limit of its own; float32 holds its square
RATED = ("strided", "unit_stride", "tied", "masked", "pooling")  # unit_stride: the free twin


def setting(default: Any, meaning: str, choices: tuple[Any, ...] = (), most: float = MOST) -> Any:
    """A field of a dataclass, with what `--help` says of it, its choices, and its largest number."""
    metadata = {"meaning": meaning, "choices": choices, "most": most}
    return field(default_factory=lambda: copy.deepcopy(default), metadata=metadata)


@dataclass
class LayerConfig:
    """One layer of the strided network; sizes along the axes are written as one number or [h, w]."""

    kind: str = setting("conv", "a convolution, or fully connected", ("conv", "fc"))
    channels: int = setting(MISSING, "output channels; of a fully connected layer, its features")
    kernel: Any = setting(1, "one number or [h,w], as the next three")
    stride: Any = setting(1, "steps between two of its places")
    dilation: Any = setting(1, "steps between two of its taps")
    padding: Any = setting(0, "zeros on both sides")
    groups: int = setting(1, "parts into which the channels are divided")
    bias: bool = setting(True, "whether it adds one")
    activation: str | None = setting(
        None, "after this layer; null: model.activation, after all but the last", ACTIVATIONS
    )


@dataclass
class ModelConfig:
    """The strided network, and whether one of two others is to be derived from it: its unit-stride
    twin, or the network with pooling layers that it stands for."""

    eliminate_stride: bool = setting(False, "take its unit-stride twin, whose sizes are derived")
    max_pooling: bool = setting(False, "max pooling in place of each strided convolution")
    activation: str = setting("relu", "after every layer but the last", ACTIVATIONS)
    # A Layer each, once resolved; fully connected ones follow all convolutions. Typed as Any because
    # Hydra cannot add (+model.layers.conv5=…) to a dictionary of dataclasses.
    layers: dict[str, Any] = setting({}, "the strided network's layers by name, in order")

    @property
    def name(self) -> str:
        """Which of the three networks it is, in folders and tables."""
        if self.max_pooling:
            return "pooling"
        return "unit_stride" if self.eliminate_stride else "strided"


@dataclass
class DataConfig:
    """The images: a data set, and what is taken of it."""

    name: str = setting(MISSING, "the data set", tuple(DATA_SETS))
    image_size: Any = setting([28, 28], "resized to, if it is not the images' own size")
    train_size: int | None = setting(
        None, "so many training images, drawn by the run's seed; null: all"
    )
    validation_size: int = setting(
        5000, "so many of the last training images are kept apart, for the curves"
    )
    download_timeout: float = setting(300.0, "seconds, for each source")

    @property
    def facts(self) -> DataSetFacts:
        """Return the channels, the classes and the numbers of images of the data set."""
        return DATA_SETS[self.name]

    @property
    def input_size(self) -> tuple[int, int, int]:
        """Return the size (channels, height, width) of one image, as the networks get it."""
        height, width = self.image_size
        return self.facts.channels, height, width


@dataclass
class RecipeConfig:
    """How a network is trained: by gradients of the cross-entropy, in whole batches."""

    name: str = setting(MISSING, "part of the runs' names: letters, digits, _")
    epochs: int | None = setting(
        None, "passes over the training images; null where steps are given"
    )
    steps: int | None = setting(None, "batches in all; null where epochs are given")
    evaluations: int | None = setting(
        None, "so many points of the curves, evenly spread; null: one an epoch"
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
        "of the rate: falls to zero, stays, or is (1 + rate_decay * t) ** -rate_power at step t",
        ("linear", "constant", "inverse"),
    )
    rate_decay: float = setting(0.0001, "of schedule=inverse")
    rate_power: float = setting(0.75, "of schedule=inverse")
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
        "of a twin: rates times the copies of each strided weight, or by the step account of "
        "docs/protocol.md",
        ("none", "copies", "effective"),
    )
    pixels: str = setting(
        "standardised",
        "mean 0 and deviation 1, or by 1/256",
        ("standardised", "scaled"),
    )
    note: str = setting("", "what a reader of the results should know; changes no run")


@dataclass
class NetworkConfig:
    """The strided network and the images that it is for."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)


@dataclass
class ExperimentConfig(NetworkConfig):
    """One strided network, data set and recipe: what may stand in one table."""

    recipe: RecipeConfig = field(default_factory=RecipeConfig)
    outputs: str = setting("outputs", "folder of data, runs and reports")


@dataclass
class ReportConfig(ExperimentConfig):
    """Tables and figures of an experiment's runs."""

    reference: str | None = setting(
        None, "folder of published results to show beside them; null: none"
    )


@dataclass
class EvidenceConfig:
    """The experiments of docs/protocol.md: what is published of them, and what it says."""

    published: str = setting("outputs/reference", "what is published: a folder for each experiment")
    outputs: str = setting("outputs", "folder of the report")


@dataclass
class FiguresConfig(NetworkConfig):
    """What is drawn: the paper's figures, and how one layer's weights are shared."""

    layer: str = setting("conv1", "whose sharing map is drawn")
    outputs: str = setting("outputs", "folder of the figures")


@dataclass
class RunConfig(ExperimentConfig):
    """One run. Model, data, recipe, seed, weights and sharing decide its numbers, and so its
    identity."""

    seed: int = setting(0, "of the weights and of the order of the images", most=math.inf)
    weights: str = setting(
        "scratch",
        f"{' | '.join(STARTING_WEIGHTS)} | a file of weights: what it starts from; to copy is to "
        "evaluate only, to fine-tune is to copy and then train",
    )
    sharing: str = setting(
        "free",
        "of a twin's parameters: one weight in several places, zeros that stay, or neither",
        SHARING,
    )
    rho_every: int = setting(
        0, "steps between two looks at a twin's gradients (docs/protocol.md); 0: never"
    )
    published: str | None = setting(
        None, "a folder of published results: a run in it counts as done, and those done are added"
    )
    device: str = setting("auto", "where; auto takes an accelerator if there is one", DEVICES)
    threads: int = setting(1, "of torch; one makes numbers the same on any number of cores")


@dataclass
class BenchmarkConfig(ExperimentConfig):
    """What is timed: both networks and the recipe's steps, round by round."""

    rounds: int = setting(10, "in each, all is timed in turn")
    steps: int = setting(30, "of each network and loop in a round")
    device: str = setting("auto", "where; auto takes an accelerator if there is one", DEVICES)
    threads: int = setting(1, "of torch")


@dataclass
class ConversionBenchmarkConfig:
    """What is timed: two conversions of one network, and the stems of several beside their twins."""

    rounds: int = setting(20, "in each, all is timed in turn")
    steps: int = setting(3, "forward passes of each first layer and of its twin in a round")
    batch_size: int = setting(8, "images in a forward pass")
    device: str = setting(
        "auto", "where the first layers are; auto takes an accelerator if there is one", DEVICES
    )
    threads: int = setting(1, "of torch")
    outputs: str = setting("outputs", "folder of the results")


@dataclass
class ConversionConfig:
    """Any network, and how its strides are to be eliminated."""

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
        "phases", "theorem=1: how a depthwise convolution is computed", ("phases", "grouped")
    )
    output_factor: Any = setting(1, "theorem=2: of the phase form in which the output is wanted")
    batch_norm: str = setting(
        "shared", "theorem=2: the statistics of a channel's phases", ("shared", "per_phase")
    )
    max_parameters: int = setting(
        MOST_PARAMETERS, "theorem=2: a larger twin is refused", most=2**53
    )
    seed: int = setting(0, "of weights and inputs that are drawn", most=math.inf)
    outputs: str = setting("outputs", "folder of the results")


@dataclass
class ZooConfig(ConversionConfig):
    """What is converted, verified and timed: models of stridenet.zoo, or one of the user's own."""

    models: Any = setting(None, "some of the zoo, as in [lenet,resnet18]; null: all")
    force: bool = setting(False, "measure again what has been measured")
    rounds: int = setting(20, "forward passes of each network")
    threads: int = setting(1, "of torch")

    @property
    def of_user(self) -> bool:
        """Whether it is one model of the user's own."""
        return self.model.get("_target_") is not None


@dataclass
class SurveyConfig:
    """Which of other people's networks are converted, and with what limits."""

    sources: Any = setting(
        None,
        "packages, as in [timm,monai], or package.module:Class of a source of your own; null: all",
    )
    models: Any = setting(None, "names of models in those sources; null: one of each family")
    all: bool = setting(False, "every model of each family")
    every: int = setting(1, "only the first of so many families")
    pooling: bool = setting(True, "also convert with pooling")
    network: bool = setting(True, "also plan the unit-stride network (Theorem 2)")
    seconds: float = setting(120.0, "for each model, in a process of its own")
    gigabytes: float = setting(8.0, "of memory for each model")
    jobs: int = setting(1, "models at once")
    threads: int = setting(1, "of torch, for each model")
    seed: int = setting(0, "of weights and inputs", most=math.inf)
    force: bool = setting(False, "measure again what has been measured")
    outputs: str = setting("outputs", "folder of the results")
