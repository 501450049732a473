"""The claims, on published runs whose numbers were chosen."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes

from experiments.runs.published import Published
from experiments.studies.claims import (
    CLAIMS,
    EFFECTIVE,
    FREE,
    MASKED_BY_COPIES,
    SIZES,
    STRIDED,
    claims_section,
    claims_table,
    verdicts_figure,
    without_diverged,
)
from experiments.studies.evidence import EXPERIMENTS


@pytest.fixture(autouse=True)
def no_collection(monkeypatch: pytest.MonkeyPatch) -> None:
    """statsmodels collects garbage each time, which is most of these tests' seconds."""
    monkeypatch.setattr("gc.collect", lambda *_: 0)


MASKED = "unit_stride masked"
IMAGES = 10_000
Numbers = tuple[int, float, float]  # images right, loss on training images, loss of the first epoch


def runs(
    arm: str, numbers: Mapping[int, Numbers], train_size: int | None = None, **changes: Any
) -> list[dict[str, Any]]:
    """Rows of runs.csv of one arm, by seed, with the loss of the first epoch beside them."""
    network, _, variant = arm.partition(" ")
    return [
        {
            "run": f"{arm}-{train_size}-{changes.get('weights')}-s{seed}",
            "network": network,
            "variant": variant,
            "weights": "scratch",
            "seed": seed,
            "learning_rate": 0.02,
            "train_size": train_size,
            "test_correct": right,
            "test_images": IMAGES,
            "fit_loss": fit,
            "diverged": False,
            "validation_correct": 4_000,
            "validation_images": 5_000,
            "first": first,
            **changes,
        }
        for seed, (right, fit, first) in numbers.items()
    ]


def published(*arms: list[dict[str, Any]]) -> Published:
    rows = pd.DataFrame([row for arm in arms for row in arm])
    epochs = [
        {"run": row["run"], "epoch": epoch, "training_loss": loss}
        for arm in arms
        for row in arm
        for epoch, loss in ((0.0, None), (1.0, row["first"]), (2.0, 0.01))
    ]
    return Published(rows.drop(columns="first"), pd.DataFrame(epochs), pd.DataFrame())


def shifted(by: Numbers, spread: int = 1) -> dict[int, Numbers]:
    """Four seeds whose differences from `shifted((0, 0, 0))` have this mean."""
    return {
        seed: (9_800 + by[0] + spread * step, 0.1 + by[1] + step / 1e4, 0.5 + by[2] + step / 1e3)
        for seed, step in enumerate((-1, 0, 3, -2))
    }


NONE = dict.fromkeys(range(4), (9800, 0.1, 0.5))
TABLE1 = published(runs(STRIDED, NONE), runs(FREE, shifted((-20, 0.02, 0.0))))
FASHION = published(runs(STRIDED, NONE), runs(FREE, shifted((30, 0.0, 0.0))))
SHARING = published(
    runs(STRIDED, NONE),
    runs(FREE, shifted((0, 0.0, 0.2))),
    runs(MASKED, shifted((0, 0.0, 9.0))),
    runs(MASKED_BY_COPIES, shifted((0, 0.0, 0.0))),
    runs(EFFECTIVE, shifted((0, 0.0, -0.03))),
    runs(FREE, shifted((0, 0.0, -9.0)), weights="fine_tune"),
    runs(STRIDED, NONE, weights="fine_tune"),
)
TRAIN_SIZE = published(
    *(runs(FREE, shifted((-10 * k, 0.0, 0.0)), size) for k, size in enumerate(SIZES)),
    *(runs(arm, NONE, size) for size in SIZES for arm in (STRIDED, MASKED)),
)
ALL = {"table1": TABLE1, "fashion": FASHION, "sharing": SHARING, "train_size": TRAIN_SIZE}
COMPLETE: dict[str, int | None] = dict.fromkeys(EXPERIMENTS, 0)


def judged(**changes: Published) -> pd.DataFrame:
    return claims_table({**ALL, **changes}, COMPLETE).set_index("claim")


def test_each_claims_outcome_is_the_mean_that_the_page_names() -> None:
    table = judged()
    assert table["mean"].to_dict() == {
        "C1": pytest.approx(-0.20),  # points: 20 of 10,000 images
        "C2": pytest.approx(0.2),
        "C3": pytest.approx(0.02),
        "C4": pytest.approx(0.15),  # strided − free, of 0, 10, 20 and 30 images
        "C5": pytest.approx(0.30),
        "C6": pytest.approx(0.0, abs=1e-9),
        "C7": pytest.approx(-0.03),
    }
    assert {*table.n} == {4}
    deviation = np.std([-1, 0, 3, -2], ddof=1)
    assert table.deviation["C1"] == pytest.approx(deviation / 100)
    assert table.deviation["C2"] == pytest.approx(deviation / 1e3)
    assert table.deviation["C3"] == pytest.approx(deviation / 1e4)
    assert table.deviation["C4"] == pytest.approx(
        deviation / 100
    )  # a seed's four sizes go together


