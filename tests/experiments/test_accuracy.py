"""Accuracy and paired differences of the protocol's experiments, on runs whose numbers were chosen."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from experiments.reporting.statistics import paired_difference
from experiments.runs.published import Published, read_published
from experiments.studies.accuracy import (
    accuracy_sections,
    accuracy_table,
    differences_figure,
    differences_table,
    pairs_of,
)
from experiments.studies.claims import FREE, STRIDED, claims_table, more_accurate, worse_fit

ROOT = Path(__file__).resolve().parents[2]
IMAGES = 200
# Images classified rightly by the strided network and by its twin, a pair each.
PAIRS = [(190, 191), (192, 196), (188, 187), (191, 197)]


def trained(network: str, rate: float, seed: int, right: int) -> tuple[dict, np.ndarray]:
    """A run's row, and which images it classifies rightly: the first ones."""
    row = {
        "run": f"{network}-{rate}-{seed}", "network": network, "variant": "", "weights": "scratch",
        "seed": seed, "learning_rate": rate, "test_correct": right, "test_images": IMAGES,
        "fit_loss": 0.01 * seed, "training_cpu_seconds": 70.0 + seed, "diverged": False,
        "validation_correct": right, "validation_images": IMAGES,
    }  # fmt: skip
    return row, np.arange(IMAGES) < right


def experiment(rates: tuple[float, float], pairs: list[tuple[int, int]]) -> Published:
    runs = [
        trained(network, rate, 3000 + seed, right)
        for seed, pair in enumerate(pairs)
        for network, rate, right in zip((STRIDED, FREE), rates, pair, strict=True)
    ]
    rows = pd.DataFrame([row for row, _ in runs])
    return Published(rows, pd.DataFrame(), pd.DataFrame(), {row["run"]: r for row, r in runs})


TABLE1 = experiment((0.04, 0.08), PAIRS)
SWAPPED = experiment((0.08, 0.04), [(180, 199), (170, 198), (181, 200)])


def test_accuracy_is_that_of_each_network_and_rate_with_the_papers_beside_table_1_alone() -> None:
    table = accuracy_table({"table1": TABLE1, "swapped": SWAPPED})
    assert [*zip(table.experiment, table.network, table.learning_rate, table.n, strict=True)] == [
        ("table1", STRIDED, 0.04, 4), ("table1", FREE, 0.08, 4),
        ("swapped", STRIDED, 0.08, 3), ("swapped", FREE, 0.04, 3),
    ]  # fmt: skip
    assert [*table.accuracy_percent_mean] == pytest.approx([95.125, 96.375, 88.5, 99.5])
    assert table.accuracy_percent_std[0] == pytest.approx(np.std([95, 96, 94, 95.5], ddof=1))
    assert table.cpu_seconds_mean[0] == 3071.5
    assert [*table.paper_accuracy_percent[:2]] == [98.17, 98.23]
    assert table.paper_accuracy_percent[2:].isna().all()


def test_differences_are_the_twins_accuracy_minus_the_strided_ones_pair_by_pair() -> None:
    row = differences_table({"table1": TABLE1}).iloc[0]
    values = [0.5, 2.0, -0.5, 3.0]
    interval = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    assert (row.n, row.ahead) == (4, 3)
    assert [row["mean"], row.low, row.high] == pytest.approx([1.25, *interval])
    assert (row.margin, row.within) == (0.06, False)
    assert pd.isna(row.new_low)  # of four pairs
    enough = differences_table({"table1": experiment((0.04, 0.08), 3 * PAIRS)}).iloc[0]
    assert enough.new_low < 1.25 < enough.new_high


