"""Evaluation: which images are classified rightly, the mean loss, and the mode that it is done in."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from experiments.runs.examples import Examples
from experiments.runs.training import evaluate
from tests.experiments.tiny_networks import CPU


def test_evaluation_says_which_are_right_and_averages_the_loss_over_all_examples() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    inputs, labels = torch.randn(2300, 1, 2, 2), torch.randint(3, (2300,))  # three batches
    found = evaluate(network, Examples(inputs, labels, CPU))
    scores = network(inputs).detach()
    right = [bool(row.argmax() == label) for row, label in zip(scores, labels, strict=True)]
    assert found.right.tolist() == right
    assert (found.correct, found.accuracy) == (sum(right), sum(right) / 2300)
    assert found.loss == pytest.approx(float(F.cross_entropy(scores, labels)), rel=1e-5)
    nn.init.constant_(network[1].bias, math.nan)
    assert evaluate(network, Examples(inputs, labels, CPU)).loss is None


@pytest.mark.parametrize("mode", [True, False])
def test_evaluation_is_done_in_evaluation_mode_which_does_not_last(mode: bool) -> None:
    modes: list[tuple[bool, bool]] = []
    network = nn.Sequential(nn.Flatten(), nn.Dropout(0.9), nn.Linear(4, 3)).train(mode)
    hook = network.register_forward_hook(
        lambda module, *_: modes.append((module[1].training, torch.is_grad_enabled()))
    )
    given = Examples(torch.randn(50, 1, 2, 2), torch.zeros(50).long(), CPU)
    first, second = evaluate(network, given), evaluate(network, given)
    hook.remove()
    assert first.loss == second.loss
    assert modes == [(False, False)] * 2
    assert network.training == network[1].training == mode
