"""One run from its settings to its result: data, network, training, folder."""

import contextlib
import sys
import time
import traceback
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from omegaconf import OmegaConf
from torch import nn

from experiments.runs import files
from experiments.runs.data import load
from experiments.runs.examples import Examples, Split, normalise
from experiments.runs.folder import load_checkpoint, locked, run_folder
from experiments.runs.machine import choose_device, circumstances, prepare
from experiments.runs.published import published_result
from experiments.runs.result_keys import Copied, Fit, Measurements, Result, RunIdentity
from experiments.runs.results import DamagedResultError, pack_bits, read_result
from experiments.runs.starting import starting_network, twin_training, weights_to_keep
from experiments.runs.training import Checkpoint, History, TwinTraining, evaluate, train
from experiments.runs.trust import hashed
from experiments.settings.identity import LOOP, experiment_identity, strided_source, variant
from experiments.settings.schema import STARTING_WEIGHTS, RunConfig
from stridenet.files import remove_half_written
from stridenet.twin import UnitStrideNetwork
from stridenet.verification import compare_scores


class Outcome(NamedTuple):
    """Describes a run that is done."""

    folder: Path
    result: Mapping[str, Any]  # a Result, or the row of runs.csv of a published run
    new: bool  # whether it was done just now


def run_once(
    config: RunConfig, jobs_at_once: int | None = 1, bar: bool = True, sweep: str | None = None
) -> Outcome:
    """Do a run, unless it is done.

    jobs_at_once: how many runs go on side by side, which the result tells; None where nobody knows.
    bar: whether to show a progress bar. sweep: the token of the sweep that the run belongs to, which
    failure.json names. Where a result cannot be trusted, that is said, and the run starts anew.
    """
    folder = run_folder(config)
    row = published_result(config)
    if row is not None:
        return Outcome(folder, row, False)
    with contextlib.suppress(DamagedResultError):  # _trusted_result says so
        done = read_result(folder, LOOP)
        if done is not None:  # the folder may be another user's, or read-only: no lock is needed
            with contextlib.suppress(OSError):
                (folder / "checkpoint.pt").unlink(missing_ok=True)
            return Outcome(folder, done, False)
    with locked(folder):
        result = _trusted_result(folder)  # another process may have finished it meanwhile
        new = result is None
        if result is None:
            result = _do_run(config, folder, jobs_at_once, bar, sweep)
        (folder / "checkpoint.pt").unlink(missing_ok=True)
    return Outcome(folder, result, new)


def _trusted_result(folder: Path) -> Result | None:
    """Return the result of the run; None if it is not finished, or its result cannot be trusted."""
    try:
        return read_result(folder, LOOP)
    except DamagedResultError as error:
        print(f"{error.reason}: starting from the beginning", file=sys.stderr, flush=True)
        (folder / "result.json").unlink()
        return None


def _do_run(
    config: RunConfig, folder: Path, jobs_at_once: int | None, bar: bool, sweep: str | None
) -> Result:
    """Do the run in its folder, which the caller has locked; if it fails, failure.json says why."""
    failure, began = folder / "failure.json", time.perf_counter()
    failure.unlink(missing_ok=True)
    remove_half_written(folder)  # when the process was killed
    try:
        files.write(folder / "config.yaml", OmegaConf.to_yaml(asdict(config)).encode())
        result, weights = _execute(config, folder, jobs_at_once, bar)
        result["run_seconds"] = time.perf_counter() - began
        result = hashed(result, weights)
        files.write_json(folder / "result.json", result)
    except Exception as error:
        reason = {"error": str(error), "trace": traceback.format_exc(), "sweep": sweep}
        with contextlib.suppress(OSError):  # on a full disk, say, the first error tells more
            files.write_json(failure, reason)
        raise
    return result


class Trained(NamedTuple):
    """Holds what training measured, and the code that did it."""

    history: History
    commit: str | None  # "… then …" if the run went on with other code than it began with


class Prepared(NamedTuple):
    """Holds what is trained: layers and examples on the device, in the form that they need."""

    layers: nn.Module
    splits: dict[str, Examples]
    twin: TwinTraining
    rearrangement_seconds: float | None  # None for a network that is no twin


def _prepare(
    network: nn.Module, images: Mapping[str, Split], config: RunConfig, device: torch.device
) -> Prepared:
    """Move the network and its images to the device; rearrange a twin's images once (section 6)."""
    layers, seconds, twin = network, None, TwinTraining()
    if isinstance(network, UnitStrideNetwork):
        began = time.perf_counter()
        images = {
            name: Split(network.rearrange(split.images), split.labels)
            for name, split in images.items()
        }
        seconds = time.perf_counter() - began
        layers, twin = network.network, twin_training(network, config)
    layers.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    splits = {name: Examples(*split, device) for name, split in images.items()}
    return Prepared(layers, splits, twin, seconds)


