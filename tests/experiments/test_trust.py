"""Results that cannot be trusted are not: schema, ranges, agreement, hashes, the run's own folder."""

import copy
import json
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments import sweep
from experiments.runs import run
from experiments.runs.files import load_tensors, save_tensors, sha256_of
from experiments.runs.folder import run_folder
from experiments.runs.published import published_result, read_published
from experiments.runs.results import DamagedResultError, finished_runs, read_result
from experiments.runs.run import run_once
from experiments.settings.schema import LayerConfig, RunConfig
from stridenet.errors import InputError
from tests.devices import harmless_device
from tests.experiments.runs import report_of, twin_of

LAYERS = {
    "conv1": LayerConfig("conv", 4, [3, 3], [1, 1], [1, 1], [0, 0]),
    "conv2": LayerConfig("conv", 6, [2, 2], [2, 2], [1, 1], [0, 0]),
    "fc1": LayerConfig("fc", 10, [1, 1], [1, 1], [1, 1], [0, 0]),
}
REFERENCE = Path(__file__).resolve().parents[2] / "outputs" / "reference"


@pytest.fixture
def config(config: RunConfig) -> RunConfig:
    return replace(config, data=replace(config.data, validation_size=30))


def as_before_hashes(result: dict[str, Any]) -> dict[str, Any]:
    return {key: result[key] for key in result if key not in ("sha256", "run_seconds")}


def leave(folder: Path, result: Any) -> None:
    (folder / "result.json").write_text(json.dumps(result))


def flip(path: Path, place: int, bit: int = 1) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= bit
    path.write_bytes(content)


def numbers(result: dict[str, Any]) -> list[Any]:
    return [result[key] for key in ("test_correct", "test_loss", "test_bits", "epochs", "rho")]


# What is believed


def test_a_result_has_the_hashes_of_its_weights_bits_and_itself(config: RunConfig) -> None:
    folder, result, _ = run_once(config)
    assert result["sha256"]["weights"] == sha256_of(folder / "weights.pt")
    assert {len(digits) for digits in result["sha256"].values()} == {64}
    assert read_result(folder) == result
    leave(folder, dict(reversed(result.items())))  # in another order, and otherwise spaced
    assert read_result(folder) == result
    assert 0 < result["run_seconds"] < 60


@pytest.mark.parametrize("kind", ["strided", "twin", "copy", "rho", "diverged"])
def test_results_from_before_hashes_are_read(config: RunConfig, kind: str) -> None:
    run_once(config)
    settings = {
        "strided": config,
        "twin": twin_of(config, sharing="masked"),
        "copy": twin_of(config, weights="copy"),
        "rho": twin_of(config, rho_every=1),
        "diverged": replace(config, seed=1, recipe=replace(config.recipe, learning_rate=1e9)),
    }[kind]
    folder, result, _ = run_once(settings)
    before = as_before_hashes(result)
    leave(folder, before)
    assert read_result(folder) == before
    assert run_once(settings) == (folder, before, False)


