"""The report's files: the comparison, published results beside ours, and what was timed."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from matplotlib.figure import Figure

from experiments.runs.published import publish
from experiments.runs.results import finished_runs
from experiments.settings.identity import experiment_identity, model_identity
from experiments.settings.schema import (
    DataConfig,
    LayerConfig,
    ModelConfig,
    RecipeConfig,
    ReportConfig,
)
from experiments.studies import report
from experiments.studies.report import write_report
from stridenet.errors import InputError
from tests.experiments.reported import Change, bits_of, finished, result_of

T_4 = 2.776445  # 97.5 % quantile of Student's t, 4 degrees of freedom
STRIDED = (98.0, 98.1, 98.2, 98.3, 98.9)
TWIN = (98.1, 98.5, 98.5, 98.8, 99.1)  # 0.1, 0.4, 0.3, 0.5 and 0.2 points more
SUFFIXES = ("csv", "md", "tex")


@pytest.fixture(autouse=True)
def no_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures have tests of their own, and take long."""
    monkeypatch.setattr(report, "save_figure", lambda figure, path: None)
    for name in ("accuracy_by_epoch", "accuracy_of_seeds", "feature_maps", "training_time"):
        monkeypatch.setattr(report, name, lambda *_: Figure())


@pytest.fixture
def config(tmp_path: Path) -> ReportConfig:
    layers = {
        "conv1": LayerConfig("conv", 4, [3, 3], [1, 1], [1, 1], [0, 0]),
        "conv2": LayerConfig("conv", 6, [2, 2], [2, 2], [1, 1], [0, 0]),
        "fc1": LayerConfig("fc", 10, [1, 1], [1, 1], [1, 1], [0, 0]),
    }
    return ReportConfig(
        ModelConfig(activation="relu", layers=layers),
        DataConfig("mnist", [10, 10]),
        RecipeConfig("tiny", steps=2),
        str(tmp_path / "outputs"),
    )


def five_pairs(config: ReportConfig, bits: bool = False, times: int = 1) -> None:
    for seed, (strided, twin) in enumerate(zip(STRIDED * times, TWIN * times, strict=True)):
        finished(config, "strided", seed, strided, bits)
        finished(config, "unit_stride", seed, twin, bits)


def in_report(config: ReportConfig, name: str) -> Path:
    return Path(config.outputs, "report", name)


def text_of(config: ReportConfig, name: str) -> str:
    return in_report(config, name).read_text()


def other_recipe(config: ReportConfig) -> ReportConfig:
    return replace(config, recipe=replace(config.recipe, name="other", learning_rate=0.1))


def other_model(config: ReportConfig) -> ReportConfig:
    return replace(config, model=replace(config.model, activation="tanh"))


def other_data(config: ReportConfig) -> ReportConfig:
    return replace(config, data=replace(config.data, name="fashion_mnist"))


def other_size(config: ReportConfig) -> ReportConfig:
    return replace(config, data=replace(config.data, image_size=[12, 12]))


# The comparison


def without_bits(config: ReportConfig) -> list[dict[str, Any]]:
    """The finished runs as they are where only tables are left of them."""
    results = finished_runs(config)
    return [{key: one[key] for key in one if key != "test_bits"} for one in results]


