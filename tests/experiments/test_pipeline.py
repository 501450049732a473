"""What make reproduce does, on the real MNIST: each step, and the numbers that it leaves."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from experiments.runs.data import load
from experiments.runs.files import load_weights
from experiments.runs.networks import build_network
from experiments.settings.identity import run_name
from experiments.settings.schema import DataConfig
from tests.experiments.processes import PIPELINE, SMOKE, command, snapshot

pytestmark = pytest.mark.slow

REPORT = {
    "index.html",
    "runs.csv",
    "about.json",
    *(f"{name}.{suffix}" for suffix in ("csv", "md", "tex")
      for name in ("table1", "comparison", "table2", "degrees_of_freedom", "copied_weights")),
    *(f"{name}.{suffix}" for suffix in ("png", "svg")
      for name in ("feature_maps", "accuracy_by_epoch", "accuracy_of_seeds", "training_time")),
}  # fmt: skip


Composed = Callable[..., Any]


# The pipeline


@pytest.mark.parametrize("step", PIPELINE)
def test_every_step_succeeds_and_says_what_it_did(pipeline: Path, step: str) -> None:
    printed = json.loads((pipeline / "printed.json").read_text())[step]
    assert printed["returncode"] == 0, printed["stderr"]
    assert printed["stderr"] == ""
    if step == "report":
        assert f"The report as a page: {pipeline}/report/index.html\n" in printed["stdout"]
        for told in ("Table 1:", "Table 2:", "320x6x6", "Non-Unity Stride", "98.17", "10000"):
            assert told in printed["stdout"]
        assert max(map(len, printed["stdout"].splitlines())) <= max(80, len(str(pipeline)) + 70)
    else:
        network = "copy" if step == "copy" else "scratch"
        assert re.fullmatch(
            rf"(un)?\w+-{network}-smoke-s0-[0-9a-f]{{8}}: test accuracy \d+\.\d\d%\n",
            printed["stdout"],
        )


def test_results_have_all_that_a_reader_needs(
    composed: Composed, results: dict[str, dict[str, Any]], pipeline: Path
) -> None:
    assert set(results) == {"strided", "unit_stride", "copy"}
    assert len({result["experiment"] for result in results.values()}) == 1
    for step, result in results.items():
        assert set(result) == {
            "run", "loop", "experiment", "network", "weights", "sharing", "variant", "seed",
            "learning_rate", "diverged",
            "test_accuracy", "test_correct", "test_images", "test_loss", "test_bits",
            *(() if step == "copy" else ("fit_accuracy", "fit_loss", "fit_images")),
            "training_wall_seconds", "training_cpu_seconds", "rearrangement_seconds",
            "copied", "epochs", "rho", "device", "device_name", "threads", "jobs_at_once",
            "versions", "git_commit", "date", "config", "run_seconds", "sha256",
        }  # fmt: skip
        config = composed(*PIPELINE[step][1:], f"outputs={pipeline}")
        assert result["run"] == run_name(config)
        assert (result["seed"], result["threads"], result["test_images"]) == (0, 1, 10_000)
        assert result["jobs_at_once"] == 1
        assert result["test_accuracy"] == result["test_correct"] / 10_000
        assert result["config"]["recipe"]["steps"] == 60
        assert result["versions"]["torch"] == torch.__version__
        files = {path.name for path in (pipeline / "runs" / result["run"]).iterdir()}
        assert files == {"lock", "config.yaml", "weights.pt", "result.json"}


def test_sixty_steps_already_learn_and_their_seconds_are_measured(
    results: dict[str, dict[str, Any]],
) -> None:
    for step in ("strided", "unit_stride"):
        first, last = results[step]["epochs"]
        assert (first["epoch"], last["epoch"]) == (0, 60 / 78)
        assert last["validation_accuracy"] > 2 * first["validation_accuracy"]
        assert last["validation_loss"] < first["validation_loss"]
        assert results[step]["training_wall_seconds"] > 0
    assert results["copy"]["training_wall_seconds"] is None


def test_copied_weights_predict_the_same_class_on_all_test_images(
    results: dict[str, dict[str, Any]],
) -> None:
    copied = results["copy"]["copied"]
    assert copied["float64"]["agreeing"] == copied["float64"]["images"] == 10_000
    assert copied["float32"]["agreeing"] >= 9_999  # two scores may tie up to rounding
    assert copied["float64"]["largest_difference"] < 1e-12
    assert copied["float32"]["largest_difference"] < 1e-3
    assert results["copy"]["test_correct"] == pytest.approx(
        results["strided"]["test_correct"], abs=1
    )


def strided_lenet(weights: dict[str, Tensor], x: Tensor) -> Tensor:
    """The paper's strided network, written out."""
    w = {name: value.double() for name, value in weights.items()}
    for layer, stride in (("conv1", 1), ("conv2", 2), ("conv3", 1), ("conv4", 2)):
        x = F.conv2d(x, w[f"{layer}.weight"], w[f"{layer}.bias"], stride).relu()
    x = F.linear(x.flatten(1), w["fc1.weight"], w["fc1.bias"]).relu()
    return F.linear(x, w["fc2.weight"], w["fc2.bias"])