def test_each_claim_has_its_verdict() -> None:
    assert judged().verdict.to_dict() == {
        "C1": "contradicted",
        "C2": "supported",
        "C3": "supported",
        "C4": "supported",
        "C5": "supported",
        "C6": "supported",  # the account holds: within the margin
        "C7": "contradicted",  # 0.03 from zero, with an error of 0.001
    }


def test_the_margin_is_the_papers_difference_or_a_quarter_of_the_gap() -> None:
    margins = judged().margin
    assert margins["C1"] == 0.06
    assert margins[["C6", "C7"]].tolist() == pytest.approx([0.05, 0.05])  # of 0.2
    assert margins.drop(["C1", "C6", "C7"]).isna().all()
    faster = published(
        runs(STRIDED, NONE),
        runs(FREE, shifted((0, 0.0, -0.4))),
        runs(MASKED_BY_COPIES, shifted((0, 0.0, 0.0))),
        runs(EFFECTIVE, shifted((0, 0.0, 0.0))),
    )
    assert judged(sharing=faster).margin["C6"] == pytest.approx(0.1)  # whatever the gap's sign


def test_a_claim_of_equality_is_undecided_where_neither_it_nor_the_contrary_is_shown() -> None:
    scattered = {s: (9_800, 0.1, 0.5 + d) for s, d in enumerate((0.2, -0.2, 0.15, -0.1))}
    sharing = published(
        runs(STRIDED, NONE),
        runs(FREE, shifted((0, 0.0, 0.2))),
        runs(MASKED_BY_COPIES, scattered),
        runs(EFFECTIVE, shifted((0, 0.0, 0.001))),
    )
    table = judged(sharing=sharing)
    assert table.verdict[["C6", "C7"]].tolist() == ["undecided", "supported"]
    assert table.within[["C6", "C7"]].tolist() == [False, True]


def test_an_equality_that_is_within_its_margin_and_yet_not_zero_is_contradicted() -> None:
    near = shifted((0, 0.0, 0.02))  # an error of 0.001, a margin of 0.05
    sharing = published(
        runs(STRIDED, NONE),
        runs(FREE, shifted((0, 0.0, 0.2))),
        runs(MASKED_BY_COPIES, near),
        runs(EFFECTIVE, near),
    )
    table = judged(sharing=sharing)
    assert table.within[["C6", "C7"]].tolist() == [True, True]
    assert table.verdict[["C6", "C7"]].tolist() == ["contradicted"] * 2


def test_pairs_are_of_one_seed_and_a_seed_without_its_partner_is_left_out() -> None:
    strided = {seed: (9_000 + 100 * seed, 0.1, 0.5) for seed in (*range(4), 7)}
    free = {s: (strided[s][0] - 20 + step, 0.1, 0.5) for s, step in enumerate((-1, 0, 3, -2))}
    table = judged(table1=published(runs(STRIDED, strided)[::-1], runs(FREE, free)))
    assert (table.n["C1"], table["mean"]["C1"]) == (4, pytest.approx(-0.20))
    assert table.deviation["C1"] < 0.1


@pytest.mark.parametrize(
    ("lacking", "reason"),
    [
        (2, "2 runs of experiment=table1 are missing"),
        (None, "the settings of .*table1 are not chosen"),
    ],
)
def test_an_incomplete_experiment_counts_as_p_one_and_has_neither_numbers_nor_verdict(
    lacking: int | None, reason: str
) -> None:
    missing = {**COMPLETE, "table1": lacking}
    table = claims_table(ALL, missing).set_index("claim")
    for key in ("C1", "C3"):
        row = table.loc[key]
        assert (row.holm_p, row.verdict, row.verdict_without_diverged, row.n) == (1, "", "", 0)
        assert pd.isna(row["mean"])
        assert pd.isna(row.low)
        assert pd.Series([row.blank]).str.match(reason).all()
    # The others are as strictly judged as if all seven were there.
    smallest = table.p.astype(float).idxmin()
    assert table.holm_p[smallest] == pytest.approx(7 * table.p[smallest])


def test_a_seed_that_lacks_one_size_is_no_part_of_the_mean_over_sizes() -> None:
    rows = TRAIN_SIZE.runs
    lost = (rows.network == "unit_stride") & (rows.variant == "") & (rows.seed == 2)
    diverged = rows.diverged | lost & (rows.train_size == SIZES[1])
    found = without_diverged(replace(TRAIN_SIZE, runs=rows.assign(diverged=diverged)))
    assert [*CLAIMS["C4"].outcome(found).index] == [0, 1, 3]


