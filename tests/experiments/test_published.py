"""Published results: a published run is done, files are whole and exact, and nothing is lost."""

import json
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from experiments import sweep
from experiments.runs import files, run
from experiments.runs.folder import run_folder
from experiments.runs.published import publish, published_result, read_published
from experiments.runs.results import arms, pack_bits
from experiments.runs.run import run_once
from experiments.settings.identity import LOOP
from experiments.settings.schema import RunConfig
from stridenet.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
IMAGES = 20
FILES = ("about.json", "correct.npz", "epochs.csv", "rho.csv", "runs.csv")


def result(name: str, right: int = 15, **changes: Any) -> dict[str, Any]:
    """Return the result of a run with floats of many digits."""
    seed = int(name[-1])
    generator = np.random.default_rng(seed)
    bits = torch.arange(IMAGES) < right
    losses = generator.random(8).tolist()
    config = {
        "data": {"train_size": None, "validation_size": 50},
        "recipe": {"steps": None},
        "model": {},
    }
    distance = {"conv1.weight": {"zeros": losses[0], "copies": losses[1], "norm": 3.0}}
    epochs = [
        {"epoch": 0.0, "training_loss": None, "validation_loss": 2.3, "validation_correct": 5},
        {"epoch": 1.0, "training_loss": losses[2], "validation_loss": losses[3],
         "validation_correct": 45, "distance": distance},
    ]  # fmt: skip
    return {
        "run": name,
        "loop": LOOP,
        "experiment": "12345e67",  # looks like a number
        "network": "unit_stride",
        "sharing": "free",
        "variant": "",
        "weights": "scratch",
        "seed": seed,
        "learning_rate": 0.1 + 0.2,
        "diverged": False,
        "test_correct": right,
        "test_images": IMAGES,
        "test_accuracy": right / IMAGES,
        "test_loss": losses[4],
        "test_bits": pack_bits(bits),
        "fit_loss": losses[5],
        "training_cpu_seconds": losses[6],
        "training_wall_seconds": losses[7],
        "jobs_at_once": 2,
        "threads": 1,
        "device": "cpu",
        "device_name": "Abacus 3000",
        "git_commit": "0123456",
        "date": "2020-01-02T03:04:05+00:00",
        "versions": {"torch": "9.9.9"},
        "epochs": epochs,
        "rho": [{"step": 0, "conv1.weight": losses[0] / 3}],
        "config": config,
        **changes,
    }


def diverged(name: str) -> dict[str, Any]:
    """A run whose loss is no number any more: it has no numbers in some places."""
    epochs = [
        {"epoch": 0.0, "training_loss": None, "validation_loss": 2.3, "validation_correct": 5},
        {"epoch": 1.0, "training_loss": None, "diverged": True},
    ]
    return result(name, right=2, diverged=True, epochs=epochs, test_loss=None, fit_loss=None)


ALL = [result("run-0"), diverged("run-1"), result("run-2", right=11)]


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FILES if (folder / name).exists()}


def test_published_files_hold_what_the_results_say_with_every_digit(tmp_path: Path) -> None:
    assert publish("mine", ALL, tmp_path) == 3
    found = read_published(tmp_path)
    for given, (_, row) in zip(ALL, found.runs.iterrows(), strict=True):
        for key in ("run", "loop", "experiment", "network", "variant", "seed", "learning_rate",
                    "diverged", "test_correct", "test_images", "training_cpu_seconds",
                    "training_wall_seconds", "jobs_at_once", "git_commit", "date"):  # fmt: skip
            assert row[key] == given[key], key
        for key in ("test_loss", "fit_loss"):
            assert row[key] == given[key] or (given[key] is None and pd.isna(row[key]))
    assert [*found.runs.validation_correct.fillna(-1)] == [45, -1, 45]
    of_one = found.epochs[found.epochs.run == "run-0"].iloc[1]
    assert of_one.training_loss == ALL[0]["epochs"][1]["training_loss"]
    assert of_one.zeros == ALL[0]["epochs"][1]["distance"]["conv1.weight"]["zeros"] / 3
    assert [*found.rho.rho] == [one["rho"][0]["conv1.weight"] for one in ALL]
    for one in ALL:
        assert found.right[one["run"]].tolist() == [k < one["test_correct"] for k in range(IMAGES)]
    assert [*arms(found.runs)] == ["unit_stride"] * 3
    about = json.loads((tmp_path / "about.json").read_text())
    assert (about["experiment"], about["command"]) == ("mine", "make evidence EXPERIMENT=mine")


