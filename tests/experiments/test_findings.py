"""The arms of experiment=sharing side by side, on runs whose numbers were chosen."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from experiments.runs.published import as_published
from experiments.settings.identity import LOOP, experiment_identity, run_name, variant
from experiments.settings.schema import RunConfig
from experiments.studies import sharing as findings
from experiments.studies.sharing import differences, sharing_for_readers, write_findings
from stridenet.errors import InputError
from tests.whole import whole

ARMS = (
    "strided", "tied", "masked", "free", "masked_by_copies", "free_by_copies", "free_effective"
)  # fmt: skip
SHARING = ("experiment=sharing", "recipe.learning_rate=0.01")  # whatever rate is chosen
Composed = Callable[..., Any]


def result(
    config: RunConfig,
    accuracy: float,
    first_loss: float = 0.4,
    fit: float = 0.1,
    test: float = 0.12,
    seconds: float = 50.0,
    distance: dict[str, dict[str, float]] | None = None,
) -> dict[str, Any]:
    """Return the result of a run of two epochs."""
    measured = {"distance": distance} if distance else {}
    epochs = [
        {"epoch": 0.0, "training_loss": None, "validation_correct": 500, **measured},
        {"epoch": 1.0, "training_loss": first_loss, "validation_correct": 4500},
        {
            "epoch": 2.0,
            "training_loss": 0.2,
            "validation_correct": round(5000 * accuracy),
            **measured,
        },
    ]
    made = {
        "run": run_name(config),
        "loop": LOOP,
        "experiment": experiment_identity(config),
        "network": config.model.name,
        "variant": variant(config),
        "sharing": config.sharing,
        "weights": config.weights,
        "seed": config.seed,
        "test_accuracy": accuracy,
        "test_loss": test,
        "fit_loss": fit,
        "training_wall_seconds": 2 * seconds,
        "training_cpu_seconds": seconds,
        "epochs": epochs,
        "device": "cpu",
        "device_name": "Abacus 3000",
        "threads": 1,
        "jobs_at_once": 2,
        "versions": {"torch": "9.9"},
        "git_commit": "1234",
        "date": "2020-01-02T03:04:05+00:00",
        "config": asdict(config),
    }
    return whole(made)


def by_run(results: list[dict[str, Any]]) -> pd.DataFrame:
    return findings.by_run(as_published("sharing", results))


@pytest.fixture
def run(composed: Composed) -> Callable[..., dict[str, Any]]:
    def run(
        arm: str, seed: int, accuracy: float, weights: str = "scratch", **more: Any
    ) -> dict[str, Any]:
        settings = (*SHARING, f"arm={arm}", f"seed={seed}", f"weights={weights}")
        return result(composed(*settings), accuracy, **more)

    return run


@pytest.mark.slow
def test_every_arm_of_the_experiment_has_its_name(run: Callable[..., dict]) -> None:
    table = by_run([run(arm, 0, 0.98) for arm in reversed(ARMS)])
    assert [*table.arm] == [*findings.ARMS.values()][: len(ARMS)]
    assert len(set(table.arm)) == len(ARMS)
    assert [*table.run] == [run(arm, 0, 0.98)["run"] for arm in ARMS]


def test_runs_of_no_arm_are_left_out(run: Callable[..., dict], composed: Composed) -> None:
    others = (
        ("arm=masked", "recipe.fan_in=filter"),
        ("model=unit_stride", "weights=copy"),
    )
    strangers = [
        result(composed("recipe=sharing", SHARING[1], *settings), 0.9) for settings in others
    ]
    table = by_run([*strangers, run("free", 3, 0.98)])
    assert [*zip(table.arm, table.seed, strict=True)] == [("free", 3)]


@pytest.mark.sample(3)
@pytest.mark.parametrize(
    ("quantity", "expected"),
    [
        ("test accuracy", [1.0, 2.0]),
        ("loss of the first epoch", [0.1, 0.1]),
        ("loss on training images", [-0.1, 0.0]),
        ("test loss", [0.3, 0.0]),
        ("test loss − loss on training images", [0.4, 0.0]),
        ("CPU time of training", [25.0, 30.0]),  # in percent
    ],
)
@pytest.mark.parametrize("weights", ["scratch", "fine_tune"])
def test_differences_are_of_one_seed_and_start(
    run: Callable[..., dict], quantity: str, expected: list[float], weights: str
) -> None:
    before: dict[str, Any] = {"first_loss": 0.5, "fit": 0.4, "test": 0.5}
    results = [
        run("free", 1, 0.98, weights, **{**before, "first_loss": 0.6}, seconds=65.0),
        run("free", 0, 0.97, weights, first_loss=0.6, fit=0.3, test=0.8, seconds=50.0),
        run("free", 9, 0.5, weights),  # without a partner
    ]
    results += [
        run("strided", s, 0.96, weights, **before, seconds=40.0 + 10 * s) for s in (0, 1, 8)
    ]
    table = by_run(results)
    assert [*differences(table, quantity, weights, "free")] == pytest.approx(expected)
    (other,) = {"scratch", "fine_tune"} - {weights}
    assert len(differences(table, quantity, other, "free")) == 0


def test_the_distance_is_a_share_of_the_norm_of_all_layers(run: Callable[..., dict]) -> None:
    layers = {
        "conv1.weight": {"zeros": 3.0, "copies": 0.0, "norm": 6.0},
        "conv2.weight": {"zeros": 4.0, "copies": 2.0, "norm": 8.0},
    }
    results = [run("free", 0, 0.98, distance=layers), run("strided", 0, 0.98)]
    epochs = findings.by_epoch(as_published("sharing", results))
    last = epochs[epochs.epoch == 2].set_index("arm")
    assert last.zeros["free"] == pytest.approx(5 / 10)
    assert last.copies["free"] == pytest.approx(2 / 10)
    assert last.loc["strided", ["zeros", "copies"]].isna().all()  # it is no twin


def test_pooling_is_an_arm_without_a_distance(run: Callable[..., dict], composed: Composed) -> None:
    pooled = result(composed("recipe=sharing", SHARING[1], "model=pooling"), 0.985)
    others = [run("strided", s, 0.98 + s / 1000) for s in range(3)]
    table = findings.summary(by_run([pooled, *others])).set_index("arm")
    assert (table.n["pooling"], table.n["strided"]) == (1, 3)
    assert table["test accuracy_mean"]["pooling"] == pytest.approx(98.5)
    assert pd.isna(table.zeros_mean["pooling"])
    assert pd.isna(table.difference_mean["pooling"])  # of one pair


def test_the_summary_has_means_deviations_and_the_interval_of_scipys_paired_test(
    run: Callable[..., dict],
) -> None:
    strided, masked = (0.97, 0.98, 0.96, 0.975), (0.96, 0.978, 0.961, 0.97)
    results = [run("strided", s, a) for s, a in enumerate(strided)]
    results += [run("masked", s, a) for s, a in enumerate(masked)]
    rows = findings.summary(by_run(results)).set_index("arm")
    assert rows.n.to_dict() == {"strided": 4, "masked": 4}
    assert rows["test accuracy_mean"]["masked"] == pytest.approx(96.725)
    assert rows["test accuracy_std"]["masked"] == pytest.approx(pd.Series(masked).std() * 100)
    paired = stats.ttest_rel(masked, strided).confidence_interval(0.95)
    assert rows.difference_low["masked"] == pytest.approx(100 * paired.low)
    assert rows.difference_high["masked"] == pytest.approx(100 * paired.high)
    assert pd.isna(rows.difference_mean["strided"])


def test_readers_see_means_with_deviations_and_intervals(run: Callable[..., dict]) -> None:
    results = [run("strided", s, a) for s, a in enumerate((0.97, 0.98, 0.96))]
    results += [run("free", s, a) for s, a in enumerate((0.975, 0.988, 0.968))]
    shown = sharing_for_readers(findings.summary(by_run(results)))
    assert [*shown["Accuracy %"]] == ["97.00 ± 1.00", "97.70 ± 1.01"]
    assert [*shown.Difference] == ["", "+0.70 [+0.27, +1.13]"]  # 0.7 ± 4.303 · 0.173 / √3


def left_in(folder: Path, results: list[dict[str, Any]]) -> None:
    for one in results:
        path = folder / "runs" / one["run"]
        path.mkdir(parents=True)
        (path / "result.json").write_text(json.dumps(one))


@pytest.mark.slow
def test_the_report_writes_tables_figure_and_all_numbers(
    run: Callable[..., dict], composed: Composed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []
    monkeypatch.setattr(findings, "save_figure", lambda figure, path: drawn.append((figure, path)))
    results = [
        run(arm, seed, 0.97 + 0.001 * seed + 0.002 * place + 2e-4 * seed * place, weights)
        for weights in findings.STARTS
        for place, arm in enumerate(ARMS)
        for seed in range(3)
    ]
    left_in(tmp_path, results)
    settings = (SHARING[1], f"outputs={tmp_path}")
    *texts, files = write_findings(composed(*settings, command="findings"))
    assert str(tmp_path) in files
    text = "\n".join(texts)
    report = tmp_path / "report"
    assert {p.suffix for p in report.glob("sharing.*")} == {".csv", ".md", ".tex"}
    assert max(map(len, text.splitlines())) <= 80
    for verdict in ("supported", "contradicted", "undecided"):
        assert verdict not in text + (report / "sharing.md").read_text()
    again = findings.summary(pd.read_csv(report / "sharing_runs.csv"))
    assert again.to_csv(index=False) == (report / "sharing.csv").read_text()
    assert len(again) == 2 * len(ARMS)
    assert len(pd.read_csv(report / "sharing_epochs.csv")) == 3 * len(results)
    assert json.loads((report / "sharing_about.json").read_text())["git_commit"] == ["1234"]
    ((figure, path),) = drawn
    assert path == report / "sharing"
    assert len(figure.axes) == 4
    assert [axes.get_title() for axes in figure.axes[::2]] == [
        "from scratch, n = 3", "fine-tuned, n = 3"
    ]  # fmt: skip
    (said,) = figure.texts
    assert "Bars: ± one standard deviation" in said.get_text()
    scratch = figure.axes[1]
    assert scratch.get_ylabel() == "validation accuracy (%)"
    shown = [len(c.lines[0].get_xdata()) for c in scratch.containers]
    assert shown == [2] * len(ARMS)  # not epoch 0; pooling is not there
    strided = [0.97, 0.971, 0.972]
    (bar,) = scratch.containers[0].lines[2]
    ends = bar.get_segments()[-1][:, 1]
    assert ends == pytest.approx([100 * (0.971 + s * np.std(strided, ddof=1)) for s in (-1, 1)])
    means = [float(c.lines[0].get_ydata()[-1]) for c in scratch.containers[: len(ARMS)]]
    expected = [100 * (0.971 + 0.0022 * p) for p in range(len(ARMS))]
    order = [ARMS.index(a) for a in ("strided", "tied", "masked", "free")]
    assert means[:4] == pytest.approx([expected[place] for place in order])


def test_without_runs_of_the_experiment_the_error_says_how_to_get_them(
    composed: Composed, tmp_path: Path
) -> None:
    left_in(
        tmp_path,
        [result(composed("recipe=sharing", SHARING[1], "model=unit_stride", "weights=copy"), 0.9)],
    )
    with pytest.raises(InputError, match=r"no trained run of an arm.*experiment=sharing"):
        write_findings(composed(SHARING[1], f"outputs={tmp_path}", command="findings"))
