"""Fixtures that the tests of the experiments share."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from experiments.command import CONF
from experiments.runs import run
from experiments.runs.data import Dataset
from experiments.runs.networks import build_strided
from experiments.settings.checks import resolve
from experiments.settings.schema import (
    DataConfig,
    LayerConfig,
    ModelConfig,
    RecipeConfig,
    RunConfig,
)
from stridenet import plan_elimination
from stridenet.plan import EliminationPlan
from tests.experiments.processes import PIPELINE, command, outputs_in
from tests.experiments.results import LENET, Planned


@pytest.fixture(autouse=True)
def same_torch() -> Iterator[None]:
    """A run changes torch's settings for its whole process, which here has other tests to do."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    yield
    torch.use_deterministic_algorithms(deterministic)
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def plain() -> dict[str, Any]:
    """The settings of a run with recipe=sgd as plain dictionaries, before they are resolved."""
    with initialize_config_dir(CONF, version_base="1.3"):
        return OmegaConf.to_container(compose("train", ["recipe=sgd"]))


@pytest.fixture(scope="module")
def sgd_config(plain: dict[str, Any]) -> RunConfig:
    """That run, resolved."""
    return resolve(OmegaConf.create(plain), RunConfig)


@pytest.fixture(scope="session")
def planned(composed: Callable[..., Any]) -> Planned:
    """The plan of LeNet with some overrides."""

    def planned(*overrides: str, size: tuple[int, int, int] = LENET) -> EliminationPlan:
        model = composed("recipe=sgd", *overrides).model
        return plan_elimination(build_strided(model, size), size)

    return planned


@pytest.fixture(scope="session")
def lenet(planned: Planned) -> EliminationPlan:
    return planned()


@pytest.fixture
def config(tmp_path: Path, tiny_data: Dataset, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    """A run of a second or less: tiny network, tiny data, two steps."""
    monkeypatch.setattr(run, "load", lambda data, folder, seed: tiny_data)
    layers = {
        "conv1": LayerConfig("conv", 4, [3, 3], [1, 1], [1, 1], [0, 0]),
        "conv2": LayerConfig("conv", 6, [2, 2], [2, 2], [1, 1], [0, 0]),
        "fc1": LayerConfig("fc", 10, [1, 1], [1, 1], [1, 1], [0, 0]),
    }
    return RunConfig(
        model=ModelConfig(activation="relu", layers=layers),
        data=DataConfig("mnist", [10, 10]),
        recipe=RecipeConfig("tiny", steps=2),
        outputs=str(tmp_path / "outputs"),
        device="cpu",
    )


@pytest.fixture
def outputs(tmp_path: Path, mnist_folder: Path) -> Path:
    return outputs_in(tmp_path / "outputs", mnist_folder)


@pytest.fixture(scope="session")
def pipeline(mnist_folder: Path, tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """The results of all of PIPELINE, made once for all of pytest's processes, and never changed."""
    shared = tmp_path_factory.getbasetemp()
    if worker_id != "master":
        shared = shared.parent
    folder = shared / "pipeline"
    with FileLock(shared / "pipeline.lock"):
        if not folder.exists():
            outputs_in(folder, mnist_folder)
            printed = {
                step: vars(command(*PIPELINE[step], outputs=folder)) | {"args": None}
                for step in PIPELINE
            }
            (folder / "printed.json").write_text(json.dumps(printed))
    return folder


@pytest.fixture(scope="session")
def results(pipeline: Path) -> dict[str, dict[str, Any]]:
    """The result of each run of the pipeline."""
    found = {}
    for path in (pipeline / "runs").glob("*/result.json"):
        result = json.loads(path.read_text())
        found["copy" if result["weights"] == "copy" else result["network"]] = result
    return found