def test_an_experiment_without_any_run_counts_as_missing() -> None:
    table = claims_table({}, dict.fromkeys(EXPERIMENTS, 4)).set_index("claim")
    assert {*table.holm_p} == {1.0}
    assert {*table.verdict} == {""}
    assert table.blank["C5"] == "4 runs of experiment=fashion are missing"
    readable = claims_section(table.reset_index(), "").readable
    assert readable.Verdict[4] == "none: 4 runs of experiment=fashion are missing"
    assert {*readable.Difference} == {*readable["Within (TOST)"]} == {""}


def test_p_values_are_adjusted_over_all_seven() -> None:
    table = judged()
    ordered = table.sort_values("p")
    expected = np.maximum.accumulate(ordered.p.to_numpy(float) * np.arange(7, 0, -1)).clip(max=1)
    assert ordered.holm_p.to_numpy(float) == pytest.approx(expected)


@pytest.mark.parametrize("how", [{"diverged": True}, {"validation_correct": 2_499}])
def test_a_verdict_is_given_with_and_without_a_diverged_pair(how: dict[str, Any]) -> None:
    free = shifted((-20, 0.02, 0.0))
    broken = {9: (980, 2.3, 0.5)}  # at chance: the difference of this pair is −88 points
    table = judged(
        table1=published(
            runs(STRIDED, {**NONE, 9: NONE[0]}), runs(FREE, free), runs(FREE, broken, **how)
        )
    )
    assert (table.n["C1"], table.verdict["C1"]) == (5, "undecided")
    assert table["mean"]["C1"] == pytest.approx((-4 * 0.2 - 88.2) / 5)
    assert table.verdict_without_diverged["C1"] == "contradicted"
    said = claims_section(table.reset_index(), "").readable.Verdict[0]
    assert said == "undecided; without diverged runs: contradicted"
    assert table.verdict_without_diverged.drop(["C1", "C3"]).equals(
        table.verdict.drop(["C1", "C3"])
    )


def test_without_diverged_runs_the_gap_that_is_the_margin_has_none_of_them_either() -> None:
    """One diverged run makes the gap, and with it the margin, large enough for an equality."""
    five = {**NONE, 9: NONE[0]}
    sharing = published(
        runs(STRIDED, five),
        runs(FREE, shifted((0, 0.0, 0.004))),
        runs(FREE, {9: (980, 2.3, 5.5)}, validation_correct=500),
        runs(MASKED_BY_COPIES, {**shifted((0, 0.0, 0.0)), 9: NONE[0]}),
        runs(EFFECTIVE, five),
    )
    table = judged(sharing=sharing)
    assert table.margin["C6"] == pytest.approx((4 * 0.004 + 5) / 5 / 4)
    assert (table.verdict["C6"], table.verdict_without_diverged["C6"]) == ("supported", "undecided")


def test_a_pair_without_a_loss_is_left_out_and_that_is_said() -> None:
    lost = {9: (980, float("nan"), float("nan"))}
    table = judged(
        table1=published(
            runs(STRIDED, {**NONE, 9: NONE[0]}),
            runs(FREE, shifted((0, 0.02, 0.0))),
            runs(FREE, lost, diverged=True),
        )
    )
    assert table.n[["C1", "C3"]].tolist() == [5, 4]
    assert table.left_out.to_dict() == {key: int(key == "C3") for key in CLAIMS}
    said = claims_section(table.reset_index(), "").readable.Verdict
    assert said[2].endswith("; pairs left out, as a run has no finite loss: 1")
    assert "left out" not in said[0]


def test_where_the_error_of_the_margin_undoes_an_equality_that_is_said() -> None:
    """The mean lies within a quarter of the mean gap, which is nearly as uncertain as it is large."""
    gaps, steps = (0.9, -0.3, 0.5, -0.2, 0.6), (0.001, -0.001, 0.002, -0.002, 0.0)
    sharing = published(
        runs(STRIDED, dict.fromkeys(range(5), NONE[0])),
        runs(FREE, {s: (9_800, 0.1, 0.5 + gap) for s, gap in enumerate(gaps)}),
        runs(MASKED_BY_COPIES, {s: (9_800, 0.1, 0.5 + step) for s, step in enumerate(steps)}),
        runs(EFFECTIVE, {s: (9_800, 0.1, 0.5 + 9 * step) for s, step in enumerate(steps)}),
    )
    table = judged(sharing=sharing)
    assert table.margin["C6"] == pytest.approx(0.075)
    assert table.verdict["C6"] == "supported"
    assert table.verdict_by_share["C6"] == "undecided"
    said = claims_section(table.reset_index(), "").readable.Verdict
    assert said[5] == "supported; with the margin's own error: undecided"
    sure = judged()
    assert sure.verdict_by_share.equals(sure.verdict)