def test_the_comparison_is_written_with_its_numbers_and_no_verdict(
    config: ReportConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    five_pairs(config)
    monkeypatch.setattr(report, "finished_runs", without_bits)
    for seed in range(5):  # of another experiment, which says the contrary
        finished(other_recipe(config), "strided", seed, 99.0 + seed / 10)
        finished(other_recipe(config), "unit_stride", seed, 50.0)
    printed = "\n".join(write_report(config))
    (row,) = pd.read_csv(in_report(config, "comparison.csv")).itertuples()
    assert row.n == 5
    assert row.mean == pytest.approx(0.3)
    half = T_4 * (0.1 / 4 / 5) ** 0.5
    assert (row.low, row.high) == pytest.approx((0.3 - half, 0.3 + half), abs=1e-6)
    assert pd.isna([row.new_low, row.new_high]).all()  # which images are right is not known here
    for text in (printed, text_of(config, "comparison.md"), text_of(config, "comparison.tex")):
        words = " ".join(text.split())
        told = ["+0.300 points on these test images", "+0.104 to +0.496", "make evidence"]
        assert [part for part in told if part not in words] == []
        for verdict in ("supported", "contradicted", "undecided"):
            assert verdict not in words


def test_five_pairs_are_too_few_for_an_interval_on_new_images(config: ReportConfig) -> None:
    five_pairs(config, bits=True)
    assert "needs 10 pairs" in "\n".join(write_report(config))


def test_where_bits_are_the_report_has_an_interval_on_new_images(config: ReportConfig) -> None:
    five_pairs(config, bits=True, times=2)
    printed = "\n".join(write_report(config))
    (row,) = pd.read_csv(in_report(config, "comparison.csv")).itertuples()
    assert row.new_low < row.low < 0.3 < row.high < row.new_high
    shown = f"{row.new_low:+.3f} to {row.new_high:+.3f}"
    assert shown in printed
    assert shown in text_of(config, "comparison.md")
    assert "test_bits" not in pd.read_csv(in_report(config, "runs.csv"))


@pytest.mark.parametrize("networks", [["strided"], ["strided", "unit_stride"]])
def test_a_report_of_one_seed_says_why_it_cannot_compare(
    config: ReportConfig, networks: list[str]
) -> None:
    for network in networks:
        finished(config, network, 0, 98.0)
    printed = "\n".join(write_report(config))
    (row,) = pd.read_csv(in_report(config, "comparison.csv")).to_dict("records")
    assert row["n"] == len(networks) - 1
    assert pd.isna([row["mean"], row["low"], row["high"], row["seeds_needed"]]).all()
    few = {0: "0 pairs are", 1: "one pair is"}[row["n"]]
    assert f"{few} too few to judge by" in " ".join(printed.split())
    for suffix in ("md", "tex"):
        text = text_of(config, f"comparison.{suffix}")
        assert "too few" in text
        assert "nan" not in text.lower()
        assert "None" not in text


@pytest.mark.parametrize(("seconds", "is_busy"), [(10.0, False), (20.0, True)])
def test_a_busy_machine_is_told_in_the_table_and_in_print(
    config: ReportConfig, seconds: float, is_busy: bool
) -> None:
    finished(config, "strided", 0, 98.0, seconds=seconds)
    printed, *_ = write_report(config)
    sentence = "The machine was busy: wall seconds are up to 2.2 times CPU seconds"
    for text in (printed, text_of(config, "table1.md"), text_of(config, "table1.tex")):
        assert (sentence in " ".join(text.split())) == is_busy
    assert "CPU s" in printed
    assert max(map(len, printed.splitlines())) <= 80
    (strided, _) = pd.read_csv(in_report(config, "table1.csv")).itertuples()
    assert strided.training_cpu_seconds_mean == 9


@pytest.mark.parametrize(
    ("jobs", "told", "in_csv"),
    [
        ([2, 2], "2 job(s) at once", ["2", "2"]),
        ([None, None], "an unknown number of job(s) at once", ["", ""]),
        ([2, None], "2 / an unknown number of job(s) at once", ["2", ""]),
    ],
)
def test_an_unknown_number_of_jobs_at_once_is_blank_and_told(
    config: ReportConfig, jobs: list[int | None], told: str, in_csv: list[str]
) -> None:
    for seed, at_once in enumerate(jobs):
        finished(config, "strided", seed, 98.0, jobs_at_once=at_once)
    *_, about, _ = write_report(config)
    assert f"1 thread(s), {told}, torch" in " ".join(about.split())
    table = pd.read_csv(in_report(config, "runs.csv"), dtype=str, keep_default_na=False)
    assert list(table.jobs_at_once) == in_csv
    assert json.loads(text_of(config, "about.json"))["jobs_at_once"] == list(dict.fromkeys(jobs))


# Published results


def published(
    config: ReportConfig, folder: Path, *rows: tuple[str, str, int, float, float]
) -> ReportConfig:
    """The report's settings with a reference that holds these runs of the experiment."""
    results = [result_of(config, *row[:3], 100 * row[3], row[4]) for row in rows]
    for result in results:
        result |= {**bits_of(result), "jobs_at_once": 7}
    name = config.recipe.name + config.data.name
    publish(name, results, folder / name)
    return replace(config, reference=str(folder))


def reference_columns(config: ReportConfig) -> list[str]:
    table = pd.read_csv(in_report(config, "table1.csv"))
    return [column for column in table if column.startswith("reference_")]


def test_published_results_of_the_experiment_stand_beside_ours(
    config: ReportConfig, tmp_path: Path
) -> None:
    finished(config, "strided", 0, 98.5)
    finished(config, "unit_stride", 0, 97.5)
    published(other_recipe(config), tmp_path / "published", ("strided", "scratch", 0, 0.5, 1.0))
    reference = published(
        config,
        tmp_path / "published",
        ("strided", "scratch", 0, 0.96, 10.0),
        ("strided", "scratch", 1, 0.98, 14.0),
        ("strided", "scratch", 2, 0.97, 12.0),
        ("unit_stride", "scratch", 0, 0.94, 30.0),
        ("unit_stride", "copy", 0, 0.10, 99.0),
    )
    write_report(reference)
    table = pd.read_csv(in_report(config, "table1.csv")).set_index("network")
    strided, twin = table.loc["strided"], table.loc["unit_stride"]
    assert (strided.reference_n, twin.reference_n) == (3, 1)
    assert strided.reference_accuracy_percent_mean == pytest.approx(97)
    assert strided.reference_accuracy_percent_std == pytest.approx(1)
    assert strided.reference_training_seconds_mean == pytest.approx(12)
    assert strided.reference_training_seconds_std == pytest.approx(2)
    assert twin.reference_accuracy_percent_mean == pytest.approx(94)
    assert twin.reference_training_seconds_mean == pytest.approx(30)
    assert pd.isna(twin.reference_accuracy_percent_std)
    assert table.accuracy_percent_mean.tolist() == pytest.approx([98.5, 97.5])
    lines = text_of(config, "table1.md").splitlines()
    heading, _, *rows = [[cell.strip() for cell in line.split("|")] for line in lines[:4]]
    places = [place for place, name in enumerate(heading) if "reference" in name]
    assert [[row[place] for place in places] for row in rows] == [
        ["97.00 ± 1.00", "12.0 ± 2.0"],
        ["94.00", "30.0"],
    ]


def test_published_runs_are_not_runs_of_ours(config: ReportConfig, tmp_path: Path) -> None:
    five_pairs(config)
    rows = [("strided", "scratch", seed, 0.9, 10.0) for seed in range(9)]
    write_report(published(config, tmp_path / "published", *rows))
    table = pd.read_csv(in_report(config, "table1.csv"))
    assert table.n.tolist() == [5, 5]
    assert len(pd.read_csv(in_report(config, "runs.csv"))) == 10
    assert pd.read_csv(in_report(config, "comparison.csv")).n.tolist() == [5]


@pytest.mark.parametrize("change", [other_recipe, other_model, other_data])
def test_published_results_of_another_experiment_are_not_shown(
    config: ReportConfig, tmp_path: Path, change: Change
) -> None:
    finished(config, "strided", 0, 98.5)
    row = ("strided", "scratch", 0, 0.96, 10.0)
    other = published(change(config), tmp_path / "published", row)
    write_report(replace(config, reference=other.reference))
    assert reference_columns(config) == []
    assert "reference" not in text_of(config, "table1.md")


@pytest.mark.parametrize("folder", [None, "nowhere"])
def test_without_published_results_there_are_no_columns_for_them(
    config: ReportConfig, tmp_path: Path, folder: str | None
) -> None:
    finished(config, "strided", 0, 98.5)
    published(config, tmp_path / "published", ("strided", "scratch", 0, 0.96, 10.0))
    write_report(replace(config, reference=folder and str(tmp_path / folder)))
    assert reference_columns(config) == []
    assert "reference" not in text_of(config, "table1.md")


# What was timed


def timed(config: ReportConfig, **changes: Any) -> Path:
    """Leave what experiments.benchmark measured of this network: twice as long in every round."""
    names = ("ours_strided", "ours_unit_stride", "plain_strided", "plain_unit_stride")
    row = dict(zip(names, (0.004, 0.008, 0.012, 0.016), strict=True))
    measured = {
        "model": model_identity(config),
        "multiply_adds": {"strided": 100, "unit_stride": 300},
        "first_layer_multiply_adds": {"strided": 40, "unit_stride": 60},
        "paper": False,
        "images": 60_000,
        "matrix": 10,
        "seconds": [{**row, "matrix_product": 1e-6, "rearrangement": 0.2}] * 3,
        "operators": {"strided": {"aten::mm": 1.0}, "unit_stride": {"aten::mm": 1.0}},
        "device_name": "Abacus 3000",
        "threads": 1,
        "versions": {"torch": "9.9"},
        "config": {"rounds": 3, "steps": 7, "recipe": {"batch_size": 4}},
        **changes,
    }
    path = Path(config.outputs, "benchmark.json")
    path.write_text(json.dumps(measured))
    return path


@pytest.mark.parametrize("change", [None, other_recipe, other_data])
def test_what_was_timed_of_this_network_is_a_table(
    config: ReportConfig, change: Change | None
) -> None:
    finished(config, "strided", 0, 98.0)
    timed(change(config) if change else config)  # neither recipe nor data are of the network
    printed = "\n".join(write_report(config))
    table = pd.read_csv(in_report(config, "benchmark.csv")).set_index("quantity")
    ours = table.loc["our loop (ms)"]
    assert (ours.strided_median, ours.unit_stride_median) == pytest.approx((4, 8))
    assert ours.ratio_median == pytest.approx(2)
    assert table.loc["multiply-adds"].ratio_median == pytest.approx(3)
    assert table.loc["plain loop / ours"].strided_median == pytest.approx(3)
    for text in (printed, text_of(config, "benchmark.md"), text_of(config, "benchmark.tex")):
        assert "2.00 (2.00–2.00)" in text
        assert "nan" not in text


@pytest.mark.parametrize("change", [other_model, other_size])
def test_what_was_timed_of_another_network_is_not_shown(
    config: ReportConfig, change: Change
) -> None:
    finished(config, "strided", 0, 98.0)
    timed(change(config))
    printed = "\n".join(write_report(config))
    assert [*in_report(config, "").glob("benchmark.*")] == []
    assert "aten::mm" not in printed


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"{}", b"\xff\xfe\x00"])
def test_a_damaged_benchmark_is_named_with_the_cure(config: ReportConfig, content: bytes) -> None:
    finished(config, "strided", 0, 98.0)
    path = Path(config.outputs, "benchmark.json")
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        write_report(config)
    assert str(path) in str(caught.value)
    assert "delete it" in str(caught.value)


