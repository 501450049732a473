"""What the tests of a run share: small data, settings for it, and what a run leaves in its folder."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from experiments.settings.schema import ReportConfig, RunConfig


def twin_of(config: RunConfig, **changes: Any) -> RunConfig:
    return replace(config, model=replace(config.model, eliminate_stride=True), **changes)


def report_of(config: RunConfig) -> ReportConfig:
    return ReportConfig(config.model, config.data, config.recipe, config.outputs)


def pooling_of(config: RunConfig) -> RunConfig:
    """Give the tiny network pooling, which keeps its channels."""
    layers = {**config.model.layers, "conv2": replace(config.model.layers["conv2"], channels=4)}
    return replace(config, model=replace(config.model, layers=layers, max_pooling=True))


def file_names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Time and content of every file below a folder, but the locks."""
    return {
        str(path): (path.stat().st_mtime_ns, path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file() and path.name != "lock"
    }


# Weights


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3))


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.victim,)
