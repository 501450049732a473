"""A plan says every size of the twin before a weight exists: the paper's tables, and a forward pass."""

import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from stridenet import eliminate_stride, plan_elimination
from tests.library.chains import Recorder, chains, convolution_in, images, some
from tests.networks import randomise

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")


# Networks


def lenet() -> nn.Sequential:
    """The strided LeNet of the paper's Table 1."""
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(1, 20, 5),
            relu1=nn.ReLU(),
            conv2=nn.Conv2d(20, 20, 2, stride=2),
            relu2=nn.ReLU(),
            conv3=nn.Conv2d(20, 50, 5),
            relu3=nn.ReLU(),
            conv4=nn.Conv2d(50, 50, 2, stride=2),
            relu4=nn.ReLU(),
            flatten=nn.Flatten(),
            fc1=nn.Linear(800, 500),
            relu5=nn.ReLU(),
            fc2=nn.Linear(500, 10),
        )
    )


# The plan


def sizes_of_results(network: nn.Module, run: Callable[[], Any]) -> dict[str, tuple[int, ...]]:
    """Return each submodule's size, without batch, in the pass that `run` makes."""
    sizes = {}

    def keep(name: str) -> Callable:
        return lambda module, args, result: sizes.update({name: tuple(result.shape[1:])})

    handles = [
        module.register_forward_hook(keep(name)) for name, module in network.named_modules() if name
    ]
    run()
    for handle in handles:
        handle.remove()
    return sizes


@some
@given(chains())
def test_the_plan_s_sizes_are_those_of_a_forward_pass(chain: tuple) -> None:
    model, input_size = chain
    plan = plan_elimination(model.double(), input_size)
    twin, x = eliminate_stride(model, input_size), images(input_size)
    assert plan == twin.plan
    strided = sizes_of_results(model, lambda: model(x))
    unit_stride = sizes_of_results(twin.network, lambda: twin(x))
    assert plan.input.unit_stride_size == twin.rearrange(x).shape[1:]
    assert [layer.name for layer in plan.layers] == list(strided)
    for layer in plan.layers:
        assert layer.output.size == strided[layer.name]
        assert layer.output.unit_stride_size == unit_stride[layer.name]


@some
@given(chains())
def test_the_plan_s_counts_are_those_of_the_networks(chain: tuple) -> None:
    model, input_size = chain
    randomise(model)
    twin = eliminate_stride(model, input_size)
    for layer in twin.plan.layers:
        strided = getattr(model.get_submodule(layer.name), "weight", torch.ones(0))
        unit_stride = convolution_in(twin.network.get_submodule(layer.name))
        unit_stride = getattr(unit_stride, "weight", torch.ones(0))
        assert strided.numel() == (math.prod(layer.weight_size) if layer.weight_size else 0)
        assert layer.weight_size == (strided.shape if strided.numel() else ())
        assert layer.unit_stride_weight_size == (unit_stride.shape if unit_stride.numel() else ())
        assert layer.structural_zeros == int((unit_stride == 0).sum())
    for column, network in (("strided", model), ("unit_stride", twin)):
        with FlopCounterMode(display=False) as counter:
            network(images(input_size)[:1])
        multiply_adds = twin.plan.to_frame()[f"{column}_multiply_adds"].sum()
        assert 2 * multiply_adds == counter.get_total_flops()


def test_the_plan_allocates_no_weights() -> None:
    model = lenet()
    with Recorder() as planning:
        plan_elimination(model, (1, 28, 28))
    with Recorder() as building:
        eliminate_stride(model, (1, 28, 28))
    assert planning.allocated_bytes() < 2048
    assert building.allocated_bytes() > 4 * 200_080


def test_a_network_too_large_to_exist_can_be_planned() -> None:
    million = 10**6
    with torch.device("meta"):
        layers = nn.Conv2d(3, million, 5), nn.ReLU(), nn.Conv2d(million, million, 3, stride=2)
    plan = plan_elimination(nn.Sequential(*layers), (3, 64, 64))
    assert plan.layers[0].unit_stride_weight_size == (4 * million, 12, 3, 3)
    assert plan.layers[2].unit_stride_weight_size == (million, 4 * million, 2, 2)
    assert plan.layers[2].structural_zeros == 7 * million**2
    assert plan.to_frame().unit_stride_weights.tolist() == [432 * million, 0, 16 * million**2]


# What the paper says


def test_table_2() -> None:
    frame = plan_elimination(lenet(), (1, 28, 28)).to_frame().set_index("layer")
    maps = frame.loc[["conv1", "conv2", "conv3", "conv4", "fc1"]]
    plan = plan_elimination(lenet(), (1, 28, 28))
    assert ["x".join(map(str, plan.input.size)), *maps.strided_map] == [
        "1x28x28", "20x24x24", "20x12x12", "50x8x8", "50x4x4", "500"
    ]  # fmt: skip
    assert ["x".join(map(str, plan.input.unit_stride_size)), *maps.unit_stride_map] == [
        "16x7x7", "320x6x6", "80x6x6", "200x4x4", "50x4x4", "500"
    ]  # fmt: skip


