"""Errors tell what the forward does and in which line, and the cure that they name works."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import stridenet
from stridenet import StrideEliminationError, eliminate_stride, plan_elimination

SIZE = (3, 8, 8)


class Does(nn.Module):
    """A strided layer, and a function of its map."""

    def __init__(self, middle: Callable, **modules: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.c, self.middle = nn.Conv2d(3, 4, 3, 2, 1), middle
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x: Tensor) -> Any:
        return self.middle(self, self.c(x))


GLOBAL = nn.Conv2d(4, 4, 1)
UNTRACEABLE: dict[str, tuple[Callable, str]] = {
    "if": (lambda m, y: y if y.sum() > 0 else -y, r"reads the numbers of a tensor \(if"),
    "while": (lambda m, y: halved(y), r"reads the numbers of a tensor \(if, while"),
    "item": (lambda m, y: y * y.max().item(), r"reads the numbers of a tensor \(\.item\(\)\)"),
    "float": (lambda m, y: y * float(y.max()), r"reads the numbers of a tensor \(float\)"),
    "tolist": (lambda m, y: y * y.amax((0, 2, 3)).tolist()[0], r"a tensor \(\.tolist"),
    "numpy": (lambda m, y: torch.from_numpy(y.detach().numpy()), r"a tensor \(\.numpy"),
    "a parameter": (
        lambda m, y: y * float(m.c.bias.sum()),
        r"reads the numbers of a tensor \(float",
    ),
    "one parameter": (lambda m, y: y * m.gain.item(), r"numbers of the parameter 1\.gain \(\.item"),
    "swallowed": (lambda m, y: swallows(y), r"reads the numbers of a tensor \(if"),
    "slice assignment": (lambda m, y: assigns(y), r"assigns to a part of a tensor \(x\[…\] = …\)"),
    "each image": (
        lambda m, y: torch.stack(list(y)),
        r"goes through the images of a batch one by one",
    ),
    "range": (
        lambda m, y: looped(y),
        r"has a line that runs more than 5,000 times, as for each image",
    ),
    "one image": (lambda m, y: y * 2 if len(y) == 1 else y, r"does other things for 1 images"),
    "odd": (lambda m, y: y * 2 if y.shape[0] % 2 else y, r"does other things for 10,008 images"),
    "its root": (lambda m, y: y * y.shape[0] ** 0.5, r"does other things for 10,008 images"),
    "groups": (lambda m, y: (y.view(-1, 4, 4, 4, 4) * 2).view(y.shape), r"divides the images"),
    "no group": (
        lambda m, y: y.view(-1, 8, 4, 4, 4).view(y.shape),
        r"divides the images of a batch",
    ),
    "its error": (
        lambda m, y: undefined(y),
        r"raises KeyError: 'nothing'.* if model\(torch\.zeros",
    ),
    "a module outside": (
        lambda m, y: GLOBAL(y),
        r"uses a parameter that none of the model's modules",
    ),
}


def halved(y: Tensor) -> Tensor:
    while y.abs().max() > 1:
        y = y / 2
    return y


def swallows(y: Tensor) -> Tensor:
    try:
        return y if y.sum() > 0 else -y
    except Exception:
        return y * 3


def assigns(y: Tensor) -> Tensor:
    z = y.clone()
    z[:, 0] = 0
    return z


def looped(y: Tensor) -> Tensor:
    return torch.stack([y[i] * 2 + 1 for i in range(y.shape[0])] * 2)


def undefined(y: Tensor) -> Tensor:
    return y * {}["nothing"]


def lines_of(function: Callable) -> set[int]:
    """Those of a function of this file, and of the helper that it calls."""
    code = function.__code__
    helpers = [getattr(globals().get(name), "__code__", None) for name in code.co_names]
    codes = [c for c in (code, *helpers) if c is not None and c.co_filename == __file__]
    lines = {line for c in codes for _, _, line in c.co_lines() if line}
    return lines | {line for c in codes for const in c.co_consts if hasattr(const, "co_lines")
                    for _, _, line in const.co_lines() if line}  # fmt: skip


@pytest.mark.parametrize(("middle", "truth"), UNTRACEABLE.values(), ids=UNTRACEABLE)
def test_what_cannot_be_traced_is_told_with_its_line(middle: Callable, truth: str) -> None:
    model = nn.Sequential(nn.ReLU(), Does(middle, gain=nn.Parameter(torch.ones(1))))
    with pytest.raises(StrideEliminationError, match=truth) as caught:
        plan_elimination(model, SIZE)
    message = str(caught.value)
    assert "\n" not in message
    assert "convert_layers(model)" in message
    assert any(f"(test_refusals.py, line {line})" in message for line in lines_of(middle))
    assert "input_size" not in message


WORKS_BY_LAYERS = set(UNTRACEABLE) - {"its error", "range", "a module outside"}


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad=True:UserWarning")
@pytest.mark.parametrize("kind", sorted(WORKS_BY_LAYERS))
def test_convert_layers_does_what_cannot_be_traced(kind: str) -> None:
    torch.manual_seed(1)
    model = Does(UNTRACEABLE[kind][0], gain=nn.Parameter(torch.ones(1))).eval()
    twin = stridenet.convert_layers(model)
    x = torch.rand(8, *SIZE)
    assert torch.allclose(twin(x), model(x), atol=1e-5)


def with_hooks() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 2))
    model.handle = model[0].register_forward_hook(lambda *_: None)
    return model


def tied() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, 3, 3, 2), nn.Conv2d(3, 3, 3))
    model[1].weight = model[0].weight
    return model


def replaced() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, 3, 3, 2))
    model[0].forward = lambda x: x
    return model


class Replaced(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return x


def on_meta() -> nn.Module:
    with torch.device("meta"):
        return nn.Sequential(nn.Conv2d(3, 3, 3, 2))


def cure_forward(model: nn.Module) -> nn.Module:
    model[0] = Replaced(3, 3, 3, 2)
    return model


def run_once(model: nn.Module) -> nn.Module:
    model(torch.zeros(1, *SIZE))
    return model


def without_hooks(model: nn.Module) -> nn.Module:
    model.handle.remove()
    return model


def unpruned(model: nn.Module) -> nn.Module:
    prune.remove(model[0], "weight")
    return model


def integers() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 2)).requires_grad_(False)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.int8)
    return model


def in_floating_point(model: nn.Module) -> nn.Module:
    for parameter in model.parameters():
        parameter.data = parameter.data.float()
    return model


CURED: dict[str, tuple[Callable[[], nn.Module], str, Callable]] = {
    "lazy": (
        lambda: nn.Sequential(nn.LazyConv2d(4, 3, 2)),
        r"0 \(LazyConv2d\) is lazy.*run the", run_once,
    ),
    "hooks": (with_hooks, r"0 \(Conv2d\) has hooks.*remove them", without_hooks),
    "pruned": (
        lambda: nn.Sequential(prune.l1_unstructured(nn.Conv2d(3, 4, 3, 2), "weight", 0.5)),
        r"0 \(Conv2d\) has hooks.*prune\.remove", unpruned,
    ),
    "forward": (replaced, r"forward of 0 \(Conv2d\) was replaced.*derive a class", cure_forward),
    "meta": (on_meta, r"on the meta device: load its weights", lambda m: m.to_empty(device="cpu")),
    "integers": (
        integers, r"numbers are int8: .* weights in floating point for integers", in_floating_point,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("make", "truth", "cure"), CURED.values(), ids=CURED)
def test_the_cure_that_is_named_works(make: Callable, truth: str, cure: Callable) -> None:
    model = make()
    with pytest.raises(StrideEliminationError, match=truth):
        eliminate_stride(model, SIZE)
    assert eliminate_stride(cure(model), SIZE).plan.layers


def test_shared_weights_are_named() -> None:
    truth = r"0 \(Conv2d\) and 1 \(Conv2d\) share a weight, .*convert_layers"
    with pytest.raises(StrideEliminationError, match=truth):
        plan_elimination(tied(), SIZE)


def test_sizes_that_do_not_fit_are_told_as_such() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 2))
    with pytest.raises(
        StrideEliminationError, match=r"0 \(Conv2d\) .*channel.*give the input_size"
    ):
        plan_elimination(model, (4, 8, 8))
    assert plan_elimination(model, (3, 8, 8))


def test_complex_networks_are_traced_or_told() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 2, dtype=torch.complex64))
    x = torch.randn(2, *SIZE, dtype=torch.complex64)
    assert torch.allclose(eliminate_stride(model, SIZE)(x), model(x), atol=1e-5)


@pytest.mark.filterwarnings("ignore")  # of torch.jit, which goes away
def test_what_is_no_ordinary_model_is_refused_or_unwrapped() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 2))
    for wrapped in (nn.DataParallel(model), torch.compile(model)):
        assert eliminate_stride(wrapped, SIZE).plan == eliminate_stride(model, SIZE).plan
    for convert in (plan_elimination, eliminate_stride):
        with pytest.raises(StrideEliminationError, match="ScriptModule"):
            convert(torch.jit.script(model), SIZE)
        with pytest.raises(ValueError, match="is a class"):
            convert(nn.Sequential, SIZE)
