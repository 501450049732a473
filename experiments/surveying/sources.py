"""Where a survey's models come from: a source for each package, known by where its class stands.

A source is loaded in the process that makes its models, so that a package that is not installed, or
that cannot be imported, costs its own models alone.
"""

import importlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pkgutil import resolve_name
from typing import Any, Protocol

import torch
from torch import Tensor, nn

SOURCES = {  # package.module:Class of each, by the name that a user gives
    "timm": "experiments.surveying.image_packages:Timm",
    "torchvision": "experiments.surveying.image_packages:Torchvision",
    "pytorchcv": "experiments.surveying.image_packages:Pytorchcv",
    "segmentation_models_pytorch": "experiments.surveying.image_packages:SegmentationModels",
    "ultralytics": "experiments.surveying.image_packages:Ultralytics",
    "monai": "experiments.surveying.catalogues:Monai",
    "diffusers": "experiments.surveying.catalogues:Diffusers",
    "transformers": "experiments.surveying.transformer_models:Transformers",
}
SIZE_WORDS = ("atto", "femto", "pico", "zepto", "nano", "tiny", "mini", "small", "xxs", "xs", "s")


@dataclass(frozen=True)
class Example:
    """Holds the inputs of one call of a model."""

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)


class Source(Protocol):
    """Describes a package that has networks."""

    package: str  # what is imported
    distribution: str  # what is installed

    def families(self) -> dict[str, list[str]]:
        """Return names of models by family; the first of each stands for it."""

    def make(self, name: str) -> nn.Module:
        """Return one of the models, with random weights; downloads nothing."""

    def examples(self, name: str, model: nn.Module) -> Iterator[Example]:
        """Yield inputs that the model may take, small ones first; the first that fit are used."""


class Toy:
    """Describes a source of one small network, on which a survey can be tried."""

    package = distribution = "torch"

    def families(self) -> dict[str, list[str]]:
        """Return one family."""
        return {"toy": ["toy"]}

    def make(self, name: str) -> nn.Module:
        """Return a network with a strided convolution and a pooling."""
        return nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2))

    def examples(self, name: str, model: nn.Module) -> Iterator[Example]:
        """Yield small images."""
        yield from square_images(3, 12)


def located(name: str) -> str:
    """Return package.module:Class of a source: of one of ours by its name, else the name itself."""
    return SOURCES.get(name, name)


def load(location: str) -> Source:
    """Return the source that stands at package.module:Class.

    Raises ImportError without its package.
    """
    kind = resolve_name(location)
    if find_spec(kind.package) is None:
        raise ImportError(f"{kind.package} is not installed: pip install '.[survey]'")
    source: Source = kind()
    return source


def version_of(source: Source) -> str | None:
    """Return the version of the package, as it is installed."""
    try:
        return version(source.distribution)
    except PackageNotFoundError:
        return None


def imported(name: str) -> Any:
    """Return a module of a package that need not be installed."""
    return importlib.import_module(name)


def small_first(names: Sequence[str]) -> list[str]:
    """Return the names in an order in which the smallest models probably come first."""

    def size(name: str) -> tuple[Any, ...]:
        words = re.split(r"[_\-.]", name.lower())
        rank = min(
            [SIZE_WORDS.index(word) for word in words if word in SIZE_WORDS],
            default=len(SIZE_WORDS),
        )
        for_tests = words[0] == "test"  # toys of the package's own tests
        numbers = [int(number) for number in re.findall(r"\d+", name)]
        return (for_tests, rank, numbers[:1], len(name), name)

    return sorted(names, key=size)


def images(*size: int, batch: int = 2) -> Tensor:
    """Return normally distributed images (batch, *size)."""
    return torch.randn(batch, *size)


def square_images(channels: int, *sides: int) -> Iterator[Example]:
    """Yield square images, one example for each side."""
    for side in sides:
        yield Example((images(channels, side, side),))