@pytest.mark.parametrize("loop", [None, 1])
def test_results_of_an_earlier_loop_are_read_as_what_they_are_but_are_no_run_of_this(
    config: RunConfig, loop: int | None, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, result, _ = run_once(config)
    kept = ("run", "experiment", "network", "weights", "seed", "test_accuracy", "config")
    earlier = {key: result[key] for key in kept} | ({} if loop is None else {"loop": loop})
    leave(folder, earlier)
    assert read_result(folder) == earlier
    _, again, new = run_once(config)
    assert new
    assert "it is of training loop 1, not 2" in capfd.readouterr().err
    assert numbers(again) == numbers(result)


def test_what_is_published_is_still_valid() -> None:
    for name in ("rates", "table1"):
        assert len(read_published(REFERENCE / name).runs) > 40


# What is not


def changed(*keys: Any, to: Any) -> Callable[[dict[str, Any]], None]:
    def change(result: dict[str, Any]) -> None:
        inner = result
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = to

    change.__name__ = f"{'.'.join(map(str, keys))}={str(to)[:12]}"
    return change


WRONG = [
    *(changed("test_accuracy", to=to) for to in (7.0, -0.1, "0.9", None, True, [0.9], 10**400)),
    *(changed("test_correct", to=to) for to in (1.5, -1, 51, True, "3", None)),
    *(changed("test_images", to=to) for to in (0, -50, 49, 10**9, 50.0)),
    *(changed("seed", to=to) for to in (-1, 2**32, 0.0, "0", False)),
    *(changed("diverged", to=to) for to in (0, "no", None)),
    *(changed("learning_rate", to=to) for to in (0, -1, "fast", {})),
    *(changed("test_loss", to=to) for to in (-1, "low", [1])),
    *(changed("test_bits", to=to) for to in ("", "€", "AAAA", "!!!!", 7, None, "A")),
    *(changed("network", to=to) for to in ("strides", 1, None)),
    *(changed("sharing", to=to) for to in ("most", None)),
    *(changed("loop", to=to) for to in (2.0, "2", True)),
    *(changed("training_wall_seconds", to=to) for to in (-1, "long")),
    *(changed("jobs_at_once", to=to) for to in (0, 1.5, "two")),
    *(changed("epochs", to=to) for to in ([], {}, None, [1], [[]], [{}], [{"epoch": -1}])),
    *(changed("epochs", 0, "validation_correct", to=to) for to in (-1, 31, 0.5)),
    changed("epochs", 0, "validation_accuracy", to=1.5),
    changed("epochs", 0, "distance", to={"conv1": {"zeros": -1}}),
    *(changed("rho", to=to) for to in ({}, [1], [{"layer": 1}], [{"step": 0, "layer": "x"}])),
    changed("copied", to={"float32": {"agreeing": -1}}),
    changed("versions", to={}),
    *(changed("date", to=to) for to in ("yesterday", 20200102, "")),
    changed("git_commit", to=""),
    *(changed("config", to=to) for to in ({}, None, {"data": {}, "recipe": {}})),
    changed("config", "data", to="mnist"),
    changed("run", to="strided-scratch-tiny-s0-00000000"),
]  # fmt: skip


@pytest.mark.sample(100)
@pytest.mark.parametrize("change", WRONG, ids=lambda change: change.__name__)
def test_an_impossible_result_is_told_and_the_run_starts_anew(
    config: RunConfig, change: Callable[[dict[str, Any]], None], capfd: pytest.CaptureFixture[str]
) -> None:
    folder, result, _ = run_once(config)
    wrong = copy.deepcopy(as_before_hashes(result))
    change(wrong)
    leave(folder, wrong)
    with pytest.raises(DamagedResultError) as caught:
        finished_runs(report_of(config))
    assert f"{folder / 'result.json'} is damaged (" in str(caught.value)
    assert f"rm -r {folder}" in str(caught.value)
    assert "\n" not in str(caught.value)
    capfd.readouterr()
    again_in, again, new = run_once(config)
    (line,) = capfd.readouterr().err.splitlines()
    assert line.endswith("starting from the beginning")
    assert (again_in, new) == (folder, True)
    assert numbers(again) == numbers(result)
    assert len(finished_runs(report_of(config))) == 1


def test_every_key_is_needed(config: RunConfig) -> None:
    folder, result, _ = run_once(config)
    before = as_before_hashes(result)
    may_lack = {"fit_accuracy", "fit_loss", "fit_images", "loop"}  # without: an earlier loop's
    for key in before.keys() - may_lack:
        leave(folder, {name: before[name] for name in before if name != key})
        with pytest.raises(DamagedResultError, match=key):
            read_result(folder)


TEXTS = ["", "{", "[]", "null", "7", "{}", '{"experiment": "x"}', "\0\0", '{"a": NaN}', "[" * 10**5,
         '{"loop": 2, "test_accuracy": 1e999}', '{"seed": ' + "9" * 5000 + "}", "\ufeff{}"]  # fmt: skip


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_a_stub_does_not_count_as_done(config: RunConfig, text: str) -> None:
    folder = run_folder(config)
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(text)
    assert sweep.Job([], config, folder).result() is None
    with pytest.raises(DamagedResultError):
        finished_runs(report_of(config))
    assert run_once(config)[2]


def test_a_result_that_is_no_text_is_damaged(config: RunConfig) -> None:
    folder, _, _ = run_once(config)
    (folder / "result.json").write_bytes(b"\xff\xfe\x80")
    with pytest.raises(DamagedResultError):
        read_result(folder)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, "a link to a device"])
