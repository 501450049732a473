"""convert_layers, a layer at a time: every kind of strided layer against torch's own, at many sizes."""

import copy
import itertools
import random

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.utils._python_dispatch import TorchDispatchMode

from stridenet import (
    StrideEliminationError,
    convert_layers,
    convert_state_dict,
    converted_layers,
    fold_back,
    share,
)
from stridenet.sharing import origins
from stridenet.windows import TransposedWindow, Window


class Strides(TorchDispatchMode):
    """Notes the strides above one of all that runs, whoever calls it."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        stride = ()
        if name.startswith("convolution"):
            stride = args[3]
        elif "_pool" in name and "backward" not in name and "adaptive" not in name:
            stride = (args[2] if len(args) > 2 else ()) or args[1]
        if any(step > 1 for step in stride):
            self.found.append(f"{name} {stride}")
        return func(*args, **(kwargs or {}))


def same_in_float64(model, *inputs, pooling=True, **options):
    """Convert, and see that both give the same without a stride; returns the converted model."""
    model = model.double()
    same = convert_layers(model, pooling=pooling, **options)
    for x in inputs:
        expected = model(x.double())
        with Strides() as strides:
            obtained = same(x.double())
        assert not strides.found
        assert obtained.shape == expected.shape
        torch.testing.assert_close(obtained, expected, rtol=1e-12, atol=1e-12, equal_nan=True)
    return same


def drawn_convolutions(count):
    draw = random.Random(0)
    for number in range(count):
        axes = draw.choice([1, 2, 2, 2, 3])
        groups = draw.choice([1, 1, 2, 4])

        def each(low, high, axes=axes):
            return tuple(draw.randint(low, high) for _ in range(axes))

        options = {
            "kernel_size": each(1, 5),
            "stride": each(1, 3) if number % 2 else each(2, 4),
            "padding": each(0, 3),
            "dilation": each(1, 3),
            "groups": groups,
            "bias": draw.random() < 0.7,
        }
        yield axes, 4, draw.choice([4, 8]), options


@pytest.mark.parametrize(("axes", "inputs", "outputs", "options"), [*drawn_convolutions(60)])
def test_a_convolution_of_any_numbers_at_any_size(axes, inputs, outputs, options):
    torch.manual_seed(0)
    layer = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1](inputs, outputs, **options)
    reach = [
        d * (k - 1) + 1 for k, d in zip(options["kernel_size"], options["dilation"], strict=True)
    ]
    sizes = [[r + extra + axis for axis, r in enumerate(reach)] for extra in (0, 1, 2, 5)]
    for depthwise in ("phases", "grouped"):
        same = same_in_float64(
            nn.Sequential(copy.deepcopy(layer)),
            *(torch.randn(2, inputs, *size) for size in sizes),
            torch.randn(inputs, *sizes[-1]),  # one image without a batch
            torch.randn(0, inputs, *sizes[-1]),
            depthwise=depthwise,
        )
        assert isinstance(same[0], type(layer))


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_padding_with_what_is_there(mode):
    layer = nn.Conv2d(3, 4, (5, 3), stride=(2, 3), padding=(2, 1), padding_mode=mode)
    same_in_float64(nn.Sequential(layer), torch.randn(2, 3, 11, 14), torch.randn(1, 3, 8, 9))


def test_padding_by_name():
    same_in_float64(
        nn.Sequential(nn.Conv2d(3, 4, 3, 2, padding="valid")), torch.randn(2, 3, 11, 14)
    )


TRANSPOSED = [
    (axes, k, s, p, d, o)
    for axes, k, s, p, d in itertools.product((1, 2, 3), (2, 3, 5), (2, 3), (0, 1, 2), (1, 2))
    for o in ((0, 1) if axes == 2 else (0,))
]


@pytest.mark.sample(40)
@pytest.mark.parametrize(("axes", "k", "s", "p", "d", "o"), TRANSPOSED)
def test_a_transposed_convolution(axes, k, s, p, d, o):
    kind = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[axes - 1]
    layer = kind(4, 6, k, s, p, o, groups=2, dilation=d)
    inputs = [torch.randn(2, 4, *(n + a for a in range(axes))) for n in (4, 5)]
    same_in_float64(nn.Sequential(layer), *inputs)


def test_the_sizes_of_a_transposed_filter_are_those_of_its_tap_map():
    for numbers in itertools.product(range(1, 7), range(1, 5), (1, 2, 3), range(5)):
        window = TransposedWindow(*numbers)
        tap_map = window.tap_map
        assert (window.blocks, window.before) == (tap_map.twin_kernel, tap_map.twin_padding[0])
        assert Window(*numbers[:3]).blocks == Window(*numbers[:3]).tap_map.twin_kernel


POOLINGS = [
    nn.MaxPool1d(3, 2, 1),
    nn.MaxPool2d(3, 2, 1),
    nn.MaxPool2d((2, 3), (3, 2), (1, 1), dilation=(2, 1)),
    nn.MaxPool2d(3, 2, ceil_mode=True),
    nn.MaxPool3d(2, 2),
    nn.MaxPool2d(2, ceil_mode=True, padding=1),
    nn.AvgPool1d(3, 2),
    nn.AvgPool2d(3, 2, 1),
    nn.AvgPool2d(3, 2, 1, count_include_pad=False),
    nn.AvgPool2d(3, 2, 1, ceil_mode=True),
    nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False),
    nn.AvgPool2d(2, 3, divisor_override=3),
    nn.AvgPool3d((1, 2, 2)),
    nn.AvgPool2d(640, ceil_mode=True),
    nn.LPPool2d(2, 3, 2),
    nn.LPPool1d(3.0, 2),
    nn.AdaptiveAvgPool2d(3),
    nn.AdaptiveAvgPool2d((None, 3)),
    nn.AdaptiveMaxPool1d(3),
]


@pytest.mark.parametrize("pool", POOLINGS, ids=str)
def test_pooling(pool):
    axes = int(str(type(pool).__name__)[-2])
    sizes = [(9, 12, 6), (12, 9, 9)] if hasattr(pool, "output_size") else [(9, 12, 7), (10, 8, 6)]
    images = [torch.randn(2, 3, *size[:axes]) for size in sizes]
    images.append(images[0][0])
    same = same_in_float64(nn.Sequential(pool), *images)
    assert isinstance(same[0], type(pool))
    assert list(converted_layers(same)) == ["0"]


def test_a_wide_pool_takes_no_more_memory_than_its_map():
    same = convert_layers(nn.AvgPool2d(10**6, ceil_mode=True), pooling=True)
    x = torch.randn(1, 3, 8, 8)
    torch.testing.assert_close(same(x), nn.AvgPool2d(10**6, ceil_mode=True)(x))


def test_adaptive_pooling_of_windows_that_differ_stays():
    layer = nn.AdaptiveAvgPool2d(4)
    same, x = convert_layers(layer, pooling=True), torch.randn(1, 3, 10, 7)
    torch.testing.assert_close(same(x), layer(x))


def test_too_small_a_map_is_refused_as_torch_does_it():
    layer, x = nn.Conv2d(3, 4, 5, 2), torch.randn(1, 3, 4, 9)
    for each in (layer, convert_layers(layer)):
        with pytest.raises(
            RuntimeError, match="Kernel size can't be greater than actual input size"
        ):
            each(x)


# What a layer says of itself ------------------------------------------------------------------------


def test_attributes_describe_the_unit_stride_filter_and_strided_the_original():
    layer = convert_layers(nn.Conv2d(3, 8, 7, stride=2, padding=3, dilation=1))
    assert (layer.in_channels, layer.kernel_size, layer.stride) == (12, (4, 4), (1, 1))
    assert (layer.padding, layer.dilation) == ((0, 0), (1, 1))
    assert layer.weight.shape == (8, 12, 4, 4)
    was = layer.strided
    assert (was.in_channels, was.kernel_size, was.stride) == (3, (7, 7), (2, 2))
    assert was.padding == (3, 3)
    assert str(was) == "Conv2d(3, 8, kernel_size=(7, 7), stride=(2, 2), padding=(3, 3))"
    assert [tap_map.stride for tap_map in layer.tap_maps] == [2, 2]
    assert repr(layer) == "UnitStrideConv2d(12, 8, kernel_size=(4, 4), stride=(1, 1))"


def test_a_pool_says_the_same():
    layer = convert_layers(nn.MaxPool2d(3, 2, 1), pooling=True)
    assert (layer.kernel_size, layer.stride, layer.padding) == (2, 1, 0)
    assert (layer.strided.kernel_size, layer.strided.stride, layer.strided.padding) == (3, 2, 1)


class Mine(nn.Conv2d):
    """A user's class with torch's forward."""

    def says(self):
        return "mine"


def test_a_users_class_stays_a_class_of_the_users():
    model = nn.Sequential(Mine(3, 4, 3, 2), nn.ReLU())
    model[0].tag = {"a": [1]}
    model[0].weight.tag = "tagged"
    model[0].weight.requires_grad_(False)
    same = same_in_float64(model, torch.randn(1, 3, 9, 9))
    assert isinstance(same[0], Mine)
    assert same[0].says() == "mine"
    assert same[0].tag == {"a": [1]}
    assert same[0].tag is not model[0].tag
    assert same[0].weight.tag == "tagged"
    assert not same[0].weight.requires_grad


def test_names_and_their_order_stay():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), nn.ConvTranspose2d(4, 2, 2, 2))
    same = convert_layers(model)
    assert list(same.state_dict()) == list(model.state_dict())
    assert [n for n, _ in same.named_parameters()] == [n for n, _ in model.named_parameters()]


def test_only_names_the_layers():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.Conv2d(4, 4, 3, 2), nn.MaxPool2d(2))
    assert list(converted_layers(convert_layers(model, only=["1"]))) == ["1"]
    assert list(converted_layers(convert_layers(model, only=["2"]))) == ["2"]
    with pytest.raises(
        StrideEliminationError, match=r"only: 'c' is no layer .*: \['0', '1', '2'\]"
    ):
        convert_layers(model, only=["c"])
    with pytest.raises(StrideEliminationError, match="a list of layers' names"):
        convert_layers(model, only="0")


def test_a_second_conversion_changes_nothing_more():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.MaxPool2d(2))
    once = convert_layers(model)
    again = convert_layers(once, pooling=True)
    assert list(converted_layers(once)) == ["0"]
    assert list(converted_layers(again)) == ["0", "1"]
    x = torch.randn(1, 3, 11, 11)
    torch.testing.assert_close(again(x), model(x))


def test_in_place():
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3, 2)), torch.randn(1, 3, 9, 9)
    expected, layer = model(x), model[0]
    assert convert_layers(model, inplace=True, example_inputs=x) is model
    assert model[0] is layer
    torch.testing.assert_close(model(x), expected)


def test_nothing_changes_in_place_if_a_layer_is_refused():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.Conv2d(4, 4, 3, 2))
    model[1].weight = nn.Parameter(torch.randn(4, 4, 5, 5))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(
        StrideEliminationError, match="1 \\(Conv2d\\) was changed after it was made"
    ):
        convert_layers(model, inplace=True)
    assert type(model[0]) is nn.Conv2d
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


# Weights that something else makes ------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_the_old_hooks_on_weights_are_baked_in():
    model = nn.Sequential(
        nn.utils.weight_norm(nn.Conv2d(3, 4, 3, 2)),
        nn.utils.spectral_norm(nn.Conv2d(4, 4, 3, 2)),
        nn.Conv2d(4, 4, 2, 2),
    ).eval()
    prune.l1_unstructured(model[2], "weight", 0.5)
    x = torch.randn(2, 3, 31, 31)
    model(x)
    same = convert_layers(model, example_inputs=x)
    for _ in range(2):  # the second forward is where a hook would undo it
        torch.testing.assert_close(same(x), model(x))
    assert not same[0]._forward_pre_hooks
    assert model[0]._forward_pre_hooks


def test_another_hook_on_a_weight_is_refused_by_name():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 2))
    weight = nn.Parameter(model[0].weight.detach().clone())
    del model[0].weight
    model[0].raw = weight
    model[0].register_forward_pre_hook(lambda m, _: setattr(m, "weight", m.raw * 2))
    model(torch.randn(1, 3, 9, 9))
    with pytest.raises(StrideEliminationError, match="weight of 0 \\(Conv2d\\) is no parameter"):
        convert_layers(model)


@pytest.mark.parametrize("normed", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_parametrized_weights_stay_parametrized(normed):
    model = nn.Sequential(normed(nn.Conv2d(3, 4, 3, 2)), nn.Conv2d(4, 4, 3, 2)).eval()
    x = torch.randn(2, 3, 21, 21)
    same = convert_layers(model, example_inputs=x)
    torch.testing.assert_close(same(x), model(x))
    assert list(same.state_dict()) == list(model.state_dict())
    same.load_state_dict(convert_state_dict(same, model.state_dict()))
    torch.testing.assert_close(same(x), model(x))
    back = fold_back(same)
    torch.testing.assert_close(back(x), model(x))
    assert type(back[1]) is nn.Conv2d
    parametrize.remove_parametrizations(same[0], "weight")
    torch.testing.assert_close(same(x), model(x))
    assert "UnitStride" in type(same[0]).__name__


def test_one_parameter_of_equal_layers_stays_one():
    model = nn.Sequential(nn.Conv2d(3, 3, 3, 2), nn.Conv2d(3, 3, 3, 2))
    model[1].weight = model[0].weight
    same = same_in_float64(model, torch.randn(1, 3, 31, 31))
    assert same[0].weight is same[1].weight


def test_one_parameter_of_different_strides_is_refused():
    model = nn.Sequential(nn.Conv2d(3, 3, 3, 2), nn.Conv2d(3, 3, 3, 1))
    model[1].weight = model[0].weight
    with pytest.raises(StrideEliminationError, match=r"0\.weight and 1\.weight are one parameter"):
        convert_layers(model)
    model[1].weight = nn.Parameter(model[1].weight.detach().clone())  # the cure that it names
    convert_layers(model)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:Lazy modules:UserWarning")
def test_what_cannot_be_converted_is_said():
    with pytest.raises(StrideEliminationError, match="returns indices"):
        convert_layers(nn.Sequential(nn.MaxPool2d(2, return_indices=True)), pooling=True)
    with pytest.raises(StrideEliminationError, match="has no weights yet: run the model once"):
        convert_layers(nn.Sequential(nn.LazyConv2d(4, 3, 2)))
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 2))
    model[0].forward = model[0].forward
    with pytest.raises(StrideEliminationError, match=r"forward of 0 \(Conv2d\) was replaced"):
        convert_layers(model)
    with pytest.raises(StrideEliminationError, match="ScriptModule"):
        convert_layers(torch.jit.trace(nn.Conv2d(3, 4, 3, 2), torch.randn(1, 3, 9, 9)))
    with pytest.raises(StrideEliminationError, match="it is one of"):
        convert_layers(nn.Conv2d(3, 4, 3, 2), depthwise="fast")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_wrappers_are_taken_off():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 2))
    for wrapped in (nn.DataParallel(model), torch.compile(model)):
        assert list(converted_layers(convert_layers(wrapped))) == ["0"]


# Training, and the way back -------------------------------------------------------------------------


def small():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 7, 2, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, 2, 1, groups=8),
        nn.Conv2d(8, 6, 2, 2),
        nn.ConvTranspose2d(6, 4, 3, 2, 1),
    ).double()


@pytest.mark.parametrize("depthwise", ["phases", "grouped"])
def test_gradients_are_those_of_the_strided_network(depthwise):
    model = small()
    same, x = convert_layers(model, depthwise=depthwise), torch.randn(3, 3, 37, 33).double()
    for network in (model, same):
        network(x).square().sum().backward()
    folded = origins(same)
    for (name, p), q in zip(model.named_parameters(), same.parameters(), strict=True):
        grad = q.grad
        if name in folded:  # the gradient on a strided weight is the sum over its copies
            grad = folded[name].fold(q.grad) * folded[name].copies
        torch.testing.assert_close(grad, p.grad, rtol=1e-9, atol=1e-9, msg=name)


def test_a_tied_one_trains_as_the_strided_network():
    model = small()
    tied, x = share(convert_layers(model), "tied"), torch.randn(3, 3, 37, 33).double()
    networks = [copy.deepcopy(model), tied]
    for network in networks:
        optimizer = torch.optim.SGD(network.parameters(), 1e-2, momentum=0.9)
        for _ in range(3):
            optimizer.zero_grad()
            network(x).square().mean().backward()
            optimizer.step()
    assert sum(p.numel() for p in tied.parameters()) == sum(p.numel() for p in model.parameters())
    back = fold_back(tied)
    for (name, p), q in zip(networks[0].named_parameters(), back.parameters(), strict=True):
        torch.testing.assert_close(q, p, rtol=1e-9, atol=1e-9, msg=name)
    assert [type(layer) for layer in back] == [type(layer) for layer in model]


def test_masked_keeps_structural_zeros():
    same = share(convert_layers(small()), "masked")
    optimizer = torch.optim.Adam(same.parameters(), 1e-2)
    same(torch.randn(2, 3, 33, 33).double()).square().mean().backward()
    optimizer.step()
    zeros = origins(convert_layers(small()))["0.weight"].entries < 0
    assert zeros.any()
    assert not same[0].weight[zeros].any()


def test_folding_back_gives_the_originals_bits_and_attributes():
    model = small()
    back = fold_back(convert_layers(model))
    for (name, p), (other, q) in zip(
        model.state_dict().items(), back.state_dict().items(), strict=True
    ):
        assert name == other
        assert torch.equal(p, q)
    for a, b in zip(model, back, strict=True):
        assert type(a) is type(b)
        assert repr(a) == repr(b)
        plain = (int, str, tuple, bool, list)
        ours = {k: v for k, v in vars(a).items() if isinstance(v, plain)}
        assert ours == {k: v for k, v in vars(b).items() if isinstance(v, plain)}


def test_the_weights_of_another_strided_network_are_converted():
    model, other = small(), small()
    for p in other.parameters():
        p.data.normal_()
    same, x = convert_layers(model), torch.randn(1, 3, 33, 33).double()
    same.load_state_dict(convert_state_dict(same, other.state_dict()))
    other.eval(), same.eval()
    torch.testing.assert_close(same(x), other(x))
    with pytest.raises(StrideEliminationError, match=r"0\.weight is 3x3 in the state_dict"):
        convert_state_dict(same, {"0.weight": torch.randn(3, 3)})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_other_types(dtype):
    model = nn.Sequential(nn.Conv2d(3, 8, 5, 2, 2), nn.Conv2d(8, 8, 3, 2, groups=8)).to(dtype)
    same, x = convert_layers(model), torch.randn(2, 3, 20, 20).to(dtype)
    exact = copy.deepcopy(model).double()(x.double())
    apart = (same(x).double() - exact).abs().max()
    assert apart <= 4 * torch.finfo(dtype).eps * exact.abs().max()
    assert same(x).dtype == dtype


def test_channels_last():
    model = nn.Sequential(nn.Conv2d(3, 8, 5, 2, 2), nn.Conv2d(8, 8, 2, 2))
    model = model.to(memory_format=torch.channels_last)
    x = torch.randn(2, 3, 20, 20).to(memory_format=torch.channels_last)
    same = convert_layers(model)
    assert same[0].weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(same(x), model(x), rtol=1e-5, atol=1e-5)
