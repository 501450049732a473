"""Numbers and names as people read them."""

import math
from collections.abc import Callable

import pandas as pd

NETWORKS = ("strided", "unit_stride")
PRINTED = {  # the paper's names, and the network before its strided one
    "strided": "Non-Unity Stride",
    "unit_stride": "Unity Stride",
    "pooling": "Pooling",
}


LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        **{special: f"\\{special}" for special in "&%$#_{}"},
    }
)


def printed(network: str) -> str:
    """Return a network, and how it is treated, with the paper's name."""
    name, blank, treated = network.partition(" ")
    return PRINTED.get(name, name) + blank + treated


def seeds_of(runs: pd.DataFrame) -> str:
    """Return how many seeds a table of runs has, and which: "10 seeds, 5000 to 5009"."""
    seeds = sorted(runs.seed.unique())
    return f"{len(seeds)} seeds, {seeds[0]} to {seeds[-1]}"


def mean_and_deviation(table: pd.DataFrame, quantity: str, digits: int) -> "pd.Series[str]":
    number = f"{{:.{digits}f}}"
    mean = table[f"{quantity}_mean"].map(blank_or(number))
    return mean + table[f"{quantity}_std"].map(blank_or(f" ± {number}"))


def blank_or(pattern: str) -> Callable[[float | None], str]:
    return lambda value: "" if pd.isna(value) else pattern.format(value)


def spread(columns: "dict[str, pd.Series[float]]") -> dict[str, float]:
    return {
        f"{name}_{part}": column.quantile(quantile)
        for name, column in columns.items()
        for part, quantile in (("median", 0.5), ("low", 0.25), ("high", 0.75))
    }


def of_rounds(strided: "pd.Series[float]", unit_stride: "pd.Series[float]") -> dict[str, float]:
    """Return median and quartiles over the rounds: strided_median, strided_low, …, ratio_high."""
    columns = {"strided": strided, "unit_stride": unit_stride, "ratio": unit_stride / strided}
    return spread(columns)


def median_and_quartiles(row: "pd.Series[float]", name: str) -> str:
    median, low, high = (row[f"{name}_{part}"] for part in ("median", "low", "high"))
    if pd.isna(median):
        return ""
    digits = f",.{max(2 - math.floor(math.log10(abs(median))), 0)}f"
    spread = "" if pd.isna(low) else f" ({low:{digits}}–{high:{digits}})"
    return f"{median:{digits}}{spread}"


def spreads(table: pd.DataFrame, titles: dict[str, str]) -> "dict[str, pd.Series[str]]":
    """Return medians with their quartiles in one entry, a column for each of these."""
    return {
        title: table.apply(median_and_quartiles, axis=1, name=name)
        for name, title in titles.items()
    }