def test_swapped_rates_join_the_pairs_of_the_same_seeds_at_equal_rates() -> None:
    table = differences_table({"table1": TABLE1, "swapped": SWAPPED})
    assert [*table.label] == ["each at its rate", "both at 0.04", "both at 0.08"]
    # At 0.04: the strided network of table1, of the seeds that swapped has, and swapped's twin.
    assert [*table["mean"][1:]] == pytest.approx([13.5 / 3, 21.5 / 3])
    assert [*table.n[1:]] == [3, 3]
    assert table.margin[1:].isna().all()
    assert [pairs.label for pairs in pairs_of({"swapped": SWAPPED})] == []
    solver = experiment((0.01, 0.01), PAIRS)
    assert [pairs.label for pairs in pairs_of({"caffe": solver})] == ["both at 0.01"]


def test_a_run_at_chance_is_counted_and_its_pair_stands_in_one_row_of_two() -> None:
    """It has a finite loss, so that only its validation images tell."""
    lost = experiment((0.08, 0.04), [*[(180, 199), (170, 198), (181, 200)], (20, 190)])
    published = {"table1": TABLE1, "swapped": lost}
    assert [*accuracy_table(published).diverged] == [0, 0, 1, 0]
    accuracy, differences = accuracy_sections(published, "")
    assert [*accuracy.readable.n] == ["4", "4", "4 (1 diverged)", "4"]
    table = differences.table.set_index("label")
    assert table.n.to_dict() == {
        "each at its rate": 4,
        "both at 0.04": 4,
        "both at 0.08": 4,
        "both at 0.08, without diverged": 3,
    }
    assert table["mean"]["both at 0.08"] == pytest.approx((21.5 + 88.5) / 4)
    assert table["mean"]["both at 0.08, without diverged"] == pytest.approx(21.5 / 3)


@pytest.mark.parametrize(
    ("name", "rates", "label"),
    [("caffe", (0.01, 0.01), "both at 0.01"), ("paper_level", (0.04, 0.08), "each at its rate"),
     ("fashion", (0.02, 0.04), "each at its rate"), ("adam", (0.001, 0.002), "each at its rate")],
)  # fmt: skip
def test_the_other_experiments_are_rows_of_the_same_tables(
    name: str, rates: tuple[float, float], label: str
) -> None:
    """They have rates, n, means, and the difference of their pairs, but no margin and no paper's."""
    both = {"table1": TABLE1, name: experiment(rates, PAIRS[:3])}
    accuracy, differences = accuracy_sections(both, "")
    rows = accuracy.readable[accuracy.readable.Experiment == name]
    assert [*rows.Rate] == [f"{rate:g}" for rate in rates]
    assert [*rows["Accuracy %"]] == ["95.00 ± 1.00", "95.67 ± 2.25"]
    assert [*rows["paper's %"]] == ["", ""]
    row = differences.readable.iloc[1]
    assert (row.Experiment, row.n, row.Ahead) == (f"{name}, {label}", 3, 2)
    assert row.Difference == "+0.667"  # of 0.5, 2 and −0.5
    assert row["Within (TOST)"] == ""


def test_the_figure_draws_every_pair_sorted_with_the_mean_and_both_bands() -> None:
    row = differences_table({"table1": TABLE1}).iloc[0]
    (axes,) = differences_figure(TABLE1).axes
    lines = {line.get_label(): [*line.get_ydata()] for line in axes.get_lines()}
    assert lines["one pair each"] == pytest.approx([-0.5, 0.5, 2.0, 3.0])
    assert lines["their mean"][0] == pytest.approx(row["mean"])
    assert lines["the paper's one pair"][0] == 0.06
    bands = [(p.get_y(), p.get_y() + p.get_height()) for p in axes.patches]
    assert bands == [pytest.approx((-0.06, 0.06)), pytest.approx((row.low, row.high))]
    assert "median 95.25 % Non-Unity Stride\nmedian 96.75 % Unity Stride" in axes.get_title(
        loc="left"
    )


def test_without_a_complete_experiment_there_is_no_table() -> None:
    assert accuracy_sections({}, "") == []


