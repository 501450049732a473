"""Results of runs that tests make up, with all that a result of this training loop has."""

from typing import Any

import torch

from experiments.runs.results import pack_bits

DEFAULTS: dict[str, Any] = {
    "sharing": "free",
    "variant": "",
    "learning_rate": 0.01,
    "diverged": False,
    "test_loss": 0.1,
    "training_wall_seconds": 9.0,
    "training_cpu_seconds": 9.0,
    "rearrangement_seconds": None,
    "copied": {},
    "epochs": [{"epoch": 0.0, "training_loss": None}],
    "rho": [],
    "device": "cpu",
    "device_name": "Abacus 3000",
    "threads": 1,
    "jobs_at_once": 1,
    "versions": {"torch": "9.9"},
    "git_commit": "1234",
    "date": "2020-01-02T03:04:05+00:00",
}


def whole(result: dict[str, Any], images: int = 10_000) -> dict[str, Any]:
    """The result with what it lacks; its first images are right."""
    correct = result.setdefault("test_correct", round(images * result["test_accuracy"]))
    images = result.setdefault("test_images", images)
    if result["weights"] == "copy":
        found = {"agreeing": images, "images": images, "largest_difference": 0.0}
        result.setdefault("copied", {"float32": found, "float64": found})
    bits = pack_bits(torch.arange(images) < correct)
    return {**DEFAULTS, "test_bits": bits, **result, "test_accuracy": correct / images}
