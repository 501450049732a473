"""The report's tables, from runs, from the plan of the elimination, and from what was timed."""

import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from stridenet.calls import LayerPlan
from stridenet.comparison import Comparison
from stridenet.elimination import EliminationPlan
from stridenet.runs import arms, write
from stridenet.tracing import written

NETWORKS = ("strided", "unit_stride")
PRINTED = {  # the paper's names, and the network before its strided one
    "strided": "Non-Unity Stride",
    "unit_stride": "Unity Stride",
    "pooling": "Pooling",
}
# Tables 1 and 2 of the paper, of one run each on MNIST. It does not print the last layer, fc 10.
PAPER = pd.DataFrame(
    [
        {
            "maps": "1x28x28 20x24x24 20x12x12 50x8x8 50x4x4 500",
            "layers": "5x5 conv 20, 2x2 conv 20 stride 2, 5x5 conv 50, 2x2 conv 50 stride 2, "
            "fc 500, fc 10",
            "paper_accuracy_percent": 98.17,
            "paper_training_seconds": 451.91,
        },
        {
            "maps": "16x7x7 320x6x6 80x6x6 200x4x4 50x4x4 500",
            "layers": "2x2 conv 320, 1x1 conv 80, 3x3 conv 200, 1x1 conv 50, fc 500, fc 10",
            "paper_accuracy_percent": 98.23,
            "paper_training_seconds": 680.97,
        },
    ]
)


PAPER_DIFFERENCE = round(float(PAPER.paper_accuracy_percent.diff().iloc[1]), 2)  # points

LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        **{special: f"\\{special}" for special in "&%$#_{}"},
    }
)


def table1(
    runs: pd.DataFrame, plan: EliminationPlan, data: str, pooling: EliminationPlan | None = None
) -> pd.DataFrame:
    """Accuracy and training time of each network over its n seeds, the paper's beside them.

    runs: as runs.tidy gives them. One row for each network trained from scratch, n = 0 included, and
    one for each that is treated otherwise, has pooling (which `pooling` is the plan of) or was
    fine-tuned. A deviation of fewer than two runs is missing. Runs that started from a file of weights
    are left out: different files are no repetitions.
    """
    trained = runs[runs.weights.isin(["scratch", "fine_tune"])].assign(network=arms)
    started = trained.groupby(["network", "weights"])
    measured = started.agg(
        n=("seed", "size"),
        accuracy_percent_mean=("test_accuracy", lambda a: 100 * a.mean()),
        accuracy_percent_std=("test_accuracy", lambda a: 100 * a.std()),
        training_seconds_mean=("training_wall_seconds", "mean"),
        training_seconds_std=("training_wall_seconds", "std"),
    )
    scratch = pd.MultiIndex.from_product([NETWORKS, ["scratch"]], names=["network", "weights"])
    others = sorted(measured.index.difference(scratch), key=lambda row: (row[1] != "scratch", row))
    measured = measured.reindex([*scratch, *others]).reset_index()
    measured["n"] = measured.n.fillna(0).astype(int)
    plans = dict.fromkeys(NETWORKS, plan) | ({"pooling": pooling} if pooling else {})
    architecture = pd.DataFrame(
        [
            {"built": name, "layers": _layers(of, name), "maps": " ".join(_maps(of, name))}
            for name, of in plans.items()
        ]
    )
    architecture["input"] = architecture.maps.str.partition(" ")[0]
    paper = PAPER if data == "mnist" else PAPER.iloc[:0]
    measured["built"] = measured.network.str.partition(" ")[0]
    table = measured.merge(architecture, how="left").merge(paper, how="left")
    papers = (table.weights == "scratch") & table.network.isin(NETWORKS)
    table.loc[~papers, ["paper_accuracy_percent", "paper_training_seconds"]] = None
    table["network"] += table.weights.map(lambda w: "" if w == "scratch" else f" {w}")
    return table[
        [
            "network",
            "input",
            "layers",
            "n",
            "accuracy_percent_mean",
            "accuracy_percent_std",
            "paper_accuracy_percent",
            "training_seconds_mean",
            "training_seconds_std",
            "paper_training_seconds",
        ]
    ]


def is_the_papers(plan: EliminationPlan, data: str) -> bool:
    """Whether these are the paper's networks on its data, so that its numbers may stand beside ours."""
    return data == "mnist" and [" ".join(_maps(plan, name)) for name in NETWORKS] == [*PAPER.maps]