def test_the_documents_have_the_published_numbers() -> None:
    """The sentences of README.md and docs/findings.md; test_documents has their tables."""
    found = read_published(ROOT / "outputs" / "reference" / "table1")
    row = differences_table({"table1": found}).iloc[0]
    readme = (ROOT / "README.md").read_text()
    sentence = (
        f"the twin's accuracy minus the strided network's is {row['mean']:+.3f} points (95 % interval "
        f"{row.low:+.3f} to {row.high:+.3f}; the twin is ahead in {row.ahead} of {row.n} pairs"
    )
    size = f"TOST, p = {row.margin_p:.2g}"
    images = f"new images, the interval is {row.new_low:+.3f} to {row.new_high:+.3f}"
    for document in (readme, (ROOT / "docs" / "findings.md").read_text()):
        text = " ".join(document.split())
        assert sentence in text
        assert size in text
        assert images in text
    plain = " ".join(readme.split())
    behind = int((more_accurate(found) < 0).sum())
    assert f"ahead in {row.ahead} of {row.n} pairs, behind in {behind})" in plain
    assert f"single pair has a standard deviation of {row.deviation:.3f} points" in plain
    fit = paired_difference(worse_fit(found))
    findings = " ".join((ROOT / "docs" / "findings.md").read_text().split())
    assert f"p = {row.p:.2g}, Wilcoxon's test {row.wilcoxon_p:.2g}, before Holm's" in findings
    assert f"behind in {behind}, equal in {row.n - row.ahead - behind})" in findings
    (line,) = [x for x in findings.split("| C") if x.startswith("1: The unit-stride")]
    assert f"after it, that of t is {line.split('|')[4].strip()}." in findings
    right = np.stack([*found.right.values()]).sum(0)
    deciding = int(((right > 0) & (right < len(found.right))).sum())
    assert f"Of the 10,000 images, {deciding} decide everything" in findings
    loss = "after training, differs by {:+.4f} ({:+.4f} to {:+.4f})"
    assert loss.format(fit.mean, fit.low, fit.high) in findings
    lost = found.runs.pivot(index="seed", columns="network", values="test_loss")
    less = lost[STRIDED] - lost[FREE]
    test = stats.ttest_1samp(less, 0)
    low, high = test.confidence_interval(0.95)
    by = (
        f"lower by {less.mean():.4f} nats ({low:.4f} to {high:.4f}; {lost[FREE].mean():.4f} against"
    )
    pairs = f"lower in {(less > 0).sum()} of {len(less)} pairs; p = {test.pvalue:.2g}, not adjusted"
    assert f"{by} {lost[STRIDED].mean():.4f}, {pairs})" in findings
    assert (
        f"test images is lower by {less.mean():.4f} nats ({low:.4f} to {high:.4f}), which" in plain
    )
    verdicts = claims_table({"table1": found}, {"table1": 0}).set_index("claim").verdict
    for claim in ("C1", "C3"):
        assert re.search(rf"\*\*{claim}, [^*]*: {verdicts[claim]}\.\*\*", findings)


def test_readme_has_the_published_numbers_of_copied_weights() -> None:
    rows = pd.read_csv(ROOT / "outputs/reference/copied_weights.csv").set_index("numbers")
    readme = " ".join((ROOT / "README.md").read_text().split())
    assert (rows.n == 5).all()
    assert (rows.agreeing_least == rows.images).all()
    assert f"predicts the same class on 10,000 of {rows.images['float32']:,} test images" in readme
    largest = rows.largest_difference
    assert f"{largest.float32:.2g} in float32 and {largest.float64:.2g} in float64" in readme


