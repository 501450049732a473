"""Data sets of any number of channels and classes: CIFAR-10 in its own format, and a made-up one."""

import hashlib
import io
import json
import sys
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from experiments import command, report, sweep, train
from experiments.runs import data
from experiments.runs.data import DATA_SET_FILES, DataSetFiles, load
from experiments.runs.examples import normalise
from experiments.settings.data_sets import DATA_SETS, DataSetFacts
from experiments.settings.schema import DataConfig
from experiments.studies.training_step import PlainImages
from stridenet.errors import InputError

PER_BATCH, TEST = 40, 60
LAYERS = ["model.layers.conv1.channels=4", "model.layers.conv2.channels=4",
          "model.layers.conv3.channels=6", "model.layers.conv4.channels=6",
          "model.layers.fc1.channels=12"]  # fmt: skip
SMALL = [
    "recipe=smoke",
    "recipe.steps=3",
    "recipe.batch_size=8",
    "data.validation_size=20",
    *LAYERS,
]


def record(label: int, image: torch.Tensor) -> bytes:
    """One record of CIFAR-10's binary version: the label, then all red, green and blue values."""
    return bytes([label]) + image.numpy().tobytes()


def cifar10_archive(batches: dict[str, tuple[torch.Tensor, torch.Tensor]]) -> bytes:
    """An archive as the University of Toronto has it: images (n, 3, 32, 32) and labels of each file."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        for name, (images, labels) in batches.items():
            records = [record(int(k), image) for k, image in zip(labels, images, strict=True)]
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = 3073 * len(records)
            archive.addfile(member, io.BytesIO(b"".join(records)))
    return content.getvalue()


def generated(number: int, channels: int, side: int, classes: int, seed: int) -> Any:
    """Images with another brightness in each channel, and their labels."""
    draw = torch.Generator().manual_seed(seed)
    bright = torch.tensor([200, 100, 40])[:channels].reshape(-1, 1, 1)
    images = (torch.rand(number, channels, side, side, generator=draw) * bright).to(torch.uint8)
    return images, torch.randint(classes, (number,), generator=draw)


BATCHES = {
    **{f"data_batch_{k}.bin": generated(PER_BATCH, 3, 32, 10, k) for k in range(1, 6)},
    "test_batch.bin": generated(TEST, 3, 32, 10, 6),
}


@pytest.fixture
def cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of results that has a small CIFAR-10 in the format of the real one."""
    (name,) = DATA_SET_FILES["cifar10"].sha256
    content = cifar10_archive(BATCHES)
    digest = hashlib.sha256(content).hexdigest()
    files = replace(DATA_SET_FILES["cifar10"], sha256={name: digest}, sources={})
    monkeypatch.setitem(data.DATA_SET_FILES, "cifar10", files)
    facts = replace(DATA_SETS["cifar10"], train_images=5 * PER_BATCH, test_images=TEST)
    monkeypatch.setitem(DATA_SETS, "cifar10", facts)
    raw = tmp_path / "outputs" / "data" / "CIFAR10" / "raw"
    raw.mkdir(parents=True)
    (raw / name).write_bytes(content)
    return tmp_path / "outputs"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Call a command in this process, as from the command line; it has to succeed."""
    before = torch.are_deterministic_algorithms_enabled()

    def run(module: Any, *overrides: str) -> None:
        monkeypatch.setattr(sys, "argv", [module.__name__, *overrides])
        module.main()
        assert command.failed == []

    monkeypatch.setattr(command, "failed", [])
    monkeypatch.setattr(command, "succeeded", [])
    monkeypatch.setattr(sweep, "watched", False)
    yield run
    torch.use_deterministic_algorithms(before)
    torch.set_num_threads(1)


def results_in(outputs: Path) -> dict[str, dict[str, Any]]:
    paths = (outputs / "runs").glob("*/result.json")
    return {found["network"]: found for found in map(json.loads, (p.read_text() for p in paths))}


# CIFAR-10


def test_cifar10_is_read_from_its_binary_archive(cifar10: Path) -> None:
    config = DataConfig("cifar10", [32, 32], validation_size=30)
    found = load(config, cifar10 / "data")
    images = torch.cat([BATCHES[f"data_batch_{k}.bin"][0] for k in range(1, 6)])
    labels = torch.cat([BATCHES[f"data_batch_{k}.bin"][1] for k in range(1, 6)])
    assert torch.equal(torch.cat([found.train_images, found.validation_images]), images)
    assert torch.equal(torch.cat([found.train_labels, found.validation_labels]), labels)
    assert torch.equal(found.test_images, BATCHES["test_batch.bin"][0])
    assert torch.equal(found.test_labels, BATCHES["test_batch.bin"][1])
    assert found.train_images.dtype == torch.uint8
    assert found.train_labels.dtype == torch.int64
    assert load(replace(config, image_size=[16, 20]), cifar10 / "data").test_images.shape[1:] == (
        3, 16, 20,
    )  # fmt: skip


def test_an_archive_that_is_not_the_published_one_is_refused(cifar10: Path) -> None:
    (archive,) = (cifar10 / "data/CIFAR10/raw").glob("*.gz")
    archive.write_bytes(archive.read_bytes() + b"\0")
    with pytest.raises(InputError, match=r"CIFAR10 cannot be fetched.*cifar-10-binary\.tar\.gz"):
        load(DataConfig("cifar10", [32, 32]), cifar10 / "data")


def test_each_channel_is_standardised_by_itself(cifar10: Path) -> None:
    found = load(DataConfig("cifar10", [32, 32], validation_size=20), cifar10 / "data")
    images = normalise(found, "standardised")["training"].images
    torch.testing.assert_close(images.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(images.std((0, 2, 3)), torch.ones(3), atol=1e-5, rtol=0)
    means = found.train_images.float().mean((0, 2, 3))
    deviations = found.train_images.float().std((0, 2, 3))
    expected = (found.test_images.float() - means.reshape(3, 1, 1)) / deviations.reshape(3, 1, 1)
    torch.testing.assert_close(normalise(found, "standardised")["test"].images, expected)
    assert torch.equal(normalise(found, "scaled")["test"].images, found.test_images / 256)


def test_the_plain_loops_images_are_those_of_the_data_set(cifar10: Path) -> None:
    plain = PlainImages(DataConfig("cifar10", [32, 32]), cifar10 / "data")
    assert len(plain) == 5 * PER_BATCH
    image, label = plain[3]
    images, labels = BATCHES["data_batch_1.bin"]
    mean, deviation = (torch.tensor(v).reshape(3, 1, 1) for v in (
        DATA_SETS["cifar10"].mean, DATA_SETS["cifar10"].deviation))  # fmt: skip
    torch.testing.assert_close(image, (images[3] / 255 - mean) / deviation)
    assert label == labels[3]
    smaller, _ = PlainImages(DataConfig("cifar10", [16, 16]), cifar10 / "data")[3]
    assert smaller.shape == (3, 16, 16)


@pytest.mark.slow
def test_both_networks_train_on_cifar10_and_are_reported(
    cifar10: Path, run: Callable[..., None]
) -> None:
    given = ["data=cifar10", *SMALL, f"outputs={cifar10}"]
    for network in ("strided", "unit_stride"):
        run(train, *given, f"model={network}")
    run(train, *given, "model=unit_stride", "weights=copy")
    run(report, *given)
    found = results_in(cifar10)
    assert found["strided"]["test_images"] == TEST
    assert found["strided"]["config"]["data"]["name"] == "cifar10"
    table = (cifar10 / "report" / "table1.csv").read_text().splitlines()
    assert table[1].startswith("strided,3x32x32,")
    assert table[2].startswith("unit_stride,48x8x8,")
    copied = (cifar10 / "report" / "copied_weights.csv").read_text().splitlines()
    assert copied[1].startswith(f"float32,1,{TEST},{TEST},")


# Another one


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A data set of two channels and seven classes: all that is to be written for one, and no more."""
    images, labels = generated(140, 2, 20, 7, seed=0)
    content = io.BytesIO()
    torch.save({"images": images, "labels": labels}, content)

    def read(files: DataSetFiles, folder: Path, train: bool) -> tuple[torch.Tensor, torch.Tensor]:
        found = torch.load(folder / files.name / "raw" / "toy.pt", weights_only=True)
        chosen = slice(100) if train else slice(100, None)
        return found["images"][chosen], found["labels"][chosen]

    # experiments/settings/data_sets.py
    monkeypatch.setitem(DATA_SETS, "toy", DataSetFacts(2, 7, 100, 40, (0.4, 0.2), (0.2, 0.1)))
    # experiments/runs/data.py
    digest = hashlib.sha256(content.getvalue()).hexdigest()
    files = DataSetFiles("Toy", {"toy.pt": digest}, {}, "make it again", read)
    monkeypatch.setitem(DATA_SET_FILES, "toy", files)
    # conf/data/toy.yaml
    (tmp_path / "conf" / "data").mkdir(parents=True)
    settings = yaml.safe_dump({"name": "toy", "image_size": [20, 20]})
    (tmp_path / "conf" / "data" / "toy.yaml").write_text(settings)

    raw = tmp_path / "outputs" / "data" / "Toy" / "raw"
    raw.mkdir(parents=True)
    (raw / "toy.pt").write_bytes(content.getvalue())
    return [f"hydra.searchpath=[file://{tmp_path / 'conf'}]", "data=toy", *SMALL,
            "model.layers.conv3.kernel=3", f"outputs={tmp_path / 'outputs'}"]  # fmt: skip


