"""Which runs a report takes, and the row that each becomes."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from experiments.runs.files import write_json
from experiments.runs.folder import run_folder
from experiments.runs.machine import PACKAGES
from experiments.runs.results import finished_runs, tidy
from experiments.runs.run import run_once
from experiments.settings.identity import LOOP, run_name, strided_source
from experiments.settings.schema import ReportConfig, RunConfig
from experiments.studies.report import write_report
from stridenet.errors import InputError
from tests.experiments.runs import file_names, report_of, twin_of

# Many runs


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
    with pytest.raises(InputError, match=r"data=mnist and recipe=tiny.*none at all"):
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


@pytest.mark.slow
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
