"""Small networks and their training, with what each step saw."""

import copy
from dataclasses import replace

import torch
from torch import Tensor, nn

from experiments.runs.data import Dataset
from experiments.runs.examples import Examples, normalise
from experiments.runs.training import History, train
from experiments.settings.schema import RecipeConfig

CPU = torch.device("cpu")


RECIPE = RecipeConfig(name="tiny", epochs=2, batch_size=64)


class Recorder(nn.Module):
    """A network that remembers each batch it trains on, and its parameters before the step."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.batches: list[Tensor] = []
        self.states: list[dict[str, Tensor]] = []

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.batches.append(x.clone())
            self.states.append(copy.deepcopy(self.network.state_dict()))
        return self.network(x)

    @property
    def order(self) -> list[int]:
        """The indices of the examples, which `numbered` puts into each example's first number."""
        return torch.cat([batch[:, 0, 0, 0] for batch in self.batches]).int().tolist()


def strided() -> nn.Sequential:
    """Takes images of 10x10; what follows seed 0 in torch's own generator."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.ReLU(),
        nn.Conv2d(4, 6, 2, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(96, 10),
    )


def examples(data: Dataset, dtype: torch.dtype = torch.float32) -> dict[str, Examples]:
    splits = normalise(data, "standardised")
    return {name: Examples(x.to(dtype), labels, CPU) for name, (x, labels) in splits.items()}


def run(network: nn.Module, data: Dataset, seed: int = 0, **changes: object) -> History:
    return train(network, examples(data), replace(RECIPE, **changes), seed, CPU)
