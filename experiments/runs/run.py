"""One run from its settings to its result: data, network, training, folder."""

import contextlib
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from experiments.runs import files
from experiments.runs.data import generator, load
from experiments.runs.folder import load_checkpoint, locked, run_folder
from experiments.runs.machine import choose_device, circumstances, prepare
from experiments.runs.networks import build_network, build_strided, draw_network, twin_of
from experiments.runs.published import published_result
from experiments.runs.results import DamagedResultError, pack_bits, read_result
from experiments.runs.training import (
    Checkpoint,
    Examples,
    History,
    evaluate,
    length,
    normalise,
    points,
    train,
)
from experiments.runs.trust import hashed
from experiments.settings.identity import (
    LOOP,
    experiment_identity,
    rate_of,
    strided_source,
    variant,
)
from experiments.settings.schema import STARTING_WEIGHTS, RunConfig
from stridenet.errors import InputError, StrideEliminationError
from stridenet.files import remove_half_written
from stridenet.origins import Origin
from stridenet.sharing import (
    distance_from_tied,
    gradient_ratios,
    number_of_copies,
    origins,
    plain_name,
    plain_state,
    share,
)
from stridenet.twin import UnitStrideNetwork
from stridenet.verification import compare_scores

START = 3.0  # of a run: seconds before its first step
TEST_IMAGES = 10_000


def run_once(
    config: RunConfig, jobs_at_once: int | None = 1, bar: bool = True, sweep: str | None = None
) -> tuple[Path, dict[str, Any], bool]:
    """Do a run, unless it is done. Returns its folder, its result, and whether it is new.

    jobs_at_once: how many runs go on side by side, for whoever reads the seconds; None: unknown. bar:
    of progress. sweep: its token, which failure.json is to have, if the run is of one. A result that
    cannot be trusted is told, and the run starts anew.
    """
    folder = run_folder(config)
    row = published_result(config)
    if row is not None:
        return folder, row, False
    with contextlib.suppress(DamagedResultError):  # which is told below
        result = read_result(folder, LOOP)
        if result is not None:  # the folder may be another user's, or read-only: no lock is needed
            with contextlib.suppress(OSError):
                (folder / "checkpoint.pt").unlink(missing_ok=True)
            return folder, result, False
    with locked(folder):
        result = _trusted_result(folder)  # another process may have finished it meanwhile
        new = result is None
        if result is None:
            result = _done(config, folder, jobs_at_once, bar, sweep)
        (folder / "checkpoint.pt").unlink(missing_ok=True)
    return folder, result, new


def _trusted_result(folder: Path) -> dict[str, Any] | None:
    """The result of the run; None if it is not finished, or finished in a way that nobody can trust."""
    try:
        return read_result(folder, LOOP)
    except DamagedResultError as error:
        print(f"{error.reason}: starting from the beginning", file=sys.stderr, flush=True)
        (folder / "result.json").unlink()
        return None


def _done(
    config: RunConfig, folder: Path, jobs_at_once: int | None, bar: bool, sweep: str | None
) -> dict[str, Any]:
    """Do the run in its folder, which the caller holds; failure.json says why where that fails."""
    failure, began = folder / "failure.json", time.perf_counter()
    failure.unlink(missing_ok=True)
    remove_half_written(folder)  # when the process was killed
    try:
        files.write(folder / "config.yaml", OmegaConf.to_yaml(asdict(config)).encode())
        result, weights = _execute(config, folder, jobs_at_once, bar)
        result = hashed({**result, "run_seconds": time.perf_counter() - began}, weights)
        files.write_json(folder / "result.json", result)
    except Exception as error:
        told = {"error": str(error), "trace": traceback.format_exc(), "sweep": sweep}
        with contextlib.suppress(OSError):  # on a full disk, say, the first one tells more
            files.write_json(failure, told)
        raise
    return result


