"""Train a network on tensors in memory, and measure it. Knows no files."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, NamedTuple, NoReturn, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from experiments.runs.data import generator
from experiments.runs.examples import Examples
from experiments.runs.result_keys import CurvePoint
from experiments.settings.schema import RecipeConfig
from stridenet.errors import InputError

EVALUATION_BATCH = 1000
BAR = "{desc} {percentage:3.0f}%|{bar:10}| {elapsed}<{remaining}{postfix}"
LOSS_EVERY = 20  # steps; to read the loss makes the device wait


@dataclass
class History:
    """Holds what training measured; the seconds are those of the training steps alone."""

    steps: int = 0
    diverged: bool = False  # training stopped because the loss or a weight was not finite
    # One row before the first step, and one at each point of the curves.
    epochs: list[CurvePoint] = field(default_factory=list)
    rho: list[dict[str, Any]] = field(default_factory=list)  # what `probe` returned, with its step
    wall_seconds: float = 0.0
    cpu_seconds: float = 0.0

    def count(self, steps: int, before: "Seconds", after: "Seconds") -> None:
        """Add steps that were taken between two readings of the clock."""
        self.steps += steps
        self.wall_seconds += after.wall - before.wall
        self.cpu_seconds += after.cpu - before.cpu


class Seconds(NamedTuple):
    """Holds one reading of both clocks."""

    wall: float
    cpu: float


@dataclass(frozen=True)
class TwinTraining:
    """Describes what training does for a unit-stride twin beyond its steps.

    scales: factors, by parameter name, that multiply its learning rate and divide its weight decay.
    observe: returns what else each row of the history has. probe: returns what is noted of the
    gradients, every `probe_every` steps, before they are used.
    """

    scales: Mapping[str, float] = field(default_factory=dict)
    observe: Callable[[], dict[str, Any]] | None = None
    probe: Callable[[], dict[str, float]] | None = None
    probe_every: int = 0


# What training needs to go on from a point of the curves: tensors, numbers, strings, and lists and
# dictionaries of these, so that torch.load(weights_only=True) reads it.
Checkpoint = dict[str, Any]


@dataclass(frozen=True)
class Evaluation:
    """Holds how a network does on some examples."""

    right: Tensor  # bool (n,): whether each example is classified rightly
    loss: float | None  # mean; None where it is infinite or not a number

    @property
    def correct(self) -> int:
        """Return how many examples are classified rightly."""
        return int(self.right.sum())

    @property
    def accuracy(self) -> float:
        """Return the share of examples that are classified rightly."""
        return self.correct / len(self.right)


def evaluate(network: nn.Module, examples: Examples) -> Evaluation:
    """Classify the examples in order, in evaluation mode; the network's mode stays."""
    training = network.training
    network.eval()
    right, loss = [], 0.0
    with torch.no_grad():
        for inputs, labels in examples.batches(EVALUATION_BATCH):
            scores = network(inputs)
            right.append((scores.argmax(1) == labels).cpu())
            loss += float(F.cross_entropy(scores, labels, reduction="sum"))
    network.train(training)
    mean = loss / len(examples)
    return Evaluation(torch.cat(right), mean if math.isfinite(mean) else None)


class Length(NamedTuple):
    """Says how long training is: steps in all, and in an epoch of whole batches."""

    steps: int
    per_epoch: int


def length(recipe: RecipeConfig, examples: int) -> Length:
    """Return how many steps training on so many examples takes.

    Raises InputError where there are fewer examples than one batch has.
    """
    per_epoch = examples // recipe.batch_size
    if per_epoch == 0:
        raise InputError(
            f"recipe.batch_size={recipe.batch_size} is more than the {examples} training images; "
            "give a smaller one"
        )
    steps = per_epoch * recipe.epochs if recipe.epochs is not None else recipe.steps or 0
    return Length(steps, per_epoch)