@pytest.mark.parametrize("missing", ["seconds", "config", "multiply_adds", "device_name"])
def test_a_benchmark_that_lacks_a_part_is_named_too(config: ReportConfig, missing: str) -> None:
    finished(config, "strided", 0, 98.0)
    path = timed(config)
    path.write_text(
        json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != missing})
    )
    with pytest.raises(InputError) as caught:
        write_report(config)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("change", [None, other_model])
def test_a_table_of_what_was_timed_goes_when_its_numbers_are_gone(
    config: ReportConfig, change: Change | None
) -> None:
    finished(config, "strided", 0, 98.0)
    path = timed(config)
    write_report(config)
    written = {f"benchmark.{suffix}" for suffix in SUFFIXES}
    before = {file.name for file in in_report(config, "").iterdir()}
    assert written <= before
    in_report(config, "benchmarks-of-mine.txt").write_text("Mine.")
    if change is None:
        path.unlink()
    else:
        timed(change(config))
    write_report(config)
    left = {file.name for file in in_report(config, "").iterdir()}
    assert left == before - written | {"benchmarks-of-mine.txt"}
    assert path.exists() == (change is not None)


@pytest.mark.parametrize("pattern", [r"\d{8}", r"\d+e\d+"])
def test_published_results_are_found_whatever_the_digits_of_the_experiment(
    config: ReportConfig, tmp_path: Path, pattern: str
) -> None:
    rates = (0.01 + step / 1e6 for step in range(200_000))
    variants = (replace(config, recipe=replace(config.recipe, learning_rate=r)) for r in rates)
    config = next(c for c in variants if re.fullmatch(pattern, experiment_identity(c)))
    finished(config, "strided", 0, 98.0)
    write_report(published(config, tmp_path / "p", ("strided", "scratch", 0, 0.96, 10.0)))
    assert reference_columns(config) != []


