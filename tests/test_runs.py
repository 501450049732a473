"""A run's folder: nothing half written, done once, failures told, and one table of one experiment."""

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from experiments.runs import files, machine, run, training
from experiments.runs.data import Dataset
from experiments.runs.estimate import estimate
from experiments.runs.files import load_weights, save_tensors, write, write_json
from experiments.runs.folder import locked, run_folder
from experiments.runs.machine import PACKAGES
from experiments.runs.networks import build_network, build_strided
from experiments.runs.results import finished_runs, pack_bits, read_result, tidy, unpack_bits
from experiments.runs.run import run_once
from experiments.runs.starting import rate_scales
from experiments.runs.training import Evaluation, Examples, normalise
from experiments.settings.data_sets import DATA_SETS
from experiments.settings.identity import (
    LOOP,
    experiment_identity,
    run_name,
    strided_source,
    variant,
)
from experiments.settings.schema import (
    DataConfig,
    LayerConfig,
    ModelConfig,
    RecipeConfig,
    ReportConfig,
    RunConfig,
)
from experiments.studies.report import write_report
from stridenet import eliminate_stride
from stridenet.errors import InputError
from stridenet.sharing import distance_from_tied, origins, plain_name

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def same_torch() -> Iterator[None]:
    """A run changes torch's settings for its whole process, which here has other tests to do."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    yield
    torch.use_deterministic_algorithms(deterministic)
    torch.set_num_threads(1)


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


def twin_of(config: RunConfig, **changes: Any) -> RunConfig:
    return replace(config, model=replace(config.model, eliminate_stride=True), **changes)


def pooling_of(config: RunConfig) -> RunConfig:
    """As the tiny network keeps its channels where it pools."""
    layers = {**config.model.layers, "conv2": replace(config.model.layers["conv2"], channels=4)}
    return replace(config, model=replace(config.model, layers=layers, max_pooling=True))


def file_names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Time and content of every file below a folder, but the locks."""
    return {
        str(path): (path.stat().st_mtime_ns, path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file() and path.name != "lock"
    }


# Writing


def test_a_file_is_written_whole_readable_by_all_and_leaves_nothing_beside_it(
    tmp_path: Path,
) -> None:
    write(tmp_path / "file", b"old and long")
    write(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new"
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o644
    assert file_names(tmp_path) == {"file"}


@pytest.mark.parametrize("broken", ["replace", "fsync", "chmod"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str, error: BaseException
) -> None:
    (tmp_path / "file").write_bytes(b"old")

    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(os, broken, fail)
    with pytest.raises(type(error)) as caught:
        write(tmp_path / "file", b"new")
    if isinstance(error, OSError):
        assert str(tmp_path / "file") in str(caught.value)
        assert error.strerror in str(caught.value)
    assert (tmp_path / "file").read_bytes() == b"old"
    assert file_names(tmp_path) == {"file"}


def test_content_is_on_the_disk_before_the_file_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, int]] = []
    replace_file, fsync = os.replace, os.fsync

    def replacing(source: str, target: Path) -> None:
        calls.append(("replace", Path(source).stat().st_size))
        replace_file(source, target)

    def syncing(descriptor: int) -> None:
        calls.append(("fsync", os.fstat(descriptor).st_size))
        fsync(descriptor)

    monkeypatch.setattr(os, "replace", replacing)
    monkeypatch.setattr(os, "fsync", syncing)
    write(tmp_path / "file", b"content")
    assert calls == [("fsync", 7), ("replace", 7)]


def test_what_json_cannot_hold_is_not_written(tmp_path: Path) -> None:
    for content in (float("nan"), {"a": float("inf")}, {"a": {1, 2}}):
        with pytest.raises((ValueError, TypeError)):
            write_json(tmp_path / "file.json", content)
    assert file_names(tmp_path) == set()
    write_json(tmp_path / "file.json", {"a": [1, None, 0.1]})
    assert json.loads((tmp_path / "file.json").read_text()) == {"a": [1, None, 0.1]}


# Results


def test_a_folder_without_a_result_is_not_done(tmp_path: Path) -> None:
    assert read_result(tmp_path) is None


@pytest.mark.parametrize("content", ["", "{", '{"run": "x"', "[]", "null", "7", "\x00\x00", "{}"])
def test_a_damaged_result_is_named_with_the_cure(tmp_path: Path, content: str) -> None:
    (tmp_path / "result.json").write_text(content)
    with pytest.raises(InputError) as caught:
        read_result(tmp_path)
    assert str(tmp_path / "result.json") in str(caught.value)
    assert f"rm -r {tmp_path}" in str(caught.value)
    assert "\n" not in str(caught.value)


# Weights


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3))


def test_weights_come_back_exactly(tmp_path: Path) -> None:
    saved, loaded = network(), network()
    save_tensors(tmp_path / "weights.pt", saved.state_dict())
    load_weights(tmp_path / "weights.pt", loaded)
    for name, value in saved.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name])
    assert file_names(tmp_path) == {"weights.pt"}


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.victim,)


