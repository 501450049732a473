"""A sharing map shows the filter of a real twin."""

import re
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

from experiments.paper.sharing_map import sharing_map
from stridenet import eliminate_stride, plan_elimination
from stridenet.errors import InputError
from stridenet.zoo import lenet
from tests.paper.drawn import CASES, Case, network, words

mapped = pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))


def pictures(figure: Figure) -> tuple[Any, Any]:
    """The images of the strided filter and of the twin's."""
    (axes,) = figure.axes
    strided, twin = axes.images
    return strided, twin


def distinct(colours: np.ndarray) -> set[tuple]:
    return {tuple(colour) for colour in np.round(255 * colours.reshape(-1, 4)[:, :3])}


def filters_with_numbers(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """A strided filter of weights 1, 2, 3, …, and the filter that its twin is built with."""
    make, size, name, _ = case
    model = make()
    weight = model.get_submodule(name).weight
    with torch.no_grad():
        weight.copy_(torch.arange(1.0, weight.numel() + 1).reshape(weight.shape))
    twin = eliminate_stride(model, size).network.get_submodule(name)
    (layer,) = [module for module in twin.modules() if hasattr(module, "kernel_size")]
    return weight.detach().numpy().astype(int), layer.weight.detach().numpy().astype(int)


def in_one_plane(filter_: np.ndarray) -> np.ndarray:
    """Output channels below each other, input channels beside each other, by loops."""
    planes = filter_.reshape(*filter_.shape[:2], -1, filter_.shape[-1])
    return np.block([[planes[o, i] for i in range(planes.shape[1])] for o in range(len(planes))])


@pytest.mark.sample(4)
@mapped
def test_a_sharing_map_is_the_filter_that_a_twin_is_built_with(case: Case) -> None:
    make, size, name, (outputs, inputs) = case
    strided_filter, twin_filter = filters_with_numbers(case)
    phases = [b // a for a, b in zip(strided_filter.shape, twin_filter.shape, strict=True)][:2]
    strided, twin = pictures(sharing_map(plan_elimination(make(), size), name))
    shown = twin_filter[: outputs * phases[0], : inputs * phases[1]]
    assert np.array_equal(twin.get_array().filled(-1) + 1, in_one_plane(shown))
    key = in_one_plane(strided_filter[:outputs, :inputs])
    assert np.array_equal(strided.get_array().filled(-1) + 1, key)


@mapped
def test_a_weight_has_one_colour_of_its_own_and_structural_zeros_are_blank(case: Case) -> None:
    make, size, name, _ = case
    strided, twin = pictures(sharing_map(plan_elimination(make(), size), name))
    numbers = strided.get_array().ravel()
    key = dict(zip(numbers, strided.to_rgba(numbers), strict=True))
    weights = twin.get_array()
    drawn = twin.to_rgba(weights)
    blank = np.ma.getmaskarray(weights)
    assert (drawn[blank][:, 3] == 0).all()
    assert (drawn[~blank][:, 3] == 1).all()
    assert np.array_equal(drawn[~blank], [key[weight] for weight in weights.compressed()])
    assert len(distinct(drawn[~blank])) == len(distinct(np.array([*key.values()]))) == len(key)


@pytest.mark.sample(4)
@mapped
def test_every_weight_bears_its_number_and_the_caption_counts_them(case: Case) -> None:
    make, size, name, (outputs, inputs) = case
    figure = sharing_map(plan_elimination(make(), size), name)
    strided, twin = (picture.get_array() for picture in pictures(figure))
    (axes,) = figure.axes
    numbers = sorted(int(text.get_text()) for text in axes.texts if text.get_text().isdigit())
    assert numbers == sorted([*(strided.compressed() + 1), *(twin.compressed() + 1)])  # from 1
    caption = " ".join(max(words(figure), key=len).split())
    out_channels, in_channels, *_ = make().get_submodule(name).weight.shape
    others = out_channels * in_channels - outputs * inputs
    assert ("Both are shown whole" in caption) == (others == 0)
    assert (f"and the other {others:,} look the same" in caption) == (others > 0)
    assert caption.endswith(
        f"{strided.size} weights in {twin.count():,} places, and {np.ma.count_masked(twin):,} zeros."
    )


def test_phases_are_written_beside_and_above_the_map() -> None:
    figure = sharing_map(plan_elimination(lenet(), (1, 28, 28)), "conv2")
    phases = [word for word in words(figure) if re.fullmatch(r"\(\d,\d\)", word)]
    above = [f"({p},{q})" for p in range(1, 5) for q in range(1, 5)]
    assert phases == [*above, "(1,1)", "(1,2)", "(2,1)", "(2,2)"]  # as the paper counts them
    assert {"input phase (p, q)", "output\nphase (m, n)"} <= set(words(figure))


def test_phases_of_unequal_axes_are_those_of_rows_and_columns() -> None:
    make, size, name, _ = CASES["oblong"]  # its second layer has stride 3x2
    written = words(sharing_map(plan_elimination(make(), size), name))
    above = [word for word in written if re.fullmatch(r"\(\d,\d\)", word)]
    assert above == [f"({p},{q})" for p in range(1, 4) for q in range(1, 3)]


def test_of_several_channels_phases_say_which() -> None:
    make, size, name, _ = CASES["1-D"]
    written = words(sharing_map(plan_elimination(make(), size), name))
    assert {f"{channel}: ({phase})" for channel in (1, 2) for phase in (1, 2, 3)} <= set(written)
    assert {"input channel: phase (p)", "output channel:\nphase (m)"} <= set(written)


@pytest.mark.parametrize("name", ["conv9", "fc1", "flatten", ""])
def test_another_layer_is_refused_with_the_right_ones(name: str) -> None:
    plan = plan_elimination(lenet(), (1, 28, 28))
    told = f"layer={name} is no convolution; take one of conv1, conv2, conv3, conv4"
    with pytest.raises(InputError, match=re.escape(told)):
        sharing_map(plan, name)


def test_a_network_without_convolutions_is_said_to_have_none() -> None:
    plan = plan_elimination(network(nn.Flatten(), nn.Linear(16, 2)), (1, 4, 4))
    with pytest.raises(InputError, match="layer=1 is no convolution; the network has none"):
        sharing_map(plan, "1")