def estimate(config: RunConfig) -> tuple[float, int]:
    """About how many seconds a run takes, by timing a few steps, and the bytes of its weights."""
    height, width = config.data.image_size
    batch, most = config.recipe.batch_size, 60_000 - config.data.validation_size
    network = build_network(config.model, (1, height, width), config.sharing)
    device = choose_device(config.device)
    prepare(config.threads)
    images, layers = torch.zeros(4 * batch, 1, height, width), network
    if isinstance(network, UnitStrideNetwork):
        images, layers = network.rearrange(images), network.network
    layers.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    splits = {"training": Examples(images, torch.zeros(len(images), dtype=torch.int64), device)}
    few = replace(config.recipe, epochs=1, steps=None, evaluations=1, learning_rate=1e-6)
    once, twice = (train(layers, splits, few, 0, device, title=None) for _ in range(2))
    step = min(once.wall_seconds, twice.wall_seconds) / 4

    steps, per_epoch = length(config.recipe, config.data.train_size or most)
    evaluated = config.data.validation_size * (1 + len(points(config.recipe, steps, per_epoch)))
    evaluated += 2 * TEST_IMAGES  # and as many of the training images
    if config.weights == "copy":
        steps, evaluated = 0, 10 * TEST_IMAGES  # both networks, in float32 and float64
    # An evaluation has only the forward pass, a third of a step.
    seconds = steps * step + evaluated / batch * step / 3
    return START + seconds, sum(tensor.nbytes for tensor in _plain(network).values())


@dataclass
class Observed:
    """What training is to know of a twin: by what number the rate of each parameter is multiplied, and
    how to measure its distance from the strided networks and its gradients."""

    scales: dict[str, float] | None = None
    distance: Callable[[], dict[str, Any]] | None = None
    rho: Callable[[], dict[str, float]] | None = None


def _observed(twin: UnitStrideNetwork, config: RunConfig) -> Observed:
    found = origins(twin)
    tied = config.sharing == "tied"  # whose copies have no gradients of their own
    return Observed(
        rate_scales(twin, found, config.recipe.rate_scaling, config.sharing),
        lambda: {"distance": distance_from_tied(twin, found)},
        (lambda: gradient_ratios(twin, found)) if config.rho_every and not tied else None,
    )


def rate_scales(
    twin: UnitStrideNetwork, found: dict[str, Origin], scaling: str, sharing: str
) -> dict[str, float]:
    """Of each parameter, by its name: by what number recipe.rate_scaling multiplies its rate.

    copies: how many copies of each strided number the twin has, so that the mean of the copies takes
    the strided network's step. effective: that number times the strided fan-in over the twin's, since
    an output moves by the rate times the number of its inputs (docs/protocol.md, the step account).
    Structural zeros that stay zero (masked) are no inputs. Biases have no fan-in.
    """
    scales: dict[str, float] = dict(number_of_copies(twin, found)) if scaling != "none" else {}
    if scaling == "effective":
        for name, _ in twin.network.named_parameters():
            origin = found.get(plain_name(name))
            if origin is not None and len(origin.size) > 1 and not origin.copied:
                inputs = origin.entries[0] >= 0 if sharing == "masked" else origin.entries[0]
                many = int(inputs.sum()) if sharing == "masked" else inputs.numel()
                scales[name] *= origin.size[1:].numel() / many
    return scales


def _plain(network: nn.Module) -> dict[str, Tensor]:
    """What weights.pt holds: the same names for a twin, however it is shared."""
    if isinstance(network, UnitStrideNetwork):
        return plain_state(network)
    return network.state_dict()


def _fit(
    layers: nn.Module, training: tuple[Tensor, Tensor], device: torch.device
) -> dict[str, float | None]:
    """How well the images are learned that were trained on: of as many of them as are tested."""
    inputs, labels = (part[:TEST_IMAGES] for part in training)
    fit = evaluate(layers, Examples(inputs, labels, device))
    return {"fit_accuracy": fit.accuracy, "fit_loss": fit.loss, "fit_images": len(labels)}


