"""What a command is given: its settings and their defaults.

Imports nothing heavy, so that the command line answers at once.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING

ACTIVATIONS = (
    "relu", "leaky_relu", "elu", "gelu", "silu", "softplus", "sigmoid", "tanh", "identity"
)  # fmt: skip
DATA_SETS = ("mnist", "fashion_mnist")
STARTING_WEIGHTS = ("scratch", "copy", "fine_tune")
RATED = ("strided", "unit_stride", "tied", "masked", "pooling")  # unit_stride: the free twin


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
    activation: str | None = (
        None  # after this layer; null: model.activation, after all but the last
    )


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
    train_size: int | None = None  # so many training images, drawn by the run's seed; null: all
    validation_size: int = 5000  # so many of the last training images are kept apart
    download_timeout: float = 300.0  # seconds


@dataclass
class Recipe:
    """How a network is trained: by gradients of the cross-entropy, in whole batches."""

    name: str = MISSING
    epochs: int | None = None  # either epochs or steps; 0 evaluates the starting weights
    steps: int | None = None
    evaluations: int | None = (
        None  # so many points of the curves, evenly spread; null: one an epoch
    )
    batch_size: int = 64  # what is left of an epoch behind its last whole batch is not trained on
    optimizer: str = "sgd"  # sgd | adam
    # One number, or one for each network, as in {strided: 0.01, unit_stride: 0.02, masked: 0.02}.
    # null: not chosen yet. (???, over another recipe's rates, would leave those.)
    learning_rate: Any = 0.01
    # Of the rate: linear (to zero) | constant | inverse ((1 + rate_decay·t)^−rate_power at step t).
    schedule: str = "linear"
    rate_decay: float = 0.0001
    rate_power: float = 0.75
    bias_rate_factor: float = 1.0  # rate of the biases over that of the weights
    momentum: float = 0.9  # of sgd; of adam, its β₁
    weight_decay: float = 0.0005
    initialisation: str = "pytorch"  # pytorch | xavier (as Caffe's: by fan-in, biases zero)
    # Of a twin; like its sharing, part of a run's identity but not of an experiment's.
    fan_in: str = "nonzero"  # nonzero | filter: entries of a masked filter that count as its inputs
    # Rates times the copies of each strided weight (copies), and over the ratio of fan-ins (effective).
    rate_scaling: str = "none"  # none | copies | effective
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
class Evidence:
    """The experiments of docs/protocol.md: what is published of them, and what it says."""

    published: str = "outputs/reference"  # a folder for each experiment
    outputs: str = "outputs"


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
    rho_every: int = 0  # steps between two looks at a twin's gradients (ρ); 0: never
    published: str | None = (
        None  # a folder of published results: a run that is in it counts as done
    )
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