def table2(plan: EliminationPlan, pooling: EliminationPlan | None = None) -> pd.DataFrame:
    """The input and every feature map of the networks, in order, as channels x height x width."""
    columns = ["network", "input", *(layer.name for layer in _layers_of_table(plan)[:-1])]
    plans = dict.fromkeys(NETWORKS, plan) | ({"pooling": pooling} if pooling else {})
    return pd.DataFrame([[name, *_maps(of, name)] for name, of in plans.items()], columns=columns)


def degrees_of_freedom(table: pd.DataFrame) -> pd.DataFrame:
    """As people read it, with a line of sums."""
    total = table.sum(numeric_only=True)
    whole = pd.concat([table, pd.DataFrame([{"layer": "all", **total}])], ignore_index=True)
    numbers = whole.drop(columns="layer").map(_blank_or("{:,.0f}"))
    return whole[["layer"]].join(numbers).rename(columns={"paper": "paper's formula"})


def copied_weights(runs: pd.DataFrame) -> pd.DataFrame:
    """The paper's first setting: the least agreement and the largest difference over n seeds."""
    copies = runs[runs.weights == "copy"]
    rows = [
        {
            "numbers": number,
            "n": len(copies),
            "images": copies[f"copied.{number}.images"].max(),
            "agreeing_least": copies[f"copied.{number}.agreeing"].min(),
            "largest_difference": copies[f"copied.{number}.largest_difference"].max(),
        }
        for number in ("float32", "float64")
        if len(copies)
    ]
    return pd.DataFrame(
        rows, columns=["numbers", "n", "images", "agreeing_least", "largest_difference"]
    ).astype({"images": int, "agreeing_least": int})


def comparison(found: Comparison) -> pd.DataFrame:
    """The paired comparison of the two networks' accuracy, in points, as one row."""
    return pd.DataFrame([{**asdict(found), "verdict": found.verdict}])


def benchmark(measured: dict[str, Any]) -> pd.DataFrame:
    """What experiments.benchmark measured: median and quartiles over the rounds, by network, and the
    ratio of the networks, unit stride over strided, of each round."""
    seconds = pd.DataFrame(measured["seconds"])
    batch = measured["config"]["recipe"]["batch_size"]
    rate = 2 * measured["matrix"] ** 3 / seconds.matrix_product

    def share(network: str) -> "pd.Series[float]":
        # Forward, and twice as much backward, but no gradient of the images.
        adds = (
            3 * measured["multiply_adds"][network] - measured["first_layer_multiply_adds"][network]
        )
        return 2 * adds * batch / seconds[f"ours_{network}"] / rate

    def fixed(strided: float, unit_stride: float) -> dict[str, float]:
        ratio = unit_stride / strided
        return {"strided_median": strided, "unit_stride_median": unit_stride, "ratio_median": ratio}

    ours, plain = ([seconds[f"{loop}_{n}"] for n in NETWORKS] for loop in ("ours", "plain"))
    once = 1000 * seconds.rearrangement
    rows = {
        "multiply-adds": fixed(*(measured["multiply_adds"][n] for n in NETWORKS)),
        **(
            {"paper's training (s)": fixed(*PAPER.paper_training_seconds)}
            if measured["paper"]
            else {}
        ),
        "our loop (ms)": _of_rounds(*(1000 * each for each in ours)),
        "plain loop (ms)": _of_rounds(*(1000 * each for each in plain)),
        "plain loop / ours": _of_rounds(*(p / o for p, o in zip(plain, ours, strict=True))),
        "share of peak (%)": _of_rounds(*(100 * share(n) for n in NETWORKS)),
        "rearrangement (ms)": {
            key.replace("strided", "unit_stride"): value
            for key, value in _of_rounds(once, once).items()
            if key.startswith("strided")
        },
    }
    return pd.DataFrame([{"quantity": quantity, **row} for quantity, row in rows.items()])


def _of_rounds(strided: "pd.Series[float]", unit_stride: "pd.Series[float]") -> dict[str, float]:
    """Median and quartiles over the rounds: strided_median, strided_low, …, ratio_high."""
    columns = {"strided": strided, "unit_stride": unit_stride, "ratio": unit_stride / strided}
    return _spread(columns)


def _spread(columns: "dict[str, pd.Series[float]]") -> dict[str, float]:
    return {
        f"{name}_{part}": column.quantile(quantile)
        for name, column in columns.items()
        for part, quantile in (("median", 0.5), ("low", 0.25), ("high", 0.75))
    }