def test_table_1_the_twin_s_layers() -> None:
    network = eliminate_stride(lenet(), (1, 28, 28)).network
    layers = [network.get_submodule(f"conv{i}") for i in (1, 2, 3, 4)]
    assert [(layer.kernel_size, layer.out_channels) for layer in layers] == [
        ((2, 2), 320), ((1, 1), 80), ((3, 3), 200), ((1, 1), 50)
    ]  # fmt: skip
    assert [layer.in_channels for layer in layers] == [16, 320, 80, 200]
    assert network.get_submodule("fc1").weight.shape == (500, 800)


def test_figure_4_a_5x5_layer_before_a_stride_of_two() -> None:
    model = nn.Sequential(nn.Conv2d(3, 32, 5), nn.ReLU(), nn.Conv2d(32, 8, 2, stride=2))
    twin = eliminate_stride(model, (3, 12, 12))
    assert model[0].weight.shape == (32, 3, 5, 5)
    assert twin.network.get_submodule("0").weight.shape == (128, 12, 3, 3)


def test_lenet_s_counts() -> None:
    model = lenet()
    twin = eliminate_stride(model, (1, 28, 28))
    frame = twin.plan.to_frame()
    convolutions = frame[frame.operation == "Conv2d"].sum(numeric_only=True)
    assert convolutions.strided_weights == 37_100
    assert convolutions.unit_stride_weights == 200_080
    assert convolutions.structural_zeros == 75_680
    assert frame.strided_multiply_adds.sum() == 2_683_400
    assert frame.unit_stride_multiply_adds.sum() == 4_527_880
    assert sum(parameter.numel() for parameter in model.parameters()) == 442_750
    assert sum(parameter.numel() for parameter in twin.parameters()) == 606_240


def test_section_6_counts_the_taps_of_the_twin() -> None:
    frame = plan_elimination(lenet(), (1, 28, 28)).to_frame()
    formula = {"conv1": 16 * 20 * 25, "conv2": 4 * 20 * 20 * 4, "conv3": 4 * 20 * 50 * 25}
    formula["conv4"] = 50 * 50 * 4
    taps = (frame.unit_stride_weights - frame.structural_zeros).set_axis(frame.layer)
    assert taps[list(formula)].to_dict() == formula  # s²·C·C·W·H, s the stride after the layer


def test_the_printed_plan_sums_up() -> None:
    text = str(plan_elimination(lenet(), (1, 28, 28)))
    assert text.startswith("input 1x28x28 -> 16x7x7\n")
    assert "20x24x24 -> 320x6x6" in text
    assert "20x1x5x5 -> 320x16x2x2" in text
    assert (
        "strides eliminated in 2 layers; parameters 442,750 -> 606,240 (75,680 structural" in text
    )
    assert text.endswith("1.8 -> 2.4 MB), multiply-adds 2,683,400 -> 4,527,880")


def test_the_printed_plan_has_a_row_for_each_filter_flush_right() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 3, 2, stride=2))
    assert str(plan_elimination(network, (1, 10, 10))).splitlines()[:-1] == [
        "input 1x10x10 -> 4x5x5",
        "layer            map             filter",
        "    0 2x8x8 -> 8x4x4 2x1x3x3 -> 8x4x2x2",
        "    2 3x4x4 -> 3x4x4 3x2x2x2 -> 3x8x1x1",
    ]
    assert len(str(plan_elimination(nn.MaxPool2d(2), (1, 8, 8))).splitlines()) == 2  # no filter


def test_of_more_than_twenty_filters_those_that_change_are_printed() -> None:
    network = nn.Sequential(*(nn.Conv2d(1, 1, 1, stride=1 + (n == 0)) for n in range(21)))
    plan = str(plan_elimination(network, (1, 8, 8))).splitlines()
    assert plan[2:-1] == [
        "    0 1x4x4 -> 1x4x4 1x1x1x1 -> 1x4x1x1",
        "... and 20 layers with filters as they were",
    ]


def test_padding_comes_before_the_rearrangement_where_that_saves_weights() -> None:
    alexnet = nn.Conv2d(3, 96, 11, stride=4, padding=2)
    plan = plan_elimination(alexnet, (3, 224, 224))
    assert plan.inputs[0].padding == ((2, 2), (2, 2))
    assert plan.layers[0].unit_stride_weight_size == (96, 48, 3, 3)
    saves_on_one_axis = nn.Conv2d(3, 4, (11, 1), stride=4, padding=(2, 0))
    assert plan_elimination(saves_on_one_axis, (3, 24, 24)).inputs[0].padding == ((2, 2), (0, 0))
    saves_nothing = nn.Conv2d(3, 4, 3, padding=1)
    assert plan_elimination(saves_nothing, (3, 24, 24)).inputs[0].padding == ((0, 0), (0, 0))
