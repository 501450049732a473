"""What a conversion costs beside torch.fx's own, and what a stem costs in either form.

Of each pair, both are timed in turn, round by round, as in training_step.py; a network that does not
give what the strided one gives is not timed.
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm

from experiments.reporting.formats import NETWORKS, of_rounds, spread, spreads
from experiments.reporting.section import Section
from experiments.runs.machine import choose_device, circumstances, prepare
from experiments.settings.conversions import ConversionBenchmarkConfig
from experiments.studies.training_step import Chunk, seconds
from stridenet.by_layer.conversion import convert_layers
from stridenet.by_layer.plan import plan_layers
from stridenet.cli import torchvision_import
from stridenet.errors import StrideEliminationError
from stridenet.sizes import format_size
from stridenet.zoo import calibrate

Measured = dict[str, Any]  # the content of conversion.json
SIZE = (3, 224, 224)  # of an image
NETWORK = "resnet50"  # of torchvision, which is converted
TOLERANCE = 1e-4  # of the largest number that the strided network gives
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@dataclass(frozen=True)
class Stem:
    """Describes the first convolution of a network of torchvision, for images of three channels."""

    channels: int
    kernel: int
    stride: int
    padding: int

    def __str__(self) -> str:
        padded = f", padding {self.padding}" if self.padding else ""
        return f"{self.kernel}x{self.kernel} conv {self.channels} stride {self.stride}{padded}"

    def build(self) -> nn.Module:
        """Return the layer alone, with weights as torch's layers start."""
        layer = nn.Conv2d(3, self.channels, self.kernel, self.stride, self.padding)
        return nn.Sequential(layer).eval()


STEMS = {
    "ResNet": Stem(64, 7, 2, 3),
    "AlexNet": Stem(64, 11, 4, 2),
    "ConvNeXt": Stem(96, 4, 4, 0),
    "ViT-B/16": Stem(768, 16, 16, 0),
}


@torch.no_grad()
def benchmark_conversion(config: ConversionBenchmarkConfig) -> Measured:
    """Time everything. Returns the seconds of every round, and what a reader needs to judge them.

    Raises StrideEliminationError for a network that does not give what the strided one gives.
    """
    prepare(config.threads)
    # Each new tensor would be filled with NaN first, which is no part of a forward pass.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    device = choose_device(config.device)
    torch.manual_seed(0)
    cases = [(name, layout) for name in STEMS for layout in LAYOUTS]
    with tqdm(total=(1 + len(cases)) * (config.rounds + 1), disable=None) as bar:
        bar.set_description(NETWORK)
        conversion = _conversion(config, bar)
        stems = []
        for name, layout in cases:
            bar.set_description(f"{name}, {layout}")
            stems.append(_stem(name, layout, config, device, bar))
    return {
        "size": [*SIZE],
        "conversion": conversion,
        "stems": stems,
        **circumstances(config, device),
        "config": asdict(config),
    }


def _conversion(config: ConversionBenchmarkConfig, bar: "tqdm[Any]") -> dict[str, Any]:
    """Time both conversions of one network, on the processor."""
    model, images = _network(), torch.randn(2, *SIZE)
    fuse = _fuse()
    converters: dict[str, Callable[[], nn.Module]] = {
        "convert_layers": lambda: convert_layers(model, check=False),
        "fuse": lambda: fuse(model),
    }
    for name, convert in converters.items():
        require_equal(name, model, convert(), images)
    timed = {
        name: partial(seconds, convert, 1, images.device) for name, convert in converters.items()
    }
    return {"model": NETWORK, "seconds": in_turn(timed, config.rounds, bar)}


def _stem(
    name: str,
    layout: str,
    config: ConversionBenchmarkConfig,
    device: torch.device,
    bar: "tqdm[Any]",
) -> dict[str, Any]:
    """Time a forward pass of one stem and of its twin, on images in one layout."""
    stem = STEMS[name]
    model = stem.build()
    twin = convert_layers(model)
    images = torch.randn(config.batch_size, *SIZE).to(device, memory_format=LAYOUTS[layout])
    networks = dict(zip(NETWORKS, (model, twin), strict=True))
    for each in networks.values():
        each.to(device).to(memory_format=LAYOUTS[layout])  # type: ignore[call-overload]
    require_equal(name, model, twin, images)
    timed = {
        network: partial(seconds, partial(each, images), config.steps, device)
        for network, each in networks.items()
    }
    return {
        "stem": name,
        "layer": str(stem),
        "layout": layout,
        "multiply_adds": dict(zip(NETWORKS, _planned_multiply_adds(model), strict=True)),
        "seconds": in_turn(timed, config.rounds, bar),
    }


def _planned_multiply_adds(model: nn.Module) -> tuple[int, int]:
    """Count those of the only layer and of its unit-stride form, for one image."""
    (layer,) = plan_layers(model, example_inputs=torch.randn(1, *SIZE)).layers
    assert layer.multiply_adds is not None
    return layer.multiply_adds