def points(recipe: RecipeConfig, steps: int, per_epoch: int) -> list[int]:
    """Return the steps after which the curves have a point.

    They are those that end an epoch, or, with recipe.evaluations, so many evenly spread ones.
    """
    if recipe.evaluations is None:
        return sorted({*range(per_epoch, steps, per_epoch), steps} - {0})
    many = max(1, min(recipe.evaluations, steps))  # no more than there are steps
    return sorted({steps * point // many for point in range(1, many + 1)} - {0})


def train(
    network: nn.Module,
    splits: dict[str, Examples],
    recipe: RecipeConfig,
    seed: int,
    device: torch.device,
    title: str | None = "",
    resume: Checkpoint | None = None,
    save: Callable[[Checkpoint], None] | None = None,
    twin: TwinTraining | None = None,
) -> History:
    """Train on splits["training"], and return the history.

    Before the first step and at each point of the curves, splits["validation"] is evaluated, if
    there is one. Splits of other names are not looked at.

    recipe.learning_rate is one number. The order of the examples depends on the seed and their number
    alone. title: of the progress bar; None shows no bar. `save` is given a checkpoint at each point;
    from one, as `resume`, training goes on to the same numbers. Training stops where the loss or a
    weight is no finite number any more. Raises InputError for a checkpoint of other training.
    """
    examples, twin = splits["training"], twin or TwinTraining()
    steps, per_epoch = length(recipe, len(examples))
    optimizer, schedule = _optimizer(network, recipe, steps, twin.scales)
    parts: dict[str, Any] = {"network": network, "optimizer": optimizer, "schedule": schedule}
    if resume is None:
        history = History(epochs=[_measure(network, splits, 0.0, None, twin)])
    else:
        history = _restored(resume, parts)
    step = partial(_step, network, optimizer, schedule, twin, history.rho)
    network.train()
    # disable=None shows the bar only on a terminal.
    disable = True if title is None else None
    with tqdm(initial=history.steps, total=steps, bar_format=BAR, disable=disable) as bar:
        bar.set_description(title)
        for point in points(recipe, steps, per_epoch):
            if point <= history.steps or history.diverged:
                continue
            order = batches(recipe, seed, len(examples), history.steps, point)
            taken = (
                step(number, examples.take(indices.to(device)))
                for number, indices in enumerate(order, history.steps)
            )
            before = _clock(device)
            losses = _losses(taken, bar)
            history.count(len(losses), before, _clock(device))
            loss = float(torch.stack(losses).mean())
            _add_point(history, network, splits, history.steps / per_epoch, loss, twin)
            if save is not None and not history.diverged:
                states = {name: part.state_dict() for name, part in parts.items()}
                save({"history": asdict(history), **states})
    return history


def _restored(checkpoint: Checkpoint, parts: Mapping[str, Any]) -> History:
    """Put a checkpoint's states into network, optimizer and schedule; return its history."""
    try:
        history = History(**checkpoint["history"])
        for name, part in parts.items():
            part.load_state_dict(checkpoint[name])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"checkpoint.pt is of another kind of training ({error}); delete it to start anew"
        ) from error
    return history


def _step(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LambdaLR,
    twin: TwinTraining,
    rho: list[dict[str, Any]],
    number: int,
    batch: tuple[Tensor, Tensor],
) -> Tensor:
    """Take step `number` on a batch, and note in `rho` what is probed; return the loss."""
    loss = _backward(network, batch, optimizer)
    if twin.probe is not None and number % twin.probe_every == 0:
        rho.append({"step": number, **twin.probe()})
    optimizer.step()
    schedule.step()
    return loss


def _losses(steps: Iterable[Tensor], bar: "tqdm[NoReturn]") -> list[Tensor]:
    """Take the steps, and collect their losses; stop where a loss that is shown is not finite."""
    losses: list[Tensor] = []
    for loss in steps:
        losses.append(loss)
        bar.update()
        if len(losses) % LOSS_EVERY == 0:
            bar.set_postfix(loss=f"{float(loss):.3f}")
            if not math.isfinite(loss):
                break
    return losses


def _add_point(
    history: History,
    network: nn.Module,
    splits: dict[str, Examples],
    epoch: float,
    loss: float,
    twin: TwinTraining,
) -> None:
    """Add a point of the curves to the history; where training has diverged, it says only that."""
    # The weights are looked at, too: no loss has seen what the last step left.
    finite = all(bool(parameter.isfinite().all()) for parameter in network.parameters())
    history.diverged = not (finite and math.isfinite(loss))
    history.epochs.append(
        {"epoch": epoch, "training_loss": None, "diverged": True}
        if history.diverged
        else _measure(network, splits, epoch, loss, twin)
    )


def batches(
    recipe: RecipeConfig, seed: int, examples: int, start: int, stop: int
) -> Iterator[Tensor]:
    """Yield the indices of the examples of each step from `start` to `stop`.

    Each epoch has a permutation of its own, cut into whole batches; what is left over is dropped.
    """
    size, per_epoch = recipe.batch_size, examples // recipe.batch_size
    permutation, drawn = torch.empty(0), -1
    for step in range(start, stop):
        epoch, batch = divmod(step, per_epoch)
        if epoch != drawn:
            order = generator(seed, f"order of epoch {epoch}")
            permutation, drawn = torch.randperm(examples, generator=order), epoch
        yield permutation[batch * size : (batch + 1) * size]


def _backward(
    network: nn.Module, batch: tuple[Tensor, Tensor], optimizer: torch.optim.Optimizer
) -> Tensor:
    """Leave the gradients of a batch's loss in the network, and return the loss."""
    inputs, labels = batch
    loss = F.cross_entropy(network(inputs), labels)
    optimizer.zero_grad()
    loss.backward()
    return loss.detach()


def _optimizer(
    network: nn.Module, recipe: RecipeConfig, steps: int, scales: Mapping[str, float]
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
    """Return the recipe's optimizer, and the schedule of its rate over `steps` steps.

    The gradient on a strided weight is the sum over its copies. So with rates multiplied by their
    number, and the decay divided by it, the mean of the copies takes the step of the strided weight.
    """
    kinds: dict[tuple[float, bool], list[nn.Parameter]] = {(1, False): [], (1, True): []}
    for name, parameter in network.named_parameters():
        is_bias = name.removesuffix(".original").endswith("bias")  # the suffix of shared parameters
        kinds.setdefault((scales.get(name, 1), is_bias), []).append(parameter)
    groups: list[dict[str, Any]] = [
        {
            "params": parameters,
            "lr": recipe.learning_rate * scale * (recipe.bias_rate_factor if is_bias else 1),
            "weight_decay": recipe.weight_decay / scale,
        }
        for (scale, is_bias), parameters in kinds.items()
    ]
    optimizer: torch.optim.Optimizer
    if recipe.optimizer == "adam":
        optimizer = torch.optim.Adam(groups, betas=(recipe.momentum, 0.999))
    else:
        optimizer = torch.optim.SGD(groups, momentum=recipe.momentum)
    schedules: dict[str, Callable[[int], float]] = {
        "linear": lambda step: 1 - step / max(steps, 1),
        "constant": lambda step: 1.0,
        "inverse": lambda step: (1 + recipe.rate_decay * step) ** -recipe.rate_power,
    }
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, schedules[recipe.schedule])


def _measure(
    network: nn.Module,
    splits: dict[str, Examples],
    epoch: float,
    loss: float | None,
    twin: TwinTraining,
) -> CurvePoint:
    """Return a point of the curves: the losses, what is observed of a twin, and the validation."""
    observed = twin.observe() if twin.observe else {}
    point = cast(CurvePoint, {"epoch": epoch, "training_loss": loss, **observed})
    if "validation" in splits:
        found = evaluate(network, splits["validation"])
        point |= {
            "validation_loss": found.loss,
            "validation_correct": found.correct,
            "validation_accuracy": found.accuracy,
        }
    return point


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _clock(device: torch.device) -> Seconds:
    """Read wall and CPU seconds, once the device has done what it was given."""
    synchronise(device)
    return Seconds(time.perf_counter(), time.process_time())
