"""Copies of models: equal, and independent of the model in all that can change, whatever it holds."""

import collections
import functools
import gc
import io
import math
import pickle
import random
import threading
import types
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from stridenet.copies import copied, same_random_states, unwrapped
from stridenet.errors import InputError, StrideEliminationError


class Net(nn.Module):
    """Two layers, and whatever attributes a test gives it."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 3, 3, stride=2), nn.BatchNorm2d(3)
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


X = torch.randn(2, 2, 8, 8, generator=torch.Generator().manual_seed(0))


class Pair(NamedTuple):
    first: Any
    second: Any


class Slotted:
    __slots__ = ("inner",)

    def __init__(self, inner: Any) -> None:
        self.inner = inner


class Unwilling:
    """What refuses to be pickled or copied, though it holds what can change."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError("no")


class Numbers(torch.Tensor):
    """A subclass of Tensor."""


class Weights(nn.Parameter):
    """A subclass of Parameter."""


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda v: v, lambda v: [v], lambda v: (v, 1), lambda v: {"a": v}, Slotted, Unwilling,
        lambda v: Pair(v, 1), lambda v: collections.OrderedDict(a=v),
        lambda v: functools.partial(print, v),
        lambda v: collections.deque([v]), lambda v: collections.defaultdict(list, a=v),
        lambda v: types.SimpleNamespace(a=v), lambda v: (lambda: v), lambda v: (lambda a=v: a),
        lambda v: np.array([v, None], dtype=object),
    ],
)  # fmt: skip
def test_what_can_change_is_copied_however_deep_it_is_held(
    wrap: Callable[[Any], Any], share: bool
) -> None:
    inner = [1]
    model = Net(held=wrap([wrap(inner)]))
    copy = copied(model, share_tensors=share)
    found = [t for t in reachable(copy.held) if type(t) is list and repr(t) == "[1]"]
    assert len(found) == 1
    found[0].append(2)
    assert inner == [1]


def reachable(thing: Any, seen: set[int] | None = None) -> Any:
    """All that a thing holds, by an independent walk: what the garbage collector sees."""
    seen = set() if seen is None else seen
    if id(thing) in seen or isinstance(thing, (type, types.ModuleType, types.CodeType)):
        return
    seen.add(id(thing))
    yield thing
    if isinstance(thing, types.FunctionType):
        below = [*(thing.__closure__ or ()), *(thing.__defaults__ or ())]
    elif isinstance(thing, types.CellType):
        below = [thing.cell_contents]
    elif isinstance(thing, np.ndarray):
        below = list(thing)
    else:
        below = gc.get_referents(thing)
    for inner in below:
        yield from reachable(inner, seen)


@pytest.mark.parametrize(
    "thing",
    [
        threading.Lock(), threading.RLock(), io.StringIO("a"), (i for i in range(3)), math, print,
        torch.relu, nn.ReLU, len, torch.float16, torch.device("cpu"), threading.local(),
        random.Random(1), np.random.default_rng(1), torch.Generator(), lambda x: x, open(__file__),  # noqa: SIM115
    ],
    ids=lambda thing: type(thing).__name__,
)  # fmt: skip
def test_whatever_an_attribute_holds_is_no_hindrance(thing: Any) -> None:
    model = Net(held=thing, also=[thing, X.requires_grad_(False) * 1])
    copy = copied(model)
    assert type(copy.held) is type(thing)
    assert torch.equal(copy.eval()(X), model.eval()(X))
    if isinstance(thing, torch.Generator):
        torch.rand(3, generator=copy.held)
        assert torch.equal(
            torch.rand(3, generator=model.held), torch.rand(3, generator=torch.Generator())
        )
    getattr(thing, "close", int)()


@pytest.mark.parametrize("share", [False, True])
def test_computed_tensors_are_copied(share: bool) -> None:
    model = Net()
    model.features = model.conv(X)
    model.more = [{"a": model.features}]
    copy = copied(model, share)
    assert torch.equal(copy.features, model.features)
    assert copy.more[0]["a"] is copy.features
    copy.features.zero_()
    assert model.features.abs().max() > 0
    assert model.features.grad_fn is not None


