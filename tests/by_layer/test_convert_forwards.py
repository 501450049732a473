"""convert_layers on whole networks: forwards of every kind, strided calls in them, what stays."""

import copy
import dataclasses
import functools
import pickle
import threading
import typing
from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from stridenet import StrideEliminationError, convert_layers, converted_layers, plan_layers
from tests.by_layer.test_convert_layers import Strides


class Net(nn.Module):
    """A strided convolution `c` and a forward that is given."""

    def __init__(self, forward, **attributes):
        super().__init__()
        self.c = nn.Conv2d(3, 4, 3, 2, 1)
        self.run = staticmethod(forward)
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, x, *more, **options):
        return self.run(self, x, *more, **options)


class Pair(typing.NamedTuple):
    a: Tensor
    b: Tensor


@dataclasses.dataclass
class Output:
    logits: Tensor
    hidden: Tensor | None = None


def _values_decide(m, x):
    y = m.c(x)
    return y * 2 if y.sum() > 0 else y


def _over_images(m, x):
    return torch.stack([m.c(each) for each in x])


def _assigns(m, x):
    y = m.c(x).clone()
    y[:, 0] = 0
    return y


def _numpy(m, x):
    return torch.from_numpy(m.c(x).detach().numpy() * 2)


def _asks(m, x):
    y = m.c(x)
    return y * 2 if isinstance(y, Tensor) and type(y) is Tensor and hasattr(y, "ndim") else y


def _keeps(m, x):
    m.kept["y"] = m.c(x)
    return m.kept["y"]


FORWARDS = {
    "values decide": _values_decide,
    "a loop over images": _over_images,
    "slice assignment": _assigns,
    "numpy": _numpy,
    "asks for the type": _asks,
    "keeps its map": _keeps,
    "no output": lambda m, x: (m.c(x), None),
    "a NamedTuple": lambda m, x: Pair(m.c(x), x),
    "a dataclass": lambda m, x: Output(m.c(x)),
    "an OrderedDict": lambda m, x: OrderedDict(out=m.c(x)),
    "len": lambda m, x: m.c(x).view(len(x), -1),
}


@pytest.mark.parametrize("name", FORWARDS)
def test_a_forward_of_any_kind_at_any_size(name):
    model = Net(FORWARDS[name], kept={}).double().eval()
    same = convert_layers(model)
    for size in ((2, 3, 16, 16), (3, 3, 15, 22)):
        x = torch.randn(size, dtype=torch.float64)
        expected, obtained = model(x), same(x)
        assert type(obtained) is type(expected)
        pairs = (tree_leaves(vars(o) if isinstance(o, Output) else o) for o in (expected, obtained))
        for a, b in zip(*pairs, strict=True):
            torch.testing.assert_close(b, a)


def test_keyword_arguments():
    model = Net(lambda m, x, scale=1, **options: m.c(x) * scale)
    same, x = convert_layers(model), torch.randn(1, 3, 9, 9)
    torch.testing.assert_close(same(x, scale=3, other=None), model(x, scale=3))
    checked = convert_layers(model, example_inputs={"x": x, "scale": 2})
    torch.testing.assert_close(checked(x=x), model(x))


# Strided calls of functions -------------------------------------------------------------------------