def _execute(
    config: RunConfig, folder: Path, jobs_at_once: int | None, bar: bool
) -> tuple[Result, str]:
    """Train or evaluate.

    Returns what result.json is to say, and the SHA-256 of the weights' file.
    """
    device = choose_device(config.device)
    about = circumstances(config, device, jobs_at_once)  # of the code that starts here
    prepare(config.threads)
    if config.published is not None and config.weights in ("copy", "fine_tune"):
        # The weights of the strided run are not published: it is trained here, in the same job.
        run_once(replace(strided_source(config), published=None), bar=False)
    network, source = starting_network(config)
    images = normalise(
        load(config.data, Path(config.outputs) / "data", config.seed), config.recipe.pixels
    )
    prepared = _prepare(network, images, config, device)
    test = prepared.splits.pop("test")  # read once, after the last step

    title = folder.name.rpartition("-")[0] if bar else None
    history, about["git_commit"] = _train(config, folder, prepared, about["git_commit"], title)
    measured = _measure(config, history, prepared, test)
    if config.weights == "copy" and source is not None and isinstance(network, UnitStrideNetwork):
        for numbers in ("float32", "float64"):
            compared = compare_scores(source, network, images["test"].images, numbers)
            measured["copied"][numbers] = cast(Copied, compared)
    weights = files.save_tensors(folder / "weights.pt", weights_to_keep(network))
    identity = _identity(config, folder)
    whole = {**identity, **measured, **about, "config": asdict(config)}
    return cast(Result, whole), weights


def _identity(config: RunConfig, folder: Path) -> RunIdentity:
    return {
        "run": folder.name,
        "loop": LOOP,
        "experiment": experiment_identity(config),
        "network": config.model.name,
        "weights": config.weights if config.weights in STARTING_WEIGHTS else "file",
        "sharing": config.sharing,
        "variant": variant(config),
        "seed": config.seed,
        "learning_rate": config.rate if config.weights != "copy" else None,
    }


def _measure(
    config: RunConfig, history: History, prepared: Prepared, test: Examples
) -> Measurements:
    fit = _fit(config, prepared) if history.steps else Fit()
    tested = evaluate(prepared.layers, test)
    return {
        "diverged": history.diverged,
        "test_accuracy": tested.accuracy,
        "test_correct": tested.correct,
        "test_images": len(tested.right),
        "test_loss": tested.loss,
        "test_bits": pack_bits(tested.right),
        **fit,
        "training_wall_seconds": history.wall_seconds if history.steps else None,
        "training_cpu_seconds": history.cpu_seconds if history.steps else None,
        "rearrangement_seconds": prepared.rearrangement_seconds,
        "copied": {},
        "epochs": history.epochs,
        "rho": history.rho,
    }


def _fit(config: RunConfig, prepared: Prepared) -> Fit:
    """Evaluate on as many of the images that were trained on as there are test images."""
    images = prepared.splits["training"].first(config.data.facts.test_images)
    found = evaluate(prepared.layers, images)
    return {"fit_accuracy": found.accuracy, "fit_loss": found.loss, "fit_images": len(images)}


def _train(
    config: RunConfig, folder: Path, prepared: Prepared, commit: str | None, title: str | None
) -> Trained:
    """Train from the run's checkpoint, if it has one, and keep one after each epoch."""
    rate = config.rate if config.weights != "copy" else 1.0
    recipe = replace(config.recipe, learning_rate=rate)
    if config.weights == "copy":
        recipe = replace(recipe, epochs=0, steps=None)
    checkpoint, commits = folder / "checkpoint.pt", [commit]
    resume = load_checkpoint(checkpoint, prepared.layers)
    if resume is not None:
        print(f"{folder.name}: going on from its checkpoint", file=sys.stderr, flush=True)
        commits = [*dict.fromkeys([*resume["commits"], commit])]

    def save(state: Checkpoint) -> None:
        content = {"run": folder.name, "commits": commits, **state}
        files.save_tensors(checkpoint, content, sealed=True)

    device = next(prepared.layers.parameters()).device
    history = train(
        prepared.layers, prepared.splits, recipe, config.seed, device,
        title=title, resume=resume, save=save, twin=prepared.twin,
    )  # fmt: skip
    return Trained(history, commit if len(commits) == 1 else " then ".join(map(str, commits)))