def foreign(path: Path) -> None:
    path.write_text("These are no weights.\n")


def truncated(path: Path) -> None:
    save_tensors(path, network().state_dict())
    path.write_bytes(path.read_bytes()[:-200])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def pickled_code(path: Path) -> None:
    path.write_bytes(pickle.dumps({"0.weight": Payload(path.with_name("victim"))}))


def saved_code(path: Path) -> None:
    torch.save({"0.weight": Payload(path.with_name("victim"))}, path)


def whole_module(path: Path) -> None:
    torch.save(network(), path)


def a_list(path: Path) -> None:
    torch.save([1, 2, 3], path)


def other_layers(path: Path) -> None:
    save_tensors(path, nn.Sequential(nn.Conv2d(1, 2, 3)).state_dict())


def other_sizes(path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 5), nn.Flatten(), nn.Linear(8, 3))
    save_tensors(path, network.state_dict())


@pytest.mark.parametrize(
    "make", [foreign, truncated, empty, pickled_code, saved_code, whole_module]
)
def test_a_file_that_holds_no_weights_is_named_and_runs_nothing(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    path = tmp_path / "weights.pt"
    make(path)
    with pytest.raises(InputError, match="is not a whole file of weights") as caught:
        load_weights(path, network())
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert file_names(tmp_path) == {"weights.pt"}  # the victim was not made


@pytest.mark.parametrize("make", [a_list, other_layers, other_sizes])
def test_weights_of_another_network_are_named(tmp_path: Path, make: Callable[[Path], None]) -> None:
    path = tmp_path / "weights.pt"
    make(path)
    with pytest.raises(InputError, match="of another network") as caught:
        load_weights(path, network())
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < len(str(path)) + 300


def test_the_payload_would_run_if_it_were_unpickled(tmp_path: Path) -> None:
    pickled_code(tmp_path / "weights.pt")
    pickle.loads((tmp_path / "weights.pt").read_bytes())
    assert (tmp_path / "victim").exists()


# Locks


def test_a_second_process_waits_for_the_first_and_says_so(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "a-run"
    program = (
        "import sys; from pathlib import Path; from experiments.runs.folder import locked\n"
        "with locked(Path(sys.argv[1])): Path(sys.argv[1], 'second').touch()\n"
    )
    with locked(folder):
        command = [sys.executable, "-c", program, str(folder)]
        second = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        assert second.stderr is not None
        # The line comes while the first still holds the lock.
        assert second.stderr.readline().startswith("a-run: waiting, another process")
        with pytest.raises(subprocess.TimeoutExpired):
            second.wait(timeout=0.5)
        assert not (folder / "second").exists()
    _, rest = second.communicate(timeout=60)
    assert (second.returncode, rest) == (0, "")
    assert (folder / "second").exists()


def test_a_free_lock_is_taken_silently_and_freed_after_an_error(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RuntimeError, match="stopped"), locked(tmp_path / "run"):
        raise RuntimeError("stopped")
    with locked(tmp_path / "run"):
        pass
    assert capfd.readouterr() == ("", "")


# One run


def test_a_run_leaves_weights_and_a_result_that_agree(
    config: RunConfig, tiny_data: Dataset
) -> None:
    for settings in (config, twin_of(config)):
        folder, result, new = run_once(settings)
        assert new
        assert folder == Path(config.outputs) / "runs" / run_name(settings)
        assert file_names(folder) == {"lock", "config.yaml", "weights.pt", "result.json"}
        assert json.loads((folder / "result.json").read_text()) == result
        assert OmegaConf.to_container(OmegaConf.load(folder / "config.yaml")) == result["config"]

        network = build_network(settings.model, (1, 10, 10))
        load_weights(folder / "weights.pt", network)
        splits = normalise(tiny_data, "standardised")
        right = {name: network(x).argmax(1) == labels for name, (x, labels) in splits.items()}
        correct = int(right["test"].sum())
        assert (result["test_correct"], result["test_images"]) == (correct, 50)
        assert result["test_accuracy"] == correct / 50
        assert unpack_bits(result["test_bits"], 50).tolist() == right["test"].tolist()
        assert result["epochs"][-1]["validation_correct"] == int(right["validation"].sum())
        assert (result["loop"], result["diverged"], result["rho"]) == (LOOP, False, [])
        assert (result["network"], result["weights"]) == (settings.model.name, "scratch")
        assert result["training_wall_seconds"] > 0
        assert (result["rearrangement_seconds"] is None) == (settings is config)


def test_the_test_images_are_read_once_after_the_last_step_and_change_nothing_else(
    config: RunConfig, tiny_data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(config, recipe=replace(config.recipe, steps=5))
    seen: list[tuple[int, int]] = []  # how many images were evaluated, after how many steps
    steps, backward, evaluate = [0], training._backward, training.evaluate

    def counting(*given: Any) -> Any:
        steps[0] += 1
        return backward(*given)

    def watched(network: nn.Module, examples: Examples) -> Evaluation:
        seen.append((len(examples), steps[0]))
        return evaluate(network, examples)

    monkeypatch.setattr(training, "_backward", counting)
    for module in (training, run):
        monkeypatch.setattr(module, "evaluate", watched)
    folder, result, _ = run_once(config)
    curve = [(30, 0), (30, 2), (30, 4), (30, 5)]
    assert seen == [*curve, (150, 5), (50, 5)]

    noise = torch.randint(256, tiny_data.test_images.shape, dtype=torch.uint8)
    other = replace(tiny_data, test_images=noise)
    monkeypatch.setattr(run, "load", lambda data, folder, seed: other)
    elsewhere, again, _ = run_once(replace(config, outputs=f"{config.outputs}-noise"))
    assert again["test_bits"] != result["test_bits"]
    assert again["epochs"] == result["epochs"]
    assert (elsewhere / "weights.pt").read_bytes() == (folder / "weights.pt").read_bytes()


def test_both_networks_of_a_seed_are_given_the_data_of_that_seed(
    config: RunConfig, tiny_data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[DataConfig, int]] = []

    def watched(data: DataConfig, folder: Path, seed: int) -> Dataset:
        asked.append((data, seed))
        return tiny_data

    monkeypatch.setattr(run, "load", watched)
    for settings in (replace(config, seed=7), twin_of(config, seed=7), replace(config, seed=8)):
        run_once(settings)
    assert asked == [(config.data, seed) for seed in (7, 7, 8)]


@pytest.mark.parametrize("many", [1, 7, 8, 50, 1000])
def test_bits_come_back_as_they_were_packed(many: int) -> None:
    right = torch.rand(many, generator=torch.Generator().manual_seed(many)) < 0.7
    packed = pack_bits(right)
    assert isinstance(packed, str)
    assert len(packed) <= many / 6 + 4
    assert unpack_bits(packed, many).tolist() == right.tolist()


def test_a_run_that_diverges_is_finished_and_says_so(config: RunConfig) -> None:
    recipe = replace(config.recipe, steps=30, learning_rate=1e30)
    for settings in (config, twin_of(config), twin_of(config, sharing="masked", rho_every=1)):
        folder, result, new = run_once(replace(settings, recipe=recipe))
        assert (result["diverged"], new) == (True, True)
        assert 0 <= result["test_correct"] < 25
        assert result["test_loss"] is None
        assert result["epochs"][-1]["training_loss"] is None
        # Nothing but JSON's own numbers: NaN would be read as one here.
        read = json.loads((folder / "result.json").read_text(), parse_constant=pytest.fail)
        assert read == result
        assert run_once(replace(settings, recipe=recipe))[2] is False  # done
        assert not (folder / "failure.json").exists()


@pytest.mark.parametrize("weights", ["copy", "fine_tune"])
def test_nothing_starts_from_the_weights_of_a_run_that_diverged(
    config: RunConfig, weights: str
) -> None:
    config = replace(config, recipe=replace(config.recipe, steps=30, learning_rate=1e30))
    source, _, _ = run_once(config)
    with pytest.raises(InputError) as caught:
        run_once(twin_of(config, weights=weights))
    for told in (f"weights={weights}: ", source.name, "diverged", "rate than 1e+30"):
        assert told in str(caught.value)


def test_a_run_trains_at_the_rate_of_its_network(config: RunConfig) -> None:
    rates = {"strided": 0.02, "unit_stride": 0.03, "masked": 0.04}
    own = replace(config, recipe=replace(config.recipe, learning_rate=rates))
    for one in (config, twin_of(config, sharing="masked")):
        settings = replace(one, recipe=own.recipe)
        folder, result, _ = run_once(settings)
        rate = rates["masked" if one.sharing == "masked" else "strided"]
        assert result["learning_rate"] == rate
        alone = replace(one, recipe=replace(config.recipe, learning_rate=rate))
        other, same, _ = run_once(alone)
        assert other != folder
        assert same["epochs"] == result["epochs"]
    _, copied, _ = run_once(replace(twin_of(own), weights="copy"))
    assert copied["learning_rate"] is None


def test_the_result_is_written_last_after_the_weights(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[tuple[str, set[str]]] = []
    write = files.write

    def watched(path: Path, content: bytes) -> None:
        written.append((path.name, file_names(path.parent)))
        write(path, content)

    monkeypatch.setattr(files, "write", watched)
    run_once(config)
    first = {"lock", "config.yaml"}
    assert written[1:] == [
        ("checkpoint.pt", first),
        ("weights.pt", {*first, "checkpoint.pt"}),
        ("result.json", {*first, "checkpoint.pt", "weights.pt"}),
    ]


def test_a_run_that_is_done_is_not_touched_again(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, result, _ = run_once(config)
    before = snapshot(folder)
    monkeypatch.setattr(run, "train", lambda *_: pytest.fail("trained again"))
    again = run_once(replace(config, device="auto", threads=2))
    assert again == (folder, result, False)
    assert snapshot(folder) == before


def test_a_run_that_was_killed_before_its_result_is_done_again(config: RunConfig) -> None:
    folder, result, _ = run_once(config)
    (folder / "result.json").unlink()
    save_tensors(folder / "weights.pt", network().state_dict())  # whatever was left
    _, again, new = run_once(config)
    assert new
    assert again["epochs"] == result["epochs"]
    load_weights(folder / "weights.pt", build_strided(config.model, (1, 10, 10)))


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


def test_what_a_killed_process_left_half_written_is_removed(config: RunConfig) -> None:
    folder = run_folder(config)
    folder.mkdir(parents=True)
    (folder / ".checkpoint.pt-abcd1234").write_bytes(b"half")
    run_once(config)
    assert file_names(folder) == {"lock", "config.yaml", "weights.pt", "result.json"}


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
            killed.setattr(machine, "_commit", lambda commit=commit: commit)
            kill_after(killed, written)
            with pytest.raises(Killed):
                run_once(config)
    monkeypatch.setattr(machine, "_commit", lambda: "second")
    _, result, _ = run_once(config)
    assert result["git_commit"] == "first then second"


def test_a_checkpoint_left_beside_a_result_is_removed(config: RunConfig) -> None:
    folder, _, _ = run_once(config)
    (folder / "checkpoint.pt").write_bytes(b"left")
    run_once(config)
    assert "checkpoint.pt" not in file_names(folder)


def test_a_file_where_a_folder_should_be_is_named(config: RunConfig) -> None:
    Path(config.outputs).mkdir()
    (Path(config.outputs) / "runs").write_text("")
    with pytest.raises(InputError, match=r"part of this path is a file; remove it") as caught:
        run_once(config)
    assert str(run_folder(config)) in str(caught.value)


# What a run will take


def test_the_estimate_has_the_bytes_of_the_weights_and_grows_with_the_steps(
    config: RunConfig,
) -> None:
    seconds, size = estimate(replace(config, recipe=replace(config.recipe, steps=0)))
    assert size == 4 * ((4 * 9 + 4) + (6 * 4 * 4 + 6) + (10 * 6 * 16 + 10))
    longer, _ = estimate(replace(config, recipe=replace(config.recipe, steps=10**7)))
    assert longer > 100 > seconds > 0


@pytest.mark.parametrize("sharing", ["free", "tied", "masked"])
def test_the_estimate_has_the_bytes_of_the_file_however_a_twin_is_shared(
    config: RunConfig, sharing: str
) -> None:
    _, size = estimate(twin_of(config, sharing=sharing))
    assert size == 4 * ((16 * 4 * 2 * 2 + 16) + (6 * 16 + 6) + (10 * 6 * 16 + 10))


# Failures


def test_a_failure_is_told_in_the_folder_until_the_run_succeeds(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(run, "train", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run_once(config)
    folder = run_folder(config)
    assert file_names(folder) == {"lock", "config.yaml", "failure.json"}
    failure = json.loads((folder / "failure.json").read_text())
    assert failure["error"] == "division by zero"
    assert "ZeroDivisionError" in failure["trace"]
    run_once(config)
    assert file_names(folder) == {"lock", "config.yaml", "weights.pt", "result.json"}


def test_copying_needs_the_strided_run_and_names_its_missing_file(config: RunConfig) -> None:
    for weights in ("copy", "fine_tune"):
        with pytest.raises(InputError) as caught:
            run_once(twin_of(config, weights=weights))
        missing = run_folder(config) / "weights.pt"
        assert f"weights={weights} needs {missing}" in str(caught.value)


def test_copying_needs_a_run_that_is_finished(config: RunConfig) -> None:
    source, _, _ = run_once(config)
    (source / "result.json").unlink()
    with pytest.raises(InputError, match="finished run"):
        run_once(twin_of(config, weights="copy"))


def test_copied_weights_are_the_strided_ones_expanded_and_not_trained(config: RunConfig) -> None:
    source, trained, _ = run_once(config)
    folder, result, _ = run_once(twin_of(config, weights="copy"))
    strided = build_strided(config.model, (1, 10, 10))
    load_weights(source / "weights.pt", strided)
    expected = eliminate_stride(strided, (1, 10, 10)).state_dict()
    state = torch.load(folder / "weights.pt", weights_only=True)
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in state)
    assert len(result["epochs"]) == 1
    assert result["training_wall_seconds"] is None
    assert result["test_correct"] == trained["test_correct"]
    assert set(result["copied"]) == {"float32", "float64"}
    for found in result["copied"].values():
        assert (found["agreeing"], found["images"]) == (50, 50)
    assert 0 < result["copied"]["float64"]["largest_difference"] < 1e-14
    assert 1e-9 < result["copied"]["float32"]["largest_difference"] < 1e-5


def test_fine_tuning_starts_from_copied_weights_and_trains(config: RunConfig) -> None:
    run_once(config)
    _, copied, _ = run_once(twin_of(config, weights="copy"))
    folder, result, _ = run_once(twin_of(config, weights="fine_tune"))
    assert result["epochs"][0] == copied["epochs"][0]
    assert result["test_loss"] != copied["test_loss"]
    assert result["training_wall_seconds"] > 0
    copied_folder = run_folder(twin_of(config, weights="copy"))
    assert (folder / "weights.pt").read_bytes() != (copied_folder / "weights.pt").read_bytes()


def test_fine_tuning_the_strided_network_goes_on_from_its_own_run(config: RunConfig) -> None:
    source, trained, _ = run_once(config)
    before = snapshot(source)
    folder, result, new = run_once(replace(config, weights="fine_tune"))
    assert new
    assert folder.name.startswith("strided-fine_tune-tiny-s0-")
    assert result["weights"] == "fine_tune"
    first, last = trained["epochs"][-1], result["epochs"][-1]
    assert result["epochs"][0]["validation_loss"] == first["validation_loss"]
    assert last["validation_loss"] < first["validation_loss"]
    assert snapshot(source) == before
    with pytest.raises(InputError, match=r"weights=fine_tune needs .*-s1-.*weights\.pt"):
        run_once(replace(config, weights="fine_tune", seed=1))


def test_all_fine_tuning_starts_from_the_same_function(config: RunConfig) -> None:
    _, trained, _ = run_once(config)
    last, ends = trained["epochs"][-1], set()
    for sharing in ("tied", "masked", "free"):
        _, result, _ = run_once(twin_of(config, weights="fine_tune", sharing=sharing))
        first = result["epochs"][0]
        assert first["validation_loss"] == pytest.approx(last["validation_loss"], rel=1e-5)
        assert all(parts["zeros"] == parts["copies"] == 0 for parts in first["distance"].values())
        ends.add(result["test_loss"])
    assert len(ends) == 3


# Twins that share


@pytest.mark.parametrize("sharing", ["free", "tied", "masked"])
def test_the_result_of_a_twin_says_how_it_shares_and_how_far_it_is_from_tied(
    config: RunConfig, tiny_data: Dataset, sharing: str
) -> None:
    settings = twin_of(config, sharing=sharing)
    folder, result, _ = run_once(settings)
    assert (result["sharing"], result["variant"]) == (sharing, variant(settings))
    assert result["run"].startswith(
        f"unit_stride-{'' if sharing == 'free' else sharing + '-'}scratch-"
    )

    twin = build_network(settings.model, (1, 10, 10))
    load_weights(folder / "weights.pt", twin)
    splits = normalise(tiny_data, "standardised")
    loss = nn.functional.cross_entropy(twin(splits["test"][0]), splits["test"][1])
    assert result["test_loss"] == pytest.approx(loss.item(), rel=1e-5)
    images, labels = splits["training"]
    scores = twin(images).detach()
    assert result["fit_images"] == len(labels) == 150
    assert result["fit_accuracy"] == float((scores.argmax(1) == labels).double().mean())
    loss = float(nn.functional.cross_entropy(scores, labels))
    assert result["fit_loss"] == pytest.approx(loss, rel=1e-5)

    assert len(result["epochs"]) == 2
    for row in result["epochs"]:
        assert {"conv1.weight", "conv1.bias"} <= row["distance"].keys()
        assert not any(name.startswith("fc1") for name in row["distance"])
        weight = row["distance"]["conv1.weight"]
        assert (weight["zeros"] > 0) == (sharing == "free")
        assert (weight["copies"] > 0) == (sharing != "tied")
    last = result["epochs"][-1]["distance"]["conv1.weight"]
    assert last["norm"] == pytest.approx(float(twin.network.conv1.weight.detach().norm()))
    assert last == pytest.approx(distance_from_tied(twin)["conv1.weight"], rel=1e-12)


def test_other_networks_have_no_distance_and_a_copy_fits_nothing(config: RunConfig) -> None:
    _, strided, _ = run_once(config)
    _, pooling, _ = run_once(pooling_of(config))
    _, copied, _ = run_once(twin_of(config, weights="copy"))
    for result in (strided, pooling):
        assert (result["sharing"], result["variant"]) == ("free", "")
        assert all("distance" not in row for row in result["epochs"])
        assert result["fit_images"] == 150
    assert "fit_images" not in copied
    assert copied["test_loss"] == pytest.approx(strided["test_loss"], rel=1e-5)
    (row,) = copied["epochs"]
    assert row["distance"]["conv1.weight"]["norm"] > 0
    assert row["distance"]["conv1.weight"]["copies"] == 0


@pytest.mark.parametrize("numbers", [1, 2, 10_000])
def test_the_fit_is_of_as_many_training_images_as_are_tested(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, numbers: int
) -> None:
    monkeypatch.setitem(DATA_SETS, "mnist", replace(DATA_SETS["mnist"], test_images=numbers))
    _, result, _ = run_once(config)
    assert result["fit_images"] == min(numbers, 150)
    assert result["fit_accuracy"] * result["fit_images"] == pytest.approx(
        round(result["fit_accuracy"] * result["fit_images"])
    )


def test_a_tied_run_is_the_strided_run_in_other_names(config: RunConfig) -> None:
    recipe = replace(config.recipe, steps=20, bias_rate_factor=2)
    config = replace(config, recipe=recipe)
    source, strided, _ = run_once(config)
    folder, tied, _ = run_once(twin_of(config, sharing="tied"))
    original = build_strided(config.model, (1, 10, 10))
    load_weights(source / "weights.pt", original)
    expected = eliminate_stride(original, (1, 10, 10)).state_dict()
    state = torch.load(folder / "weights.pt", weights_only=True)
    assert state.keys() == expected.keys()
    torch.testing.assert_close(state, dict(expected), rtol=1e-3, atol=1e-5)
    for one, other in zip(tied["epochs"], strided["epochs"], strict=True):
        assert one["validation_loss"] == pytest.approx(other["validation_loss"], rel=1e-4)
    # The free twin of the same seed goes elsewhere.
    _, free, _ = run_once(twin_of(config))
    assert free["test_loss"] != pytest.approx(strided["test_loss"], rel=1e-3)


def test_scaled_rates_change_the_numbers_of_a_run(config: RunConfig) -> None:
    for sharing, scaling in (("masked", "copies"), ("free", "copies"), ("free", "effective")):
        scaled = replace(config, recipe=replace(config.recipe, rate_scaling=scaling))
        _, plain, _ = run_once(twin_of(config, sharing=sharing))
        _, result, _ = run_once(twin_of(scaled, sharing=sharing))
        assert result["variant"].endswith(f"by_{scaling}")
        assert result["epochs"][0] == plain["epochs"][0]
        assert result["test_loss"] < plain["test_loss"]  # two steps, the longer ones are ahead


# Of LeNet's filters, by hand. Copies: the phases of the map that each gives. Inputs of a filter,
# strided and free: 5·5 and 16·2·2, 20·2·2 and 320, 20·5·5 and 80·3·3, 50·2·2 and 200.
@pytest.mark.parametrize(
    ("sharing", "scaling", "expected"),
    [
        ("free", "copies", [16, 4, 4, 1]),
        ("masked", "copies", [16, 4, 4, 1]),
        ("free", "effective", [16 * 25 / 64, 4 * 80 / 320, 4 * 500 / 720, 1]),
        ("masked", "effective", [16, 4, 4, 1]),  # structural zeros are no inputs
    ],
)
def test_the_scales_of_lenets_rates_are_those_of_the_step_account(
    composed: Callable[..., RunConfig], sharing: str, scaling: str, expected: list[float]
) -> None:
    model = composed("model=unit_stride").model
    twin = build_network(model, (1, 28, 28), sharing)
    scales = rate_scales(twin, origins(twin), scaling, sharing)
    assert scales.keys() == dict(twin.network.named_parameters()).keys()
    by_name = {plain_name(name): scale for name, scale in scales.items()}
    convolutions = ("conv1", "conv2", "conv3", "conv4")
    assert [by_name[f"{name}.weight"] for name in convolutions] == pytest.approx(expected)
    assert [by_name[f"{name}.bias"] for name in convolutions] == [16, 4, 4, 1]
    assert {
        by_name[f"{name}.{kind}"] for name in ("fc1", "fc2") for kind in ("weight", "bias")
    } == {1}
    assert rate_scales(twin, origins(twin), "none", sharing) == {}


@pytest.mark.parametrize("sharing", ["tied", "masked", "free"])
def test_a_tied_runs_file_is_where_any_twin_starts(config: RunConfig, sharing: str) -> None:
    source, tied, _ = run_once(twin_of(config, sharing="tied"))
    state = torch.load(source / "weights.pt", weights_only=True)
    names = {
        f"network.{n}.{kind}" for n in ("conv1", "conv2", "fc1") for kind in ("weight", "bias")
    }
    assert state.keys() == names
    settings = twin_of(config, sharing=sharing, weights=str(source / "weights.pt"))
    folder, result, _ = run_once(settings)
    assert result["weights"] == "file"
    first, last = result["epochs"]
    assert first["validation_loss"] == tied["epochs"][-1]["validation_loss"]
    assert last["validation_loss"] < first["validation_loss"]
    again = torch.load(folder / "weights.pt", weights_only=True)
    assert again.keys() == names
    assert bool((again["network.conv1.weight"][state["network.conv1.weight"] == 0] == 0).all()) == (
        sharing != "free"
    )


@pytest.mark.parametrize(
    ("saved", "wanted"), [("free", "tied"), ("free", "masked"), ("masked", "tied")]
)
def test_a_file_that_cannot_be_shared_so_is_an_error_that_says_what_was_expected(
    config: RunConfig, saved: str, wanted: str
) -> None:
    source, _, _ = run_once(twin_of(config, sharing=saved))
    file = source / "weights.pt"
    with pytest.raises(InputError) as caught:
        run_once(twin_of(config, sharing=wanted, weights=str(file)))
    message = str(caught.value)
    assert message.startswith(f"sharing={wanted} starts from weights that are {wanted} already")
    assert str(file) in message
    assert "\n" not in message


# Pooling


def test_a_network_with_pooling_trains_end_to_end(config: RunConfig, tiny_data: Dataset) -> None:
    settings = pooling_of(replace(config, recipe=replace(config.recipe, steps=100)))
    folder, result, _ = run_once(settings)
    assert folder.name.startswith("pooling-scratch-tiny-s0-")
    assert (result["network"], result["rearrangement_seconds"]) == ("pooling", None)
    assert result["experiment"] == experiment_identity(
        replace(settings, model=replace(settings.model, max_pooling=False))
    )
    weights = torch.load(folder / "weights.pt", weights_only=True)
    assert list(weights) == ["conv1.weight", "conv1.bias", "fc1.weight", "fc1.bias"]
    images, labels = normalise(tiny_data, "standardised")["test"]
    maps = nn.functional.conv2d(images, weights["conv1.weight"], weights["conv1.bias"]).relu()
    vectors = nn.functional.max_pool2d(maps, 2).flatten(1)
    scores = nn.functional.linear(vectors, weights["fc1.weight"], weights["fc1.bias"])
    assert result["test_correct"] == int((scores.argmax(1) == labels).sum())
    assert result["test_accuracy"] > 0.6 > 3 * result["epochs"][0]["validation_accuracy"]


def test_a_file_of_weights_is_where_training_starts(config: RunConfig) -> None:
    source, trained, _ = run_once(config)
    folder, result, _ = run_once(replace(config, weights=str(source / "weights.pt")))
    assert folder.name.startswith("strided-file-tiny-s0-")
    assert result["weights"] == "file"
    assert result["epochs"][0]["validation_loss"] == trained["epochs"][-1]["validation_loss"]
    assert result["test_loss"] != trained["test_loss"]


def test_a_twin_does_not_start_from_a_strided_networks_file(config: RunConfig) -> None:
    source, _, _ = run_once(config)
    with pytest.raises(InputError, match="of another network"):
        run_once(twin_of(config, weights=str(source / "weights.pt")))


def test_weights_drawn_depend_on_the_seed_alone(config: RunConfig) -> None:
    untrained = replace(config, recipe=replace(config.recipe, steps=0))
    states = []
    for seed, torch_seed in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(torch_seed)
        outputs = f"{config.outputs}-{torch_seed}"
        folder, _, _ = run_once(replace(untrained, seed=seed, outputs=outputs))
        states.append(torch.load(folder / "weights.pt", weights_only=True))
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not any(torch.equal(states[0][name], states[2][name]) for name in states[0])


def test_a_network_with_fewer_scores_than_classes_is_an_error(config: RunConfig) -> None:
    layers = {**config.model.layers, "fc1": replace(config.model.layers["fc1"], channels=9)}
    with pytest.raises(InputError, match="9 scores, but there are 10 classes"):
        run_once(replace(config, model=replace(config.model, layers=layers)))


def test_a_layer_larger_than_its_map_is_an_error_and_told_in_the_folder(config: RunConfig) -> None:
    layers = {
        **config.model.layers,
        "conv1": LayerConfig("conv", 4, [11, 3], [1, 1], [1, 1], [0, 0]),
    }
    large = replace(config, model=replace(config.model, layers=layers))
    with pytest.raises(InputError, match=r"model\.layers\.conv1: .*11x3.*data\.image_size"):
        run_once(large)
    assert "conv1" in json.loads((run_folder(large) / "failure.json").read_text())["error"]


def test_a_device_that_is_not_here_is_an_error(config: RunConfig) -> None:
    found = torch.accelerator.current_accelerator(check_available=True)
    absent = "mps" if found is not None and found.type == "cuda" else "cuda"
    with pytest.raises(InputError, match=f"device={absent} is not here"):
        run_once(replace(config, device=absent))


def test_circumstances_are_in_the_result(config: RunConfig) -> None:
    _, result, _ = run_once(config, jobs_at_once=2)
    assert (result["device"], result["threads"], result["jobs_at_once"]) == ("cpu", 1, 2)
    assert run_once(replace(config, seed=1), jobs_at_once=None)[1]["jobs_at_once"] is None
    assert result["versions"]["torch"].startswith(torch.__version__.partition("+")[0])
    assert result["experiment"] == experiment_identity(config)
    assert result["config"]["model"]["layers"]["conv2"]["stride"] == [2, 2]
    assert result["device_name"]


# Many runs


def report_of(config: RunConfig) -> ReportConfig:
    return ReportConfig(config.model, config.data, config.recipe, config.outputs)


def test_a_report_takes_the_finished_runs_of_its_experiment_and_no_others(
    config: RunConfig,
) -> None:
    second = replace(config, seed=1)
    other_recipe = replace(config, recipe=replace(config.recipe, name="other", steps=1))
    other_data = replace(config, data=replace(config.data, validation_size=7))
    mine = [config, second, twin_of(config), twin_of(config, weights="copy")]
    for settings in (*mine, other_recipe, other_data):
        run_once(settings)
    run_folder(replace(config, seed=2)).mkdir()  # not finished
    (Path(config.outputs) / "runs" / "notes.txt").write_text("A file of mine.")

    def found(report: ReportConfig) -> list[str]:
        return sorted(result["run"] for result in finished_runs(report))

    assert found(report_of(config)) == sorted(map(run_name, mine))
    assert found(report_of(twin_of(config))) == sorted(map(run_name, mine))
    assert found(report_of(other_recipe)) == [run_name(other_recipe)]


def test_a_report_without_runs_is_an_error_that_lists_what_there_is(config: RunConfig) -> None:
    report = report_of(config)
    with pytest.raises(InputError, match=r"data=mnist and recipe=tiny.*nothing"):
        finished_runs(report)
    run_once(replace(config, recipe=replace(config.recipe, name="other")))
    run_once(replace(config, data=replace(config.data, name="fashion_mnist")))
    with pytest.raises(InputError) as caught:
        finished_runs(report)
    for told in ("data=mnist recipe=other", "data=fashion_mnist recipe=tiny", config.outputs):
        assert told in str(caught.value)


@pytest.mark.parametrize("loop", [None, 1, LOOP + 1])
def test_runs_of_another_loop_are_an_error_that_says_so(
    config: RunConfig, loop: int | None
) -> None:
    folder, result, _ = run_once(config)
    other = {**result, "experiment": "00000000", "loop": loop}
    del other["sha256"], other["run_seconds"]
    if loop is None:  # as the first loop's results are
        del other["loop"]
    write_json(folder / "result.json", other)
    told = f"of training loop {loop or 1}, and this is loop {LOOP} .*run experiments.train again"
    with pytest.raises(InputError, match=told) as caught:
        finished_runs(report_of(config))
    assert config.outputs in str(caught.value)
    run_once(replace(config, seed=1))  # one of this loop is enough
    assert [found["seed"] for found in finished_runs(report_of(config))] == [1]


def test_a_report_removes_what_an_earlier_one_of_other_runs_left(config: RunConfig) -> None:
    for settings in (config, twin_of(config, weights="copy")):
        run_once(settings)
    other = replace(config, recipe=replace(config.recipe, name="other"))
    run_once(other)
    folder = Path(config.outputs) / "report"
    write_report(report_of(config))
    both = {f"copied_weights.{suffix}" for suffix in ("csv", "md", "tex")}
    assert both <= file_names(folder)
    (folder / "notes.txt").write_text("Mine.")
    before = file_names(folder)
    write_report(report_of(other))
    assert file_names(folder) == before - both
    assert "other" in (folder / "table1.md").read_text()


def test_runs_become_one_tidy_row_each(config: RunConfig) -> None:
    run_once(replace(config, seed=1))
    run_once(config)
    run_once(twin_of(config, weights="copy"))
    frame = tidy(finished_runs(report_of(config)))
    assert list(frame.network) == ["strided", "strided", "unit_stride"]
    assert list(frame.weights) == ["scratch", "scratch", "copy"]
    assert list(frame.seed) == [0, 1, 0]
    about = {"run", "loop", "experiment", "network", "weights", "sharing", "variant", "seed"}
    about |= {"learning_rate", "diverged"}
    reached = {"test_accuracy", "test_correct", "test_images", "test_loss", "test_bits"}
    reached |= {"fit_accuracy", "fit_loss", "fit_images"}
    took = {"training_wall_seconds", "training_cpu_seconds", "rearrangement_seconds"}
    where = {"device", "device_name", "threads", "jobs_at_once", "git_commit", "date"}
    versions = {f"versions.{name}" for name in ("python", *PACKAGES)}
    copied = {
        f"copied.{numbers}.{found}"
        for numbers in ("float32", "float64")
        for found in ("agreeing", "images", "largest_difference")
    }
    assert set(frame.columns) == about | reached | took | where | versions | copied
    assert not frame.map(lambda value: isinstance(value, dict | list)).any(axis=None)
    assert list(frame["copied.float64.agreeing"].isna()) == [True, True, False]
    assert list(frame.fit_images.isna()) == [False, False, True]  # a copy was trained on nothing


def test_a_copy_starts_from_the_run_of_the_same_seed(config: RunConfig) -> None:
    copies = [twin_of(config, weights="copy", seed=seed) for seed in (0, 1)]
    for copied in copies:
        run_once(strided_source(copied))
        _, result, _ = run_once(copied)
        _, source, _ = run_once(strided_source(copied))
        assert result["test_correct"] == source["test_correct"]
        first, last = result["epochs"][0], source["epochs"][-1]
        assert first["validation_loss"] == pytest.approx(last["validation_loss"])
    states = [torch.load(run_folder(copied) / "weights.pt", weights_only=True) for copied in copies]
    assert not torch.equal(*[state["network.fc1.weight"] for state in states])
