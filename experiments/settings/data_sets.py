"""Facts about each data set that are known before its files are read. Imports no torch.

A data set of any number of channels and classes needs a row here, a file conf/data/NAME.yaml, and its
files and their reader in experiments/runs/data.py.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class DataSetFacts:
    """Describes a data set: its images, and how many of them there are in the official split."""

    channels: int
    classes: int
    train_images: int
    test_images: int
    # Published mean and standard deviation of each channel over the training images, of values from 0
    # to 1. Only the plain loop of experiments.benchmark uses them: runs compute their own.
    mean: tuple[float, ...]
    deviation: tuple[float, ...]


DATA_SETS = {
    "mnist": DataSetFacts(
        channels=1, classes=10, train_images=60_000, test_images=10_000,
        mean=(0.1307,), deviation=(0.3081,),
    ),
    "fashion_mnist": DataSetFacts(
        channels=1, classes=10, train_images=60_000, test_images=10_000,
        mean=(0.2860,), deviation=(0.3530,),
    ),
    "cifar10": DataSetFacts(
        channels=3, classes=10, train_images=50_000, test_images=10_000,
        mean=(0.4914, 0.4822, 0.4465), deviation=(0.2470, 0.2435, 0.2616),
    ),
}  # fmt: skip
