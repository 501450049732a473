"""A run that was killed goes on to the numbers of one that was not; a bad checkpoint is named."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.runs import files, machine, training
from experiments.runs.files import save_tensors
from experiments.runs.folder import run_folder
from experiments.runs.run import run_once
from experiments.settings.identity import strided_source
from experiments.settings.schema import RunConfig
from stridenet.errors import InputError
from tests.experiments.runs import Payload, file_names, network, twin_of

# Going on from a checkpoint


class Killed(BaseException):
    """Nothing catches it, as nothing catches kill -9."""


def kill_after(monkeypatch: pytest.MonkeyPatch, many: int) -> None:
    """Let so many files be written, and then the process die."""
    write, left = files.write, many

    def dying(path: Path, content: bytes) -> None:
        nonlocal left
        if left == 0:
            raise Killed
        left -= 1
        write(path, content)

    monkeypatch.setattr(files, "write", dying)


def without_times(result: dict[str, Any]) -> dict[str, Any]:
    times = {"training_wall_seconds", "training_cpu_seconds", "rearrangement_seconds", "date"}
    times |= {"run_seconds", "sha256"}  # of the result, with its times
    return {key: value for key, value in result.items() if key not in times | {"config"}}


# config.yaml, three checkpoints, weights.pt, result.json: a kill before each of them
@pytest.mark.sample(4)
@pytest.mark.parametrize("files", range(6))
@pytest.mark.parametrize("kind", ["strided", "unit_stride", "fine_tune"])
def test_a_killed_run_goes_on_to_the_numbers_of_an_uninterrupted_one(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, kind: str, files: int
) -> None:
    config = replace(config, recipe=replace(config.recipe, steps=5, evaluations=3))
    settings = {
        "strided": config,
        "unit_stride": twin_of(config),
        "fine_tune": twin_of(config, weights="fine_tune"),
    }[kind]
    elsewhere = replace(settings, outputs=f"{config.outputs}-whole")
    if kind == "fine_tune":
        run_once(config)
        run_once(replace(config, outputs=elsewhere.outputs))
    folder, whole, _ = run_once(elsewhere)
    with monkeypatch.context() as killed:
        kill_after(killed, files)
        with pytest.raises(Killed):
            run_once(settings)
    steps: list[None] = []
    backward = training._backward
    monkeypatch.setattr(training, "_backward", lambda *a: steps.append(None) or backward(*a))
    resumed_folder, resumed, new = run_once(settings)
    assert new
    # Checkpoints stand after steps 1, 3 and 5, within an epoch of two; none is done twice.
    assert len(steps) == 5 - (0, 0, 1, 3, 5, 5)[files]
    assert without_times(resumed) == without_times(whole)
    assert (resumed_folder / "weights.pt").read_bytes() == (folder / "weights.pt").read_bytes()
    assert file_names(resumed_folder) == {"lock", "config.yaml", "weights.pt", "result.json"}


@pytest.mark.sample(2)
@pytest.mark.parametrize("weights", ["scratch", "fine_tune"])
@pytest.mark.parametrize(("sharing", "scaling"), [("tied", "none"), ("masked", "copies")])
def test_a_killed_run_of_a_twin_that_shares_goes_on_to_the_same_numbers(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, sharing: str, scaling: str, weights: str
) -> None:
    recipe = replace(config.recipe, steps=5, evaluations=3, rate_scaling=scaling)
    config = replace(config, recipe=recipe)
    settings = twin_of(config, sharing=sharing, weights=weights, rho_every=2)
    elsewhere = replace(settings, outputs=f"{config.outputs}-whole")
    if weights == "fine_tune":
        run_once(strided_source(settings))
        run_once(strided_source(elsewhere))
    folder, whole, _ = run_once(elsewhere)
    with monkeypatch.context() as killed:
        kill_after(killed, 3)  # config.yaml and two checkpoints
        with pytest.raises(Killed):
            run_once(settings)
    steps: list[None] = []
    backward = training._backward
    monkeypatch.setattr(training, "_backward", lambda *a: steps.append(None) or backward(*a))
    resumed_folder, resumed, _ = run_once(settings)
    assert len(steps) == 2
    # A tied twin has no gradients of copies.
    assert [row["step"] for row in resumed["rho"]] == ([] if sharing == "tied" else [0, 2, 4])
    assert all(row["conv1.weight"] > 0 for row in resumed["rho"])
    assert without_times(resumed) == without_times(whole)
    assert (resumed_folder / "weights.pt").read_bytes() == (folder / "weights.pt").read_bytes()


def test_seconds_are_those_of_all_attempts(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(config, recipe=replace(config.recipe, steps=None, epochs=2))
    now = 0.0

    def clock(_: torch.device) -> training.Seconds:
        nonlocal now
        now += 1
        return training.Seconds(now, 10 * now)

    monkeypatch.setattr(training, "_clock", clock)  # an epoch takes one second
    with monkeypatch.context() as killed:
        kill_after(killed, 2)
        with pytest.raises(Killed):
            run_once(config)
    now = 100.0
    _, result, _ = run_once(config)
    assert result["training_wall_seconds"] == 2
    assert result["training_cpu_seconds"] == 20


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-300])


def of_other_training(path: Path) -> None:
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint["optimizer"]
    save_tensors(path, checkpoint)


def test_a_checkpoint_that_lacks_a_part_is_named_with_the_cure(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(config, recipe=replace(config.recipe, steps=None, epochs=2))
    with monkeypatch.context() as killed:
        kill_after(killed, 2)
        with pytest.raises(Killed):
            run_once(config)
    of_other_training(run_folder(config) / "checkpoint.pt")
    with pytest.raises(InputError, match=r"checkpoint\.pt .*delete it"):
        run_once(config)


def text(path: Path) -> None:
    path.write_text("This is no checkpoint.\n")


def only_weights(path: Path) -> None:
    save_tensors(path, network().state_dict())


def of_another_run(path: Path) -> None:
    checkpoint = torch.load(path, weights_only=True)
    save_tensors(path, {**checkpoint, "run": "strided-scratch-tiny-s7-00000000"})


def of_another_network(path: Path) -> None:
    checkpoint = torch.load(path, weights_only=True)
    save_tensors(path, {**checkpoint, "network": network().state_dict()})


def with_code(path: Path) -> None:
    checkpoint = torch.load(path, weights_only=True)
    torch.save({**checkpoint, "payload": Payload(path.with_name("victim"))}, path)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (cut_off, "not a whole file"),
        (text, "not a whole file"),
        (with_code, "not a whole file"),
        (only_weights, "not a checkpoint"),
        (of_another_run, "of the run strided-scratch-tiny-s7-00000000"),
        (of_another_network, "of another network"),
    ],
)
def test_a_checkpoint_that_cannot_be_used_is_told_and_the_run_starts_anew(
    config: RunConfig,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    damage: Callable[[Path], None],
    told: str,
) -> None:
    config = replace(config, recipe=replace(config.recipe, steps=None, epochs=2))
    _, whole, _ = run_once(replace(config, outputs=f"{config.outputs}-whole"))
    with monkeypatch.context() as killed:
        kill_after(killed, 2)
        with pytest.raises(Killed):
            run_once(config)
    path = run_folder(config) / "checkpoint.pt"
    damage(path)
    capfd.readouterr()
    folder, result, _ = run_once(config)
    (line,) = capfd.readouterr().err.splitlines()
    assert str(path) in line
    assert told in line
    assert "starting from the beginning" in line
    assert without_times(result) == without_times(whole)
    assert file_names(folder) == {"lock", "config.yaml", "weights.pt", "result.json"}


def test_a_run_that_went_on_with_other_code_says_so(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(config, recipe=replace(config.recipe, steps=None, epochs=3))
    for commit, written in (("first", 2), ("second", 2)):
        with monkeypatch.context() as killed:
            killed.setattr(machine, "commit", lambda commit=commit: commit)
            kill_after(killed, written)
            with pytest.raises(Killed):
                run_once(config)
    monkeypatch.setattr(machine, "commit", lambda: "second")
    _, result, _ = run_once(config)
    assert result["git_commit"] == "first then second"


def test_a_checkpoint_left_beside_a_result_is_removed(config: RunConfig) -> None:
    folder, _, _ = run_once(config)
    (folder / "checkpoint.pt").write_bytes(b"left")
    run_once(config)
    assert "checkpoint.pt" not in file_names(folder)
