"""The evidence command, on published runs whose numbers were chosen: progress, tables, verdicts."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from experiments.runs.published import Published, publish
from experiments.runs.results import pack_bits
from experiments.settings.identity import LOOP
from experiments.settings.schema import EvidenceConfig
from experiments.studies import evidence
from experiments.studies.claims import (
    FREE,
    SIZES,
    STRIDED,
)
from experiments.studies.evidence import EXPERIMENTS, progress_table, write_evidence


@pytest.fixture(autouse=True)
def no_collection(monkeypatch: pytest.MonkeyPatch) -> None:
    """statsmodels collects garbage each time, which is most of these tests' seconds."""
    monkeypatch.setattr("gc.collect", lambda *_: 0)


MASKED = "unit_stride masked"


# The command


def finished(arm: str, seed: int, right: int, train_size: int | None = None) -> dict[str, Any]:
    """The result of a run, as publish takes it."""
    import torch

    network, _, variant = arm.partition(" ")
    recipe = {"steps": None}
    data = {"train_size": train_size, "validation_size": 50}
    return {
        "run": f"{arm.replace(' ', '-')}-s{seed}-{train_size}",
        "loop": LOOP,
        "experiment": "0a",
        "network": network,
        "sharing": "free",
        "variant": variant,
        "weights": "scratch",
        "seed": seed,
        "learning_rate": 0.02,
        "diverged": False,
        "test_correct": right,
        "test_images": 100,
        "test_loss": 0.1,
        "test_bits": pack_bits(torch.arange(100) < right),
        "fit_loss": 0.1 + seed / 100,
        "training_cpu_seconds": 1.0,
        "training_wall_seconds": 1.0,
        "jobs_at_once": 1,
        "threads": 1,
        "device": "cpu",
        "device_name": "Abacus 3000",
        "git_commit": "1234",
        "date": "2020-01-02T03:04:05+00:00",
        "versions": {"torch": "9.9"},
        "epochs": [{"epoch": 1.0, "training_loss": 0.5, "validation_correct": 40 + seed}],
        "rho": [],
        "config": {"data": data, "recipe": recipe, "model": {}},
    }


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the figures, which are not drawn."""
    names: list[str] = []
    monkeypatch.setattr(evidence, "save_figure", lambda figure, path: names.append(path.name))
    return names


def written(
    folder: Path, wanted: Mapping[str, list[str] | None], *results: tuple[str, dict[str, Any]]
) -> str:
    for name, result in results:
        publish(name, [result], folder / name)
    everything: dict[str, list[str] | None] = {key: ["a run"] for key in EXPERIMENTS}
    config = EvidenceConfig(str(folder), str(folder / "outputs"))
    return "\n\n".join(write_evidence(config, {**everything, **wanted}))


PAIRS = [("table1", finished(arm, seed, 90 - 10 * (arm == FREE) + seed * (arm == FREE)))
         for arm in (STRIDED, FREE) for seed in range(3)]  # fmt: skip


def test_the_progress_counts_the_runs_that_belong_to_an_experiment() -> None:
    names = [f"run-{number}" for number in range(8)]
    eight = Published(pd.DataFrame({"run": names}), pd.DataFrame(), pd.DataFrame())
    found = {"table1": eight, "swapped": eight}
    wanted = {"rates": ["x", "y"], "table1": names, "swapped": [*names[1:], "other"], "adam": None}
    table = progress_table(found, wanted).set_index("experiment")
    assert table.published.to_dict() == {"rates": 0, "table1": 8, "swapped": 7, "adam": 0}
    assert table.runs.fillna(-1).to_dict() == {"rates": 2, "table1": 8, "swapped": 8, "adam": -1}
    assert [*table.state] == [
        "incomplete",
        "complete",
        "incomplete",
        "its settings are not chosen yet",
    ]


def test_the_evidence_of_a_complete_experiment_has_its_verdict_in_80_columns(
    tmp_path: Path, drawn: list[str]
) -> None:
    names = [result["run"] for _, result in PAIRS]
    text = written(tmp_path, {"table1": names}, *PAIRS)
    assert max(map(len, text.splitlines()[:-1])) <= 80  # the last one has a folder's name
    said = " ".join(text.split())
    assert "more accurate: contradicted; by Wilcoxon's test: undecided. test accuracy, free" in said
    assert "-9.000 [-11.484, -6.516], n = 3, Holm's p = 0.029" in said  # 7 times 0.0041
    assert "C2: It learns more slowly: none: 1 run of experiment=sharing is missing." in said
    report = tmp_path / "outputs" / "report"
    for name in ("evidence", "verdicts", "accuracy", "differences"):
        assert {path.suffix for path in report.glob(f"{name}.*")} == {".csv", ".md", ".tex"}
    assert pd.read_csv(report / "verdicts.csv").n.tolist() == [3, 0, 3, 0, 0, 0, 0]
    assert "Within (TOST) ±0.06: no." in said
    assert drawn == ["differences", "verdicts"]


def test_runs_of_other_settings_in_the_folder_are_no_part_of_the_evidence(
    tmp_path: Path, drawn: list[str]
) -> None:
    names = [result["run"] for _, result in PAIRS]
    stranger = {**finished(FREE, 0, 1), "run": "of-an-earlier-rate"}
    text = written(tmp_path, {"table1": names}, *PAIRS, ("table1", stranger))
    assert "-9.000 [-11.484, -6.516], n = 3" in " ".join(text.split())


def test_one_run_that_is_missing_takes_the_verdict_and_the_numbers_away(
    tmp_path: Path, drawn: list[str]
) -> None:
    names = [result["run"] for _, result in PAIRS]
    text = " ".join(written(tmp_path, {"table1": [*names, "one more"]}, *PAIRS).split())
    assert "C1: The unit-stride network is more accurate: none: 1 run of experiment=table1" in text
    assert "-9.000" not in text
    assert "undecided" not in text


@pytest.mark.parametrize("complete", [True, False])
def test_sharing_and_few_images_have_their_tables_and_figures_once_they_are_complete(
    tmp_path: Path, drawn: list[str], composed: Callable[..., Any], complete: bool
) -> None:
    model = asdict(composed("recipe=sgd").model)
    runs = []
    for arm in (STRIDED, FREE, MASKED):
        for seed in range(3):
            for weights in ("scratch", "fine_tune"):
                one = finished(arm, seed, 90 + seed)
                one["config"] |= {"model": model, "data": {"name": "mnist", "validation_size": 50}}
                one["config"]["data"]["train_size"] = None
                one |= {"run": f"{one['run']}-{weights}", "weights": weights}
                one["rho"] = [{"step": 0, "conv1.weight": 0.5}] if arm != STRIDED else []
                runs.append(("sharing", one))
            runs += [("train_size", finished(arm, seed, 90 + seed, size)) for size in SIZES]
    wanted: dict[str, list[str] | None] = {
        name: [one["run"] for of, one in runs if of == name] + ["one more"] * (not complete)
        for name in ("sharing", "train_size")
    }
    report = tmp_path / "outputs" / "report"
    report.mkdir(parents=True)
    earlier = [report / name for name in ("sharing.md", "rho.png", "differences.csv")]
    for path in earlier:
        path.write_text("of an earlier state")
    text = written(tmp_path, wanted, *runs)
    assert max(map(len, text.splitlines()[:-1])) <= 80
    assert [path for path in earlier if path.exists()] == earlier[: int(complete)]
    for name in ("sharing", "sharing_steps", "rho", "train_size", "train_size_differences"):
        suffixes = {".csv", ".md", ".tex"} if complete else set()
        assert {path.suffix for path in report.glob(f"{name}.*")} == suffixes
    figures = ["sharing", "rho", "rho_fine_tune", "train_size"]
    assert drawn == [*(figures if complete else []), "verdicts"]


@pytest.mark.parametrize("complete", [True, False])
def test_a_search_chooses_only_once_it_is_complete(
    tmp_path: Path, drawn: list[str], complete: bool
) -> None:
    runs = [("rates", {**finished(STRIDED, seed, 90), "run": f"s{seed}-{rate}", "learning_rate": rate})
            for seed in range(3) for rate in (0.01, 0.02)]  # fmt: skip
    names = [result["run"] for _, result in runs]
    text = written(tmp_path, {"rates": names if complete else [*names, "one more"]}, *runs)
    table = pd.read_csv(tmp_path / "outputs" / "report" / "rates.csv")
    assert table.chosen.tolist() == [complete, False]
    about = (tmp_path / "outputs" / "report" / "rates.md").read_text()
    for said in (about, " ".join(text.split())):
        assert ("0.005 is tried for every network" in said) == complete
        assert ("nothing is chosen yet" in said) != complete
    assert max(map(len, text.splitlines()[:-1])) <= 80  # the last one has a folder's name
    assert drawn == ["rates", "verdicts"]


def test_a_search_over_sizes_has_a_figure_for_each(tmp_path: Path, drawn: list[str]) -> None:
    runs = [("train_size_rates", finished(STRIDED, 0, 90, size)) for size in (300, 1000)]
    written(tmp_path, {}, *runs)
    assert drawn == ["verdicts"]
    names = [result["run"] for _, result in runs]
    written(tmp_path, {"train_size_rates": names})
    assert drawn[1:] == ["train_size_rates_300", "train_size_rates_1000", "verdicts"]