def test_parameters_are_shared_or_not_and_never_the_same_objects() -> None:
    model = Net()
    model.conv.weight.tag = [1]
    model.conv.weight.grad = torch.ones_like(model.conv.weight)
    model.also = model.conv
    model.norm.weight.requires_grad_(False)
    for share in (False, True):
        copy = copied(model, share)
        for ours, theirs in zip(copy.parameters(), model.parameters(), strict=True):
            assert type(ours) is nn.Parameter
            assert ours is not theirs
            assert ours.requires_grad == theirs.requires_grad
            assert (ours.data_ptr() == theirs.data_ptr()) == share
        assert copy.also is copy.conv
        assert copy.conv.weight.tag == [1]
        copy.conv.weight.tag.append(2)
        copy.conv.weight.requires_grad_(False)
        copy.norm.running_mean.add_(1)
        assert (copy.conv.weight.grad is None) == share
    assert model.conv.weight.tag == [1]
    assert model.conv.weight.requires_grad
    assert not model.norm.running_mean.any()


def test_tied_parameters_subclasses_and_views_stay_what_they_are() -> None:
    model = Net(numbers=torch.ones(3).as_subclass(Numbers), mine=Weights(torch.ones(2)))
    model.other = nn.Conv2d(2, 3, 3)
    model.other.weight = model.conv.weight
    model.base = torch.zeros(4)
    model.view = model.base[:2]
    for share in (False, True):
        copy = copied(model, share)
        assert copy.other.weight is copy.conv.weight
        assert (type(copy.numbers), type(copy.mine)) == (Numbers, Weights)
        copy.view.fill_(1)
        assert copy.base.tolist() == [1, 1, 0, 0]
    assert model.base.tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Sequential(parametrizations.weight_norm(nn.Conv2d(2, 3, 3))),
        lambda: nn.Sequential(parametrizations.spectral_norm(nn.Conv2d(2, 3, 3))),
        lambda: nn.Sequential(prune.l1_unstructured(nn.Conv2d(2, 3, 3), "weight", 0.5)),
        lambda: nn.Sequential(nn.LazyConv2d(3, 3)),
        lambda: nn.Sequential(nn.Flatten(2), nn.LSTM(64, 4)),
        lambda: torch.fx.symbolic_trace(Net()),
        lambda: nn.Sequential(torch.fx.symbolic_trace(Net()), nn.ReLU()),
        lambda: nn.Sequential(nn.Flatten(2), nn.MultiheadAttention(64, 2))[:1],
    ],
)
@pytest.mark.parametrize("share", [False, True])
def test_copies_of_all_kinds_compute_the_same_and_can_be_pickled(
    make: Callable[[], nn.Module], share: bool
) -> None:
    model = make().eval()
    copy = copied(model, share)
    for name, module in model.named_modules():
        assert type(copy.get_submodule(name)).__qualname__ == type(module).__qualname__
        assert copy.get_submodule(name) is not module
    if not isinstance(model[0] if isinstance(model, nn.Sequential) else model, nn.LazyConv2d):
        got, wanted = copy(X), model(X)
        assert torch.equal(*(y[0] if isinstance(y, tuple) else y for y in (got, wanted)))
        copied(copy)(X)
    elif not share:
        assert copy(X).shape == (2, 3, 6, 6)
        assert isinstance(model[0], nn.LazyConv2d)


def test_old_weight_norm_recomputes_in_the_copy() -> None:
    with pytest.warns(FutureWarning):
        model = nn.Sequential(nn.utils.weight_norm(nn.Conv2d(2, 3, 3)))
    copy = copied(model)
    with torch.no_grad():
        copy[0].weight_g.zero_()
        copy[0].bias.zero_()
    assert not copy(X).any()
    assert model(X).any()


def test_meta_tensors_stay_without_memory() -> None:
    with torch.device("meta"):
        model = Net()
    assert all(p.is_meta for p in copied(model).parameters())


def hooked_by_closure() -> tuple[nn.Module, dict]:
    model, found = Net(), {"calls": 0}

    def hook(module: nn.Module, args: Any, result: Tensor) -> None:
        found["calls"] += 1
        found["weight"] = model.conv.weight

    model.conv.register_forward_hook(hook)
    return model, found


def test_hooks_of_the_copy_act_on_the_copy() -> None:
    model, found = hooked_by_closure()
    copy = copied(model)
    copy(X)
    assert found == {"calls": 0}
    ours = next(iter(copy.conv._forward_hooks.values()))
    cells = dict(zip(ours.__code__.co_freevars, ours.__closure__ or (), strict=True))
    assert cells["found"].cell_contents["calls"] == 1
    assert cells["found"].cell_contents["weight"] is copy.conv.weight
    assert model.conv._forward_hooks is not copy.conv._forward_hooks
    model(X)
    assert found["calls"] == 1


