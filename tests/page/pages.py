"""A page of five pairs of runs beside the published ones, and the browser in which it is looked at."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from experiments.command import CONF
from experiments.page.build import write_page
from experiments.page.wanted import EXPERIMENTS, Runs
from experiments.settings.checks import resolve
from experiments.settings.schema import ReportConfig
from experiments.studies.report import write_report
from tests.experiments.reported import bits_of, result_of
from tests.whole import whole

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = ROOT / "outputs/reference"
HOSTILE = "</script><img src=x onerror=\"document.title='broken'\">"
EPOCHS = 4
SEEDS = range(3000, 3005)


def config_for(outputs: Path, *overrides: str) -> ReportConfig:
    """The settings of a report, by default of the published Table 1's experiment."""
    with initialize_config_dir(CONF, version_base="1.3"):
        given = [f"outputs={outputs}", f"reference={REFERENCE}", *overrides]
        settings = OmegaConf.to_container(compose("report", given))
    return resolve(OmegaConf.create(settings), ReportConfig)


def finished_run(config: ReportConfig, network: str, seed: int, **changed: Any) -> None:
    """Leave a finished run with curves of four epochs, its accuracy drawn from the seed."""
    twin = network == "unit_stride"
    percent = 98.0 + (seed * 7 % 5) / 10 + (0.1 * (seed % 3) if twin else 0)
    result = result_of(config, network, "scratch", seed, percent, 12.0)
    result["epochs"] = [
        {
            "epoch": float(epoch),
            "training_loss": 1 / (epoch + 1) if epoch else None,
            "validation_loss": 1.2 / (epoch + 1),
            "validation_accuracy": (percent - 4 + epoch) / 100,
        }
        for epoch in range(EPOCHS + 1)
    ]
    result |= changed
    folder = Path(config.outputs, "runs", result["run"])
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(whole(result | bits_of(result))))


def published_wanted(name: str) -> Runs | None:
    """The runs of Table 1, as composing would find them; of the others nothing is chosen."""
    if name != EXPERIMENTS[0]:
        return None
    arms = {"strided": "strided", "unit_stride": "free"}
    rows = pd.read_csv(REFERENCE / name / "runs.csv").to_dict("records")
    return {row["run"]: [f"seed={row['seed']}", f"arm={arms[row['network']]}"] for row in rows}


def page_of_five_pairs(outputs: Path) -> Path:
    """Write a whole report with its page. One run has failed, and says something that is no HTML."""
    config = config_for(outputs)
    for seed in SEEDS:
        for network in ("strided", "unit_stride"):
            finished_run(config, network, seed, device_name=f"Abacus {HOSTILE}")
    broken = outputs / "runs/strided-scratch-validated-s9-00000000"
    broken.mkdir(parents=True)
    (broken / "failure.json").write_text(json.dumps({"error": HOSTILE, "sweep": None}))
    write_report(config)
    return write_page(config, [f"outputs={outputs}"], published_wanted)


def chromium(of_playwright: str) -> str | None:
    """The browser: Playwright's own where it has been installed, or else what is on the PATH."""
    if os.path.exists(of_playwright):
        return of_playwright
    names = ("chromium", "chromium-browser", "google-chrome")
    return next((path for name in names if (path := shutil.which(name))), None)