def test_about_lists_what_differs_between_the_runs(config: ReportConfig) -> None:
    for seed in (0, 1):
        finished(config, "strided", seed, 98.0)
    path = min(Path(config.outputs).glob("runs/*/result.json"))
    result = json.loads(path.read_text())
    result["versions"]["numpy"] = "2"
    path.write_text(json.dumps(result))
    write_report(config)
    about = json.loads((Path(config.outputs) / "report" / "about.json").read_text())
    assert set(about["versions.numpy"]) == {"2", None}
    assert (about["runs"], about["seeds"]) == (2, [0, 1])
    assert about["experiment"] == experiment_identity(config)


@pytest.mark.parametrize("changes", [{"seconds": []}, {"operators": []}, {"seconds": [{}]}])
def test_a_benchmark_with_damaged_parts_is_named(
    config: ReportConfig, changes: dict[str, Any]
) -> None:
    finished(config, "strided", 0, 98.0)
    path = timed(config, **changes)
    with pytest.raises(InputError, match="make bench") as caught:
        write_report(config)
    assert str(path) in str(caught.value)


def test_the_references_machine_is_told(config: ReportConfig, tmp_path: Path) -> None:
    finished(config, "strided", 0, 98.0)
    reference = published(config, tmp_path / "p", ("strided", "scratch", 0, 0.96, 10.0))
    write_report(reference)
    caption = " ".join(text_of(config, "table1.md").split())
    assert "published result, n = 1, on Abacus 3000, 1 thread(s), 7 job(s) at once" in caption


