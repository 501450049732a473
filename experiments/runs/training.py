"""Train a network on tensors in memory, and measure it. Knows no files."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from experiments.runs.data import Dataset, generator
from experiments.settings.schema import RecipeConfig
from stridenet.errors import InputError

EVALUATION_BATCH = 1000
BAR = "{desc} {percentage:3.0f}%|{bar:10}| {elapsed}<{remaining}{postfix}"
LOSS_EVERY = 20  # steps; to read the loss makes the device wait


class Examples:
    """A network's inputs with their labels, held channels-last on the device.

    inputs: float (n, c, h, w); labels: int64 (n,).
    """

    def __init__(self, inputs: Tensor, labels: Tensor, device: torch.device) -> None:
        # index_select gives whole rows: with the channels last, a batch of them is channels-last too.
        self._rows = inputs.movedim(1, -1).contiguous().to(device)
        self._labels = labels.to(device)

    def __len__(self) -> int:
        return len(self._labels)

    def take(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """The inputs (k, c, h, w) and labels (k,) at these places."""
        return self._rows.index_select(0, indices).movedim(-1, 1), self._labels[indices]

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All examples in order."""
        for rows, labels in zip(self._rows.split(size), self._labels.split(size), strict=True):
            yield rows.movedim(-1, 1), labels


@dataclass
class History:
    """What training measured; seconds hold the training steps only."""

    steps: int = 0
    diverged: bool = False  # the loss or a weight became no finite number; training stopped there
    # One row before the first step, and one at each point of the curves.
    epochs: list[dict[str, Any]] = field(default_factory=list)
    rho: list[dict[str, Any]] = field(default_factory=list)  # what `probe` saw, with its step
    wall_seconds: float = 0.0
    cpu_seconds: float = 0.0


# What training needs to go on from a point of the curves: tensors, numbers, strings, and lists and
# dictionaries of these, so that torch.load(weights_only=True) reads it.
Checkpoint = dict[str, Any]


def normalise(data: Dataset, pixels: str) -> dict[str, tuple[Tensor, Tensor]]:
    """Float images (n, 1, h, w) and labels of the splits "training", "validation" and "test".

    standardised: mean 0 and deviation 1 over the training images. scaled: 1/256, as in Caffe.
    """
    mean, deviation = 0.0, 256.0
    if pixels == "standardised":
        values = data.train_images.float()
        mean, deviation = float(values.mean()), float(values.std())
    splits = {
        "training": (data.train_images, data.train_labels),
        "validation": (data.validation_images, data.validation_labels),
        "test": (data.test_images, data.test_labels),
    }
    return {
        name: (images.float().sub_(mean).div_(deviation), labels)
        for name, (images, labels) in splits.items()
        if len(labels)
    }


@dataclass(frozen=True)
class Evaluation:
    """How a network does on some examples."""

    right: Tensor  # bool (n,): which of them it classifies rightly
    loss: float | None  # mean; None where it is infinite or not a number

    @property
    def correct(self) -> int:
        """How many are right."""
        return int(self.right.sum())

    @property
    def accuracy(self) -> float:
        """The share that is right."""
        return self.correct / len(self.right)


def evaluate(network: nn.Module, examples: Examples) -> Evaluation:
    """Classify the examples in order, in evaluation mode."""
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


def length(recipe: RecipeConfig, examples: int) -> tuple[int, int]:
    """Steps in all, and in an epoch of whole batches, of training on so many examples.

    Raises InputError where there are fewer examples than one batch has.
    """
    per_epoch = examples // recipe.batch_size
    if per_epoch == 0:
        raise InputError(
            f"recipe.batch_size={recipe.batch_size} is more than the {examples} training images; "
            "give a smaller one"
        )
    return per_epoch * recipe.epochs if recipe.epochs is not None else recipe.steps or 0, per_epoch


