"""What has no twin is refused by name, and what works in place is what later readers see."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stridenet import StrideEliminationError, convert_layers, eliminate_stride, plan_elimination
from tests.library.chains import Recorder, close, images
from tests.networks import Forward, randomise

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")


# What is refused


class Halved(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / 2


class WithParameter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 1, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, stride=2)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = x.squeeze(1)
        return self.attention(x, x, x)[0].unsqueeze(1)


def hooked(register: str) -> nn.Sequential:
    model = nn.Sequential(OrderedDict(body=nn.Sequential(nn.Conv2d(1, 2, 3))))
    getattr(model.body[0], register)(lambda *_: None)
    return model


def before_a_stride(layer: nn.Module) -> nn.Sequential:
    """Between a layer with its 4x14x14 maps and one with a stride of two."""
    last = nn.LazyConv2d(2, 2, stride=2)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), layer, last)
    model(torch.zeros(1, 1, 16, 16))
    return nn.Sequential(OrderedDict(body=model))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        *[
            pytest.param(
                before_a_stride(layer),
                rf"body\.1 \({type(layer).__name__}\) on a map 4x14x14 needs its maps in their "
                r"ordinary form .*, but it comes before a stride; .*convert_layers\(model\)",
                id=type(layer).__name__,
            )
            for layer in (
                nn.AdaptiveAvgPool2d(4), nn.LayerNorm(14), nn.Softmax(2), nn.Linear(14, 14),
                nn.Upsample(scale_factor=1.5), nn.Upsample(scale_factor=2, mode="bicubic"),
            )
        ],
        *[
            pytest.param(hooked(f"register_{kind}_hook"), r"body\.0 \(Conv2d\) has hooks", id=kind)
            for kind in ("forward", "forward_pre", "full_backward", "full_backward_pre")
        ],
        pytest.param(
            Forward(
                lambda m, x: m.a(x)[:, :, :2, :2] + m.b(x)[:, :, :2, :2],
                a=nn.Conv2d(1, 1, 3, stride=2), b=nn.Conv2d(1, 1, 3),
            ),
            r"add \(add\) on a map 1x2x2 and 1x2x2: the strides on the ways to it do not agree.*layer",
            id="a stride of two and one of one that meet",
        ),
        pytest.param(
            nn.Sequential(Attention(), nn.Conv2d(1, 1, 3, stride=2)),
            r"unsqueeze \(unsqueeze\) on a map 16x16 needs its maps in their ordinary form",
            id="attention",
        ),
        pytest.param(
            Forward(lambda m, x: torch.relu(x) if x.sum() > 0 else x),
            r"Forward cannot be traced by torch\.fx: .*numbers of a tensor \(if.*test_no_twin.*, line",
            id="data-dependent control flow",
        ),
        pytest.param(
            nn.Sequential(OrderedDict(a=nn.ReLU(), b=Forward(lambda m, x: x if x.max() > 0 else -x))),
            r"^b \(Forward\) cannot be traced",
            id="data-dependent control flow inside",
        ),
        pytest.param(
            WithParameter(), r"^conv2d .* a convolution of stride 2x2.*nn\.Conv2d", id="F.conv2d"
        ),
        pytest.param(
            nn.LPPool2d(2, 2), r"0 \(LPPool2d\) .* avg_pool2d of stride 2x2.*no rule", id="LPPool2d"
        ),
        pytest.param(
            nn.Sequential(Halved(1, 1, 3, 2)), r"0 \(Halved\) .*no rule; .* torch's own", id="subclass"
        ),
        pytest.param(
            nn.Sequential(nn.ReLU(), nn.Flatten(2), nn.Conv1d(1, 1, 2, stride=2)),
            r"1 \(Flatten\) on a map 1x16x16 needs .* comes before a stride",
            id="Flatten before a stride",
        ),
        pytest.param(
            nn.Sequential(nn.Linear(16, 9), nn.Conv2d(1, 1, 1, stride=(1, 3))),
            r"0 \(Linear\) .* comes before a stride",
            id="Linear before a stride",
        ),
        pytest.param(
            nn.Sequential(nn.Conv2d(1, 4, 9), nn.ReLU(), nn.Conv2d(4, 4, 9)),
            r"2 \(Conv2d\) on a map 4x8x8: .*[Kk]ernel size",
            id="kernel larger than the map",
        ),
        pytest.param(
            nn.Conv2d(3, 4, 3), r"0 \(Conv2d\) on a map 1x16x16: .*channel", id="channels"
        ),
        pytest.param(nn.Conv1d(1, 4, 3), r"0 \(Conv1d\) on a map 1x16x16: ", id="too many axes"),
    ],
)  # fmt: skip
def test_what_has_no_twin_is_refused_by_name(model: nn.Module, message: str) -> None:
    for convert in (plan_elimination, eliminate_stride):
        with pytest.raises(StrideEliminationError, match=message):
            convert(model, (1, 16, 16))


def changed(conv: nn.Conv2d, **attributes: Any) -> nn.Conv2d:
    """A convolution whose attributes were set after it was made."""
    for name, value in attributes.items():
        setattr(conv, name, value)
    return conv


def two_that_share_a_weight() -> nn.Sequential:
    first, second = nn.Conv2d(1, 1, 3), nn.Conv2d(1, 1, 3)
    second.weight = first.weight
    return nn.Sequential(first, second)


def fails(message: str) -> Any:
    raise NotImplementedError(message)


def in_place(operation: Callable[[Tensor], Any]) -> Forward:
    """An operation whose result is not used: what it does to its operand is read all the same."""

    def forward(model: nn.Module, x: Tensor) -> Tensor:
        x = model.conv1(x)
        operation(x)
        return model.conv2(x)

    return Forward(forward, conv1=nn.Conv2d(1, 2, 3), conv2=nn.Conv2d(2, 2, 2, stride=2))


IN_PLACE = {
    "relu_": lambda x: x.relu_(),
    "relu": lambda x: torch.nn.functional.relu(x, inplace=True),
    "mul_": lambda x: x.mul_(3),
    "div_": lambda x: x.div_(1 + x.abs()),  # which the twin does on a copy without phantoms
    "one after the other": lambda x: (x.mul_(3), x.sub_(1), x.relu_()),
}


@pytest.mark.parametrize("operation", IN_PLACE.values(), ids=IN_PLACE)
def test_what_works_in_place_is_what_later_readers_see(operation: Callable) -> None:
    model, x = randomise(in_place(operation)), images((1, 17, 16))
    assert close(eliminate_stride(model, (1, 17, 16))(x), model(x))
    assert close(convert_layers(model)(x), model(x))


@pytest.mark.parametrize("rectify", [lambda x: x.relu_(), nn.ReLU(inplace=True)])
def test_a_view_that_is_changed_in_place_and_read_later_by_another_name_is_refused(
    rectify: Callable,
) -> None:
    model = in_place(lambda x: rectify(x[:, :, 1:]))
    model.rectify = rectify if isinstance(rectify, nn.Module) else None
    with pytest.raises(
        StrideEliminationError, match=r"changes getitem .* in place, .* conv1 .*x = F\.relu"
    ):
        eliminate_stride(model, (1, 16, 16))
    randomise(model)
    x = images((1, 16, 16))
    assert close(convert_layers(model)(x), model(x))


def test_a_layer_with_the_name_of_a_view_is_none() -> None:
    """x.expand(...) has the memory of x; a convolution that is called expand has its own."""

    def forward(model: nn.Module, x: Tensor) -> Tensor:
        x = model.view(x)
        return model.last(x + torch.relu_(model.expand(x)))

    layers = {name: nn.Conv2d(2, 2, 3, padding=1) for name in ("view", "expand")}
    model = randomise(Forward(forward, **layers, last=nn.Conv2d(2, 2, 3, 2)))
    twin, x = eliminate_stride(model, (2, 9, 8)), images((2, 9, 8))
    assert close(twin(x), model(x))


def test_adding_in_place_is_traced_as_such() -> None:
    def forward(model: nn.Module, x: Tensor) -> Tensor:
        y = model.conv(x)
        z = torch.relu(y)
        z += y
        return z * z

    model = randomise(Forward(forward, conv=nn.Conv2d(1, 2, 3, stride=2)))
    twin, x = eliminate_stride(model, (1, 16, 16)), images((1, 16, 16))
    assert close(twin(x), model(x))
    assert torch.ops.aten.add_.Tensor in {call[0] for call in recorded(twin, x).calls}


def recorded(network: nn.Module, x: Tensor) -> Recorder:
    with Recorder() as recorder:
        network(x)
    return recorder


@pytest.mark.parametrize(
    ("model", "message"),
    [
        pytest.param(
            nn.Sequential(changed(nn.Conv2d(1, 1, 3, 2), forward=lambda x: x)),
            r"forward of 0 \(Conv2d\) was replaced",
            id="forward of one object",
        ),
        pytest.param(
            changed(nn.Conv2d(1, 1, 3, 2), weight=nn.Parameter(torch.ones(1, 1, 5, 5))),
            r"0 \(Conv2d\) was changed .* 1x1x5x5 ",
            id="weight of another size",
        ),
        pytest.param(changed(nn.Conv2d(1, 1, 3), stride=2), "was changed", id="stride as a number"),
        pytest.param(
            two_that_share_a_weight(), r"0 .* and 1 .* share a weight", id="shared weight"
        ),
        pytest.param(
            Forward(lambda m, x: x[:, :0]), r"getitem.* empty map 0x16x16", id="no channel"
        ),
        pytest.param(Forward(lambda m, x: fails("")), "NotImplementedError", id="no message"),
        pytest.param(
            Forward(lambda m, x: x.foo()),
            r"'Tensor' object has no attribute 'foo' \(test_no_twin",
            id="no such method",
        ),
    ],
)
def test_what_tracing_would_lose_or_get_wrong_is_refused(model: nn.Module, message: str) -> None:
    with pytest.raises(StrideEliminationError, match=message):
        eliminate_stride(model, (1, 16, 16))


@pytest.mark.parametrize("channels", [(1, 4), (2, 4), (2, 2), (3, 4)])
def test_an_input_without_its_channels_is_refused(channels: tuple[int, int]) -> None:
    with pytest.raises(StrideEliminationError, match=r"0 \(Conv2d\) "):
        eliminate_stride(nn.Conv2d(*channels, 3), (16, 16))


@pytest.mark.parametrize(
    "input_size", [(), (1, 0, 8), (1, -8, 8), (1, 8.0, 8), 8, None, "188", {1, 8}, torch.ones(3)]
)
def test_an_input_size_must_be_positive_integers(input_size: Any) -> None:
    for convert in (plan_elimination, eliminate_stride):
        with pytest.raises(StrideEliminationError, match=r"input_size=.* as in \(1, 28, 28\)"):
            convert(nn.Conv2d(1, 1, 1), input_size)
