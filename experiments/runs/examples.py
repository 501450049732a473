"""Images with their labels, as training and evaluation take them: normalised, and on the device."""

import copy
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from experiments.runs.data import Dataset


class Split(NamedTuple):
    """Holds images, float (n, channels, h, w), and their labels, int64 (n,)."""

    images: Tensor
    labels: Tensor


def normalise(data: Dataset, pixels: str) -> dict[str, Split]:
    """Return the splits "training", "validation" and "test" with images in floating point.

    pixels: "standardised" gives each channel mean 0 and standard deviation 1 over the training images;
    "scaled" multiplies by 1/256, as Caffe does. A split without images is left out.
    """
    channels = data.train_images.shape[1]
    scales = [(0.0, 256.0)] * channels
    if pixels == "standardised":
        values = [data.train_images[:, channel].float() for channel in range(channels)]
        scales = [(float(each.mean()), float(each.std())) for each in values]

    def scaled(images: Tensor) -> Tensor:
        numbers = images.float()
        for channel, (mean, deviation) in enumerate(scales):
            numbers[:, channel].sub_(mean).div_(deviation)
        return numbers

    splits = {
        "training": (data.train_images, data.train_labels),
        "validation": (data.validation_images, data.validation_labels),
        "test": (data.test_images, data.test_labels),
    }
    return {
        name: Split(scaled(images), labels)
        for name, (images, labels) in splits.items()
        if len(labels)
    }


class Examples:
    """Holds a network's inputs with their labels, channels-last on the device.

    inputs: float (n, c, h, w); labels: int64 (n,).
    """

    def __init__(self, inputs: Tensor, labels: Tensor, device: torch.device) -> None:
        # index_select gives whole rows: with the channels last, a batch of them is channels-last too.
        self._rows = inputs.movedim(1, -1).contiguous().to(device)
        self._labels = labels.to(device)

    def __len__(self) -> int:
        return len(self._labels)

    def first(self, number: int) -> "Examples":
        """Return the first examples, at most so many, without a copy."""
        few = copy.copy(self)
        few._rows, few._labels = self._rows[:number], self._labels[:number]
        return few

    def take(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Return the inputs (k, c, h, w) and labels (k,) at these places."""
        return self._rows.index_select(0, indices).movedim(-1, 1), self._labels[indices]

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield all examples in order, in batches of this size."""
        for rows, labels in zip(self._rows.split(size), self._labels.split(size), strict=True):
            yield rows.movedim(-1, 1), labels