def _median_and_quartiles(row: "pd.Series[float]", name: str) -> str:
    median, low, high = (row[f"{name}_{part}"] for part in ("median", "low", "high"))
    if pd.isna(median):
        return ""
    digits = f",.{max(2 - math.floor(math.log10(abs(median))), 0)}f"
    spread = "" if pd.isna(low) else f" ({low:{digits}}–{high:{digits}})"
    return f"{median:{digits}}{spread}"


TIMES = {"strided": "ms", "unit_stride": "twin's ms", "ratio": "ratio"}  # of a forward pass


def _spreads(table: pd.DataFrame, titles: dict[str, str]) -> "dict[str, pd.Series[str]]":
    """Medians with their quartiles in one entry, a column for each of these."""
    return {
        title: table.apply(_median_and_quartiles, axis=1, name=name)
        for name, title in titles.items()
    }


def benchmark_for_readers(table: pd.DataFrame) -> pd.DataFrame:
    """Medians with their quartiles in one entry."""
    titles = {network: PRINTED[network] for network in NETWORKS}
    entries = _spreads(table, {**titles, "ratio": "ratio"})
    entries["ratio"] = entries["ratio"].where(~table.quantity.str.contains("/|share"), "")
    return pd.DataFrame({"": table.quantity, **entries})


def conversions(measured: dict[str, Any]) -> pd.DataFrame:
    """Milliseconds of both conversions of one network: median and quartiles over the rounds, and how
    many times as long as torch.fx's fuse the elimination takes in a round."""
    milliseconds = 1000 * pd.DataFrame(measured["conversion"]["seconds"])
    columns = {
        "eliminate_stride": milliseconds.eliminate_stride,
        "fuse": milliseconds.fuse,
        "ratio": milliseconds.eliminate_stride / milliseconds.fuse,
    }
    return pd.DataFrame([{"model": measured["conversion"]["model"], **_spread(columns)}])


def conversions_for_readers(table: pd.DataFrame) -> pd.DataFrame:
    """Medians with their quartiles in one entry."""
    titles = {"eliminate_stride": "eliminate_stride", "fuse": "torch.fx's fuse", "ratio": "ratio"}
    return pd.DataFrame({"Network": table.model, **_spreads(table, titles)})


def stems(measured: dict[str, Any]) -> pd.DataFrame:
    """Milliseconds of a forward pass of each stem and of its twin, and the ratio of each round."""
    rows = []
    for stem in measured["stems"]:
        milliseconds = 1000 * pd.DataFrame(stem["seconds"])
        adds = {f"{name}_multiply_adds": stem["multiply_adds"][name] for name in NETWORKS}
        rows.append(
            {
                **{key: stem[key] for key in ("stem", "layer", "layout")},
                **adds,
                **_of_rounds(milliseconds.strided, milliseconds.unit_stride),
            }
        )
    return pd.DataFrame(rows)


def stems_for_readers(table: pd.DataFrame) -> pd.DataFrame:
    """Medians with their quartiles in one entry; multiply-adds as a ratio."""
    adds = table.unit_stride_multiply_adds / table.strided_multiply_adds
    return pd.DataFrame(
        {
            "Stem": table.stem,
            "Layer": table.layer,
            "Layout": table.layout,
            "Multiply-adds": adds.map("{:.2f}".format),
            **_spreads(table, TIMES),
        }
    )


ZOO_COLUMNS = (
    "model",
    "input",
    "scope",
    "strided_layers",
    *(
        f"{network}_{quantity}"
        for quantity in ("parameters", "multiply_adds")
        for network in NETWORKS
    ),
    "layers_compared",
    "relative_error",
    "share_of_bound",
    "output_difference",
    "passed",
    "first_failure",
    *(f"{name}_{part}" for name in (*NETWORKS, "ratio") for part in ("median", "low", "high")),
    "conversion_seconds",
    "git_commit",
    "date",
    "reason",
)


