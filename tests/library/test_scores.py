"""compare_scores counts on how many images two networks predict the same class."""

import pytest
import torch
from torch import Tensor, nn

from stridenet import eliminate_stride
from stridenet.verification import compare_scores
from tests.library.verified import SIZE, network, random_images

# Scores


class Scores(nn.Module):
    """Returns what it is given, in the order of `places`, so that a test can choose the scores."""

    def __init__(self, places: list[int]) -> None:
        super().__init__()
        self.places = places

    def forward(self, images: Tensor) -> Tensor:
        return images[:, self.places]


def test_compare_scores_counts_the_images_on_which_both_predict_the_same() -> None:
    scores = torch.tensor([[3.0, 1.0, 2.0], [1.0, 2.5, 2.0], [0.0, 1.0, 5.0], [7.0, 0.0, 1.0]])
    same, swapped = Scores([0, 1, 2]), Scores([0, 2, 1])
    batches = torch.cat([scores.repeat(150, 1), scores.repeat(150, 1) / 2])
    assert compare_scores(same, same, batches, "float64") == {
        "agreeing": 1200, "images": 1200, "largest_difference": 0.0
    }  # fmt: skip
    assert compare_scores(same, swapped, batches, "float64") == {
        "agreeing": 600, "images": 1200, "largest_difference": 4.0
    }  # fmt: skip


def test_compare_scores_of_a_twin_and_of_one_with_two_scores_swapped() -> None:
    model, x = network(), random_images(40)
    twin = eliminate_stride(model, SIZE)
    with torch.no_grad():
        predictions = model(x).argmax(1)
        first, second = predictions.bincount().argsort(descending=True)[:2].tolist()
    right = compare_scores(model, twin, x, "float64")
    assert (right["agreeing"], right["images"]) == (40, 40)
    assert right["largest_difference"] < 1e-13
    with torch.no_grad():
        order = torch.arange(5)
        order[first], order[second] = second, first
        twin.network.fc.weight.copy_(twin.network.fc.weight[order])
        twin.network.fc.bias.copy_(twin.network.fc.bias[order])
    wrong = compare_scores(model, twin, x, "float64")
    changed = int(((predictions == first) | (predictions == second)).sum())
    assert changed > 0
    assert wrong["agreeing"] == 40 - changed
    assert wrong["largest_difference"] > 1e-3


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_compare_scores_computes_in_the_type_asked_for(dtype: str) -> None:
    model, x = network(), random_images()
    twin = eliminate_stride(model, SIZE)
    difference = compare_scores(model, twin, x, dtype)["largest_difference"]
    assert (1e-10 < difference < 1e-5) == (dtype == "float32")