class Standardised(nn.Conv2d):
    def forward(self, x):
        w = self.weight
        w = (w - w.mean((1, 2, 3), True)) / (w.std((1, 2, 3), keepdim=True) + 1e-5)
        return F.conv2d(x, w, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Same(nn.Conv2d):
    def forward(self, x):
        return padded_as_tensorflow(self, x)


def padded_as_tensorflow(layer, x):
    pads = []
    for n, k, s in zip(x.shape[:1:-1], layer.kernel_size[::-1], layer.stride[::-1], strict=True):
        total = max((-(-n // s) - 1) * s + k - n, 0)
        pads += [total // 2, total - total // 2]
    return F.conv2d(F.pad(x, pads), layer.weight, layer.bias, layer.stride)


class Super(nn.Conv2d):
    def forward(self, x):
        return super().forward(F.pad(x, (1, 1, 1, 1)))


class OfDynamicName(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3, 3, 3))

    def forward(self, x):
        return getattr(F, f"conv{x.ndim - 2}d")(x, self.weight, stride=2)


class OfAnAttribute(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3, 3, 3))
        self.operation = functools.partial(F.conv2d, stride=(2, 3), padding=1)

    def forward(self, x):
        return self.operation(x, self.weight)


class InAMethod(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("weight", torch.randn(3, 1, 3, 3))

    def blur(self, x):
        return F.conv2d(F.pad(x, (1, 1, 1, 1), "reflect"), self.weight, stride=2, groups=3)

    def forward(self, x):
        return self.blur(x)


class MakesLayers(nn.Module):
    def forward(self, x):
        torch.manual_seed(0)
        return nn.Conv2d(3, 4, 3, stride=2)(x.float())


class Transposed(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 2, 3, 3))

    def forward(self, x):
        return F.conv_transpose2d(x, self.weight, stride=2, padding=1, output_padding=1)


class Pools(nn.Module):
    def forward(self, x):
        a = F.max_pool2d(F.avg_pool2d(x, 2), 3, stride=2, padding=1)
        return (
            a,
            torch.max_pool2d(x, 2),
            F.lp_pool2d(x.abs(), 2, 2),
            F.adaptive_avg_pool2d(x, (4, 5)),
        )


class Convolution(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3, 3, 3))

    def forward(self, x):
        return torch.convolution(x, self.weight, None, [2, 2], [1, 1], [1, 1], False, [0, 0], 1)


CALLERS = [
    lambda: Standardised(3, 8, 3, 2, 1),
    lambda: Standardised(4, 8, 3, 2, 1, groups=2),
    lambda: Same(3, 8, 3, 2),
    lambda: Super(3, 8, 3, 2),
    OfDynamicName,
    OfAnAttribute,
    InAMethod,
    MakesLayers,
    Transposed,
    Convolution,
    Pools,
]


@pytest.mark.parametrize("make", CALLERS)
def test_strided_calls_in_a_forward(make):
    torch.manual_seed(0)
    model = nn.Sequential(make()).double()
    channels = getattr(model[0], "in_channels", 3)
    same = convert_layers(model, pooling=True)
    for size in ((2, channels, 16, 20), (1, channels, 20, 25)):
        x = torch.randn(size, dtype=torch.float64)
        with Strides() as strides:
            obtained = same(x)
        assert not strides.found
        torch.testing.assert_close(obtained, model(x))


def test_gradients_of_strided_calls():
    model = nn.Sequential(Standardised(3, 8, 3, 2, 1)).double()
    same, x = convert_layers(model), torch.randn(2, 3, 16, 16).double()
    for network in (model, same):
        network(x).square().sum().backward()
    torch.testing.assert_close(same[0].weight.grad, model[0].weight.grad)


def test_a_filter_that_changes_is_never_stale():
    model = nn.Sequential(Same(3, 8, 3, 2)).eval()
    same, x = convert_layers(model), torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        same(x)
        for network in (model, same):
            network[0].weight.data.mul_(2)
        torch.testing.assert_close(same(x), model(x))


def test_modules_without_such_calls_keep_their_class():
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.c = nn.Conv2d(3, 4, 3, 2)

        def forward(self, x):
            return F.relu(self.c(x)).flatten(1)

    assert type(convert_layers(Plain())) is Plain


def test_pooling_calls_stay_unless_asked():
    model = nn.Sequential(Pools())
    with Strides() as strides:
        convert_layers(model)(torch.randn(1, 3, 16, 20))
    assert strides.found


# Untouched ------------------------------------------------------------------------------------------


def test_a_copy_has_its_own_hooks_lists_and_closures():
    seen = []
    model = Net(_keeps, kept={})
    model.layers = [model.c, {"again": model.c}]
    model.c.register_forward_hook(lambda m, i, o: seen.append(o.shape))
    before = pickle.dumps(sorted(model.state_dict()))
    same, x = convert_layers(model), torch.randn(1, 3, 9, 9)
    assert same.layers[0] is same.c
    assert same.layers[1]["again"] is same.c
    convert_layers(model, example_inputs=x)
    plan_layers(model, example_inputs=x)
    assert not seen  # the check ran hooks of its own copy
    assert model.kept == {}
    assert type(model.c) is nn.Conv2d
    assert pickle.dumps(sorted(model.state_dict())) == before


def test_random_states_and_modes_stay():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), nn.Dropout())
    model[1].eval()
    torch.manual_seed(3)
    state, x = torch.get_rng_state(), torch.ones(2, 3, 9, 9)
    same = convert_layers(model, example_inputs=x)
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in same.modules()] == [m.training for m in model.modules()]
    assert not model[1].num_batches_tracked


def test_a_copy_that_still_computes_with_the_model_is_refused():
    kept = []

    class Reaches(nn.Module):
        def __init__(self):
            super().__init__()
            self.c = nn.Conv2d(3, 4, 3, 2)
            kept.append(self)

        def forward(self, x):
            return kept[0].c(x)

    x = torch.randn(1, 3, 9, 9)
    with pytest.raises(StrideEliminationError, match=r"still computes with c\.weight of the model"):
        convert_layers(Reaches(), example_inputs=x)


def test_threads():
    models = [nn.Sequential(nn.Conv2d(3, 4, 3, 2), Same(4, 4, 3, 2)) for _ in range(4)]
    x, wrong = torch.randn(1, 3, 21, 21), []

    def work(model):
        for _ in range(10):
            same = convert_layers(model, example_inputs=x)
            if not torch.allclose(same(x), model(x), atol=1e-5):
                wrong.append(model)

    threads = [threading.Thread(target=work, args=(model,)) for model in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# The check ------------------------------------------------------------------------------------------


def test_a_hook_that_changes_the_weight_is_found():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 2))
    x = torch.randn(1, 3, 9, 9)
    changed = []
    model[0].register_forward_pre_hook(
        lambda m, _: changed.append(m.weight.data.mul_(2.0)) if m.stride == (1, 1) else None
    )
    before = model[0].weight.clone()
    with pytest.raises(StrideEliminationError, match=r"0 \(Conv2d\) is not equal"):
        convert_layers(model, example_inputs=x)
    assert not changed
    assert torch.equal(model[0].weight, before)
    convert_layers(model, example_inputs=x, check=False)