@pytest.mark.slow
def test_another_data_set_needs_settings_files_and_facts_alone(
    toy: list[str], tmp_path: Path, run: Callable[..., None]
) -> None:
    seven = "model.layers.fc2.channels=7"
    for network in ("strided", "unit_stride"):
        run(train, *toy, seven, f"model={network}")
    run(report, *toy, seven)
    found = results_in(tmp_path / "outputs")
    assert found.keys() == {"strided", "unit_stride"}
    assert {one["test_images"] for one in found.values()} == {40}
    assert {one["fit_images"] for one in found.values()} == {40}
    weights = torch.load(
        tmp_path / "outputs/runs" / found["strided"]["run"] / "weights.pt", weights_only=True
    )
    assert weights["conv1.weight"].shape == (4, 2, 5, 5)
    assert weights["fc2.weight"].shape == (7, 12)
    table = (tmp_path / "outputs/report/table1.csv").read_text().splitlines()
    assert [line.split(",")[1] for line in table[1:]] == ["2x20x20", "32x5x5"]
    plain = PlainImages(DataConfig("toy", [20, 20]), tmp_path / "outputs/data")
    assert plain[0][0].shape == (2, 20, 20)


def test_a_network_needs_a_score_for_each_class_of_its_data_set(
    toy: list[str], run: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(AssertionError):
        run(train, *toy, "model.layers.fc2.channels=6")
    assert "6 scores, but there are 7 classes" in capsys.readouterr().err