def test_functions_that_share_a_cell_share_one_in_the_copy() -> None:
    count = 0

    def add(*_: Any) -> None:
        nonlocal count
        count += 1

    copy = copied(Net(add=add, read=lambda: count))
    copy.add()
    assert (copy.read(), count) == (1, 0)


@pytest.mark.parametrize("kind", ["partial", "lambda", "default", "method", "recursive"])
def test_a_replaced_forward_runs_the_copy(kind: str) -> None:
    model = Net()

    def twice(module: nn.Module, x: Tensor) -> Tensor:
        return 2 * module.conv(x)

    def itself(x: Tensor, depth: int = 1) -> Tensor:
        return itself(x, depth - 1) if depth else 2 * model.conv(x)

    model.forward = {
        "partial": functools.partial(twice, model),
        "lambda": lambda x: 2 * model.conv(x),
        "default": lambda x, m=model: 2 * m.conv(x),
        "method": types.MethodType(twice, model),
        "recursive": itself,
    }[kind]
    copy = copied(model)
    assert torch.equal(copy(X), model(X))
    with torch.no_grad():
        for p in copy.parameters():
            p.zero_()
    assert not copy(X).any()
    assert model(X).any()


def test_weak_references_to_the_model_follow_the_copy() -> None:
    model, outside = Net(), Slotted.__new__(type("Free", (), {}))
    model.conv.parent, model.outside = weakref.ref(model), weakref.ref(outside)
    model.conv.proxy = weakref.proxy(model)
    copy = copied(model)
    assert copy.conv.parent() is copy
    assert copy.outside() is outside
    copy.conv.proxy.mark = 1
    assert copy.mark == 1
    assert not hasattr(model, "mark")


def test_a_bound_method_of_a_list_appends_to_the_copys() -> None:
    seen: list = []
    model = Net(seen=seen, keep=seen.append)
    copy = copied(model)
    copy.keep(1)
    assert (copy.seen, seen) == ([1], [])


def test_a_copy_of_a_model_that_can_be_pickled_can_be_pickled() -> None:
    model = Net(act=torch.relu, norm_of=nn.functional.normalize, also=collections.OrderedDict(a=X))
    assert pickle.dumps(copied(model))


# What is inside of wrappers


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_wrappers_are_taken_off() -> None:
    model = Net()
    assert unwrapped(model) is model
    assert unwrapped(torch.compile(model)) is model
    assert unwrapped(nn.DataParallel(torch.compile(model))) is model


def test_a_model_compiled_in_place_is_copied_as_it_is() -> None:
    model = Net()
    model.compile(backend="eager")
    assert "_compiled_call_impl" not in vars(copied(model))


@pytest.mark.filterwarnings("ignore")  # of torch.jit and torch.ao, which go away
def test_what_cannot_be_taken_apart_is_refused_by_name() -> None:
    scripted, traced = torch.jit.script(nn.ReLU()), torch.jit.trace(Net().eval(), X)
    for module in (scripted, traced):
        with pytest.raises(StrideEliminationError, match=r"the model \(.*\) is a ScriptModule"):
            unwrapped(module)
    with pytest.raises(
        StrideEliminationError, match=r"^1 \(\w+\) is a ScriptModule.* model that it"
    ):
        unwrapped(nn.Sequential(nn.ReLU(), scripted))
    quantized = torch.ao.nn.quantized.Conv2d(2, 3, 3)
    with pytest.raises(StrideEliminationError, match=r"1 \(Conv2d\) is quantized.*before it is"):
        unwrapped(nn.Sequential(nn.ReLU(), quantized))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (Net, r"Net is a class.*Net\(…\)"),
        (torch.relu, "builtin_function_or_method, no"),
        (Net().state_dict(), "OrderedDict, no .* load_state_dict"),
        (None, "NoneType"),
    ],
)
def test_what_is_no_module_is_refused_by_name(given: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        unwrapped(given)


def test_random_states_are_restored_whatever_happens() -> None:
    def drawn() -> tuple:
        return torch.rand(3).tolist(), random.random(), np.random.rand()  # noqa: NPY002

    with same_random_states():
        wanted = drawn()
    with pytest.raises(ZeroDivisionError), same_random_states():
        assert 1 / (drawn() == 0)
    assert drawn() == wanted
