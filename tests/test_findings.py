"""What is concluded from the runs of experiment=sharing, on runs whose numbers were chosen."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from scipy import stats

from experiments.settings.identity import experiment_identity, run_name, variant
from experiments.settings.schema import Config
from experiments.studies import sharing as findings
from experiments.studies.sharing import claims_for_readers, sharing_for_readers, write_findings
from stridenet.errors import InputError

ROOT = Path(__file__).parents[1]
ARMS = ("strided", "tied", "masked", "free", "masked_by_copies", "free_by_copies")
T_2 = 4.302653  # 97.5 % quantile of Student's t, 2 degrees of freedom
Composed = Callable[..., Any]


def result(
    config: Config,
    accuracy: float,
    first_loss: float = 0.4,
    fit: float = 0.1,
    test: float = 0.12,
    seconds: float = 50.0,
    distance: dict[str, dict[str, float]] | None = None,
) -> dict[str, Any]:
    """Of a run of two epochs."""
    measured = {"distance": distance} if distance else {}
    epochs = [
        {"epoch": 0.0, "training_loss": None, "test_accuracy": 0.1, "test_loss": 2.3, **measured},
        {"epoch": 1.0, "training_loss": first_loss, "test_accuracy": 0.9, "test_loss": 0.3},
        {
            "epoch": 2.0,
            "training_loss": 0.2,
            "test_accuracy": accuracy,
            "test_loss": test,
            **measured,
        },
    ]
    return {
        "run": run_name(config),
        "experiment": experiment_identity(config),
        "network": config.model.name,
        "variant": variant(config),
        "sharing": config.sharing,
        "weights": config.weights,
        "seed": config.seed,
        "test_accuracy": accuracy,
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


@pytest.fixture
def run(composed: Composed) -> Callable[..., dict[str, Any]]:
    def run(
        arm: str, seed: int, accuracy: float, weights: str = "scratch", **more: Any
    ) -> dict[str, Any]:
        settings = ("experiment=sharing", f"arm={arm}", f"seed={seed}", f"weights={weights}")
        return result(composed(*settings), accuracy, **more)

    return run


def of(table: pd.DataFrame, claim: str, start: str, arm: str) -> dict[str, Any]:
    rows = table[table.claim.str.contains(claim) & (table.start == start) & (table.arm == arm)]
    (row,) = rows.to_dict("records")
    return row


def test_every_arm_of_the_experiment_has_its_name(run: Callable[..., dict]) -> None:
    table = findings.by_run([run(arm, 0, 0.98) for arm in reversed(ARMS)])
    assert [*table.arm] == [*findings.ARMS.values()][: len(ARMS)]
    assert len(set(table.arm)) == len(ARMS)
    assert [*table.run] == [run(arm, 0, 0.98)["run"] for arm in ARMS]


def test_runs_of_no_arm_are_left_out(run: Callable[..., dict], composed: Composed) -> None:
    others = (
        ("arm=masked", "recipe.fan_in=filter"),
        ("model=unit_stride", "weights=copy"),
    )
    strangers = [result(composed("recipe=sharing", *settings), 0.9) for settings in others]
    table = findings.by_run([*strangers, run("free", 3, 0.98)])
    assert [*zip(table.arm, table.seed, strict=True)] == [("free", 3)]


def test_a_claim_is_judged_by_the_interval_of_the_paired_differences(
    run: Callable[..., dict],
) -> None:
    strided, free = (0.97, 0.98, 0.96), (0.975, 0.988, 0.968)  # 0.5, 0.8 and 0.8 points more
    results = [run("strided", s, a) for s, a in enumerate(strided)]
    results += [run("free", s, a) for s, a in enumerate(free)]
    results += [run("free", 9, 0.5), run("strided", 8, 0.5)]  # without a partner
    found = of(findings.claims(findings.by_run(results)), "accurate", "from scratch", "free")
    assert found["n"] == 3
    assert found["mean"] == pytest.approx(0.7)
    half = T_2 * 0.173205 / 3**0.5
    assert found["low"] == pytest.approx(0.7 - half, abs=1e-5)
    assert found["high"] == pytest.approx(0.7 + half, abs=1e-5)
    assert found["verdict"] == "supported"
    other = of(findings.claims(findings.by_run(results)), "accurate", "fine-tuned", "free")
    assert (other["n"], other["verdict"]) == (0, "undecided")


def test_equal_differences_are_no_spread_whatever_their_rounding(run: Callable[..., dict]) -> None:
    accuracies = {"strided": (0.9001, 0.9012), "free": (0.9006, 0.9017)}  # 100·x: 1e-14 apart
    results = [run(arm, s, a) for arm, row in accuracies.items() for s, a in enumerate(row)]
    found = of(findings.claims(findings.by_run(results)), "accurate", "from scratch", "free")
    assert found["mean"] == pytest.approx(0.05)
    assert (found["low"], found["verdict"]) == (None, "undecided")


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [((0.3, 0.4, 0.35), "supported"), ((-0.3, -0.4, -0.35), "contradicted"),
     ((0.3, -0.4, 0.1), "undecided"), ((0.2,), "undecided"), ((0.2, 0.2), "undecided")],
)  # fmt: skip
@pytest.mark.parametrize("weights", ["scratch", "fine_tune"])
@pytest.mark.parametrize(
    ("key", "decided"),
    [
        ("first_loss", {"slowly"}),
        ("fit", {"ruins", "generalisation"}),  # the test loss goes along, so that the gap stays
        ("test", {"generalisation", "gap"}),
    ],
)
def test_losses_and_the_gap_are_judged_too(
    run: Callable[..., dict],
    key: str,
    decided: set[str],
    weights: str,
    changes: tuple[float, ...],
    verdict: str,
) -> None:
    before = {"first_loss": 0.5, "fit": 0.4, "test": 0.5}
    results = []
    for seed, change in enumerate(changes):
        results.append(run("strided", seed, 0.98, weights, **before))
        moved = {**before, key: before[key] + change}
        if key == "fit":
            moved["test"] += change
        results.append(run("free_by_copies", seed, 0.98, weights, **moved))
    table = findings.claims(findings.by_run(results))
    for claim in ("slowly", "ruins", "generalisation", "gap"):
        found = of(table, claim, findings.STARTS[weights], "free, rate by copies")
        assert found["verdict"] == (verdict if claim in decided else "undecided")
        expected = sum(changes) / len(changes) if claim in decided else 0
        assert found["mean"] == pytest.approx(expected)


def test_what_sharing_is_made_of_is_compared_part_by_part(run: Callable[..., dict]) -> None:
    """Equalities: masked against tied. Zeros: free against masked."""
    losses = {"tied": (0.1, 0.11), "masked": (0.2, 0.22), "free": (0.25, 0.28)}
    results = [
        run(a, s, 0.98, test=loss) for a, both in losses.items() for s, loss in enumerate(both)
    ]
    table = findings.claims(findings.by_run(results))
    rows = table[table.claim.str.contains("generalisation") & (table.start == "from scratch")]
    means = {(row.arm, row.against): row["mean"] for _, row in rows.iterrows() if row.n}
    assert means == {
        ("masked", "tied"): pytest.approx(0.105),
        ("free", "masked"): pytest.approx(0.055),
    }


def test_time_is_compared_in_percent(run: Callable[..., dict]) -> None:
    results = [run("strided", s, 0.98, seconds=t) for s, t in enumerate((40.0, 50.0))]
    results += [run("free", s, 0.98, seconds=t) for s, t in enumerate((50.0, 65.0))]
    found = of(findings.claims(findings.by_run(results)), "time", "from scratch", "free")
    assert found["unit"] == "%"
    assert found["mean"] == pytest.approx((25 + 30) / 2)


def test_the_distance_is_a_share_of_the_norm_of_all_layers(run: Callable[..., dict]) -> None:
    layers = {
        "conv1.weight": {"zeros": 3.0, "copies": 0.0, "norm": 6.0},
        "conv2.weight": {"zeros": 4.0, "copies": 2.0, "norm": 8.0},
    }
    epochs = findings.by_epoch([run("free", 0, 0.98, distance=layers), run("strided", 0, 0.98)])
    last = epochs[epochs.epoch == 2].set_index("arm")
    assert last.zeros["free"] == pytest.approx(5 / 10)
    assert last.copies["free"] == pytest.approx(2 / 10)
    assert last.zeros["strided"] == last.copies["strided"] == 0


def test_pooling_is_an_arm_without_a_distance(run: Callable[..., dict], composed: Composed) -> None:
    pooled = result(composed("recipe=sharing", "model=pooling"), 0.985)
    table = findings.summary(findings.by_run([pooled, run("strided", 0, 0.98)])).set_index("arm")
    assert table.difference_mean["pooling"] == pytest.approx(0.5)
    assert pd.isna(table.zeros_mean["pooling"])


def test_the_summary_has_means_deviations_and_the_interval_of_scipys_paired_test(
    run: Callable[..., dict],
) -> None:
    strided, masked = (0.97, 0.98, 0.96, 0.975), (0.96, 0.978, 0.961, 0.97)
    results = [run("strided", s, a) for s, a in enumerate(strided)]
    results += [run("masked", s, a) for s, a in enumerate(masked)]
    rows = findings.summary(findings.by_run(results)).set_index("arm")
    assert rows.n.to_dict() == {"strided": 4, "masked": 4}
    assert rows["test accuracy_mean"]["masked"] == pytest.approx(96.725)
    assert rows["test accuracy_std"]["masked"] == pytest.approx(pd.Series(masked).std() * 100)
    paired = stats.ttest_rel(masked, strided).confidence_interval(0.95)
    assert rows.difference_low["masked"] == pytest.approx(100 * paired.low)
    assert rows.difference_high["masked"] == pytest.approx(100 * paired.high)
    assert pd.isna(rows.difference_mean["strided"])


def test_readers_see_numbers_with_their_units_and_a_claim_once(run: Callable[..., dict]) -> None:
    results = [run("strided", s, a) for s, a in enumerate((0.97, 0.98, 0.96))]
    results += [run("free", s, a) for s, a in enumerate((0.975, 0.988, 0.968))]
    readable = claims_for_readers(findings.claims(findings.by_run(results)))
    first = readable.iloc[0]
    assert first.Quantity == "test accuracy (points)"
    assert first.Difference == "+0.70 [+0.27, +1.13]"
    assert first.Verdict == "supported"
    assert [c for c in readable.Claim if c] == [c.text for c in findings.CLAIMS]
    shown = sharing_for_readers(findings.summary(findings.by_run(results)))
    assert [*shown["Accuracy %"]] == ["97.00 ± 1.00", "97.70 ± 1.01"]
    assert [*shown.Difference] == ["", "+0.70 [+0.27, +1.13]"]


def left_in(folder: Path, results: list[dict[str, Any]]) -> None:
    for one in results:
        path = folder / "runs" / one["run"]
        path.mkdir(parents=True)
        (path / "result.json").write_text(json.dumps(one))


def test_the_report_writes_tables_figure_and_all_numbers(
    run: Callable[..., dict], composed: Composed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []
    monkeypatch.setattr(findings, "save_figure", lambda figure, path: drawn.append((figure, path)))
    results = [
        run(arm, seed, 0.97 + 0.001 * seed + 0.002 * place + 1e-4 * (seed * place) ** 2, weights)
        for weights in findings.STARTS
        for place, arm in enumerate(ARMS)
        for seed in range(3)
    ]
    left_in(tmp_path, results)
    *texts, files = write_findings(composed(f"outputs={tmp_path}", command="findings"))
    assert str(tmp_path) in files
    text = "\n".join(texts)
    report = tmp_path / "report"
    for name in ("sharing", "claims"):
        assert {p.suffix for p in report.glob(f"{name}.*")} == {".csv", ".md", ".tex"}
    assert max(map(len, text.splitlines())) <= 80
    assert "The twin is more accurate: test accuracy (points)" in text
    again = findings.claims(pd.read_csv(report / "sharing_runs.csv"))
    assert again.to_csv(index=False) == (report / "claims.csv").read_text()
    assert {*again.verdict} > {"undecided"}
    assert len(pd.read_csv(report / "sharing_epochs.csv")) == 3 * len(results)
    assert json.loads((report / "sharing_about.json").read_text())["git_commit"] == ["1234"]
    ((figure, path),) = drawn
    assert path == report / "sharing"
    scratch = figure.axes[0]
    shown = [len(c.lines[0].get_xdata()) for c in scratch.containers]
    assert shown == [*[2] * len(ARMS), 0]  # not epoch 0; pooling is not there
    means = [float(c.lines[0].get_ydata()[-1]) for c in scratch.containers[: len(ARMS)]]
    expected = [100 * (0.971 + 0.002 * p + 1e-4 * p**2 * 5 / 3) for p in range(len(ARMS))]
    order = [ARMS.index(a) for a in ("strided", "tied", "masked", "free")]
    assert means[:4] == pytest.approx([expected[place] for place in order])


def test_without_runs_of_the_experiment_the_error_says_how_to_get_them(
    composed: Composed, tmp_path: Path
) -> None:
    left_in(
        tmp_path, [result(composed("recipe=sharing", "model=unit_stride", "weights=copy"), 0.9)]
    )
    with pytest.raises(InputError, match=r"no trained run of an arm.*experiment=sharing"):
        write_findings(composed(f"outputs={tmp_path}", command="findings"))


def test_the_page_of_findings_says_what_the_published_runs_say() -> None:
    """Every line of the tables in docs/findings.md is computed from outputs/reference."""
    page = (ROOT / "docs" / "findings.md").read_text()
    runs = pd.read_csv(ROOT / "outputs" / "reference" / "sharing_runs.csv")
    counts = runs.groupby(["weights", "arm"]).seed.nunique()
    assert len(counts) == 2 * len(ARMS) + 1  # pooling, from scratch
    assert (counts >= 10).all()
    for table in (
        claims_for_readers(findings.claims(runs)),
        sharing_for_readers(findings.summary(runs)),
    ):
        for line in table.to_markdown(index=False, disable_numparse=True).splitlines():
            assert line in page
