"""Accuracy by the number of training images, on published runs whose numbers were chosen."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from experiments.runs.published import Published
from experiments.studies.claims import CLAIMS, FREE, SIZES, STRIDED
from experiments.studies.train_size import (
    MASKED,
    accuracy_by_size,
    differences_by_size,
    train_size_figure,
    train_size_sections,
)

SEEDS = (6000, 6001, 6002, 6003)
NOISE = np.array([-1, 0, 3, -2])  # images, by seed
# Each twin is behind the strided network by so many of 1,000 images, size by size.
BEHIND = {FREE: dict(zip(SIZES, (40, 20, 10, -6), strict=True)),
          MASKED: dict(zip(SIZES, (8, 4, 2, 1), strict=True))}  # fmt: skip


def right(network: str, size: int) -> np.ndarray:
    """Images of 1,000 classified rightly, by seed."""
    strided = 800 + 50 * SIZES.index(size) + np.array([5, 3, 1, 7])
    return strided if network == STRIDED else strided - BEHIND[network][size] + NOISE


def published() -> Published:
    rows = [
        {
            "run": f"{network}-{size}-{seed}",
            "network": network.partition(" ")[0],
            "variant": network.partition(" ")[2],
            "weights": "scratch",
            "seed": seed,
            "learning_rate": 0.02 if network == STRIDED else 0.04,
            "train_size": size,
            "test_correct": int(correct),
            "test_images": 1000,
        }
        for size in reversed(SIZES)
        for network in (STRIDED, FREE, MASKED)
        for seed, correct in zip(SEEDS, right(network, size), strict=True)
    ]
    runs = pd.DataFrame(rows).astype({"train_size": "Int64"})
    return Published(runs, pd.DataFrame(), pd.DataFrame())


FOUND = published()


def test_accuracy_is_that_of_each_network_and_size_with_the_interval_of_its_mean() -> None:
    table = accuracy_by_size(FOUND)
    assert [*table.train_size.unique()] == [*SIZES]
    for row in table.itertuples():
        percent = right(row.network, row.train_size) / 10
        assert row.n == 4
        assert row.accuracy_percent_mean == pytest.approx(percent.mean())
        assert row.accuracy_percent_std == pytest.approx(percent.std(ddof=1))
        low, high = stats.t.interval(0.95, 3, percent.mean(), stats.sem(percent))
        assert row.error == pytest.approx((high - low) / 2)


def test_differences_are_strided_minus_twin_pair_by_pair_and_their_mean_over_sizes() -> None:
    table = differences_by_size(FOUND)
    for twin, behind in BEHIND.items():
        rows = table[table.twin == twin]
        assert [*rows.train_size.fillna(0)] == [*SIZES, 0]
        means = [many / 10 for many in behind.values()]
        assert [*rows["mean"]] == pytest.approx([*means, np.mean(means)])
        for row in rows.itertuples():
            values = row.mean - NOISE / 10  # a seed's four sizes go together
            assert [row.low, row.high] == pytest.approx(
                stats.t.interval(0.95, 3, values.mean(), stats.sem(values))
            )
    outcome = CLAIMS["C4"].outcome(FOUND)
    of_all = table[(table.twin == FREE) & table.train_size.isna()].iloc[0]
    assert of_all["mean"] == pytest.approx(outcome.mean())


def test_readers_get_both_tables_with_seeds_rates_and_intervals() -> None:
    accuracy, differences = train_size_sections(FOUND)
    assert "over 4 seeds, 6000 to 6003, each" in accuracy.caption
    assert accuracy.readable.iloc[0].tolist() == [
        "300", "80.40 ± 0.26 at 0.02", "76.40 ± 0.08 at 0.04", "79.60 ± 0.08 at 0.04",
    ]  # fmt: skip
    assert [*accuracy.readable.columns[1:]] == [
        "Non-Unity Stride", "Unity Stride", "Unity Stride masked",
    ]  # fmt: skip
    rows = differences.readable
    assert [*rows.Images] == ["300", "1,000", "3,000", "10,000", "all"]
    assert {*rows.n} == {4}
    assert rows["strided − free"][0].startswith("+4.00 [+3.6")
    assert rows["strided − masked"][4].startswith("+0.38 [")
    for section in (accuracy, differences):
        text = section.readable.to_string(index=False)
        assert max(map(len, text.splitlines())) <= 80


def test_the_figure_draws_accuracy_and_differences_with_their_intervals() -> None:
    left, right_axes = train_size_figure(FOUND).axes
    means = [[*c.lines[0].get_ydata()] for c in left.containers]
    assert means[0] == pytest.approx([right(STRIDED, size).mean() / 10 for size in SIZES])
    assert len(means) == 3
    table = differences_by_size(FOUND)
    for container, twin in zip(right_axes.containers, (FREE, MASKED), strict=True):
        rows = table[(table.twin == twin) & table.train_size.notna()]
        assert [*container.lines[0].get_ydata()] == pytest.approx([*rows["mean"]])
        bars = [segment[:, 1] for segment in container.lines[2][0].get_segments()]
        assert np.array(bars).ravel() == pytest.approx(
            rows[["low", "high"]].to_numpy(float).ravel()
        )