def test_where_wilcoxons_test_decides_otherwise_that_is_said() -> None:
    many = {s: (9_700 + s, 0.1, 0.5) for s in range(20)} | {20: (19_000, 0.1, 0.5)}
    strided = dict.fromkeys(many, (9800, 0.1, 0.5))
    table = judged(table1=published(runs(STRIDED, strided), runs(FREE, many)))
    row = table.loc["C1"]
    assert (row.verdict, row.verdict_by_wilcoxon) == ("undecided", "contradicted")
    said = claims_section(table.reset_index(), "").readable.Verdict
    assert said[0] == "undecided; by Wilcoxon's test: contradicted"


def test_wilcoxons_p_is_adjusted_as_students_is() -> None:
    """Eight pairs of one sign have p = 2 / 2⁸, which is below 0.05, and seven times it is not."""
    ahead = {seed: (9_800 + 20 + seed, 0.1, 0.5) for seed in range(8)}
    strided = dict.fromkeys(ahead, NONE[0])
    missing = {**dict.fromkeys(EXPERIMENTS, 4), "table1": 0}
    found = {"table1": published(runs(STRIDED, strided), runs(FREE, ahead))}
    row = claims_table(found, missing).set_index("claim").loc["C1"]
    assert row.wilcoxon_p == pytest.approx(2 / 2**8)
    assert (row.verdict, row.verdict_by_wilcoxon) == ("supported", "undecided")


def test_readers_get_numbers_with_units_and_margins() -> None:
    readable = claims_section(judged().reset_index(), "").readable
    first, sixth = readable.iloc[0], readable.iloc[5]
    assert first.Claim == "C1: The unit-stride network is more accurate"
    assert first.Outcome == "test accuracy, free − strided (points)"
    assert first.Difference.startswith("-0.200 [-0.234, -0.166]")
    assert [*readable["Within (TOST)"][[0, 1, 5]]] == ["±0.06: no", "", "±0.05: yes"]
    assert sixth.Outcome == "loss of the first epoch, masked by copies − strided (nats)"


def forest(table: pd.DataFrame) -> dict[str, tuple[Axes, int, str]]:
    """By claim, the panel of the figure, its row, and the words beside it."""
    found = {}
    for axes in verdicts_figure(table, claims_section(table, "").readable).axes:
        labels = [label.get_text() for label in axes.get_yticklabels()]
        for place, (label, words) in enumerate(zip(labels, axes.texts, strict=True)):
            assert words.get_position()[1] == place
            found[label[:2]] = axes, place, words.get_text().replace("\n", " ")
    return found


def test_the_forest_plot_has_a_row_for_each_claim_with_the_numbers_of_the_table() -> None:
    table = judged()
    rows = forest(table.reset_index())
    assert sorted(rows) == [*CLAIMS]
    units = {key: axes.get_xlabel() for key, (axes, *_) in rows.items()}
    assert all(table.unit[key] in unit for key, unit in units.items())
    assert len({*units.values()}) == 3  # one axis never has two quantities
    for key, (axes, place, words) in rows.items():
        row = table.loc[key]
        here = [[*line.get_xdata()] for line in axes.get_lines() if line.get_ydata()[0] == place]
        assert [row["mean"]] in here
        assert [row.low, row.high] in here
        bands = [
            bar for bar in axes.patches if bar.get_y() < place < bar.get_y() + bar.get_height()
        ]
        ends = [(bar.get_x(), bar.get_x() + bar.get_width()) for bar in bands]
        margin = [] if pd.isna(row.margin) else [pytest.approx((-row.margin, row.margin))]
        assert ends == margin
        assert words.startswith(row.verdict)
        assert f"{row['mean']:+.3f}" in words
        assert "n = 4" in words
        shown = ends and axes.get_xlim()[0] < ends[0][0] and ends[0][1] < axes.get_xlim()[1]
        assert shown or not ends  # both ends of a margin can be seen
    assert "not shown within ±0.06" in rows["C1"][2]
    assert " within ±0.05" in rows["C6"][2]
    assert "not" not in rows["C6"][2]


def test_the_forest_plot_names_what_is_missing_and_draws_nothing_for_it() -> None:
    missing = {**COMPLETE, "sharing": 12, "fashion": None}
    rows = forest(claims_table(ALL, missing))
    for key in ("C2", "C6", "C7"):
        assert rows[key][2] == "no verdict: 12 runs of experiment=sharing are missing"
    assert rows["C5"][2] == "no verdict: the settings of experiment=fashion are not chosen yet"
    axes = rows["C2"][0]
    assert (len(axes.get_lines()), [*axes.patches]) == (1, [])  # zero
    assert "contradicted" in rows["C1"][2]


def test_every_claim_is_about_an_experiment_of_the_protocol() -> None:
    assert {claim.experiment for claim in CLAIMS.values()} == {*ALL} <= {*EXPERIMENTS}