def in_turn(timed: Mapping[str, Chunk], rounds: int, bar: "tqdm[Any]") -> list[dict[str, float]]:
    """Return the seconds of each, in turn, round by round, after a round that is not counted."""
    measured = []
    for _ in range(rounds + 1):
        measured.append({name: chunk() for name, chunk in timed.items()})
        bar.update()
    return measured[1:]


@torch.no_grad()
def require_equal(name: str, model: nn.Module, other: nn.Module, images: Tensor) -> None:
    """Raise StrideEliminationError unless both give the same on these images, up to rounding."""
    expected, obtained = model(images), other(images)
    difference = float((obtained - expected).abs().max())
    allowed = TOLERANCE * float(expected.abs().max())
    if not difference <= allowed:  # not a number fails too
        raise StrideEliminationError(
            f"{name}: the converted network is not equal to the strided one, and is not timed; they "
            f"differ by {difference:.2g}, of {allowed:.2g} allowed"
        )


def _network() -> nn.Module:
    """Return the network to be converted: random weights, statistics of random images."""
    torchvision_import.watch()
    from torchvision import models

    model = getattr(models, NETWORK)(weights=None)
    calibrate(model, torch.randn(4, *SIZE))
    return model


def _fuse() -> Callable[[nn.Module], nn.Module]:
    """Return torch.fx's function that fuses convolutions and BatchNorms in a copy of a network."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of what it imports
        from torch.fx.experimental.optimization import fuse
    return fuse


TIMES = {"strided": "ms", "unit_stride": "twin's ms", "ratio": "ratio"}  # of a forward pass


def conversion_table(measured: Measured) -> pd.DataFrame:
    """Return milliseconds of both conversions of one network: median and quartiles over rounds.

    The ratio says how many times as long as torch.fx's fuse convert_layers takes in a round.
    """
    milliseconds = 1000 * pd.DataFrame(measured["conversion"]["seconds"])
    columns = {
        "convert_layers": milliseconds.convert_layers,
        "fuse": milliseconds.fuse,
        "ratio": milliseconds.convert_layers / milliseconds.fuse,
    }
    return pd.DataFrame([{"model": measured["conversion"]["model"], **spread(columns)}])


def conversions_for_readers(table: pd.DataFrame) -> pd.DataFrame:
    """Return medians with their quartiles in one entry."""
    titles = {"convert_layers": "convert_layers", "fuse": "torch.fx's fuse", "ratio": "ratio"}
    return pd.DataFrame({"Network": table.model, **spreads(table, titles)})


def stem_table(measured: Measured) -> pd.DataFrame:
    """Return milliseconds of a forward pass of each stem and its twin, with the ratio by rounds."""
    rows = []
    for stem in measured["stems"]:
        milliseconds = 1000 * pd.DataFrame(stem["seconds"])
        adds = {f"{name}_multiply_adds": stem["multiply_adds"][name] for name in NETWORKS}
        rows.append(
            {
                **{key: stem[key] for key in ("stem", "layer", "layout")},
                **adds,
                **of_rounds(milliseconds.strided, milliseconds.unit_stride),
            }
        )
    return pd.DataFrame(rows)


def stems_for_readers(table: pd.DataFrame) -> pd.DataFrame:
    """Return medians with their quartiles in one entry; multiply-adds as a ratio."""
    adds = table.unit_stride_multiply_adds / table.strided_multiply_adds
    return pd.DataFrame(
        {
            "Stem": table.stem,
            "Layer": table.layer,
            "Layout": table.layout,
            "Multiply-adds": adds.map("{:.2f}".format),
            **spreads(table, TIMES),
        }
    )


def conversion_sections(measured: Measured) -> list[Section]:
    """Return the tables of what experiments.conversion_benchmark measured."""
    config, size = measured["config"], format_size(measured["size"])
    rounds = f"median (quartiles) of {config['rounds']} rounds in turn"
    about = (
        f"On {measured['device_name']}, {measured['threads']} thread(s), "
        f"torch {measured['versions']['torch']}."
    )
    conversions = (
        f"Milliseconds of a conversion of {measured['conversion']['model']} for images {size}, on the "
        f"processor, {rounds}: each strided convolution by itself, without the check, beside "
        "torch.fx's fusion of convolutions with BatchNorm. Ratio: of both in a round."
    )
    stems = (
        f"Milliseconds of a forward pass of first layers and of their unit-stride twins, {rounds} of "
        f"{config['steps']} passes each, batches of {config['batch_size']} images {size}, float32. "
        "Ratio: twin over strided; below 1, elimination pays."
    )
    timed, passes = conversion_table(measured), stem_table(measured)
    readable = conversions_for_readers(timed), stems_for_readers(passes)
    wide = ("Layer", "Multiply-adds")
    return [
        Section("conversion", "Conversion", conversions, about, timed, readable[0]),
        Section("stems", "Stems", stems, about, passes, readable[1], wide),
    ]