def test_a_forward_that_reads_a_converted_layer_is_found():
    model = Net(lambda m, x: F.conv2d(x, m.c.weight, m.c.bias, m.c.stride, m.c.padding))
    x = torch.randn(1, 3, 9, 9)
    with pytest.raises(StrideEliminationError, match=r"only=\[…\]"):
        convert_layers(model, example_inputs=x)


def test_a_plan_of_what_runs():
    plan = plan_layers(
        nn.Sequential(nn.Conv2d(3, 8, 7, 2, 3), Same(8, 4, 3, 2), nn.ConvTranspose2d(4, 2, 2, 2)),
        example_inputs=torch.randn(2, 3, 32, 32),
    )
    frame = plan.to_frame().set_index("layer")
    assert list(frame.index) == ["0", "2", "1: conv2d"]
    assert frame.loc["0", "strided_multiply_adds"] == 8 * 3 * 49 * 16 * 16
    assert frame.loc["0", "unit_stride_multiply_adds"] == 8 * 12 * 16 * 16 * 16
    assert frame.loc["0", "structural_zeros"] == 8 * (12 * 16 - 3 * 49)
    assert frame.loc["2", "strided_multiply_adds"] == 4 * 2 * 4 * 8 * 8
    assert frame.loc["2", "unit_stride_multiply_adds"] == 4 * 2 * 4 * 8 * 8
    assert "3x32x32 -> 8x16x16" in str(plan)
    assert "maps" not in str(plan_layers(nn.Conv2d(3, 4, 3, 2)))


def test_a_plan_counts_the_parameters_of_the_converted_model():
    model = nn.Sequential(nn.Conv2d(3, 8, 7, 2, 3), nn.Linear(3, 2), nn.ConvTranspose2d(8, 2, 3, 2))
    counted = tuple(sum(p.numel() for p in m.parameters()) for m in (model, convert_layers(model)))
    assert plan_layers(model).parameters == counted


def test_copies_and_pickles_of_a_converted_model():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 2), Same(4, 4, 3, 2), nn.MaxPool2d(2))
    same, x = convert_layers(model, pooling=True), torch.randn(1, 3, 31, 31)
    for other in (copy.deepcopy(same), pickle.loads(pickle.dumps(same))):
        torch.testing.assert_close(other(x), model(x))
        assert list(converted_layers(other)) == ["0", "2"]
        assert type(other[0]) is type(same[0])
        assert other[0].weight is not same[0].weight


class Factory:
    """An object that no reader of code looks into."""

    def __init__(self, **made):
        self.made = made

    def __getitem__(self, name):
        return self.made[name]


FACTORY = Factory(
    pool=lambda x: nn.AvgPool2d(2)(x),
    convolve=lambda x: F.conv2d(x, x.new_ones(2, x.shape[1], 3, 3), stride=2),
    indices=lambda x: F.max_pool2d(x, 2, return_indices=True)[0],
)


class Hidden(nn.Module):
    def __init__(self, name):
        super().__init__()
        self.c, self.name = nn.Conv2d(3, 4, 3, 2), name

    def forward(self, x):
        return FACTORY[self.name](self.c(x))


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("name", ["pool", "convolve"])
def test_a_call_that_no_code_tells_of_is_seen_when_it_runs(name, inplace):
    x = torch.randn(2, 3, 21, 25)
    expected = (model := Hidden(name))(x)
    same = convert_layers(model, pooling=True, example_inputs=x, inplace=inplace)
    with Strides() as strides:
        torch.testing.assert_close(same(x), expected)
    assert not strides.found
    assert (same is model) == inplace


def test_a_stride_that_must_stay_is_named_with_its_line():
    x = torch.randn(2, 3, 21, 25)
    with pytest.raises(
        StrideEliminationError,
        match=r"max_pool2d_with_indices \(test_convert_forwards\.py, line \d+\), which",
    ):
        convert_layers(Hidden("indices"), pooling=True, example_inputs=x)
    convert_layers(Hidden("indices"), example_inputs=x)


def test_in_place_nothing_changes_if_the_check_fails():
    model = Net(lambda m, x: F.conv2d(x, m.c.weight, m.c.bias, m.c.stride, m.c.padding))
    with pytest.raises(StrideEliminationError):
        convert_layers(model, example_inputs=torch.randn(1, 3, 9, 9), inplace=True)
    assert type(model.c) is nn.Conv2d
    assert model.c.weight.shape == (4, 3, 3, 3)


def test_inputs_that_do_not_fit_are_refused_in_the_models_sizes() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 7, stride=2, padding=3))
    with pytest.raises(Exception, match="to have 3 channels, but got 1 channels"):
        plan_layers(model, example_inputs=torch.randn(1, 1, 64, 64))