def test_the_saved_weights_of_both_networks_give_the_same_scores_on_mnist(
    pipeline: Path, results: dict[str, dict[str, Any]], composed: Composed, mnist_folder: Path
) -> None:
    folders = {step: pipeline / "runs" / result["run"] for step, result in results.items()}
    data = load(DataConfig("mnist"), mnist_folder)
    values = data.train_images.double()
    images = (data.test_images[:500].double() - values.mean()) / values.std()
    weights = torch.load(folders["strided"] / "weights.pt", weights_only=True)
    twin = build_network(composed("model=unit_stride").model, (1, 28, 28))
    load_weights(folders["copy"] / "weights.pt", twin)
    with torch.no_grad():
        expected, scores = strided_lenet(weights, images), twin.double()(images)
    torch.testing.assert_close(scores, expected, rtol=1e-10, atol=1e-12)
    accuracy = float((scores.argmax(1) == data.test_labels[:500]).double().mean())
    assert accuracy == pytest.approx(results["strided"]["test_accuracy"], abs=0.1)


def test_the_report_has_all_its_files_with_the_numbers_of_the_runs(
    pipeline: Path, results: dict[str, dict[str, Any]]
) -> None:
    report = pipeline / "report"
    assert {path.name for path in report.iterdir()} == REPORT | {"page"}

    runs = pd.read_csv(report / "runs.csv").set_index(["network", "weights"])
    assert len(runs) == 3
    table1 = pd.read_csv(report / "table1.csv").set_index("network")
    assert list(table1.index) == ["strided", "unit_stride"]
    for step, key in (("strided", "scratch"), ("unit_stride", "scratch"), ("copy", "copy")):
        network, result = results[step]["network"], results[step]
        row = runs.loc[(network, key)]
        assert (row.run, row.test_correct) == (result["run"], result["test_correct"])
        if key == "scratch":
            entry = table1.loc[network]
            assert entry.n == 1
            assert entry.accuracy_percent_mean == pytest.approx(100 * result["test_accuracy"])
            assert entry.training_seconds_mean == pytest.approx(result["training_wall_seconds"])

    table2 = pd.read_csv(report / "table2.csv", dtype=str)
    assert table2.to_numpy().tolist()[1] == [
        "unit_stride", "16x7x7", "320x6x6", "80x6x6", "200x4x4", "50x4x4", "500",
    ]  # fmt: skip
    copied = pd.read_csv(report / "copied_weights.csv").set_index("numbers")
    assert copied.loc["float64"].agreeing_least == 10_000


def test_a_second_time_nothing_is_trained_and_the_report_is_the_same(
    pipeline: Path, outputs: Path
) -> None:
    for part in ("runs", "report"):
        shutil.copytree(pipeline / part, outputs / part)
    before = snapshot(outputs)
    assert len(before) == 9
    both = command("train", "-m", *SMOKE, "model=strided,unit_stride", outputs=outputs)
    copy = command(*PIPELINE["copy"], outputs=outputs)
    report = command(*PIPELINE["report"], outputs=outputs)
    assert [both.returncode, copy.returncode, report.returncode] == [0, 0, 0]
    assert both.stdout == "2 of 2 runs are done\n"
    assert copy.stdout.endswith("% (done before)\n")
    assert snapshot(outputs) == before
    for name in REPORT:
        again, first = outputs / "report" / name, pipeline / "report" / name
        # The page has its command, and with it the folder.
        text = again.read_bytes().replace(bytes(outputs), bytes(pipeline))
        assert text == first.read_bytes(), name
