"""The calibration table holds the strided network's runs of the seeds kept for it, epoch by epoch."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser

from experiments.command import CONF
from experiments.settings.identity import experiment_identity
from experiments.settings.schema import Config, Data, Experiment, Layer, Model, Recipe
from experiments.studies.calibration import (
    SEEDS,
    calibration,
    calibration_for_readers,
    write_calibration,
)
from stridenet.errors import InputError

T_4 = 2.776445  # 97.5 % quantile of Student's t, 4 degrees of freedom
SPREAD = (-0.2, -0.1, 0.0, 0.1, 0.2)  # of deviation 0.158114, and of an interval ± 0.196324
Composed = Callable[..., Any]


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    layers = {"fc1": Layer("fc", 10, [1, 1], [1, 1], [1, 1], [0, 0])}
    return Experiment(
        Model(activation="relu", layers=layers),
        Data("mnist", [28, 28]),
        Recipe("calibration", epochs=1),
        str(tmp_path / "outputs"),
    )


def finished(
    experiment: Experiment,
    seed: int,
    percents: Sequence[float],
    seconds: float = 100.0,
    network: str = "strided",
    weights: str = "scratch",
    **recipe: Any,
) -> Path:
    """The file of a finished run with an accuracy after each epoch, under another recipe."""
    changed = replace(experiment.recipe, **{"epochs": len(percents), **recipe})
    of_run = replace(experiment, recipe=changed)
    runs = Path(experiment.outputs) / "runs"
    folder = runs / f"run-{len([*runs.glob('*')]):03}"
    folder.mkdir(parents=True)
    rows = [{"epoch": float(k), "test_accuracy": p / 100} for k, p in enumerate([9.8, *percents])]
    result = {
        "run": folder.name,
        "experiment": experiment_identity(of_run),
        "network": network,
        "weights": weights,
        "seed": seed,
        "training_cpu_seconds": seconds,
        "epochs": rows,
        "config": asdict(of_run),
    }
    (folder / "result.json").write_text(json.dumps(result))
    return folder / "result.json"


def five(experiment: Experiment, mean: float, **recipe: Any) -> None:
    for k, deviation in enumerate(SPREAD):
        finished(experiment, 1000 + k, [mean + deviation], **recipe)


# Rows


def test_every_epoch_is_a_recipe_of_its_own_the_nearest_to_the_papers_first(
    experiment: Experiment,
) -> None:
    finished(experiment, 1000, [97.0, 98.1, 98.5, 98.0])
    finished(experiment, 1001, [97.2, 98.3, 98.9, 98.1])
    table = calibration(experiment)
    assert table.epoch.tolist() == [2, 4, 3, 1]  # 98.2, 98.05, 98.7, 97.1; 98.17 is the paper's
    assert table.accuracy_percent_mean.tolist() == pytest.approx([98.2, 98.05, 98.7, 97.1])
    assert table.n.tolist() == [2, 2, 2, 2]
    assert table.index.tolist() == [0, 1, 2, 3]


def test_what_a_network_scores_before_training_is_no_recipe(experiment: Experiment) -> None:
    finished(experiment, 1000, [98.0])
    assert calibration(experiment).epoch.tolist() == [1]


def test_seconds_of_a_run_are_shared_out_by_epoch(experiment: Experiment) -> None:
    finished(experiment, 1000, [97.0, 98.1, 98.5, 98.0], seconds=100)
    finished(experiment, 1001, [97.2, 98.3, 98.9, 98.1], seconds=140)
    seconds = calibration(experiment).set_index("epoch").training_cpu_seconds_mean
    assert seconds.to_dict() == pytest.approx({1: 30, 2: 60, 3: 90, 4: 120})


def test_recipes_of_another_length_share_out_their_own_seconds(experiment: Experiment) -> None:
    finished(experiment, 1000, [98.0, 98.2, 98.3], seconds=90, learning_rate=0.01)
    finished(experiment, 1000, [98.0, 98.5], seconds=20, learning_rate=0.1)
    table = calibration(experiment).set_index(["learning_rate", "epoch"])
    assert table.training_cpu_seconds_mean.to_dict() == pytest.approx(
        {(0.01, 1): 30, (0.01, 2): 60, (0.01, 3): 90, (0.1, 1): 10, (0.1, 2): 20}
    )


def test_the_part_of_an_epoch_that_steps_make_is_a_row(experiment: Experiment) -> None:
    path = finished(experiment, 1000, [97.0, 98.0], seconds=30, epochs=None, steps=90)
    result = json.loads(path.read_text())
    result["epochs"][-1]["epoch"] = 1.5
    path.write_text(json.dumps(result))
    seconds = calibration(experiment).set_index("epoch").training_cpu_seconds_mean
    assert seconds.to_dict() == pytest.approx({1: 20, 1.5: 30})


# Runs that count


@pytest.mark.parametrize(
    "foreign",
    [
        {"seed": 0},
        {"seed": 999},
        {"seed": 1010},
        {"network": "unit_stride"},
        {"network": "unit_stride", "weights": "copy"},
        {"weights": "file"},
        {"weights": "fine_tune"},
    ],
)
def test_only_strided_runs_from_scratch_of_the_calibrations_seeds_count(
    experiment: Experiment, foreign: dict[str, Any]
) -> None:
    finished(experiment, 1000, [98.0])
    finished(experiment, 1009, [98.2])
    finished(experiment, **{"seed": 1005, "percents": [50.0], **foreign})
    (row,) = calibration(experiment).itertuples()
    assert (row.n, row.accuracy_percent_mean) == (2, pytest.approx(98.1))


@pytest.mark.parametrize(
    "other",
    [
        {"data": Data("fashion_mnist", [28, 28])},
        {"data": Data("mnist", [28, 28], train_size=1000)},
        {"model": Model(activation="tanh", layers={"fc1": Layer("fc", 10)})},
    ],
)
def test_runs_of_another_network_or_other_data_do_not_count(
    experiment: Experiment, other: dict[str, Any]
) -> None:
    finished(experiment, 1000, [98.0])
    finished(replace(experiment, **other), 1001, [50.0])
    (row,) = calibration(experiment).itertuples()
    assert (row.n, row.accuracy_percent_mean) == (1, pytest.approx(98.0))


def test_a_run_with_settings_that_no_longer_exist_does_not_count(experiment: Experiment) -> None:
    finished(experiment, 1000, [98.0])
    path = finished(experiment, 1001, [50.0])
    result = json.loads(path.read_text())
    result["config"]["recipe"]["warm_up"] = 1
    path.write_text(json.dumps(result))
    (row,) = calibration(experiment).itertuples()
    assert (row.n, row.accuracy_percent_mean) == (1, pytest.approx(98.0))


@pytest.mark.parametrize("seeds", [[], [999, 1010]])
def test_without_calibration_runs_the_error_says_how_to_get_them(
    experiment: Experiment, seeds: list[int]
) -> None:
    for seed in seeds:
        finished(experiment, seed, [98.0])
    with pytest.raises(InputError) as caught:
        calibration(experiment)
    assert "experiments.train experiment=calibrate" in str(caught.value)
    assert experiment.outputs in str(caught.value)
    assert "\n" not in str(caught.value)


# Columns


def test_only_settings_that_differ_are_columns(experiment: Experiment) -> None:
    finished(experiment, 1000, [98.0], learning_rate=0.01)
    assert calibration(experiment).columns[0] == "epoch"
    finished(experiment, 1000, [98.1], learning_rate=0.1)
    finished(experiment, 1001, [98.3], learning_rate=0.1)
    table = calibration(experiment)
    assert table.columns[:2].tolist() == ["learning_rate", "epoch"]
    assert table[["learning_rate", "epoch", "n"]].to_numpy().tolist() == [[0.1, 1, 2], [0.01, 1, 1]]
    finished(experiment, 1000, [99.0], learning_rate=0.1, pixels="scaled")
    table = calibration(experiment)
    assert table.columns[:3].tolist() == ["learning_rate", "pixels", "epoch"]
    assert table.n.tolist() == [2, 1, 1]
    assert table.pixels.tolist() == ["standardised", "standardised", "scaled"]


def test_name_note_and_length_of_a_recipe_are_no_setting(experiment: Experiment) -> None:
    finished(experiment, 1000, [98.0, 98.2], name="one", note="The first.")
    finished(experiment, 1001, [98.4], name="other")
    table = calibration(experiment).set_index("epoch")
    assert table.n.to_dict() == {1: 2, 2: 1}
    assert not {"name", "note"} & {*table.columns}


# Intervals


def test_the_interval_is_the_textbooks(experiment: Experiment) -> None:
    five(experiment, 98.3)
    (row,) = calibration(experiment).itertuples()
    assert (row.n, row.accuracy_percent_mean) == (5, pytest.approx(98.3))
    assert row.accuracy_percent_std == pytest.approx((0.1 / 4) ** 0.5)
    half = T_4 * (0.1 / 4 / 5) ** 0.5
    assert (row.low, row.high) == pytest.approx((98.3 - half, 98.3 + half), abs=1e-6)


@pytest.mark.parametrize(
    ("mean", "matches"),
    # 98.17 and 0.196324 on either side
    [(98.36, True), (98.37, False), (97.98, True), (97.97, False), (98.17, True), (98.23, True)],
)
def test_a_recipe_matches_if_the_papers_accuracy_lies_in_its_interval(
    experiment: Experiment, mean: float, matches: bool
) -> None:
    five(experiment, mean)
    table = calibration(experiment)
    assert table.matches.tolist() == [matches]
    assert calibration_for_readers(table).matches.tolist() == ["*" if matches else ""]


def test_one_seed_has_no_interval_and_does_not_match(experiment: Experiment) -> None:
    finished(experiment, 1000, [98.17])
    (row,) = calibration(experiment).itertuples()
    assert (row.n, row.matches) == (1, False)
    assert pd.isna([row.low, row.high, row.accuracy_percent_std]).all()


# As people read it


def test_the_written_table_has_the_numbers_of_the_runs(
    experiment: Experiment, composed: Composed
) -> None:
    five(experiment, 98.2, learning_rate=0.03)
    five(experiment, 97.0, learning_rate=0.01)
    report = composed(command="report")
    report.model, report.outputs = experiment.model, experiment.outputs
    (printed,) = write_calibration(report)
    folder = Path(experiment.outputs) / "report"
    assert {path.name for path in folder.iterdir()} == {
        f"calibration.{suffix}" for suffix in ("csv", "md", "tex")
    }
    read = pd.read_csv(folder / "calibration.csv")
    assert read.learning_rate.tolist() == [0.03, 0.01]
    assert read.matches.tolist() == [True, False]
    assert read.accuracy_percent_mean.tolist() == pytest.approx([98.2, 97.0])
    text = (folder / "calibration.md").read_text()
    for told in ("98.20 ± 0.16", "98.00–98.40", "96.80–97.20", "98.17", "1000", "1009"):
        assert told in text
        assert told in printed


# The sweep


def swept(overrides: Sequence[str] = ()) -> dict[str, list[str]]:
    """What experiment=calibrate sweeps, setting by setting, as Hydra reads it."""
    with initialize_config_dir(CONF, version_base="1.3"):
        settings = compose(
            "train", ["experiment=calibrate", *overrides], return_hydra_config=True
        ).hydra
    assert settings.mode.name == "MULTIRUN"
    parser = OverridesParser.create()
    parsed = [parser.parse_override(f"{k}={v}") for k, v in settings.sweeper.params.items()]
    return {each.key_or_group: [*each.sweep_string_iterator()] for each in parsed}


def test_the_calibrations_sweep_is_of_its_seeds_and_of_nothing_but_recipes() -> None:
    jobs = swept()
    assert jobs.pop("seed") == [str(seed) for seed in range(1000, 1010)]
    assert [*SEEDS] == [*range(1000, 1010)]
    assert all(key.startswith("recipe.") for key in jobs)
    assert all(len(set(values)) > 1 for values in jobs.values())


def test_a_run_of_the_calibrations_sweep_is_found_by_the_table(
    composed: Composed, tmp_path: Path
) -> None:
    rates = swept()["recipe.learning_rate"]
    report = composed(command="report")
    report.outputs = str(tmp_path)
    for rate in rates:
        run: Config = composed("experiment=calibrate", "seed=1009", f"recipe.learning_rate={rate}")
        assert (run.model.name, run.weights) == ("strided", "scratch")
        assert run.recipe.epochs == 4
        run.outputs = str(tmp_path)
        finished(run, run.seed, [98.0] * 4)
    table = calibration(report)
    assert sorted(set(table.learning_rate)) == sorted(map(float, rates))
    assert sorted(table.epoch) == sorted([1, 2, 3, 4] * len(rates))


def test_one_seed_reads_as_a_blank_interval(experiment: Experiment) -> None:
    finished(experiment, 1000, [98.17])
    readable = calibration_for_readers(calibration(experiment))
    assert list(readable["95 % interval"]) == [""]


def test_a_seed_run_to_two_lengths_counts_once_in_what_they_share(experiment: Experiment) -> None:
    finished(experiment, 1000, [98.0, 98.2, 98.4], seconds=90, epochs=3)
    finished(experiment, 1000, [98.0, 98.2, 98.4, 98.6], seconds=120, epochs=4)
    finished(experiment, 1001, [98.2, 98.4, 98.6, 98.8], seconds=120, epochs=4)
    row = calibration(experiment).set_index("epoch").loc[1]
    assert (row.n, row.accuracy_percent_mean) == (2, pytest.approx(98.1))
    assert row.training_cpu_seconds_mean == pytest.approx(30)


def test_untrained_runs_alone_are_no_calibration(experiment: Experiment) -> None:
    finished(experiment, 1000, [], seconds=None, epochs=0)
    with pytest.raises(InputError, match="experiment=calibrate"):
        calibration(experiment)
