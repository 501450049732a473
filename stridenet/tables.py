"""Tables 1 and 2 and the copied-weights table, from runs and from the plan of the elimination."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd

from stridenet.elimination import EliminationPlan, LayerPlan
from stridenet.runs import write
from stridenet.tracing import written

NETWORKS = ("strided", "unit_stride")
PRINTED = {"strided": "Non-Unity Stride", "unit_stride": "Unity Stride"}  # the paper's names
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


LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        **{special: f"\\{special}" for special in "&%$#_{}"},
    }
)


def table1(runs: pd.DataFrame, plan: EliminationPlan, data: str) -> pd.DataFrame:
    """Accuracy and training time of each network over its n seeds, the paper's beside them.

    runs: as runs.tidy gives them. One row for each network trained from scratch, n = 0 included, and
    one for each fine-tuned. A deviation of fewer than two runs is missing. Runs that started from a
    file of weights are left out: different files are no repetitions.
    """
    trained = runs[runs.weights.isin(["scratch", "fine_tune"])]
    started = trained.groupby(["network", "weights"])
    measured = started.agg(
        n=("seed", "size"),
        accuracy_percent_mean=("test_accuracy", lambda a: 100 * a.mean()),
        accuracy_percent_std=("test_accuracy", lambda a: 100 * a.std()),
        training_seconds_mean=("training_wall_seconds", "mean"),
        training_seconds_std=("training_wall_seconds", "std"),
    )
    scratch = pd.MultiIndex.from_product([NETWORKS, ["scratch"]], names=["network", "weights"])
    measured = measured.reindex(scratch.append(measured.index.difference(scratch))).reset_index()
    measured["n"] = measured.n.fillna(0).astype(int)
    architecture = pd.DataFrame(
        [
            {"network": name, "layers": _layers(plan, name), "maps": " ".join(_maps(plan, name))}
            for name in NETWORKS
        ]
    )
    architecture["input"] = architecture.maps.str.partition(" ")[0]
    paper = PAPER if data == "mnist" else PAPER.iloc[:0]
    table = measured.merge(architecture, how="left").merge(paper, how="left")
    table.loc[table.weights != "scratch", ["paper_accuracy_percent", "paper_training_seconds"]] = (
        None
    )
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


def table2(plan: EliminationPlan) -> pd.DataFrame:
    """The input and every feature map of both networks, in order, as channels x height x width."""
    columns = ["network", "input", *(layer.name for layer in _weighted(plan)[:-1])]
    return pd.DataFrame([[name, *_maps(plan, name)] for name in NETWORKS], columns=columns)


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


def for_readers(table: pd.DataFrame) -> pd.DataFrame:
    """Table 1 with a mean and its deviation in one entry, and the paper's names."""
    return pd.DataFrame(
        {
            "Network": _printed(table.network),
            "Input": table["input"],
            "Layers": table["layers"],
            "n": table.n,
            "Accuracy %": _mean_and_deviation(table, "accuracy_percent", 2),
            "paper's %": table.paper_accuracy_percent.map(_blank_or("{:.2f}")),
            "Training s": _mean_and_deviation(table, "training_seconds", 1),
            "paper's s": table.paper_training_seconds.map(_blank_or("{:.2f}")),
        }
    )


def save(table: pd.DataFrame, readable: pd.DataFrame, path: Path, caption: str) -> None:
    """Write `path` with .csv (all numbers), .md and .tex (as people read it)."""
    write(path.with_suffix(".csv"), table.to_csv(index=False).encode())
    markdown = readable.to_markdown(index=False, disable_numparse=True)
    write(path.with_suffix(".md"), f"{markdown}\n\n{caption}\n".encode())
    style = readable.style.format(escape="latex").format_index(escape="latex", axis="columns")
    latex = style.hide(axis="index").to_latex(hrules=True, caption=caption.translate(LATEX))
    write(path.with_suffix(".tex"), latex.replace("±", r"$\pm$").encode())


def _printed(networks: "pd.Series[str]") -> "pd.Series[str]":
    for name, printed in reversed(PRINTED.items()):
        networks = networks.str.replace(f"^{name}(?= |$)", printed, regex=True)
    return networks


def _mean_and_deviation(table: pd.DataFrame, quantity: str, digits: int) -> "pd.Series[str]":
    number = f"{{:.{digits}f}}"
    mean = table[f"{quantity}_mean"].map(_blank_or(number))
    return mean + table[f"{quantity}_std"].map(_blank_or(f" ± {number}"))


def _blank_or(pattern: str) -> Callable[[float], str]:
    return lambda value: "" if pd.isna(value) else pattern.format(value)


def _weighted(plan: EliminationPlan) -> list[LayerPlan]:
    return [layer for layer in plan.layers if layer.weight_size]


def _maps(plan: EliminationPlan, network: str) -> list[str]:
    """The input and the result of each layer but the last, whose result is the scores."""
    strided = network == "strided"
    first = plan.input_size if strided else plan.input.unit_stride_size
    outputs = [layer.output for layer in _weighted(plan)[:-1]]
    return [written(first), *(written(o.size if strided else o.unit_stride_size) for o in outputs)]


def _layers(plan: EliminationPlan, network: str) -> str:
    """As the paper writes them: "5x5 conv 20, 2x2 conv 20 stride 2, …, fc 500"."""
    return ", ".join(_layer(layer, network == "strided") for layer in _weighted(plan))


def _layer(layer: LayerPlan, strided: bool) -> str:
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
