"""What the conversion does to each model of the zoo, or to one of the user's own.

One model at a time: convert it, verify the twin, time a forward pass of both. A row is kept in a file
as soon as it is measured, so that an interrupted survey goes on where it was.
"""

import json
import math
import textwrap
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from experiments.models import convert, load_model, random_inputs
from experiments.reporting.formats import NETWORKS, blank_or, of_rounds, spreads
from experiments.reporting.provenance import machine_of
from experiments.reporting.section import WIDTH, Section
from experiments.runs.files import write_json
from experiments.runs.machine import circumstances, prepare, short_commit
from experiments.settings.conversions import ZooConfig
from experiments.studies.conversion import TIMES
from stridenet.by_layer.converted import converted_layers
from stridenet.errors import InputError, StrideEliminationError
from stridenet.files import make_folder
from stridenet.sizes import format_size
from stridenet.twin import UnitStrideNetwork
from stridenet.verification import LayerReport, VerificationReport, verify
from stridenet.zoo import ZOO, calibrate

Row = dict[str, Any]  # what is measured of a model, as its file in outputs/zoo has it
BATCH = 2  # images on which a twin is verified
CALIBRATION = 4  # images from which an untrained network's BatchNorm layers take their statistics


def measure_zoo(config: ZooConfig) -> list[Row]:
    """Return a row for each model, in the zoo's order; each is in outputs/zoo/NAME.json, too.

    What was measured with the same settings is not measured again, unless `force`. A model of the
    user's own always is: its source may have changed.
    """
    prepare(config.threads)
    folder = Path(config.outputs) / "zoo"
    make_folder(folder)
    rows = []
    with tqdm(_chosen_models(config).items(), disable=None) as bar:
        for name, chosen in bar:
            bar.set_description(name)
            path = folder / f"{name}.json"
            row = None if config.force or config.of_user else _kept_row(path, chosen)
            if row is None:
                row = measure_model(name, chosen, calibrated=not config.of_user)
                write_json(path, row)
                bar.write(f"{name}: {outcome_line(row)}")
            rows.append(row)
    return rows


def outcome_line(row: Row) -> str:
    """Return one line that says what became of a model."""
    if "reason" in row:
        return f"no twin: {row['reason']}"
    if row["passed"]:
        return f"equal up to rounding, over {row['layers_compared']} layers"
    return f"NOT equal, from {row['first_failure']} on"


def measure_model(name: str, config: ZooConfig, calibrated: bool) -> Row:
    """Convert, verify and time one model. Where it has no twin, the row has the reason instead.

    calibrated: its BatchNorm layers first get the statistics of random images.
    """
    row = {
        "model": name,
        "input": " and ".join(format_size(images.shape[1:]) for images in random_inputs(config, 1)),
        **circumstances(config, torch.device("cpu")),
        "config": _deciding_settings(config),
    }
    model = load_model(config).float()
    if calibrated:
        calibrate(model, *random_inputs(config, CALIBRATION))
    try:
        began = time.perf_counter()
        twin = convert(model, config, check=False)  # it is verified at once
        row["conversion_seconds"] = time.perf_counter() - began
        row |= _costs(model, twin, config)
        row |= _verification_columns(
            verify(model, twin, _one_or_several(random_inputs(config, BATCH)))
        )
    except StrideEliminationError as error:
        return {**row, "reason": str(error)}
    return {**row, "seconds": forward_seconds(model, twin, random_inputs(config, 1), config.rounds)}


@torch.inference_mode()
def forward_seconds(
    model: nn.Module, twin: nn.Module, inputs: tuple[Tensor, ...], rounds: int
) -> list[dict[str, float]]:
    """Return the seconds of a forward pass of both networks, in turn, round by round.

    A first round is not counted.
    """

    def once(network: nn.Module) -> float:
        began = time.perf_counter()
        network(*inputs)
        return time.perf_counter() - began

    networks = {"strided": model, "unit_stride": twin}
    measured = [{name: once(each) for name, each in networks.items()} for _ in range(rounds + 1)]
    return measured[1:]


def _costs(model: nn.Module, twin: nn.Module, config: ZooConfig) -> dict[str, int]:
    """Return what the twin costs: as planned, or as torch counts it where layers were converted."""
    if isinstance(twin, UnitStrideNetwork):
        layers = twin.plan.strided_layers
        costs: dict[str, tuple[int, int]] = {"parameters": twin.plan.parameters}
        costs["multiply_adds"] = twin.plan.multiply_adds
    else:
        layers = len(converted_layers(twin))
        both, inputs = (model, twin), random_inputs(config, 1)
        before, after = ([p.numel() for p in each.parameters()] for each in both)
        adds = _count_multiply_adds(model, inputs), _count_multiply_adds(twin, inputs)
        costs = {"parameters": (sum(before), sum(after)), "multiply_adds": adds}
    return {"strided_layers": layers} | {
        f"{network}_{quantity}": number
        for quantity, pair in costs.items()
        for network, number in zip(NETWORKS, pair, strict=True)
    }


@torch.no_grad()
def _count_multiply_adds(network: nn.Module, inputs: tuple[Tensor, ...]) -> int:
    """Count those of convolutions and matrix products; torch counts two operations for each."""
    with FlopCounterMode(display=False) as counter:
        network(*inputs)
    return counter.get_total_flops() // 2


