"""Train a network on tensors in memory, and measure it. Knows no files."""

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from experiments.runs.data import Dataset
from experiments.settings.schema import Recipe
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
    # before the first epoch, and after each
    epochs: list[dict[str, Any]] = field(default_factory=list)
    wall_seconds: float = 0.0
    cpu_seconds: float = 0.0


# What training needs to go on after an epoch: tensors, numbers, strings, and lists and
# dictionaries of these, so that torch.load(weights_only=True) reads it.
Checkpoint = dict[str, Any]


def generator(seed: int, purpose: str) -> torch.Generator:
    """A stream of its own for each purpose: what one draws does not shift the others."""
    digest = hashlib.sha256(f"{purpose} {seed}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7]))


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


def evaluate(network: nn.Module, examples: Examples) -> tuple[int, float]:
    """Number of right predictions, and mean loss, in evaluation mode."""
    training = network.training
    network.eval()
    correct, loss = 0, 0.0
    with torch.no_grad():
        for inputs, labels in examples.batches(EVALUATION_BATCH):
            scores = network(inputs)
            correct += int((scores.argmax(1) == labels).sum())
            loss += float(F.cross_entropy(scores, labels, reduction="sum"))
    network.train(training)
    return correct, loss / len(examples)


def length(recipe: Recipe, examples: int) -> tuple[int, int]:
    """Steps in all, and in an epoch, of training on so many examples."""
    per_epoch = math.ceil(examples / recipe.batch_size)
    return per_epoch * recipe.epochs if recipe.epochs is not None else recipe.steps or 0, per_epoch


def train(
    network: nn.Module,
    splits: dict[str, Examples],
    recipe: Recipe,
    seed: int,
    device: torch.device,
    title: str | None = "",
    resume: Checkpoint | None = None,
    save: Callable[[Checkpoint], None] | None = None,
    copies: Mapping[str, int] | None = None,
    observe: Callable[[], dict[str, Any]] | None = None,
) -> History:
    """Train on splits["training"]; before the first and after each epoch, evaluate on the others.

    The order of the examples depends on the seed and their number alone. `save` is given a
    checkpoint after each epoch; from one, as `resume`, training goes on to the same numbers. The
    progress bar has the title; None: no bar. copies: of parameters, by name, whose rate is multiplied
    by that number and their weight decay divided by it. observe: what else is to stand in each row of
    the history. Raises InputError if the loss becomes infinite or not a number.
    """
    examples = splits["training"]
    steps, per_epoch = length(recipe, len(examples))
    epochs = math.ceil(steps / per_epoch)
    order = generator(seed, "order")
    optimizer, schedule = _optimizer(network, recipe, copies or {})
    history = History()
    if resume is not None:
        try:
            history = History(**resume["history"])
            order.set_state(resume["order"])
            network.load_state_dict(resume["network"])
            optimizer.load_state_dict(resume["optimizer"])
            schedule.load_state_dict(resume["schedule"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise InputError(
                f"checkpoint.pt is of another kind of training ({error}); delete it to start anew"
            ) from error
    else:
        history.epochs.append(_measure(network, splits, recipe, 0.0, None, observe))

    disable = True if title is None else None  # None: only where the terminal shows it
    with tqdm(initial=history.steps, total=steps, bar_format=BAR, disable=disable) as progress:
        network.train()
        while history.steps < steps:
            progress.set_description(f"{title} epoch {len(history.epochs)}/{epochs}")
            permutation = torch.randperm(len(examples), generator=order).to(device)
            losses: list[Tensor] = []
            wall, cpu = _clock(device)
            for indices in permutation.split(recipe.batch_size)[: steps - history.steps]:
                losses.append(_step(network, examples.take(indices), optimizer))
                schedule.step()
                progress.update()
                if len(losses) % LOSS_EVERY == 0:
                    progress.set_postfix(loss=f"{_finite(losses[-1], recipe):.3f}")
            after = _clock(device)
            history.wall_seconds += after[0] - wall
            history.cpu_seconds += after[1] - cpu
            history.steps += len(losses)
            loss = _finite(torch.stack(losses).mean(), recipe)
            epoch = history.steps / per_epoch
            history.epochs.append(_measure(network, splits, recipe, epoch, loss, observe))
            if save is not None:
                save(
                    {
                        "history": asdict(history),
                        "order": order.get_state(),
                        "network": network.state_dict(),
                        "optimizer": optimizer.state_dict(),
                        "schedule": schedule.state_dict(),
                    }
                )
    return history


def _step(
    network: nn.Module, batch: tuple[Tensor, Tensor], optimizer: torch.optim.Optimizer
) -> Tensor:
    inputs, labels = batch
    loss = F.cross_entropy(network(inputs), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()


def _optimizer(
    network: nn.Module, recipe: Recipe, copies: Mapping[str, int]
) -> tuple[torch.optim.SGD, torch.optim.lr_scheduler.LambdaLR]:
    """SGD whose rate at step t is learning_rate·(1 + rate_decay·t)^(−rate_power).

    The gradient on a strided weight is the sum over its copies. So with rates multiplied by their
    number, and the decay divided by it, the mean of the copies takes the step of the strided weight.
    """
    kinds: dict[tuple[int, bool], list[nn.Parameter]] = {(1, False): [], (1, True): []}
    for name, parameter in network.named_parameters():
        is_bias = name.removesuffix(".original").endswith("bias")  # as it is called if it is shared
        kinds.setdefault((copies.get(name, 1), is_bias), []).append(parameter)
    groups: list[dict[str, Any]] = [
        {
            "params": parameters,
            "lr": recipe.learning_rate * many * (recipe.bias_rate_factor if is_bias else 1),
            "weight_decay": recipe.weight_decay / many,
        }
        for (many, is_bias), parameters in kinds.items()
    ]
    optimizer = torch.optim.SGD(
        groups,
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: (1 + recipe.rate_decay * step) ** -recipe.rate_power
    )
    return optimizer, schedule


def _measure(
    network: nn.Module,
    splits: dict[str, Examples],
    recipe: Recipe,
    epoch: float,
    loss: float | None,
    observe: Callable[[], dict[str, Any]] | None,
) -> dict[str, Any]:
    row: dict[str, Any] = {"epoch": epoch, "training_loss": loss, **(observe() if observe else {})}
    for name, examples in splits.items():
        if name != "training":
            correct, mean_loss = evaluate(network, examples)
            row[f"{name}_loss"] = _finite(mean_loss, recipe)
            row[f"{name}_correct"], row[f"{name}_accuracy"] = correct, correct / len(examples)
    return row


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _clock(device: torch.device) -> tuple[float, float]:
    """Wall and CPU seconds, once the device has done what it was given."""
    synchronise(device)
    return time.perf_counter(), time.process_time()


def _finite(loss: Tensor | float, recipe: Recipe) -> float:
    value = float(loss)
    if not math.isfinite(value):
        raise InputError(
            f"the loss became {value}: training diverged (try a rate below "
            f"recipe.learning_rate={recipe.learning_rate}), or the starting weights are not finite"
        )
    return value