def test_what_is_no_file_is_refused_and_stays(config: RunConfig, make: Any) -> None:
    folder, _, _ = run_once(config)
    (folder / "result.json").unlink()
    with harmless_device() as device:
        if callable(make):
            make(folder / "result.json")
        else:
            (folder / "result.json").symlink_to(device)
        with pytest.raises(InputError, match="a file is needed there; remove it"):
            run_once(config)
    assert os.path.lexists(folder / "result.json")


def test_a_copied_folder_is_named_and_is_no_run(
    config: RunConfig, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, result, _ = run_once(config)
    stray = folder.with_name("my-copy")
    shutil.copytree(folder, stray)
    with pytest.raises(DamagedResultError, match=f"it is of the run {folder.name}") as caught:
        finished_runs(report_of(config))
    assert f"rm -r {stray}" in str(caught.value)
    shutil.rmtree(stray)  # the command that mends
    assert finished_runs(report_of(config)) == [result]
    other = run_folder(replace(config, seed=1))
    shutil.copytree(folder, other)
    _, own, new = run_once(replace(config, seed=1))
    assert (new, own["seed"]) == (True, 1)
    assert "starting from the beginning" in capfd.readouterr().err


# Flipped bytes


def test_every_flipped_byte_of_a_result_is_told_or_changes_nothing(config: RunConfig) -> None:
    folder, result, _ = run_once(config)
    path, draw = folder / "result.json", random.Random(0)
    whole, told = path.read_bytes(), 0
    for place in draw.sample(range(len(whole)), 300):
        flip(path, place, 1 << draw.randrange(8))
        try:
            assert read_result(folder) == result  # white space, say
        except DamagedResultError:
            told += 1
        path.write_bytes(whole)
    assert told > 200


@pytest.mark.parametrize("part", ["weights", "bits", "result"])
def test_a_flipped_byte_is_told_and_the_run_starts_anew(
    config: RunConfig, part: str, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, result, _ = run_once(config)
    wrong = copy.deepcopy(result)
    if part == "weights":
        flip(folder / "weights.pt", 700)
    elif part == "bits":  # one image more is right and one less: the sum stays
        bits = result["test_bits"]
        wrong["test_bits"] = bits[1:5] + bits[0] + bits[5:] if bits[:4] != bits[1:5] else bits[::-1]
    else:
        wrong["test_loss"] = result["test_loss"] * (1 + 1e-15)
    leave(folder, wrong)
    assert sweep.Job([], config, folder).result() is None
    with pytest.raises(DamagedResultError, match=f"rm -r {folder}"):
        finished_runs(report_of(config))
    capfd.readouterr()
    _, again, new = run_once(config)
    assert new
    (line,) = capfd.readouterr().err.splitlines()
    assert str(folder) in line
    assert numbers(again) == numbers(result)
    assert again["sha256"]["weights"] == result["sha256"]["weights"]


def test_missing_weights_are_told(config: RunConfig) -> None:
    folder, _, _ = run_once(config)
    (folder / "weights.pt").unlink()
    with pytest.raises(DamagedResultError, match=r"weights\.pt is missing"):
        read_result(folder)
    assert run_once(config)[2]
    assert (folder / "weights.pt").exists()


def test_a_result_whose_hashes_were_taken_out_is_told(config: RunConfig) -> None:
    folder, result, _ = run_once(config)
    leave(folder, {key: result[key] for key in result if key != "sha256"})
    with pytest.raises(DamagedResultError, match="has no sha256"):
        read_result(folder)


@pytest.mark.parametrize("weights", ["copy", "fine_tune"])
def test_nothing_starts_from_damaged_weights(config: RunConfig, weights: str) -> None:
    source, _, _ = run_once(config)
    flip(source / "weights.pt", 700)
    with pytest.raises(DamagedResultError, match=f"rm -r {source}"):
        run_once(twin_of(config, weights=weights))
    run_once(config)  # the command that made it
    assert run_once(twin_of(config, weights=weights))[2]


def test_every_flipped_byte_of_a_checkpoint_is_told(tmp_path: Path) -> None:
    path, draw = tmp_path / "checkpoint.pt", random.Random(0)
    content = {"run": "a", "network": {"w": torch.arange(50.0)}, "numbers": [1, 0.5, "x"]}
    save_tensors(path, content, sealed=True)
    assert load_tensors(path, sealed=True)["numbers"] == [1, 0.5, "x"]
    assert torch.load(path, weights_only=True)["run"] == "a"  # still what torch reads
    whole = path.read_bytes()
    for place in [*draw.sample(range(len(whole)), 300), *range(len(whole) - 90, len(whole))]:
        flip(path, place, 1 << draw.randrange(8))
        with pytest.raises(InputError, match="is not a whole file of weights"):
            load_tensors(path, sealed=True)
        path.write_bytes(whole)
    for end in (-1, -64, -80, -400):
        path.write_bytes(whole[:end])
        with pytest.raises(InputError, match="is not a whole file of weights"):
            load_tensors(path, sealed=True)
    save_tensors(path, content)  # as before there were seals
    assert load_tensors(path, sealed=True)["run"] == "a"


class Killed(BaseException):
    """Nothing catches it."""


def test_a_flipped_byte_of_a_runs_checkpoint_is_told_and_the_run_starts_anew(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    _, whole, _ = run_once(replace(config, outputs=f"{config.outputs}-whole"))

    def kill(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as killed:
        killed.setattr(run, "_fit", kill)
        with pytest.raises(Killed):
            run_once(config)
    checkpoint = run_folder(config) / "checkpoint.pt"
    place = checkpoint.read_bytes().index(torch.load(checkpoint)["network"]["fc1.bias"].numpy()[0])
    flip(checkpoint, place)
    capfd.readouterr()
    _, result, _ = run_once(config)
    (line,) = capfd.readouterr().err.splitlines()
    assert str(checkpoint) in line
    assert "its SHA-256 is another one: starting from the beginning" in line
    assert numbers(result) == numbers(whole)


# Published rows


@pytest.mark.parametrize("correct", [-1, 51, 10**6])
def test_an_impossible_published_row_is_told(
    config: RunConfig, tmp_path: Path, correct: int
) -> None:
    mine = replace(config, published=str(tmp_path / "mine"))
    folder, result, _ = run_once(mine)
    sweep.Job([], mine, folder).publish()
    path = tmp_path / "mine" / "runs.csv"
    assert published_result(mine) is not None
    path.write_text(path.read_text().replace(f",{result['test_correct']},50,", f",{correct},50,"))
    with pytest.raises(InputError, match="more test images are right than there are"):
        published_result(mine)


def test_a_finished_run_is_reported_without_a_lock(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder may be read-only, or another user's."""
    folder, result, _ = run_once(config)

    def refused(*_: object) -> None:
        raise AssertionError("a finished run is to be left alone")

    monkeypatch.setattr("experiments.runs.run.locked", refused)
    monkeypatch.setattr(Path, "unlink", lambda *_, **__: (_ for _ in ()).throw(PermissionError()))
    assert run_once(config) == (folder, result, False)
