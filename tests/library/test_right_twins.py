"""verify passes right twins of every kind of network; so does the check at conversion."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from stridenet import StrideEliminationError, eliminate_stride, share, verify
from stridenet.checking.elimination import check_conversion
from stridenet.planner import planned_network
from tests.examples import examples
from tests.graphs import networks
from tests.library.named_graphs import NAMED
from tests.networks import randomise

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")
SIZE = (2, 13, 11)


class Pair(NamedTuple):
    maps: Tensor
    mean: Tensor


class By(nn.Module):
    """Two strided convolutions, and a function of the network and its map before the second."""

    def __init__(self, function: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 4, 3, 2, 1), nn.Conv2d(4, 3, 3, 2, 1)
        self.function = function
        for name, part in parts.items():
            if isinstance(part, nn.Module | nn.Parameter):
                setattr(self, name, part)
            else:
                self.register_buffer(name, part)

    def forward(self, x: Tensor) -> Any:
        return self.b(self.function(self, self.a(x)))


class After(By):
    """The function stands behind the last stride, where whatever has no rule may stand."""

    def forward(self, x: Tensor) -> Any:
        return self.function(self, self.last(self.b(self.a(x))))

    def __init__(self, function: Callable[..., Any], **parts: Any) -> None:
        super().__init__(function, **parts)
        self.last = nn.Conv2d(3, 4, 1)


class Returns(By):
    def forward(self, x: Tensor) -> Any:
        x = self.b(self.a(x))
        return self.function(x, x.mean((2, 3)))


class Symmetric(nn.Module):
    def forward(self, w: Tensor) -> Tensor:
        return w.triu() + w.triu(1).transpose(-1, -2)


def with_norm(kind: Callable[..., nn.Module], **options: Any) -> nn.Module:
    model = By(lambda m, x: m.fc(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), fc=nn.Linear(4, 4))
    for name in ("a", "fc"):
        kind(getattr(model, name), **options)
    return model


def symmetric() -> nn.Module:
    model = By(lambda m, x: m.fc(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), fc=nn.Linear(4, 4))
    parametrize.register_parametrization(model.fc, "weight", Symmetric())
    return model


def one_module_twice() -> nn.Module:
    conv = nn.Conv2d(4, 4, 3, padding=1)
    return nn.Sequential(nn.Conv2d(2, 4, 3, 2, 1), conv, nn.ReLU(), conv, nn.Conv2d(4, 3, 2, 2))


def calls_twice() -> nn.Module:
    return By(lambda m, x: m.n(m.c(m.n(m.c(x)))), c=nn.Conv2d(4, 4, 3, 1, 1), n=nn.BatchNorm2d(4))


def norm_is_read(m: Any, x: Tensor) -> Tensor:
    n = m.n
    scale = (n.weight / (n.running_var + n.eps).sqrt()).view(-1, 1, 1)
    return (x - n.running_mean.view(-1, 1, 1)) * scale + n.bias.view(-1, 1, 1)


KINDS: dict[str, Callable[[], nn.Module]] = {
    "one module under two names": one_module_twice,
    "one module called twice": calls_twice,
    "a tensor made in forward": lambda: By(lambda m, x: x + torch.full((1, 4, 1, 1), 0.5)),
    "a range made in forward": lambda: By(lambda m, x: x * torch.arange(4.0).view(1, 4, 1, 1)),
    "zeros like a map": lambda: After(lambda m, x: torch.maximum(x, torch.zeros_like(x))),
    "a BatchNorm that is read": lambda: After(norm_is_read, n=nn.BatchNorm2d(4)),
    "a weight that is read": lambda: By(
        lambda m, x: x + m.fc.weight.view(1, 4, 1, 1), fc=nn.Linear(4, 1)
    ),
    "None among the outputs": lambda: Returns(lambda x, y: (x, None)),
    "numbers among the outputs": lambda: Returns(lambda x, y: [x, 3, 0.5, "name"]),
    "a dictionary": lambda: Returns(lambda x, y: {"mean": y, "maps": x, "none": None}),
    "a NamedTuple": lambda: Returns(Pair),
    "nested outputs": lambda: Returns(lambda x, y: {"a": (x, [y, None]), "b": {"c": y}}),
    "weight_norm": lambda: with_norm(parametrizations.weight_norm),
    "spectral_norm": lambda: with_norm(parametrizations.spectral_norm),
    "orthogonal": lambda: with_norm(parametrizations.orthogonal),
    "a symmetric weight": symmetric,
    "a variance below a root": lambda: After(
        lambda m, x: x / m.v.sqrt(), v=torch.tensor([1e-6, 1.0, 4, 100]).view(4, 1, 1)
    ),
    "a probability": lambda: After(
        lambda m, x: x * (m.p / (1 - m.p)).log(), p=torch.tensor([0.01, 0.5, 0.9, 0.999]).view(4, 1, 1)
    ),
    "a mask of bool": lambda: By(
        lambda m, x: x * m.mask, mask=torch.tensor([True, False, True, True]).view(4, 1, 1)
    ),
    "integers": lambda: After(
        lambda m, x: x[:, m.order], order=torch.tensor([2, 0, 1, 3])
    ),
    "a temperature": lambda: After(
        lambda m, x: x / m.t.sqrt(), t=nn.Parameter(torch.tensor([0.07]).view(1, 1, 1))
    ),
    "an EMA counter": lambda: After(
        lambda m, x: x / (1 - 0.9**m.steps), steps=torch.tensor(7.0).view(1, 1, 1)
    ),
    "a logarithm of what may be negative": lambda: By(lambda m, x: x.log()),
    "a head of zeros": lambda: nn.Sequential(By(lambda m, x: x), zeroed(nn.Conv2d(3, 3, 1))),
    "a norm that starts at zero": lambda: By(
        lambda m, x: x + m.n(m.c(x)), c=nn.Conv2d(4, 4, 3, 1, 1), n=zeroed(nn.BatchNorm2d(4))
    ),
    "casts": lambda: After(lambda m, x: x.float().sigmoid().to(x.dtype)),
    "casts to half": lambda: After(lambda m, x: x.half().to(x.dtype)),
    "softmax over channels": lambda: By(lambda m, x: x.softmax(1)),
    "attention": lambda: Returns(lambda x, y: x.flatten(2).transpose(1, 2) @ x.flatten(2)),
    "dropout as a function": lambda: By(lambda m, x: F.dropout(x, 0.5, m.training)),
    "dropout always": lambda: By(lambda m, x: F.dropout2d(x, 0.5, True)),
    "noise": lambda: Returns(lambda x, y: x + torch.randn_like(x)),
    "dropout": lambda: By(lambda m, x: m.d(x), d=nn.Dropout(0.5)),
    "another forward in training": lambda: By(
        lambda m, x: m.n(x) if m.training else 2 * x, n=nn.BatchNorm2d(4)
    ),
}  # fmt: skip


def zeroed(module: nn.Module) -> nn.Module:
    nn.init.zeros_(module.weight)
    return module


@pytest.mark.sample(17)
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", KINDS)
def test_a_right_twin_passes(name: str, training: bool) -> None:
    torch.manual_seed(1)
    model = KINDS[name]().train(training)
    twin = eliminate_stride(model, SIZE)
    report = verify(model, twin, torch.randn(3, *SIZE))
    assert report.passed, report


@pytest.mark.sample(3)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", ["one module called twice", "casts", "softmax over channels"])
def test_a_right_twin_passes_in_other_types(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    model = KINDS[name]().to(dtype).eval()
    twin = eliminate_stride(model, SIZE)
    assert next(twin.parameters()).dtype == dtype
    assert verify(model, twin).passed
    with torch.no_grad():
        twin.network.b[-1].bias[0] += 0.25
    assert verify(model, twin).first_failure == "b"


@pytest.mark.parametrize("name", ["one module called twice", "a BatchNorm that is read"])
@pytest.mark.parametrize("sharing", ["tied", "masked", "free"])
def test_a_twin_that_shares_its_weights_passes(name: str, sharing: str) -> None:
    model = KINDS[name]().eval()
    assert verify(model, share(eliminate_stride(model, SIZE), sharing)).passed


@pytest.mark.sample(9)
@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_network_of_many_branches_passes(name: str, dtype: torch.dtype) -> None:
    size, network = NAMED[name]
    model = randomise(network).to(dtype)
    options = {} if dtype == torch.float32 else {"batch_norm": "per_phase", "output_factor": 2}
    assert verify(model, eliminate_stride(model, size, **options)).passed
    model.double()


@examples(25)
@given(networks())
def test_a_random_network_passes(example: tuple) -> None:
    network, size = example
    try:
        twin = eliminate_stride(network, size, check=False)
    except StrideEliminationError:
        return
    report = verify(network, twin)
    assert report.passed, report
    sizes = size if isinstance(size[0], tuple) else (size,)
    check_conversion(network, planned_network(network, sizes, twin.plan.options), twin)