def _verification_columns(report: VerificationReport) -> Row:
    """Return how far the twin is from the model; None stands for a number that is not finite."""
    numbers = {
        "relative_error": max(map(_relative_error, report.layers)),
        "share_of_bound": max(layer.share_of_bound for layer in report.layers),
        "output_difference": report.output_difference,
    }
    return {
        "passed": report.passed,
        "first_failure": report.first_failure,
        "layers_compared": len(report.layers),
        **{name: n if math.isfinite(n) else None for name, n in numbers.items()},
    }


def _relative_error(layer: LayerReport) -> float:
    """Return the layer's largest error as a share of the largest value of its map."""
    if not layer.largest_error:
        return 0.0
    return layer.largest_error / layer.largest_value if layer.largest_value else math.inf


def _one_or_several(inputs: tuple[Tensor, ...]) -> Any:
    return inputs if len(inputs) > 1 else inputs[0]


def _chosen_models(config: ZooConfig) -> dict[str, ZooConfig]:
    """Return the settings of each model that is asked for, by name."""
    if config.of_user:
        return {config.model["_target_"]: config}
    names = [*ZOO] if config.models is None else config.models
    for name in names:
        if name not in ZOO:
            raise InputError(f"models: {name} is not in the zoo; it has {', '.join(ZOO)}")
    return {name: replace(config, **ZOO[name]) for name in ZOO if name in names}


def _deciding_settings(config: ZooConfig) -> Row:
    """Return the settings that decide a row.

    Where it is kept, and which others were asked for, do not.
    """
    settings = asdict(config)
    for name in ("outputs", "models", "force"):
        del settings[name]
    return settings


def _kept_row(path: Path, config: ZooConfig) -> Row | None:
    """Return the row that was measured with the same settings; None if there is none."""
    try:
        row = json.loads(path.read_text())
        return row if row["config"] == _deciding_settings(config) else None
    except (OSError, ValueError, KeyError, TypeError):  # missing or damaged
        return None


ZOO_COLUMNS = (
    "model",
    "input",
    "theorem",
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


def zoo_table(rows: list[Row]) -> pd.DataFrame:
    """Return the zoo's rows: costs, distance from the network, milliseconds of both passes.

    A network without a twin has the reason instead.
    """

    def timed(row: Row) -> dict[str, float]:
        milliseconds = 1000 * pd.DataFrame(row.get("seconds"), columns=[*NETWORKS], dtype=float)
        return of_rounds(milliseconds.strided, milliseconds.unit_stride)

    table = pd.DataFrame(
        [{**row, "theorem": row["config"]["theorem"], **timed(row)} for row in rows]
    )
    return table.reindex(columns=[*ZOO_COLUMNS]).convert_dtypes()


def zoo_for_readers(table: pd.DataFrame) -> pd.DataFrame:
    """Return both networks' numbers in one entry; blanks and the reason where there is no twin."""

    def pair(quantity: str) -> "pd.Series[str]":
        strided, twin = (
            (table[f"{network}_{quantity}"] / 1e6).map(blank_or("{:,.2f}")) for network in NETWORKS
        )
        return (strided + " → " + twin).where(strided != "", "")

    reasons = {"Reason": table.reason.fillna("")} if table.reason.notna().any() else {}
    outcome_line = table.passed.map({True: "equal", False: "NOT equal"}).fillna("no twin")
    return pd.DataFrame(
        {
            "Network": table.model,
            "Input": table["input"],
            "Theorem": table.theorem,
            "Strided layers": table.strided_layers.map(blank_or("{}")),
            "Parameters (M)": pair("parameters"),
            "Multiply-adds (M)": pair("multiply_adds"),
            "Twin is": outcome_line,
            "Error": table.relative_error.map(blank_or("{:.1e}")),
            "of bound": table.share_of_bound.map(blank_or("{:.2g}")),
            **spreads(table, TIMES),
            **reasons,
        }
    )


def write_zoo(config: ZooConfig, rows: list[Row]) -> list[str]:
    """Write the survey's table and all its rounds into outputs/report; returns what to print."""
    folder = Path(config.outputs) / "report"
    make_folder(folder)
    measured = pd.json_normalize(rows)
    commits = " / ".join(map(short_commit, measured.git_commit.unique()))
    about = f"Measured {machine_of(measured)}, commit {commits}."
    table = zoo_table(rows)
    caption = (
        "Each network beside its unit-stride twin: multiply-adds and milliseconds of the forward "
        f"pass of one input, median (quartiles) of {config.rounds} rounds in turn, in float32. Error: "
        "the largest of any layer in float64, as a share of the largest value of its map, and as a "
        "share of the rounding bound at its position: up to 1, the layer is equal up to rounding."
    )
    name = "own_model" if config.of_user else "zoo"  # which keeps the zoo's table
    write_json(folder / f"{name}.json", rows)
    readable = zoo_for_readers(table)
    section = Section(
        name, "The zoo", caption, about, table, readable, ("Input", "Theorem", "Reason")
    )
    reasons = [f"{row['model']}: {row['reason']}" for row in rows if "reason" in row]
    return [section.save(folder), *reasons, textwrap.fill(about, WIDTH)]
