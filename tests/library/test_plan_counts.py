"""What a plan says before a weight exists: parameters as the twin has them, and how large it gets."""

import itertools
import tracemalloc
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import resnet18

from stridenet import StrideEliminationError, eliminate_stride, plan_elimination, verify
from stridenet.layers import WindowAverage
from stridenet.zoo import lenet, resnet20
from tests.between_strides import check, images
from tests.networks import Forward, randomise


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(
    ("make", "size", "parameters"),
    [(lenet, (1, 28, 28), 606_240), (resnet20, (3, 32, 32), 4_675_562)],
)
def test_parameters_are_the_twin_s_own(make: Callable, size: tuple, parameters: int) -> None:
    """In ResNet-20 the image is padded before it is rearranged: the first filter gets smaller."""
    model = make()
    twin = eliminate_stride(model, size)
    assert twin.plan.parameters == (count(model), count(twin)) == (count(model), parameters)


def test_resnet18_has_a_thousand_million() -> None:
    """A layer after which R positions of the image are one has 32 / R phases on an axis."""
    model, total = resnet18(), 0
    for name, module in model.named_modules():
        after = {"conv1": 2, "layer1": 4, "layer2": 8, "layer3": 16, "layer4": 32}
        if not isinstance(module, nn.Conv2d):
            total += 0 if list(module.children()) else count(module)
            continue
        many = 32 // after[name.split(".")[0]]
        (kernel, _), (stride, _), (padding, _) = module.kernel_size, module.stride, module.padding
        padding = 0 if name == "conv1" else padding  # the image is padded first
        read = [stride * m + k - padding for m, k in itertools.product(range(many), range(kernel))]
        blocks = len({position // (stride * many) for position in read})
        total += module.weight[:, :, 0, 0].numel() * many**2 * (stride * many) ** 2 * blocks**2
    plan = plan_elimination(model, (3, 224, 224))
    assert plan.parameters == (count(model), total)
    assert total == 1_009_514_856


def called_twice(layer: nn.Module, channels: int = 2) -> nn.Module:
    """The maps have factors two and four, or one and two."""
    first, second = (nn.Conv2d(channels, channels, 3, 2, 1) for _ in range(2))
    return nn.Sequential(layer, first, layer, second)


@pytest.mark.parametrize("how", ["shared", "per_phase"])
@pytest.mark.parametrize(
    "model",
    [
        called_twice(nn.BatchNorm2d(2)),
        called_twice(nn.PReLU(2)),
        called_twice(nn.PReLU()),
        called_twice(nn.GroupNorm(1, 2)),
        called_twice(nn.Conv2d(2, 2, 3, 1, 1)),
        nn.Sequential(nn.Conv2d(2, 2, 3, 2, 1), layer := nn.PReLU(2), layer),
        nn.Sequential(nn.Conv2d(2, 3, 2, 2), nn.Flatten(), nn.Linear(48, 3)),
        Forward(lambda m, x: m.c(x * m.p) * m.p[0], p=nn.Parameter(torch.ones(2, 1, 1)),
             c=nn.Conv2d(2, 2, 3, 2, 1)),
    ],
)  # fmt: skip
def test_a_module_that_becomes_several_counts_as_often(model: nn.Module, how: str) -> None:
    check(randomise(model), (2, 8, 8), verified=False, batch_norm=how)


# Memory


@pytest.mark.parametrize(
    "pool",
    [
        nn.AvgPool2d(640, ceil_mode=True),
        nn.MaxPool2d(640, ceil_mode=True),
        nn.AvgPool2d(640, 1, 320),
        nn.AvgPool2d(641, 3, 320, count_include_pad=False),
        nn.MaxPool2d((640, 3), (5, 2), (320, 1)),
        nn.MaxPool2d(3, 1, 1, dilation=4),
    ],
    ids=str,
)
def test_memory_of_a_pool_is_that_of_its_map(pool: nn.Module) -> None:
    """Its window is cut to what can lie on the map."""
    model = randomise(nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), pool, nn.Conv2d(64, 2, 1, 2)))
    twin = check(model, (3, 8, 7))
    held = sum(m.weight.numel() for m in twin.modules() if isinstance(m, WindowAverage))
    assert held <= 64 * (4 * 8 * 7) ** 2
    assert all(tap_map.kernel <= 2 * 8 + 1 for tap_map in twin.plan.layers[1].maps)


def test_a_window_that_is_never_wholly_on_the_map_keeps_its_divisor() -> None:
    for pool in (
        nn.AvgPool2d(16, 1, 8, count_include_pad=True),
        nn.AvgPool2d(9, 9, ceil_mode=True),
    ):
        check(randomise(nn.Sequential(nn.Conv2d(1, 2, 1), pool, nn.Conv2d(2, 1, 1))), (1, 5, 6))


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Conv2d(1, 4, 3, 2), nn.MaxPool2d(2)), nn.MaxPool2d(2), nn.AvgPool2d(2),
        nn.ReLU(), nn.ConvTranspose2d(1, 1, 3, 2), nn.Sequential(),
        nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect"), nn.PixelShuffle(1),
    ],
    ids=str,
)  # fmt: skip
def test_a_factor_that_is_much_too_large_is_refused_at_once(model: nn.Module) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(StrideEliminationError, match=r"more than max_parameters=300,000,000"):
            eliminate_stride(model, (1, 28, 28), output_factor=10**6)
        assert tracemalloc.get_traced_memory()[1] < 50_000_000
    finally:
        tracemalloc.stop()


# Networks that do nothing


@pytest.mark.parametrize("factor", [1, 2, 3])
@pytest.mark.parametrize(
    "model",
    [nn.Sequential(), nn.Identity(), nn.Sequential(nn.Identity(), nn.Sequential())],
    ids=str,
)
def test_an_empty_network_has_an_empty_plan(model: nn.Module, factor: int) -> None:
    twin, x = eliminate_stride(model, (2, 5, 7), output_factor=factor), torch.randn(3, 2, 5, 7)
    assert twin.plan.layers == ()
    assert twin.plan.parameters == (0, 0)
    assert torch.equal(twin(x), x)
    assert verify(model, twin).passed
    assert "strides eliminated in 0 layers" in str(twin.plan)


def test_an_input_may_be_a_result() -> None:
    model = Forward(lambda m, x: (x, m.c(x), x.chunk(2, 1)), c=nn.Conv2d(2, 2, 3, 2, 1))
    check(randomise(model), (2, 7, 9))


def test_a_pool_of_a_whole_map_is_as_before() -> None:
    """Nothing of it is cut, and it is a mean over the pixels."""

    def forward(m: Forward, x: Tensor) -> Tensor:
        return m.last(x * torch.sigmoid(F.avg_pool2d(x, (8, 7))))

    model = randomise(Forward(forward, last=nn.Conv2d(2, 2, 3, 2)))
    twin = check(model, (2, 8, 7))
    assert not [m for m in twin.modules() if isinstance(m, WindowAverage)]
    assert twin(images((2, 8, 7))).shape == (2, 2, 3, 3)
