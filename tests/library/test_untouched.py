"""A model is left as it was by whatever is done with it: planned, converted, refused, interrupted."""

import copy
import functools
import io
import pickle
import random
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from stridenet import StrideEliminationError, eliminate_stride, plan_elimination
from tests.state import fingerprint, random_states

SIZE = (3, 8, 8)
LOCK = threading.Lock()


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.c = nn.Conv2d(3, 4, 3, 2, 1)


class KeepsEverything(Base):
    def __init__(self) -> None:
        super().__init__()
        self.seen, self.log, self.sizes, self.calls = [], {"a": {"b": []}}, None, 0
        self.lock, self.held, self.bound = LOCK, None, self.note
        self.grid = torch.rand(1, 4, 4, 4).requires_grad_() * 2

    def note(self, y: Tensor) -> None:
        self.log["a"]["b"].append(y)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        y = self.c(x)
        self.seen.append(y)
        self.bound(y)
        self.sizes, self.held = x.shape, (y, [y])
        self.grid = self.grid.to(x.device)
        y.tag = self
        return y + self.grid


class Counts(Base):
    """The number of calls in a buffer, which the result does not depend on."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))
        self.register_buffer("last", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        y = self.c(x)
        self.last = y.mean(dim=(0, 1, 2, 3)).reshape(1)
        return y


class Caches(Base):
    grid: Any = None

    def forward(self, x: Tensor) -> Tensor:
        y = self.c(x)
        if self.grid is None or self.grid.shape[-1] != y.shape[-1]:
            self.grid = torch.linspace(0, 1, y.shape[-1], device=y.device).view(1, 1, 1, -1)
        return y + self.grid


class Draws(Base):
    def forward(self, x: Tensor) -> Tensor:
        scale = 1 + 0 * (random.random() + np.random.rand())  # noqa: NPY002
        return self.c(x) * scale + 0 * torch.rand(1, 1, 1, 1)


class ByClosure(Base):
    """What its layer calls keeps what it sees, in a closure around the model."""

    def __init__(self) -> None:
        super().__init__()
        seen: list = []

        def act(y: Tensor) -> Tensor:
            seen.append((self, y))
            return F.relu(y)

        self.act, self.seen = act, seen
        self.partial = functools.partial(act)

    def forward(self, x: Tensor) -> Tensor:
        return self.partial(self.act(self.c(x)))


class FreezesNorms(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        self[1].eval()
        return super().forward(x)


def normed(norm: Callable) -> nn.Module:
    return nn.Sequential(norm(nn.Conv2d(3, 4, 3, 2, 1)), nn.ReLU(), norm(nn.Conv2d(4, 4, 1)))


def gradients() -> nn.Module:
    model = Base()
    model.forward_ = model.c
    model.c.weight.grad = torch.ones_like(model.c.weight)
    model.c.weight.tag = ["tag"]
    return nn.Sequential(model.c, nn.BatchNorm2d(4), nn.Dropout(0.5))


CONVERTED: dict[str, Callable[[], nn.Module]] = {
    "keeps everything": KeepsEverything,
    "counts": Counts,
    "caches": Caches,
    "draws": Draws,
    "closure": ByClosure,
    "spectral_norm": lambda: normed(parametrizations.spectral_norm),
    "weight_norm": lambda: normed(parametrizations.weight_norm),
    "gradients": gradients,
    "norms": lambda: nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), nn.Dropout2d()),
    "frozen norms": lambda: FreezesNorms(nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4)),
    "a layer": lambda: nn.Conv2d(3, 4, 3, 2),
    "a GraphModule": lambda: torch.fx.symbolic_trace(nn.Sequential(Base().c)),
    "compiled": lambda: torch.compile(nn.Sequential(nn.Conv2d(3, 4, 3, 2)), backend="eager"),
}


class Fails(KeepsEverything):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y if y.sum() > 0 else -y


class Interrupted(KeepsEverything):
    def forward(self, x: Tensor) -> Tensor:
        super().forward(x)
        raise KeyboardInterrupt


REFUSED: dict[str, Callable[[], nn.Module]] = {
    "values": Fails,
    "sizes": lambda: nn.Sequential(KeepsEverything(), nn.Conv2d(5, 3, 1)),
    "rules": lambda: nn.Sequential(KeepsEverything(), nn.LayerNorm(4), nn.Conv2d(4, 3, 3, 2, 1)),
}


def snapshot(model: nn.Module) -> tuple:
    """All that can change, down to what attributes hold, by identity and by value."""
    deep = [
        (name, key, described(value))
        for name, module in model.named_modules()
        for key, value in vars(module).items()
    ]
    return fingerprint(model), deep, random_states(), nn.Module.__call__, nn.Module.__getattr__


def described(value: Any, depth: int = 6) -> Any:
    if isinstance(value, Tensor):
        return id(value), value._version, value.detach().numpy().tobytes(), vars(value).keys()
    if depth and isinstance(value, dict):
        return id(value), [(k, described(v, depth - 1)) for k, v in value.items()]
    if depth and isinstance(value, (list, tuple)):
        return id(value), [described(v, depth - 1) for v in value]
    if depth and getattr(value, "__closure__", None):
        return id(value), [described(c.cell_contents, depth - 1) for c in value.__closure__]
    return id(value) if not isinstance(value, (int, float, str)) else value


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.compile, about torch.jit
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("make", CONVERTED.values(), ids=CONVERTED)
def test_a_model_is_left_untouched_and_gives_the_same_twin_again(
    make: Callable, training: bool
) -> None:
    model = make().train(training)
    pickles = can_be_pickled(model)
    before = snapshot(model)
    plan_elimination(model, SIZE)
    assert snapshot(model) == before
    twins = [eliminate_stride(model, SIZE) for _ in range(2)]
    assert snapshot(model) == before
    assert can_be_pickled(model) == pickles
    before = snapshot(model)  # a GraphModule writes its code anew to be pickled
    state, again = (twin.state_dict() for twin in twins)
    assert all(torch.equal(state[key], again[key]) for key in state)
    assert state.keys() == again.keys()
    with torch.random.fork_rng():
        twins[0].eval()(torch.ones(2, *SIZE))
    assert snapshot(model) == before
    x = torch.rand(2, *SIZE)
    assert torch.allclose(twins[0].eval()(x), copy_of(model).eval()(x), atol=1e-5)


def copy_of(model: nn.Module) -> nn.Module:
    """The model itself where it cannot be copied: nothing is looked at afterwards."""
    try:
        return copy.deepcopy(model)
    except Exception:
        return model


def can_be_pickled(model: nn.Module) -> bool:
    try:
        torch.save(model, io.BytesIO())
        pickle.dumps(model)
    except Exception:
        return False
    return True


@pytest.mark.parametrize("make", REFUSED.values(), ids=REFUSED)
def test_a_model_is_left_untouched_by_a_refusal(make: Callable) -> None:
    model = make()
    before = snapshot(model)
    for convert in (plan_elimination, eliminate_stride):
        with pytest.raises(StrideEliminationError):
            convert(model, SIZE)
        assert snapshot(model) == before


def test_a_model_is_left_untouched_by_an_interruption() -> None:
    model = Interrupted()
    before = snapshot(model)
    with pytest.raises(KeyboardInterrupt):
        eliminate_stride(model, SIZE)
    assert snapshot(model) == before


def test_a_model_that_has_run_converts_as_before() -> None:
    model = KeepsEverything().eval()
    x = torch.rand(2, *SIZE)
    twin = eliminate_stride(model, SIZE)
    model(x)
    assert torch.equal(eliminate_stride(model, SIZE)(x), twin(x))
    assert model.calls == 1


def test_spectral_norm_does_not_iterate_and_stays_in_its_mode() -> None:
    model = normed(parametrizations.spectral_norm)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()  # so that each iteration changes the weights by much
    vectors = [b.clone() for b in model.buffers()]
    twin = eliminate_stride(model, SIZE)
    assert all(torch.equal(a, b) for a, b in zip(vectors, model.buffers(), strict=True))
    x = torch.rand(2, *SIZE)
    assert torch.allclose(twin.eval()(x), model.eval()(x), atol=1e-5)
    kept = twin.train().network.get_submodule("2.parametrizations.weight.0")
    assert kept.training


# A forward that changes what it depends on


class Averages(Base):
    """A moving average that it subtracts."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("average", torch.zeros(1, 4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.c(x)
        self.average = 0.9 * self.average + 0.1 * y.mean((0, 2, 3), keepdim=True).detach()
        return y - self.average