@pytest.mark.parametrize("content", ["", "network,seed\n", "run,experiment\ns0,{0}\n"])
def test_a_damaged_reference_is_named_with_the_cure(
    config: ReportConfig, tmp_path: Path, content: str
) -> None:
    finished(config, "strided", 0, 98.0)
    path = tmp_path / "mine" / "runs.csv"
    path.parent.mkdir()
    path.write_text(content.format(experiment_identity(config)))
    with pytest.raises(InputError, match="restore it") as caught:
        write_report(replace(config, reference=str(tmp_path)))
    assert str(path) in str(caught.value)


def test_a_table_too_wide_for_the_terminal_goes_on_below_with_its_rows_named(
    config: ReportConfig, tmp_path: Path
) -> None:
    for network in ("strided", "unit_stride"):
        for seed in (0, 1):
            finished(config, network, seed, 98.0 + seed)
    rows = [(n, "scratch", s, 0.96, 1234.0 + s) for n in ("strided", "unit_stride") for s in (0, 1)]
    (table1, *_) = write_report(published(config, tmp_path / "p", *rows))
    assert max(map(len, table1.splitlines())) <= 80
    named = [line for line in table1.splitlines() if line.startswith("Unity Stride")]
    assert len(named) == 2
    assert "96.00 ± 0.00" in "".join(named)
    assert "1234.5 ± 0.7" in "".join(named)