def points(recipe: RecipeConfig, steps: int, per_epoch: int) -> list[int]:
    """After which steps the curves have a point: after each epoch, or `evaluations` times in all."""
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
    scales: Mapping[str, float] | None = None,
    observe: Callable[[], dict[str, Any]] | None = None,
    probe: Callable[[], dict[str, float]] | None = None,
    probe_every: int = 0,
) -> History:
    """Train on splits["training"]; before the first step and at each point of the curves, evaluate on
    splits["validation"], if there is one. Splits of other names are not looked at.

    recipe.learning_rate is one number. The order of the examples depends on the seed and their number
    alone. `save` is given a checkpoint at each point; from one, as `resume`, training goes on to the
    same numbers. The progress bar has the title; None: no bar. scales: of parameters, by name, whose
    rate is multiplied by that number and their weight decay divided by it. observe: what else is to
    stand in each row of the history. probe: what is to be noted of the gradients, every `probe_every`
    steps, before they are used. Training stops where the loss or a weight becomes no finite number.
    """
    examples = splits["training"]
    steps, per_epoch = length(recipe, len(examples))
    optimizer, schedule = _optimizer(network, recipe, steps, scales or {})
    history = History()
    if resume is not None:
        try:
            history = History(**resume["history"])
            network.load_state_dict(resume["network"])
            optimizer.load_state_dict(resume["optimizer"])
            schedule.load_state_dict(resume["schedule"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise InputError(
                f"checkpoint.pt is of another kind of training ({error}); delete it to start anew"
            ) from error
    else:
        history.epochs.append(_measure(network, splits, 0.0, None, observe))

    disable = True if title is None else None  # None: only where the terminal shows it
    network.train()
    with tqdm(initial=history.steps, total=steps, bar_format=BAR, disable=disable) as progress:
        progress.set_description(title)
        for point in points(recipe, steps, per_epoch):
            if point <= history.steps or history.diverged:
                continue
            losses: list[Tensor] = []
            wall, cpu = _clock(device)
            for indices in batches(recipe, seed, len(examples), history.steps, point):
                step = history.steps + len(losses)
                loss = _backward(network, examples.take(indices.to(device)), optimizer)
                if probe is not None and step % probe_every == 0:
                    history.rho.append({"step": step, **probe()})
                optimizer.step()
                schedule.step()
                losses.append(loss)
                progress.update()
                if len(losses) % LOSS_EVERY == 0:
                    progress.set_postfix(loss=f"{float(loss):.3f}")
                    if not math.isfinite(loss):
                        break
            after = _clock(device)
            history.wall_seconds += after[0] - wall
            history.cpu_seconds += after[1] - cpu
            history.steps += len(losses)
            mean = float(torch.stack(losses).mean())
            # The last step, too: what it left is seen by no loss.
            finite = all(bool(each.isfinite().all()) for each in network.parameters())
            history.diverged = not (finite and math.isfinite(mean))
            history.epochs.append(
                {"epoch": history.steps / per_epoch, "training_loss": None, "diverged": True}
                if history.diverged
                else _measure(network, splits, history.steps / per_epoch, mean, observe)
            )
            if save is not None and not history.diverged:
                save(
                    {
                        "history": asdict(history),
                        "network": network.state_dict(),
                        "optimizer": optimizer.state_dict(),
                        "schedule": schedule.state_dict(),
                    }
                )
    return history


def batches(
    recipe: RecipeConfig, seed: int, examples: int, start: int, stop: int
) -> Iterator[Tensor]:
    """The places of the examples of each step from `start` to `stop`: whole batches of a permutation
    of its own for each epoch, whose rest is dropped."""
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
    """Leave the gradients of a batch's loss in the network; returns the loss."""
    inputs, labels = batch
    loss = F.cross_entropy(network(inputs), labels)
    optimizer.zero_grad()
    loss.backward()
    return loss.detach()


def _optimizer(
    network: nn.Module, recipe: RecipeConfig, steps: int, scales: Mapping[str, float]
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
    """The recipe's optimizer, and its rate over `steps` steps.

    The gradient on a strided weight is the sum over its copies. So with rates multiplied by their
    number, and the decay divided by it, the mean of the copies takes the step of the strided weight.
    """
    kinds: dict[tuple[float, bool], list[nn.Parameter]] = {(1, False): [], (1, True): []}
    for name, parameter in network.named_parameters():
        is_bias = name.removesuffix(".original").endswith("bias")  # as it is called if it is shared
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
    observe: Callable[[], dict[str, Any]] | None,
) -> dict[str, Any]:
    row: dict[str, Any] = {"epoch": epoch, "training_loss": loss, **(observe() if observe else {})}
    if "validation" in splits:
        found = evaluate(network, splits["validation"])
        row |= {
            "validation_loss": found.loss,
            "validation_correct": found.correct,
            "validation_accuracy": found.accuracy,
        }
    return row


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _clock(device: torch.device) -> tuple[float, float]:
    """Wall and CPU seconds, once the device has done what it was given."""
    synchronise(device)
    return time.perf_counter(), time.process_time()