def _execute(
    config: RunConfig, folder: Path, jobs_at_once: int | None, bar: bool
) -> tuple[dict[str, Any], str]:
    """Train or evaluate. Returns what result.json is to say, and the SHA-256 of the weights' file."""
    device = choose_device(config.device)
    about = circumstances(config, device, jobs_at_once)  # of the code that starts here
    prepare(config.threads)
    network, strided = _starting_networks(config)
    data = load(config.data, Path(config.outputs) / "data", config.seed)
    images = normalise(data, config.recipe.pixels)
    test_images = images["test"][0]

    layers, rearrangement_seconds, observed = network, None, Observed()
    if isinstance(network, UnitStrideNetwork):  # once, before training: section 6 of the paper
        began = time.perf_counter()
        images = {name: (network.rearrange(x), labels) for name, (x, labels) in images.items()}
        rearrangement_seconds = time.perf_counter() - began
        layers, observed = network.network, _observed(network, config)
    layers.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    splits = {name: Examples(*pair, device) for name, pair in images.items()}
    test = splits.pop("test")  # read once, after the last step

    title = folder.name.rpartition("-")[0] if bar else None
    history, about["git_commit"] = _train(
        config, folder, layers, splits, observed, about["git_commit"], title
    )
    fit = _fit(layers, images["training"], device) if history.steps else {}
    copied = {}
    if config.weights == "copy" and strided is not None and isinstance(network, UnitStrideNetwork):
        copied = {
            numbers: compare_scores(strided, network, test_images, numbers)
            for numbers in ("float32", "float64")
        }
    weights = files.save_tensors(folder / "weights.pt", _plain(network))
    tested = evaluate(layers, test)
    result = {
        "run": folder.name,
        "loop": LOOP,
        "experiment": experiment_identity(config),
        "network": config.model.name,
        "weights": config.weights if config.weights in STARTING_WEIGHTS else "file",
        "sharing": config.sharing,
        "variant": variant(config),
        "seed": config.seed,
        "learning_rate": rate_of(config) if config.weights != "copy" else None,
        "diverged": history.diverged,
        "test_accuracy": tested.accuracy,
        "test_correct": tested.correct,
        "test_images": len(test_images),
        "test_loss": tested.loss,
        "test_bits": pack_bits(tested.right),
        **fit,
        "training_wall_seconds": history.wall_seconds if history.steps else None,
        "training_cpu_seconds": history.cpu_seconds if history.steps else None,
        "rearrangement_seconds": rearrangement_seconds,
        "copied": copied,
        "epochs": history.epochs,
        "rho": history.rho,
        **about,
        "config": asdict(config),
    }
    return result, weights


def _train(
    config: RunConfig,
    folder: Path,
    layers: nn.Module,
    splits: dict[str, Examples],
    observed: Observed,
    commit: str | None,
    title: str | None,
) -> tuple[History, str | None]:
    """Train from the run's checkpoint, if it has one, and keep one after each epoch.

    Returns the git commit, too: "… then …" if the run went on with other code than it began with.
    """
    rate = rate_of(config) if config.weights != "copy" else 1.0
    recipe = replace(config.recipe, learning_rate=rate)
    if config.weights == "copy":
        recipe = replace(recipe, epochs=0, steps=None)
    checkpoint, commits = folder / "checkpoint.pt", [commit]
    resume = load_checkpoint(checkpoint, layers)
    if resume is not None:
        print(f"{folder.name}: going on from its checkpoint", file=sys.stderr, flush=True)
        commits = [*dict.fromkeys([*resume["commits"], commit])]

    def save(state: Checkpoint) -> None:
        content = {"run": folder.name, "commits": commits, **state}
        files.save_tensors(checkpoint, content, sealed=True)

    device = next(layers.parameters()).device
    history = train(
        layers,
        splits,
        recipe,
        config.seed,
        device,
        title=title,
        resume=resume,
        save=save,
        scales=observed.scales,
        observe=observed.distance,
        probe=observed.rho,
        probe_every=config.rho_every,
    )
    return history, commit if len(commits) == 1 else " then ".join(map(str, commits))


def _starting_networks(config: RunConfig) -> tuple[nn.Module, nn.Module | None]:
    """The network of this run with its starting weights, and the strided one they were copied from."""
    height, width = config.data.image_size
    input_size = (1, height, width)
    if config.weights in ("copy", "fine_tune"):
        start = strided_source(config)
        source = run_folder(start)
        if config.published is not None:  # its weights are not published: trained in this same job
            run_once(replace(start, published=None), bar=False)
        trained = read_result(source, LOOP)
        if trained is None:
            raise InputError(
                f"weights={config.weights} needs {source / 'weights.pt'} of a finished run; do the "
                "same run with model=strided weights=scratch first"
            )
        if trained["diverged"]:
            raise InputError(
                f"weights={config.weights}: {source.name} diverged, and nothing can start from its "
                f"weights; take a smaller recipe.learning_rate than {trained['learning_rate']:g}"
            )
        strided = build_strided(config.model, input_size)
        files.load_weights(source / "weights.pt", strided)
        if not config.model.eliminate_stride:
            return strided, None
        return share(twin_of(strided, input_size), config.sharing), strided
    if config.weights == "scratch":
        draw = generator(config.seed, "weights")
        return draw_network(config.model, input_size, config.recipe, config.sharing, draw), None
    network = build_network(config.model, input_size)
    files.load_weights(Path(config.weights), network)
    if isinstance(network, UnitStrideNetwork):
        try:
            network = share(network, config.sharing)
        except StrideEliminationError as error:
            raise InputError(
                f"sharing={config.sharing} starts from weights that are {config.sharing} already, as "
                f"such a run saves them, and those in {config.weights} are not; take sharing=free"
            ) from error
    return network, None
