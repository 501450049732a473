"""Finished runs whose numbers were chosen, for a report to read."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from experiments.runs.results import pack_bits
from experiments.settings.identity import LOOP, experiment_identity
from experiments.settings.schema import ReportConfig
from tests.whole import whole

IMAGES = 1000


Change = Callable[[ReportConfig], ReportConfig]


def result_of(
    config: ReportConfig,
    network: str,
    weights: str,
    seed: int,
    percent: float,
    seconds: float,
    jobs_at_once: int | None = 1,
) -> dict[str, Any]:
    """The result of a run, for which the processor took 9 seconds."""
    correct = round(percent * IMAGES / 100)
    return {
        "run": f"{network}-{weights}-{config.recipe.name}-{seed}",
        "loop": LOOP,
        "experiment": experiment_identity(config),
        "network": network,
        "sharing": "free",
        "variant": "",
        "weights": weights,
        "seed": seed,
        "learning_rate": 0.01,
        "diverged": False,
        "test_accuracy": percent / 100,
        "test_correct": correct,
        "test_images": IMAGES,
        "test_loss": 0.1,
        "training_wall_seconds": seconds,
        "training_cpu_seconds": 9.0,
        "epochs": [{"epoch": 0.0, "training_loss": None, "validation_accuracy": 0.1}],
        "rho": [],
        "device": "cpu",
        "device_name": "Abacus 3000",
        "threads": 1,
        "jobs_at_once": jobs_at_once,
        "versions": {"torch": "9.9"},
        "git_commit": "1234",
        "date": "2020-01-02T03:04:05+00:00",
        "config": asdict(config),
    }


def bits_of(result: dict[str, Any]) -> dict[str, str]:
    """Its first images are right."""
    return {"test_bits": pack_bits(torch.arange(IMAGES) < result["test_correct"])}


def finished(
    config: ReportConfig,
    network: str,
    seed: int,
    percent: float,
    bits: bool = False,
    seconds: float = 10.0,
    jobs_at_once: int | None = 1,
) -> None:
    """Leave the folder of a finished run from scratch."""
    result = result_of(config, network, "scratch", seed, percent, seconds, jobs_at_once)
    folder = Path(config.outputs, "runs", result["run"])
    folder.mkdir(parents=True)
    result |= bits_of(result) if bits else {}
    (folder / "result.json").write_text(json.dumps(whole(result)))