def test_published_again_the_files_stay_as_they_are(tmp_path: Path) -> None:
    publish("mine", ALL, tmp_path)
    before = contents(tmp_path)
    assert set(before) == set(FILES)
    assert publish("mine", [{**one, "test_loss": 9.0} for one in ALL], tmp_path) == 3
    assert contents(tmp_path) == before


def test_the_order_of_publishing_does_not_matter(tmp_path: Path) -> None:
    orders = [[[one] for one in order] for order in permutations(ALL)]
    orders += [[ALL], [ALL[:2], ALL[2:]], [[ALL[2]], ALL[:2]]]
    found = set()
    for place, order in enumerate(orders):
        for together in order:
            publish("mine", together, tmp_path / str(place))
        files_of = contents(tmp_path / str(place))
        found.add(tuple(files_of[name] for name in FILES if name.endswith("csv")))
        with np.load(tmp_path / str(place) / "correct.npz") as stored:
            assert stored["runs"].tolist() == ["run-0", "run-1", "run-2"]
    assert len(found) == 1
    assert b".0," not in b"".join(
        line.split(b",", 2)[2] for line in found.pop()[0].splitlines()[1:]
    )


def test_what_was_begun_and_not_finished_leaves_no_row_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish("mine", ALL[:1], tmp_path)
    write = files.write

    def full(path: Path, content: bytes) -> None:
        if path.name == "runs.csv":
            raise OSError(28, "No space left on device", str(path))
        write(path, content)

    with monkeypatch.context() as patched:
        patched.setattr(files, "write", full)
        with pytest.raises(OSError, match="No space"):
            publish("mine", ALL[1:], tmp_path)
    assert [*read_published(tmp_path).runs.run] == ["run-0"]
    assert {*read_published(tmp_path).epochs.run} == {"run-0"}
    publish("mine", ALL[1:], tmp_path)
    publish("mine", ALL, tmp_path / "at once")
    assert contents(tmp_path) == contents(tmp_path / "at once")


def test_several_that_publish_at_once_lose_nothing(tmp_path: Path) -> None:
    many = [result(f"run-{k}") for k in range(8)]
    with ThreadPoolExecutor(8) as pool:
        counts = [*pool.map(lambda one: publish("mine", [one], tmp_path), many)]
    assert sorted(counts) == [*range(1, 9)]
    found = read_published(tmp_path)
    assert [*found.runs.run] == sorted(found.right) == [one["run"] for one in many]
    assert len(found.epochs) == 16


def test_an_empty_folder_has_nothing_published(tmp_path: Path) -> None:
    found = read_published(tmp_path)
    assert (len(found.runs), len(found.epochs), len(found.rho), found.right) == (0, 0, 0, {})


def cut(path: Path, at: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * at)])


