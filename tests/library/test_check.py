"""Each conversion is checked once: what is wrong is refused by name, and nothing else changes."""

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stridenet import StrideEliminationError, convert_layers, converted_layers, eliminate_stride
from stridenet.checking.running import runnable_layers
from stridenet.layers import WindowMaximum
from stridenet.rules import convolution

SIZE = (2, 13, 11)


class Asks(nn.Module):
    """A forward that only looks alike: type(x) is another while it is traced."""

    def __init__(self, head: float = 1.0) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 4, 3, 2, 1), nn.Conv2d(4, 3, 3, 2, 1)
        self.gain = nn.Parameter(torch.tensor(head).view(1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.a(x))
        return (x * 2 if type(x) is Tensor else x) * self.gain


class Residual(nn.Module):
    """A branch that starts at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branch = nn.Conv2d(2, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 1, 1)
        self.norm, self.last = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, 1, 1)
        self.pool, self.head = nn.MaxPool2d(2, 2), nn.Conv2d(4, 3, 1)
        for module in (self.norm, self.head):
            nn.init.zeros_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(self.pool(x + self.last(self.norm(self.branch(x)).relu())))


def model(training: bool = False) -> nn.Module:
    torch.manual_seed(2)
    return Residual().train(training)


@pytest.mark.parametrize("head", [1.0, 0.0])
@pytest.mark.parametrize("training", [False, True])
def test_a_forward_that_takes_another_way_when_traced_is_refused(
    head: float, training: bool
) -> None:
    asks = Asks(head).train(training)
    with pytest.raises(StrideEliminationError, match="forward of Asks gives something else"):
        eliminate_stride(asks, SIZE)
    eliminate_stride(asks, SIZE, check=False)


@pytest.mark.parametrize("images", [1, 2])
def test_a_number_of_images_that_was_baked_in_is_found(
    monkeypatch: pytest.MonkeyPatch, images: int
) -> None:
    original = WindowMaximum.forward

    def baked(self: WindowMaximum, maps: Tensor) -> Tensor:
        return original(self, maps.repeat(2, 1, 1, 1)[:images])

    monkeypatch.setattr(WindowMaximum, "forward", baked)
    with pytest.raises(StrideEliminationError, match=rf"MaxPool2d.*for {3 - images} images"):
        eliminate_stride(model(), SIZE)


@pytest.mark.parametrize("training", [False, True])
def test_a_wrong_filter_is_found_behind_a_scale_of_zero(
    monkeypatch: pytest.MonkeyPatch, training: bool
) -> None:
    """The branch's last convolution alone is wrong, which no output shows."""
    original = convolution.Convolution.parts

    def parts(self: Any, call: Any, layer: Any) -> dict[str, nn.Module]:
        made = original(self, call, layer)
        if layer.name == "last":
            with torch.no_grad():
                weight: Any = made["convolution"].weight
                weight.view(-1)[weight.view(-1).nonzero()[-1]] *= 1 + 1e-3
        return made

    monkeypatch.setattr(convolution.Convolution, "parts", parts)
    with pytest.raises(StrideEliminationError, match=r"last \(Conv2d\) is not equal.*check=False"):
        eliminate_stride(model(training), SIZE)
    twin = eliminate_stride(model(), SIZE, check=False)
    x = torch.randn(2, *SIZE)
    assert torch.allclose(twin(x), model()(x))


def test_a_mask_that_is_missing_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    masked = nn.Sequential(nn.Conv2d(2, 3, 3, 2, 1), nn.Conv2d(3, 3, 3, 2, 1))
    eliminate_stride(masked, SIZE)
    monkeypatch.setattr("stridenet.rules.windows.PhantomMask", lambda *_: nn.Identity())
    with pytest.raises(StrideEliminationError, match=r"1 \(Conv2d\) is not equal"):
        eliminate_stride(masked, SIZE)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_type_is_checked_with_a_bound_of_its_own(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    right = model().to(dtype)
    assert next(eliminate_stride(right, SIZE).parameters()).dtype == dtype
    narrow = dtype in (torch.float16, torch.bfloat16)  # where one step is far beyond the bound
    share = (4 if narrow else 100) * torch.finfo(dtype).eps
    original = convolution.expand_filter
    monkeypatch.setattr(
        convolution, "expand_filter", lambda weight, maps: original(weight, maps) * (1 + share)
    )
    with pytest.raises(StrideEliminationError, match="is not equal in the twin"):
        eliminate_stride(right, SIZE)


@pytest.mark.parametrize("training", [False, True])
def test_the_check_changes_nothing(training: bool) -> None:
    made = nn.Sequential(model(training), nn.Dropout(0.5)).train(training)
    before = {name: tensor.clone() for name, tensor in made.state_dict().items()}
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    twin = eliminate_stride(made, SIZE)
    unchecked = eliminate_stride(made, SIZE, check=False)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[1:]  # noqa: NPY002
    assert all(torch.equal(before[name], tensor) for name, tensor in made.state_dict().items())
    assert all(module.training == training for module in made.modules())
    pairs = zip(twin.state_dict().items(), unchecked.state_dict().items(), strict=True)
    assert all(a == c and torch.equal(b, d) for (a, b), (c, d) in pairs)
    modes = [[m.training for m in network.modules()] for network in (twin, unchecked)]
    assert modes[0] == modes[1]
    assert all(p.grad is None and p.requires_grad for p in twin.parameters())


def test_a_forward_that_needs_more_than_one_image_is_checked_with_more() -> None:
    class Needs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Conv2d(2, 4, 3, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x).mean((2, 3))
            return nn.functional.batch_norm(y, None, None, training=True)

    assert eliminate_stride(Needs(), SIZE)(torch.randn(2, *SIZE)).shape == (2, 4)


def test_a_model_that_does_not_run_is_said_to() -> None:
    class Raises(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Conv2d(2, 4, 3, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            if type(x) is Tensor and not x.is_meta:
                raise ValueError("not on\nthis machine")
            return self.a(x)

    message = r"could not be checked, as Raises raises on random images \(not on this machine\)"
    with pytest.raises(StrideEliminationError, match=message):
        eliminate_stride(Raises(), SIZE)
    assert eliminate_stride(Raises(), SIZE, check=False)


def test_autocast_around_it_does_not_matter() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        eliminate_stride(model(), SIZE)


def test_the_check_makes_no_copy_of_the_twins_filters() -> None:
    """Its copies have the parameters' own memory."""
    twin = eliminate_stride(model(), SIZE)
    layers = runnable_layers(twin.network)
    own = {p.data_ptr() for p in twin.network.parameters()}
    assert {p.data_ptr() for p in layers.parameters()} == own


class ChoosesItsBestPositions(nn.Module):
    """Scores of which rounding makes others in float32, and hardly in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.Conv2d(16, 8, 5, stride=2, padding=2)
        self.scores = nn.Conv2d(8, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.maps(x)
        best = torch.frac(self.scores(maps).flatten(1) * 1e7).topk(5).indices
        return maps.flatten(2).gather(2, best[:, None].expand(-1, 8, -1))


def test_choices_that_rounding_makes_are_compared_in_float64(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    model, x = ChoosesItsBestPositions().eval(), torch.randn(1, 16, 32, 32)
    same = convert_layers(model, example_inputs=x)
    assert converted_layers(same)
    torch.testing.assert_close(same.double()(x.double()), model.double()(x.double()))
    model, again = model.float(), "stridenet.by_layer.check._agree_in_float64"
    monkeypatch.setattr(again, lambda *_: False)
    with pytest.raises(StrideEliminationError, match="differs from the model"):
        convert_layers(model, example_inputs=x)
