"""What a run will take: seconds, by timing a few training steps, and bytes on the disk."""

from dataclasses import replace
from typing import NamedTuple

import torch

from experiments.runs.examples import Examples
from experiments.runs.machine import choose_device, prepare
from experiments.runs.networks import build_network
from experiments.runs.starting import weights_to_keep
from experiments.runs.training import length, points, train
from experiments.settings.schema import RunConfig
from stridenet.twin import UnitStrideNetwork

START = 3.0  # seconds that a run takes before its first step


class Estimate(NamedTuple):
    """Says what a run will take."""

    seconds: float
    weight_bytes: int


def estimate(config: RunConfig) -> Estimate:
    """Estimate the seconds of a run by timing a few steps, and the bytes of its weights."""
    network = build_network(config.model, config.data.input_size, config.sharing)
    weight_bytes = sum(tensor.nbytes for tensor in weights_to_keep(network).values())
    step, facts = _seconds_of_a_step(config, network), config.data.facts
    most = facts.train_images - config.data.validation_size
    steps, per_epoch = length(config.recipe, config.data.train_size or most)
    evaluated = config.data.validation_size * (1 + len(points(config.recipe, steps, per_epoch)))
    evaluated += 2 * facts.test_images  # and as many of the training images
    if config.weights == "copy":
        steps, evaluated = 0, 10 * facts.test_images  # both networks, in float32 and float64
    # An evaluation has only the forward pass, a third of a step.
    seconds = steps * step + evaluated / config.recipe.batch_size * step / 3
    return Estimate(START + seconds, weight_bytes)


def _seconds_of_a_step(config: RunConfig, network: torch.nn.Module) -> float:
    """Train four steps twice on blank images, and return the seconds of a step the faster time."""
    device = choose_device(config.device)
    prepare(config.threads)
    images, layers = torch.zeros(4 * config.recipe.batch_size, *config.data.input_size), network
    if isinstance(network, UnitStrideNetwork):
        images, layers = network.rearrange(images), network.network
    layers.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    splits = {"training": Examples(images, torch.zeros(len(images), dtype=torch.int64), device)}
    few = replace(config.recipe, epochs=1, steps=None, evaluations=1, learning_rate=1e-6)
    once, twice = (train(layers, splits, few, 0, device, title=None) for _ in range(2))
    return min(once.wall_seconds, twice.wall_seconds) / 4