def test_the_documents_have_the_published_times() -> None:
    rows = pd.read_csv(ROOT / "outputs/reference/benchmark.csv").set_index("quantity")
    names = ("our loop (ms)", "paper's training (s)", "plain loop (ms)")
    own, paper, plain = (rows.loc[name] for name in names)
    readme = " ".join((ROOT / "README.md").read_text().split())
    assert (
        f"takes {own.ratio_median:.2f} times the strided one's (quartiles {own.ratio_low:.2f}–"
        f"{own.ratio_high:.2f}; the paper's training: {paper.ratio_median:.2f}; in a plain loop "
        f"{plain.ratio_median:.2f}," in readme
    )
    lines = (ROOT / "docs/findings.md").read_text().splitlines()
    for title, name, digits in (
        ("a step of our loop (ms)", "our loop (ms)", (1, 1, 2)),
        ("a step of a plain loop (ms)", "plain loop (ms)", (1, 1, 2)),
        ("plain loop / ours", "plain loop / ours", (2, 2)),
        ("share of a 2048³ matrix product (%)", "share of peak (%)", (1, 1)),
    ):
        (line,) = [line for line in lines if line.startswith(f"| {title} ")]
        of = zip(("strided", "unit_stride", "ratio"), digits, strict=False)
        row = rows.loc[name]
        assert [cell.strip() for cell in line.split("|")[2 : 2 + len(digits)]] == [
            "{:.{d}f} ({:.{d}f}–{:.{d}f})".format(
                *(row[f"{one}_{part}"] for part in ("median", "low", "high")), d=places
            )
            for one, places in of
        ]


def test_the_documents_have_the_differences_at_one_rate_for_both() -> None:
    rows = [
        read_published(ROOT / "outputs/reference" / name).runs for name in ("table1", "swapped")
    ]
    assert {*rows[1].seed} == {*range(3000, 3020)}
    runs = pd.concat(rows)[lambda r: r.seed < 3020]
    right = runs.assign(percent=runs.test_correct / 100).pivot(
        index="seed", columns=["network", "learning_rate"], values="percent"
    )
    readme, findings = (
        " ".join((ROOT / name).read_text().split()) for name in ("README.md", "docs/findings.md")
    )
    said = []
    for rate in (0.04, 0.08):
        differences = right[FREE, rate] - right[STRIDED, rate]
        low, high = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
        said.append((differences.mean().round(9), low, high))
    (mean, low, high), large = said
    assert f"{mean:+.3f} points (95 % interval {low:+.3f} to {high:+.3f}); with both" in findings
    assert f"behind by {-mean:.3f} points ({-high:.3f} to {-low:.3f}, 20 pairs)" in readme
    caffe = more_accurate(read_published(ROOT / "outputs/reference/caffe"))
    low, high = stats.ttest_1samp(caffe, 0).confidence_interval(0.95)
    assert f"the difference is {caffe.mean():+.3f} points ({low:+.3f} to {high:+.3f})" in findings
    loss = runs.pivot(index="seed", columns=["network", "learning_rate"], values="test_loss")
    lost = []
    for rates in ((0.04, 0.04), (0.08, 0.08), (0.04, 0.08)):
        differences = loss[FREE, rates[0]] - loss[STRIDED, rates[1]]
        lost.append(
            (differences.mean(), *stats.ttest_1samp(differences, 0).confidence_interval(0.95))
        )
    at_small, at_large, swapped = lost
    assert (
        "it is higher by {:.4f} ({:.4f} to {:.4f}), with both at 0.08".format(*at_small) in findings
    )
    assert "difference is {:+.4f} ({:+.4f} to {:+.4f}), and each".format(*at_large) in findings
    assert "rate it is higher by {:.4f} ({:.4f} to {:.4f}). This".format(*swapped) in findings
    of_large = "the difference is {:+.3f} ({:+.3f} to {:+.3f})".format(*large)
    assert of_large in readme
    assert of_large in findings
    rise = {
        network: (right[network, 0.08] - right[network, 0.04]).mean() for network in (FREE, STRIDED)
    }
    rises = f"rises by {rise[FREE]:.3f} points, and the strided network's by {rise[STRIDED]:.3f}"
    assert rises in findings
