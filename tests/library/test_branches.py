"""A forward takes the same branches while it is traced as it takes with tensors.

Each forward here asks something of what it is given and does something else for each answer. Its twin
is compared with the model itself, at several numbers of images, and both again in float64 and float16.
"""

import copy
import dataclasses
import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from stridenet import StrideEliminationError, eliminate_stride, plan_elimination

SIZE = (3, 8, 8)


class Asks(nn.Module):
    """A strided layer, a function of its map and of the image, and another layer."""

    def __init__(self, middle: Callable, **attributes: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 1)
        self.middle = middle
        self.register_buffer("table", torch.rand(1, 4, 1, 1))
        self.register_buffer("flag", torch.tensor([True]))
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, x: Tensor) -> Any:
        return self.last(self.middle(self, x, self.first(x)))


def yes(answer: Any, y: Tensor) -> Tensor:
    """A map that tells yes from no."""
    assert isinstance(answer, bool)
    return y * 2 if answer else y * 3 + 1


QUESTIONS: dict[str, Callable[[Any, Tensor, Tensor], Tensor]] = {
    "isinstance": lambda m, x, y: yes(isinstance(y, Tensor), y),
    "is_tensor": lambda m, x, y: yes(torch.is_tensor(y), y),
    "is no list": lambda m, x, y: yes(isinstance(y, (list, tuple, dict)), y),
    "is no Parameter": lambda m, x, y: yes(isinstance(y, nn.Parameter), y),
    "a weight is a Parameter": lambda m, x, y: yes(isinstance(m.first.weight, nn.Parameter), y),
    "hasattr": lambda m, x, y: yes(hasattr(x, "foo") or hasattr(x, "keys"), y),
    "has a method": lambda m, x, y: yes(hasattr(x, "flatten"), y),
    "getattr": lambda m, x, y: yes(getattr(x, "tensors", None) is None, y),
    "ndim": lambda m, x, y: yes(x.ndim == 4 and x.dim() == 4, y),
    "device": lambda m, x, y: yes(x.device == torch.device("cpu"), y),
    "device's type": lambda m, x, y: yes(x.device.type == "cpu", y),
    "device of a weight": lambda m, x, y: yes(x.device == m.first.weight.device, y),
    "is_cuda": lambda m, x, y: yes(x.is_cuda, y),
    "is_meta": lambda m, x, y: yes(x.is_meta or y.is_meta, y),
    "requires_grad": lambda m, x, y: yes(x.requires_grad, y),
    "is_leaf": lambda m, x, y: yes(x.is_leaf, y),
    "dtype": lambda m, x, y: yes(x.dtype == m.first.weight.dtype, y),
    "dtype of a parameter": lambda m, x, y: yes(next(m.parameters()).dtype is x.dtype, y),
    "is_floating_point": lambda m, x, y: yes(x.is_floating_point() and not x.is_complex(), y),
    "torch.is_floating_point": lambda m, x, y: yes(torch.is_floating_point(x), y),
    "int of a size": lambda m, x, y: yes(int(x.shape[2]) == 8, y),
    "int of the images": lambda m, x, y: y.reshape(int(x.shape[0]), 4, -1).reshape(y.shape),
    "try int": lambda m, x, y: tries(lambda: y.view(int(x.shape[0]), 4, 4, 4), lambda: -y),
    "len": lambda m, x, y: y.view(len(x), -1).view(y.shape),
    "shapes are equal": lambda m, x, y: yes(x.shape == y.shape, y),
    "shapes are unequal": lambda m, x, y: yes(x.shape[-2:] != (8, 8), y),
    "shapes of equal maps": lambda m, x, y: yes((y + 1).shape == y.shape, y),
    "numel": lambda m, x, y: y / (x.numel() / x.shape[0]),
    "numel of a map": lambda m, x, y: y.view(-1, y.numel() // len(y)).view(y.shape),
    "size": lambda m, x, y: y.view(x.size(0), x.size(-1), *y.size()[2:3], -1).view(y.size()),
    "a slice of a shape": lambda m, x, y: y.view(*y.shape[:2], 16).view((*y.shape[:2], 4, 4)),
    "product of a shape": lambda m, x, y: y.reshape(math.prod(y.shape[:2]), 4, 4).reshape(y.shape),
    "twice the images": lambda m, x, y: y.view(2 * y.shape[0], 2, 4, 4).view(y.shape),
    "number of images as a factor": lambda m, x, y: y * x.shape[0],
    "element_size": lambda m, x, y: yes(x.element_size() in (2, 4, 8), y),
    "is_contiguous": lambda m, x, y: yes(x.is_contiguous(), y),
    "stride": lambda m, x, y: yes(x.stride(1) == 64, y),
    "get_device": lambda m, x, y: yes(x.get_device() == -1, y),
    "a buffer's flag": lambda m, x, y: yes(bool(m.flag), y),
    "a buffer's item": lambda m, x, y: yes(m.flag.item(), y),
    "type of a layer": lambda m, x, y: yes(type(m.first) is nn.Conv2d, y),
    "is None": lambda m, x, y: yes(x is None or x is not x, y),
    "==  None": lambda m, x, y: yes(bool(y == None), y),  # noqa: E711
    "callable in a list": lambda m, x, y: yes(any(v is y for v in [x, y]), y),
}


def tries(one: Callable, other: Callable) -> Any:
    try:
        return one()
    except Exception:
        return other()


MADE: dict[str, Callable[[Any, Tensor, Tensor], Any]] = {
    "a module": lambda m, x, y: nn.ReLU(inplace=True)(y),
    "a norm": lambda m, x, y: nn.BatchNorm2d(4, device=y.device, dtype=y.dtype).eval()(y),
    "arange": lambda m, x, y: y + torch.arange(4).to(y.device),
    "arange like it": lambda m, x, y: y + torch.arange(4, dtype=y.dtype, device=y.device)[:, None],
    "linspace like it": lambda m, x, y: y + torch.linspace(0, 1, 4, dtype=y.dtype).view(1, 1, 4, 1),
    "meshgrid": lambda m, x, y: y + torch.stack(
        torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij")
    ).sum(0).to(y),
    "zeros of its size": lambda m, x, y: y + torch.zeros(y.shape, dtype=y.dtype, device=y.device),
    "new_zeros": lambda m, x, y: torch.cat([y[:, 1:], y.new_zeros(y.shape[0], 1, *y.shape[2:])], 1),
    "new_full": lambda m, x, y: y + y.new_full((len(y), 1, 1, 1), 3.0),
    "new_tensor": lambda m, x, y: y * y.new_tensor([1.0, 2.0, 3.0, 4.0]).view(1, 4, 1, 1),
    "zeros_like": lambda m, x, y: torch.where(y > 0, y, torch.zeros_like(y)),
    "ones_like": lambda m, x, y: y + torch.ones_like(y, dtype=y.dtype),
    "empty maps": lambda m, x, y: torch.cat([y.new_empty([len(y), 0, 4, 4]), y], 1),
    "torch.empty maps": lambda m, x, y: torch.cat(
        [torch.empty([len(y), 0, 4, 4], dtype=y.dtype, device=y.device), y], 1
    ),
    "a mask": lambda m, x, y: y * mask(4).to(y.dtype),
    "rates": lambda m, x, y: y * [r.item() for r in torch.linspace(0, 0.5, 3)][1],
    "tensor": lambda m, x, y: y * torch.tensor([1.0, 2, 3, 4], device=y.device, dtype=y.dtype)[:, None],
    "to dtype of x": lambda m, x, y: y.double().sigmoid().to(x.dtype),
    "to the weight's": lambda m, x, y: y.double().to(m.last.weight.dtype),
    "type_as": lambda m, x, y: y.double().type_as(x),
    "to another": lambda m, x, y: y.double().to(x),
    "to device": lambda m, x, y: y.to(x.device),
    "to device and dtype": lambda m, x, y: y.to(device=m.table.device, dtype=m.table.dtype),
    "by name": lambda m, x, y: y.to("cpu"),
    "cpu": lambda m, x, y: y.cpu().contiguous(),
    "float32 on purpose": lambda m, x, y: y.to(torch.float32).to(y.dtype),
    "a buffer": lambda m, x, y: y * (m.table + 1).rsqrt(),
    "max and where": lambda m, x, y: y - torch.max(y, 1, keepdim=True).values,
    "named fields": lambda m, x, y: y - y.max(dim=1, keepdim=True)[0],
    "chunk": lambda m, x, y: torch.cat([*reversed(y.chunk(2, dim=1))], 1),
    "unpacked": lambda m, x, y: (lambda a, b: torch.cat([b, a], 1))(*y.split(2, 1)),
    "weights from a list": lambda m, x, y: y * m.held[0].view(1, -1, 1, 1),
    "interpolate": lambda m, x, y: F.interpolate(F.avg_pool2d(y, 2), size=y.shape[-2:]),
    "one_hot": lambda m, x, y: y + F.one_hot(torch.arange(4), 4).to(y),
    "T": lambda m, x, y: y.mT.contiguous(),
    "powers in place": lambda m, x, y: power(y),
}  # fmt: skip


def mask(size: int) -> Tensor:
    made = torch.zeros(1, 1, size, size)
    made[..., 1:, 0] = 1
    made[:, :, 0] += 2
    return made


def power(y: Tensor) -> Tensor:
    z = y + 1
    z **= 2
    return z


def outputs_agree(model: nn.Module, twin: nn.Module, x: Tensor, tolerance: float) -> None:
    with torch.no_grad():
        wanted, obtained = model(x.clone()), twin(x.clone())
    assert type(wanted) is type(obtained)
    for a, b in zip(tree_leaves(wanted), tree_leaves(obtained), strict=True):
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        assert torch.allclose(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("middle", [*QUESTIONS.values(), *MADE.values()], ids=[*QUESTIONS, *MADE])
def test_the_twin_does_what_the_model_does_with_tensors(middle: Callable) -> None:
    model = Asks(middle).eval()
    model.held = [nn.Parameter(torch.rand(4))]
    model.registered = model.held[0]
    twin = eliminate_stride(model, SIZE)
    assert twin.plan.strided_layers >= 1
    for many in (1, 2, 5):
        outputs_agree(model, twin, torch.rand(many, *SIZE), 1e-5)
    x = torch.rand(2, *SIZE)
    outputs_agree(copy.deepcopy(model).double(), copy.deepcopy(twin).double(), x.double(), 1e-12)
    outputs_agree(model.half(), twin.half(), x.half(), 2e-2)


@pytest.mark.parametrize("training", [True, False])
def test_requires_grad_is_that_of_the_parameters(training: bool) -> None:
    model = Asks(lambda m, x, y: yes(y.requires_grad and not x.requires_grad, y))
    model.first.requires_grad_(training)
    outputs = [net(torch.ones(1, *SIZE)) for net in (eliminate_stride(model, SIZE), model)]
    assert torch.allclose(*outputs, atol=1e-5)


# Outputs


class Pair(NamedTuple):
    one: Any
    other: Any


OUTPUTS: dict[str, Callable[[Tensor], Any]] = {
    "NamedTuple": lambda y: Pair(y, -y),
    "NamedTuple in a list": lambda y: [Pair(y, None), (y, 2)],
    "dict": lambda y: {"out": y, "aux": None},
    "None": lambda y: (y, None),
    "numbers": lambda y: (y, 3, "a", 2.5, True),
    "number of images": lambda y: (y, y.shape[0], 2 * len(y)),
    "a shape": lambda y: [y, tuple(y.shape)],
    "a made tensor": lambda y: (y, torch.arange(3)),
    "dict of lists": lambda y: {"a": [y, {"b": (y, y)}]},
}


class Returns(Asks):
    def forward(self, x: Tensor) -> Any:
        return self.middle(self.last(self.first(x)))


@pytest.mark.parametrize("output", OUTPUTS.values(), ids=OUTPUTS)
def test_outputs_keep_their_type(output: Callable) -> None:
    model = Returns(output)
    twin = eliminate_stride(model, SIZE)
    with torch.no_grad():
        wanted, obtained = model(torch.ones(2, *SIZE)), twin(torch.ones(2, *SIZE))
    assert same_types(wanted, obtained)
    for a, b in zip(tree_leaves(wanted), tree_leaves(obtained), strict=True):
        assert torch.allclose(a, b, atol=1e-5) if isinstance(a, Tensor) else a == b


def same_types(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        one, other = [type(one), *one.items()], [type(other), *other.items()]
    if isinstance(one, (tuple, list)):
        return type(one) is type(other) and all(map(same_types, one, other))
    return type(one) is type(other)


@dataclasses.dataclass
class Made:
    out: Any


class ModelOutput(OrderedDict):
    """Libraries have such a dictionary with attributes."""


@pytest.mark.parametrize(
    "output",
    [Made, lambda y: ModelOutput(out=y), lambda y: OrderedDict(out=y), lambda y: (y, {1: y})],
    ids=["dataclass", "ModelOutput", "OrderedDict", "keys that are no names"],
)
def test_outputs_that_no_graph_holds_are_refused_in_truth(output: Callable) -> None:
    with pytest.raises(StrideEliminationError, match=r"returns a .*cannot hold.*convert_layers"):
        plan_elimination(Returns(output), SIZE)


# Arguments


class Arguments(Asks):
    def __init__(self) -> None:
        super().__init__(lambda m, x, y: y)


class WithKeywords(Arguments):
    def forward(
        self, x: Tensor, scale: float = 2.0, *, bias: bool = True, **options: Any
    ) -> Tensor:
        y = self.first(x) * scale * options.get("more", 1)
        return y + 1 if bias and not options else y


class WithPositional(Arguments):
    def forward(self, *inputs: Tensor) -> Tensor:
        return sum(map(self.first, inputs))


class WithSeveral(Arguments):
    def forward(self, x: Tensor, other: Tensor | None = None, *more: Tensor) -> Tensor:
        y = self.first(x)
        for z in (other, *more):
            y = y if z is None else y + self.first(z)
        return y


@pytest.mark.parametrize("inputs", [1, 2, 3])
@pytest.mark.parametrize("kind", [WithKeywords, WithPositional, WithSeveral])
def test_arguments_that_are_no_inputs_keep_their_defaults(kind: type, inputs: int) -> None:
    model = kind()
    sizes: Any = (SIZE,) * inputs
    if kind is WithKeywords and inputs > 1:
        if inputs == 3:
            with pytest.raises(StrideEliminationError, match=r"inputs \['x', 'scale'\], .* 3 size"):
                eliminate_stride(model, sizes)
        return
    given = [torch.rand(2, *SIZE) for _ in range(inputs)]
    assert torch.allclose(eliminate_stride(model, sizes)(*given), model(*given), atol=1e-5)


class Missing(Arguments):
    def forward(self, x: Tensor, y: Tensor, *, z: Tensor) -> Tensor:
        return self.first(x + y + z)


def test_inputs_that_are_missing_are_named() -> None:
    with pytest.raises(StrideEliminationError, match=r"inputs \['x', 'y', 'z'\], .* 1 size\(s\)"):
        plan_elimination(Missing(), SIZE)


# Weights that are read


def test_a_weight_that_is_read_is_the_strided_one_or_refused() -> None:
    facts = Asks(lambda m, x, y: y * len(m.first.weight) * m.first.weight.shape[-1])
    assert torch.allclose(
        eliminate_stride(facts, SIZE)(torch.ones(2, *SIZE)), facts(torch.ones(2, *SIZE)), atol=1e-4
    )
    for middle in (
        lambda m, x, y: y + m.first.weight.sum((1, 2, 3))[:, None, None],
        lambda m, x, y: y + F.conv2d(x, m.first.weight, None, 2, 1),
    ):
        for convert in (plan_elimination, eliminate_stride):
            with pytest.raises(
                StrideEliminationError, match=r"(forward reads first\.weight|no rule)"
            ):
                convert(Asks(middle), SIZE)
    unchanged = Asks(lambda m, x, y: y + m.last.weight.sum((1, 2, 3))[:, None, None])
    twin = eliminate_stride(unchanged, SIZE)
    outputs_agree(unchanged, twin, torch.rand(2, *SIZE), 1e-5)


SCALARS = {
    "where a buffer": lambda y, mask: torch.where(mask, y, 0.0),
    "where a map": lambda y, mask: torch.where(y > 0, y, 0.0),
    "where a number first": lambda y, mask: torch.where(y > 0, 0.0, y),
    "masked_fill": lambda y, mask: y.masked_fill(mask, 0.0),
}


@pytest.mark.parametrize("name", SCALARS)
def test_a_number_beside_a_tensor_does_not_crash_the_process(name: str) -> None:
    """Torch's own code looks into the memory of what says that it is a tensor."""

    class Chooses(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c = nn.Conv2d(3, 4, 3, 2, 1)
            self.register_buffer("mask", torch.tensor([True, False, True, False]).view(1, 4, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return SCALARS[name](self.c(x), self.mask)

    model, x = Chooses().eval(), torch.randn(2, *SIZE)
    torch.testing.assert_close(eliminate_stride(model, SIZE)(x), model(x))