def edit(path: Path, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    change(pd.read_csv(path)).to_csv(path, index=False)


DAMAGES: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "runs.csv is empty": ("runs.csv", lambda path: path.write_bytes(b"")),
    "runs.csv is binary": ("runs.csv", lambda path: path.write_bytes(b"\xff\xfe\x00")),
    "the header is cut off": ("runs.csv", lambda path: cut(path, 0.05)),
    "a row is cut off": ("runs.csv", lambda path: path.write_bytes(path.read_bytes()[:-40])),
    "no loop": ("runs.csv", lambda path: edit(path, lambda t: t.drop(columns="loop"))),
    "no images": ("runs.csv", lambda path: edit(path, lambda t: t.drop(columns="test_images"))),
    "no number": ("runs.csv", lambda path: edit(path, lambda t: t.assign(test_correct="x"))),
    "a run twice": ("runs.csv", lambda path: edit(path, lambda t: pd.concat([t, t.iloc[:1]]))),
    "epochs.csv is cut off": ("epochs.csv", lambda path: cut(path, 0.02)),
    "correct.npz is cut off": ("correct.npz", lambda path: cut(path, 0.7)),
    "correct.npz is empty": ("correct.npz", lambda path: path.write_bytes(b"")),
    "correct.npz is text": ("correct.npz", lambda path: path.write_text("bits")),
    "correct.npz is gone": ("correct.npz", lambda path: path.unlink()),
    "another sum": ("correct.npz", lambda path: edit(
        path.with_name("runs.csv"), lambda t: t.assign(test_correct=t.test_correct + 1))),
    "bits of other runs": ("correct.npz", lambda path: np.savez(
        path, runs=["other"], bits=np.zeros((1, 3), dtype=np.uint8))),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_damaged_is_named_in_one_line_with_the_cure(tmp_path: Path, damage: str) -> None:
    publish("mine", ALL, tmp_path)
    name, do = DAMAGES[damage]
    do(tmp_path / name)
    for attempt in (read_published, lambda folder: publish("mine", [result("run-5")], folder)):
        with pytest.raises(InputError, match="restore") as caught:
            attempt(tmp_path)
        assert str(tmp_path / name) in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_damaged_byte_of_the_bits_is_told_or_changes_nothing(tmp_path: Path) -> None:
    publish("mine", ALL, tmp_path)
    path, before = tmp_path / "correct.npz", read_published(tmp_path).right
    content, told = path.read_bytes(), []
    for place in range(0, len(content), 2):
        path.write_bytes(content[:place] + bytes([content[place] ^ 255]) + content[place + 1 :])
        try:
            after = read_published(tmp_path).right
        except InputError as error:
            told.append(str(error))
        else:
            assert {run: right.tolist() for run, right in after.items()} == {
                run: right.tolist() for run, right in before.items()
            }
    assert len(told) > len(content) // 4
    assert all(str(path) in one for one in told)


def test_rows_of_another_loop_are_an_error_that_names_both(tmp_path: Path) -> None:
    publish("mine", ALL, tmp_path)
    edit(tmp_path / "runs.csv", lambda table: table.assign(loop=LOOP - 1))
    expected = f"training loop {LOOP - 1}, and this is loop {LOOP}.*take another folder"
    with pytest.raises(InputError, match=expected) as caught:
        read_published(tmp_path)
    assert str(tmp_path / "runs.csv") in str(caught.value)


# Runs


@pytest.fixture
def config(config: RunConfig, tmp_path: Path) -> RunConfig:
    """A run of two steps on tiny data, whose result is to be published."""
    return replace(
        config,
        data=replace(config.data, validation_size=30),
        published=str(tmp_path / "mine"),
    )


def job(config: RunConfig) -> sweep.Job:
    folder = run_folder(config)
    return sweep.Job([], config, folder, published=published_result(config))


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the runs that are trained from now on."""
    names: list[str] = []
    execute = run._execute

    def counted(config: RunConfig, folder: Path, *arguments: Any) -> dict[str, Any]:
        names.append(folder.name)
        return execute(config, folder, *arguments)

    monkeypatch.setattr(run, "_execute", counted)
    return names


def test_a_published_run_is_done_wherever_the_work_goes_on(
    config: RunConfig, tmp_path: Path, trained: list[str]
) -> None:
    folder, first, new = run_once(config)
    assert new
    job(config).publish()
    elsewhere = replace(config, outputs=str(tmp_path / "elsewhere"))
    _, row, new = run_once(elsewhere)
    assert (new, trained) == (False, [folder.name])
    assert not Path(elsewhere.outputs).exists()
    assert row["test_accuracy"] == first["test_accuracy"]
    assert sweep.line(folder, row) == sweep.line(folder, first)
    assert job(elsewhere).result() == row
    before = contents(tmp_path / "mine")
    job(elsewhere).publish()
    assert contents(tmp_path / "mine") == before


def test_another_run_and_a_run_without_a_folder_of_published_ones_are_not_done(
    config: RunConfig, tmp_path: Path, trained: list[str]
) -> None:
    run_once(config)
    job(config).publish()
    elsewhere = replace(config, outputs=str(tmp_path / "elsewhere"))
    others = (replace(elsewhere, seed=1), replace(elsewhere, published=None))
    assert [published_result(other) for other in others] == [None, None]
    for other in others:
        assert run_once(other)[2]
    assert len(trained) == 3


def test_fine_tuning_from_a_published_run_trains_its_start_in_the_same_job(
    config: RunConfig, tmp_path: Path, trained: list[str]
) -> None:
    _, start, _ = run_once(config)
    job(config).publish()
    elsewhere = replace(config, outputs=str(tmp_path / "elsewhere"))
    twin = replace(elsewhere.model, eliminate_stride=True)
    tuned = replace(elsewhere, model=twin, weights="fine_tune")
    _, result, new = run_once(tuned)
    assert new
    assert trained == [start["run"], result["run"], start["run"]]  # the start within the second
    first, last = result["epochs"][0], start["epochs"][-1]
    assert first["validation_loss"] == pytest.approx(last["validation_loss"], rel=1e-5)


def test_a_run_as_it_is_trained_can_be_published(config: RunConfig, tmp_path: Path) -> None:
    for one in (config, replace(config, seed=1, recipe=replace(config.recipe, learning_rate=1e9))):
        run_once(one)
        job(one).publish()
    found = read_published(tmp_path / "mine")
    assert [*found.runs.validation_images] == [30, 30]
    assert {*found.runs.test_images} == {50}
    assert json.loads((tmp_path / "mine" / "about.json").read_text())["experiment"] == "mine"


# Sweeps


def test_what_cannot_be_published_is_told_at_the_end_and_the_others_are(
    config: RunConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    jobs = []
    for seed in (0, 1):
        one = replace(config, seed=seed)
        run_once(one)
        jobs.append(job(one))
    jobs[0].config.published = str(tmp_path / "damaged")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "runs.csv").write_text("")
    watch = sweep.Watch(jobs, [*jobs], 1)
    monkeypatch.setattr(sweep, "_watch", watch)
    watch.start()
    (told,) = sweep.missing()
    assert f"({jobs[0].folder.name}): done, but not published: {tmp_path}/damaged/runs.csv" in told
    assert [*read_published(tmp_path / "mine").runs.run] == [jobs[1].folder.name]
    assert capsys.readouterr().out.count("test accuracy") == 2


def test_a_run_that_another_sweep_published_meanwhile_is_not_missing(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = replace(config, outputs=str(tmp_path / "elsewhere"))
    waiting = job(elsewhere)
    watch = sweep.Watch([waiting], [waiting], 1)
    monkeypatch.setattr(sweep, "_watch", watch)
    watch.start()
    run_once(config)
    job(config).publish()
    assert sweep.missing() == []


TINY = ("recipe=smoke", "recipe.steps=5", "data.train_size=1000", "data.image_size=[16,16]",
        "model.layers.conv3.kernel=3", "arm=strided,free", "seed=0,1")  # fmt: skip


def swept(outputs: Path, published: Path, mnist: Path) -> str:
    """A sweep as a user starts it; returns what it printed."""
    outputs.mkdir()
    (outputs / "data").symlink_to(mnist, target_is_directory=True)
    command = [sys.executable, "-m", "experiments.train", "-m", *TINY]
    done = subprocess.run(
        [*command, f"outputs={outputs}", f"published={published}"],
        cwd=ROOT, capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.slow
def test_a_sweep_publishes_as_it_goes_and_another_without_its_outputs_does_nothing(
    tmp_path: Path, mnist_folder: Path
) -> None:
    published = tmp_path / "mine"
    assert "4 of 4 runs to do" in swept(tmp_path / "one", published, mnist_folder)
    before = contents(published)
    names = {path.parent.name for path in (tmp_path / "one").glob("runs/*/result.json")}
    assert {*read_published(published).runs.run} == names
    assert len(names) == 4
    said = swept(tmp_path / "other", published, mnist_folder)
    assert said == "4 of 4 runs are done\n"
    assert not (tmp_path / "other" / "runs").exists()
    assert contents(published) == before