def zoo(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """The survey's rows: what each twin costs, how far it is from its network, milliseconds of a
    forward pass of both; or the reason why there is no twin."""

    def timed(row: dict[str, Any]) -> dict[str, float]:
        milliseconds = 1000 * pd.DataFrame(row.get("seconds"), columns=[*NETWORKS], dtype=float)
        return _of_rounds(milliseconds.strided, milliseconds.unit_stride)

    table = pd.DataFrame([{**row, "scope": row["config"]["scope"], **timed(row)} for row in rows])
    return table.reindex(columns=[*ZOO_COLUMNS]).convert_dtypes()


def zoo_for_readers(table: pd.DataFrame) -> pd.DataFrame:
    """Both networks' numbers in one entry; blanks and the reason where there is no twin."""

    def pair(quantity: str) -> "pd.Series[str]":
        strided, twin = (
            (table[f"{network}_{quantity}"] / 1e6).map(_blank_or("{:,.2f}")) for network in NETWORKS
        )
        return (strided + " → " + twin).where(strided != "", "")

    reasons = {"Reason": table.reason.fillna("")} if table.reason.notna().any() else {}
    verdict = table.passed.map({True: "equal", False: "NOT equal"}).fillna("no twin")
    return pd.DataFrame(
        {
            "Network": table.model,
            "Input": table["input"],
            "Scope": table.scope,
            "Strided layers": table.strided_layers.map(_blank_or("{}")),
            "Parameters (M)": pair("parameters"),
            "Multiply-adds (M)": pair("multiply_adds"),
            "Twin is": verdict,
            "Error": table.relative_error.map(_blank_or("{:.1e}")),
            "of bound": table.share_of_bound.map(_blank_or("{:.2g}")),
            **_spreads(table, TIMES),
            **reasons,
        }
    )


def comparison_for_readers(found: Comparison) -> pd.DataFrame:
    """One line a quantity; blank where too few seeds cannot tell."""
    points = _blank_or("{:+.3f}")
    spread = _blank_or("{:.3f}")
    interval = "" if found.low is None else f"{points(found.low)} to {points(found.high)}"
    rows = {
        "pairs of runs": str(found.n),
        "pairs in which the twin is ahead": str(found.ahead),
        "mean difference (points)": points(found.mean),
        "95 % interval": interval,
        "the paper's difference, of one pair": points(found.paper),
        "standard deviation of the differences": spread(found.deviation),
        f"standard deviation, {PRINTED['strided']}": spread(found.strided_deviation),
        f"standard deviation, {PRINTED['unit_stride']}": spread(found.unit_stride_deviation),
        "seeds to see the paper's difference": _blank_or("{:,.0f}")(found.n_needed),
        "the paper's claim is": found.verdict,
    }
    return pd.DataFrame({"Accuracy, twin minus strided": [*rows], "points": [*rows.values()]})


def calibration_for_readers(table: pd.DataFrame) -> pd.DataFrame:
    """Settings, accuracy and interval, and a star for the recipes whose interval has the paper's."""
    settings = table.loc[:, :"epoch"].rename(columns={"learning_rate": "rate"})
    settings = settings.map(lambda value: f"{value:g}" if isinstance(value, float) else value)
    return settings.assign(
        n=table.n,
        **{
            "Accuracy %": _mean_and_deviation(table, "accuracy_percent", 2),
            "95 % interval": table.low.map(_blank_or("{:.2f}–"))
            + table.high.map(_blank_or("{:.2f}")),
            "matches": table.matches.map({True: "*", False: ""}),
            "CPU s a run": table.training_cpu_seconds_mean.map("{:.0f}".format),
        },
    )


def sharing(table: pd.DataFrame) -> pd.DataFrame:
    """The arms of experiment=sharing, a mean and its deviation in one entry."""
    difference = table.difference_mean.map(_blank_or("{:+.2f}"))
    bounds = table.difference_low.map(_blank_or(" [{:+.2f}, ")) + table.difference_high.map(
        _blank_or("{:+.2f}]")
    )
    percent = table.assign(
        **{f"{part}_{of}": 100 * table[f"{part}_{of}"]
           for part in ("zeros", "copies") for of in ("mean", "std")}
    )  # fmt: skip
    return pd.DataFrame(
        {
            "Start": table.start,
            "Arm": table.arm,
            "n": table.n,
            "Accuracy %": _mean_and_deviation(table, "test accuracy", 2),
            "Difference": difference + bounds,
            "First epoch": _mean_and_deviation(table, "loss of the first epoch", 3),
            "Training images": _mean_and_deviation(table, "loss on training images", 4),
            "Gap": _mean_and_deviation(table, "test loss − loss on training images", 4),
            "Zeros %": _mean_and_deviation(percent, "zeros", 1),
            "Copies %": _mean_and_deviation(percent, "copies", 1),
            "CPU s": _mean_and_deviation(table, "CPU time of training", 0),
        }
    )


def claims(table: pd.DataFrame) -> pd.DataFrame:
    """Each claim with its difference and interval in one entry."""
    digits = table.unit.map({"points": 2, "nats": 4, "%": 1})

    def number(column: str) -> list[str]:
        pairs = zip(table[column], digits, strict=True)
        return ["" if pd.isna(value) else f"{value:+.{many}f}" for value, many in pairs]

    bounds = zip(number("mean"), number("low"), number("high"), strict=True)
    return pd.DataFrame(
        {
            "Claim": table.claim.where(~table.claim.duplicated(), ""),
            "Start": table.start,
            "Compared": table.arm + " − " + table.against,
            "Quantity": table.quantity + " (" + table.unit + ")",
            "n": table.n,
            "Difference": [m + (f" [{low}, {high}]" if low else "") for m, low, high in bounds],
            "Verdict": table.verdict,
        }
    )


def for_readers(table: pd.DataFrame) -> pd.DataFrame:
    """Table 1 with a mean and its deviation in one entry, and the paper's names.

    With columns reference_…, those of published results stand between ours and the paper's.
    """
    columns = {
        "Network": table.network.map(printed),
        "Input": table["input"],
        "Layers": table["layers"],
        "n": table.n,
    }
    for quantity, title, unit, digits in (
        ("accuracy_percent", "Accuracy", "%", 2),
        ("training_seconds", "Training", "s", 1),
    ):
        columns[f"{title} {unit}"] = _mean_and_deviation(table, quantity, digits)
        if "reference_n" in table:
            reference = _mean_and_deviation(table, f"reference_{quantity}", digits)
            columns[f"reference's {unit}"] = reference
        columns[f"paper's {unit}"] = table[f"paper_{quantity}"].map(_blank_or("{:.2f}"))
    return pd.DataFrame(columns)


def save(table: pd.DataFrame, readable: pd.DataFrame, path: Path, caption: str) -> None:
    """Write `path` with .csv (all numbers), .md and .tex (as people read it)."""
    write(path.with_suffix(".csv"), table.to_csv(index=False).encode())
    markdown = readable.to_markdown(index=False, disable_numparse=True)
    write(path.with_suffix(".md"), f"{markdown}\n\n{caption}\n".encode())
    style = readable.style.format(escape="latex").format_index(escape="latex", axis="columns")
    latex = style.hide(axis="index").to_latex(hrules=True, caption=caption.translate(LATEX))
    write(path.with_suffix(".tex"), latex.replace("±", r"$\pm$").encode())


def printed(network: str) -> str:
    """A network, and how it is treated, with the paper's name."""
    name, blank, treated = network.partition(" ")
    return PRINTED.get(name, name) + blank + treated


def _mean_and_deviation(table: pd.DataFrame, quantity: str, digits: int) -> "pd.Series[str]":
    number = f"{{:.{digits}f}}"
    mean = table[f"{quantity}_mean"].map(_blank_or(number))
    return mean + table[f"{quantity}_std"].map(_blank_or(f" ± {number}"))


def _blank_or(pattern: str) -> Callable[[float | None], str]:
    return lambda value: "" if pd.isna(value) else pattern.format(value)


def _layers_of_table(plan: EliminationPlan) -> list[LayerPlan]:
    return [layer for layer in plan.layers if layer.weight_size or layer.operation == "MaxPool2d"]


def _maps(plan: EliminationPlan, network: str) -> list[str]:
    """The input and the result of each layer but the last, whose result is the scores."""
    strided = network != "unit_stride"
    first = plan.input_size if strided else plan.input.unit_stride_size
    outputs = [layer.output for layer in _layers_of_table(plan)[:-1]]
    return [written(first), *(written(o.size if strided else o.unit_stride_size) for o in outputs)]


def _layers(plan: EliminationPlan, network: str) -> str:
    """As the paper writes them: "5x5 conv 20, 2x2 conv 20 stride 2, …, fc 500"."""
    return ", ".join(_layer(layer, network != "unit_stride") for layer in _layers_of_table(plan))


def _layer(layer: LayerPlan, strided: bool) -> str:
    if not layer.weight_size:
        kernel, stride = ([getattr(m, key) for m in layer.maps] for key in ("kernel", "stride"))
        same = len({*stride}) == 1
        return f"{written(kernel)} max pooling stride {written(stride[:1] if same else stride)}"
    out_channels, _, *kernel = layer.weight_size if strided else layer.unit_stride_weight_size
    if not layer.maps:
        return f"fc {out_channels}"
    options = {"groups": [layer.input.size[0] // layer.weight_size[1]]}
    if strided:
        options |= {
            "stride": [tap_map.stride for tap_map in layer.maps],
            "dilation": [tap_map.dilation for tap_map in layer.maps],
        }
    named = [
        f" {name} {written(sizes if len(set(sizes)) > 1 else sizes[:1])}"
        for name, sizes in options.items()
        if set(sizes) != {1}
    ]
    return f"{written(kernel)} conv {out_channels}{''.join(named)}"
