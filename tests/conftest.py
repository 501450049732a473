"""What the test files share: the real MNIST, tiny data, and settings as the command line makes them."""

import copy
import functools
from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from experiments.command import CONF  # registers the schemas that the settings start from
from experiments.runs import data
from experiments.runs.data import Dataset
from experiments.settings.checks import resolve
from experiments.settings.conversions import ConversionConfig, ZooConfig
from experiments.settings.schema import DataConfig, ReportConfig, RunConfig
from stridenet.cli import torchvision_import
from tests.command import cli  # noqa: F401  a fixture
from tests.examples import register_profiles

register_profiles()
hypothesis.settings.load_profile("stridenet")
torchvision_import.watch()  # some tests import torchvision themselves
torch.set_num_threads(1)  # tests run in several processes at once, which would wait for each other

DATA_FOLDER = Path(__file__).resolve().parents[1] / "outputs" / "data"
Composed = Callable[..., RunConfig]


CASES = 12  # of one test in make test, if it is not marked `sample(n)`


@pytest.hookimpl(tryfirst=True)  # before pytest leaves out what is slow
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark as slow all but some cases of each test, spread evenly; in make test-fast all but one."""
    fast = config.getoption("--hypothesis-profile") == "fast"
    families: dict[str, list[pytest.Item]] = {}
    for item in items:
        families.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for family in families.values():
        mark = family[0].get_closest_marker("sample")
        most = 1 if fast else mark.args[0] if mark else CASES
        step = -(-len(family) // most)
        for number, item in enumerate(family):
            if number % step:
                item.add_marker("slow")


@pytest.fixture(scope="session")
def mnist_folder() -> Path:
    """A folder with the real MNIST, fetched if it is missing."""
    data.load(DataConfig(name="mnist"), DATA_FOLDER)
    return DATA_FOLDER


@functools.cache
def settings_of(command: str, overrides: tuple[str, ...]) -> DictConfig:
    with initialize_config_dir(CONF, version_base="1.3"):
        return compose(command, overrides=list(overrides))


@pytest.fixture(scope="session")
def composed() -> Composed:
    """Settings from overrides, as experiments.train (or the given command) makes them, resolved.

    The recipe is sgd if none is named, and no experiment, which names one.
    """

    def composed(
        *overrides: str, command: str = "train"
    ) -> RunConfig | ReportConfig | ConversionConfig:
        schemas = {"train": RunConfig, "zoo": ZooConfig}
        schema = schemas.get(command, ReportConfig)
        if not any(each.startswith(("recipe=", "experiment=")) for each in overrides):
            overrides = ("recipe=sgd", *overrides) if command in ("train", "report") else overrides
        return resolve(copy.deepcopy(settings_of(command, overrides)), schema)

    return composed


@pytest.fixture(scope="session")
def tiny_data() -> Dataset:
    """230 images of 10x10 in ten classes, each a blot at the class's place: soon learned."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(10, (230,), generator=generator)
    images = torch.randint(60, (230, 1, 10, 10), generator=generator)
    for image, label in zip(images, labels, strict=True):
        image[
            0, 2 * (label % 5) : 2 * (label % 5) + 2, 5 * (label // 5) : 5 * (label // 5) + 5
        ] += 150
    images = images.to(torch.uint8)
    splits = zip(images.split([150, 30, 50]), labels.split([150, 30, 50]), strict=True)
    return Dataset(*[tensor for split in splits for tensor in split])
