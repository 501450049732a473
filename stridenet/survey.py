"""What the conversion does to each model of the zoo, or to one of the user's own.

One model at a time: convert it, verify the twin, time a forward pass of both. A row is kept in a file
as soon as it is measured, so that an interrupted survey goes on where it was.
"""

import json
import math
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from stridenet.config import InputError, Zoo
from stridenet.conversion import convert, load_model, random_inputs
from stridenet.elimination import EliminationPlan
from stridenet.execution import circumstances, prepare
from stridenet.runs import write_json
from stridenet.tables import NETWORKS
from stridenet.tracing import StrideEliminationError, written
from stridenet.verification import LayerReport, VerificationReport, verify
from stridenet.zoo import ZOO, calibrate

BATCH = 2  # images on which a twin is verified
CALIBRATION = 4  # images from which an untrained network's BatchNorm layers take their statistics


def survey(config: Zoo) -> list[dict[str, Any]]:
    """A row for each model, in the zoo's order; each is in outputs/zoo/NAME.json, too.

    What was measured with the same settings is not measured again, unless `force`. A model of the
    user's own always is: its source may have changed.
    """
    prepare(config.threads)
    folder = Path(config.outputs) / "zoo"
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    with tqdm(_chosen(config).items(), disable=None) as bar:
        for name, chosen in bar:
            bar.set_description(name)
            path = folder / f"{name}.json"
            row = None if config.force or config.of_user else _kept(path, chosen)
            if row is None:
                row = measure(name, chosen, calibrated=not config.of_user)
                write_json(path, row)
                bar.write(f"{name}: {verdict(row)}")
            rows.append(row)
    return rows


def verdict(row: dict[str, Any]) -> str:
    """What became of one model, in a line."""
    if "reason" in row:
        return f"no twin: {row['reason']}"
    if row["passed"]:
        return f"equal up to rounding, over {row['layers_compared']} layers"
    return f"NOT equal, from {row['first_failure']} on"


def measure(name: str, config: Zoo, calibrated: bool) -> dict[str, Any]:
    """Convert, verify and time one model. Where it has no twin, the row has the reason instead.

    calibrated: its BatchNorm layers first get the statistics of random images.
    """
    row = {
        "model": name,
        "input": " and ".join(written(images.shape[1:]) for images in random_inputs(config, 1)),
        **circumstances(config, torch.device("cpu")),
        "config": _identity(config),
    }
    model = load_model(config).float()
    if calibrated:
        calibrate(model, *random_inputs(config, CALIBRATION))
    try:
        began = time.perf_counter()
        twin = convert(model, config)
        row["conversion_seconds"] = time.perf_counter() - began
        row |= _planned(twin.plan)
        row |= _verified(verify(model, twin, _one_or_several(random_inputs(config, BATCH))))
    except StrideEliminationError as error:
        return {**row, "reason": str(error)}
    return {**row, "seconds": forward_seconds(model, twin, random_inputs(config, 1), config.rounds)}


@torch.inference_mode()
def forward_seconds(
    model: nn.Module, twin: nn.Module, inputs: tuple[Tensor, ...], rounds: int
) -> list[dict[str, float]]:
    """Seconds of a forward pass of both networks, in turn, round by round, after one not counted."""

    def once(network: nn.Module) -> float:
        began = time.perf_counter()
        network(*inputs)
        return time.perf_counter() - began

    networks = {"strided": model, "unit_stride": twin}
    measured = [{name: once(each) for name, each in networks.items()} for _ in range(rounds + 1)]
    return measured[1:]


def _planned(plan: EliminationPlan) -> dict[str, int]:
    """What the twin costs."""
    costs = {"parameters": plan.parameters, "multiply_adds": plan.multiply_adds}
    return {"strided_layers": plan.strided_layers} | {
        f"{network}_{quantity}": number
        for quantity, pair in costs.items()
        for network, number in zip(NETWORKS, pair, strict=True)
    }


def _verified(report: VerificationReport) -> dict[str, Any]:
    """How far the twin is from the model; None stands for a number that is not finite."""
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
    """The layer's largest error as a share of the largest value of its map."""
    if not layer.largest_error:
        return 0.0
    return layer.largest_error / layer.largest_value if layer.largest_value else math.inf


def _one_or_several(inputs: tuple[Tensor, ...]) -> Any:
    return inputs if len(inputs) > 1 else inputs[0]


def _chosen(config: Zoo) -> dict[str, Zoo]:
    """The settings of each model that is asked for, by name."""
    if config.of_user:
        return {config.model["_target_"]: config}
    names = [*ZOO] if config.models is None else config.models
    for name in names:
        if name not in ZOO:
            raise InputError(f"models: {name} is not in the zoo; it has {', '.join(ZOO)}")
    return {name: replace(config, **ZOO[name]) for name in ZOO if name in names}


def _identity(config: Zoo) -> dict[str, Any]:
    """What decides a row: not where it is kept, nor which others were asked for."""
    settings = asdict(config)
    for name in ("outputs", "models", "force"):
        del settings[name]
    return settings


def _kept(path: Path, config: Zoo) -> dict[str, Any] | None:
    """The row that was measured with the same settings; None if there is none."""
    try:
        row = json.loads(path.read_text())
        return row if row["config"] == _identity(config) else None
    except (OSError, ValueError, KeyError, TypeError):  # missing or damaged
        return None