class AveragesInPlace(Averages):
    def forward(self, x: Tensor) -> Tensor:
        y = self.c(x)
        self.average.mul_(0.9).add_(0.1 * y.mean((0, 2, 3), keepdim=True))
        return y - self.average


class CountsCalls(Base):
    n = 0

    def forward(self, x: Tensor) -> Tensor:
        self.n += 1
        return self.c(x) * self.n


class Remembers(Base):
    h: Any = None

    def forward(self, x: Tensor) -> Tensor:
        y = self.c(x)
        self.h = y if self.h is None else y + self.h
        return self.h


class RemembersInAList(Base):
    def __init__(self) -> None:
        super().__init__()
        self.past: list = []

    def forward(self, x: Tensor) -> Tensor:
        self.past.append(self.c(x))
        return sum(self.past)


class FirstTime(Base):
    ready = False

    def forward(self, x: Tensor) -> Tensor:
        y = self.c(x)
        if not self.ready:
            self.ready = True
            return y * 2
        return y


class Decays(Base):
    def __init__(self) -> None:
        super().__init__()
        self.rate = torch.ones(1)

    def forward(self, x: Tensor) -> Tensor:
        self.rate *= 0.9
        return self.c(x) * self.rate.view(1, 1, 1, 1)


class ClampsItsWeight(Base):
    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(1, 4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.gain.clamp_(0, 0.5)
        return self.c(x) * self.gain


@pytest.mark.parametrize(
    ("kind", "attribute", "line"),
    [
        (Averages, "average", "self.average = 0.9"), (AveragesInPlace, "average", "self.average.mul_"),
        (CountsCalls, "n", "self.n += 1"), (Remembers, "h", "self.h = y"),
        (RemembersInAList, "past", "self.past.append"), (FirstTime, "ready", "self.ready = True"),
        (Decays, "rate", "self.rate *= 0.9"), (ClampsItsWeight, "gain", "self.gain.clamp_"),
    ],
)  # fmt: skip
def test_a_forward_that_depends_on_what_it_changes_is_refused_by_name(
    kind: type, attribute: str, line: str
) -> None:
    with open(__file__) as source:
        wanted = next(n for n, text in enumerate(source, 1) if line in text)
    message = (
        rf"1 \({kind.__name__}\) changes {attribute} in .*\(test_untouched\.py, line {wanted}\)"
    )
    model = nn.Sequential(nn.ReLU(), kind())
    before = snapshot(model)
    with pytest.raises(StrideEliminationError, match=message):
        eliminate_stride(model, SIZE)
    assert snapshot(model) == before


def test_what_the_first_forward_sets_up_converts_after_it() -> None:
    model = FirstTime()
    model(torch.ones(1, *SIZE))  # the cure that the message names
    x = torch.rand(2, *SIZE)
    assert torch.allclose(eliminate_stride(model, SIZE)(x), model(x), atol=1e-5)
