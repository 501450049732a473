"""verify passes where the twin is right, and names the layer where it is not."""

import copy
import itertools
import math
from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn

from stridenet import (
    StrideEliminationError,
    UnitStrideNetwork,
    VerificationReport,
    eliminate_stride,
    verify,
)
from stridenet.layers import PhantomMask
from stridenet.verification import compare_scores
from tests.library.verified import SIZE, Damage, layer_of, network, random_images


def state(module: nn.Module) -> list:
    """Bytes of every tensor and training flag of every module."""
    tensors = itertools.chain(module.named_parameters(), module.named_buffers())
    return [
        [(name, t.dtype, t.detach().numpy().tobytes()) for name, t in tensors],
        [(name, id(m), m.training) for name, m in module.named_modules()],
    ]


def failures(report: VerificationReport) -> list[str]:
    return [layer.layer for layer in report.layers if not layer.passed]


# Passes


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("model", "size"),
    [
        pytest.param(network(), SIZE, id="padding, mask, groups, in-place, flatten, Linear"),
        pytest.param(nn.Conv2d(3, 4, 11, stride=4, padding=2), (3, 30, 33), id="a bare Conv2d"),
        pytest.param(nn.Conv1d(2, 2, 3, stride=5, dilation=2), (2, 33), id="1-D"),
        pytest.param(
            nn.Sequential(nn.Conv3d(1, 2, 2, 2, 1), nn.Softplus(), nn.Conv3d(2, 1, 2, 2, 1)),
            (1, 4, 5, 6),
            id="3-D",
        ),
        pytest.param(
            nn.Sequential(
                nn.ReLU(inplace=True),
                nn.Conv2d(1, 2, 3),
                nn.ReLU(inplace=True),
                nn.Conv2d(2, 2, 2, 2),
            ),
            (1, 9, 9),
            id="everything in place",
        ),
    ],
)
def test_a_right_twin_passes(model: nn.Module, size: tuple, dtype: torch.dtype) -> None:
    model = copy.deepcopy(model).to(dtype)
    twin = eliminate_stride(model, size)
    for report in (verify(model, twin), verify(model, twin, random_images(3, size))):
        assert report.passed
        assert report.first_failure is None
        assert [layer.layer for layer in report.layers] == [
            "(traced)",
            "rearrange",
            *(layer.name for layer in twin.plan.layers),
            "(outputs)",
        ]
        assert all(layer.largest_value > 0 for layer in report.layers[2:])
        assert all(0 <= layer.share_of_bound <= 1 for layer in report.layers)
        assert report.output_difference < 1e-13


def test_dropout_in_training_mode_does_not_matter() -> None:
    model = network(a_act=nn.Dropout(0.5)).train()
    assert verify(model, eliminate_stride(model, SIZE)).passed


def test_the_images_given_are_the_images_used() -> None:
    model = network()
    twin = eliminate_stride(model, SIZE)
    x = random_images()
    assert verify(model, twin, x) == verify(model, twin, [x]) != verify(model, twin)
    with torch.no_grad():
        layer_of(twin, "a").weight[:, 0] *= 2  # phase (1, 1) of the first channel
    x[:, 0] = 0
    assert verify(model, twin, x).passed
    assert not verify(model, twin).passed


def test_the_report_can_be_read() -> None:
    model = network()
    twin = eliminate_stride(model, SIZE)
    report = verify(model, twin)
    assert "equal up to rounding" in str(report)
    assert report.to_frame().passed.all()
    assert report.to_frame().operation.tolist() == [
        "Sequential", "SpaceToDepth",
        "Conv2d", "Sigmoid", "Conv2d", "ReLU", "Conv2d", "Tanh", "Flatten", "Linear", "restored",
    ]  # fmt: skip
    with torch.no_grad():
        layer_of(twin, "b").bias += 1
    assert "NOT equal, from b on" in str(verify(model, twin))


def test_in_place_operations_change_neither_the_images_nor_the_verdict() -> None:
    class KeywordAct(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act, self.conv = nn.LeakyReLU(inplace=True), nn.Conv2d(1, 2, 3, stride=2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.act(input=self.conv(self.act(input=x)))

    model, x = KeywordAct(), random_images(3, (1, 9, 8)).double()
    before = x.clone()
    twin = eliminate_stride(model, (1, 9, 8))
    report = verify(model, twin, x)
    assert report.passed
    assert report.output_difference < 1e-13
    assert compare_scores(model, twin, x, "float64")["largest_difference"] < 1e-13
    assert torch.equal(x, before)


# Graphs


class Residual(nn.Module):
    """A residual network as it starts: the last scale of its branch is zero, its statistics 0 and 1."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1, bias=False)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.branch = nn.Sequential(
            OrderedDict(
                conv1=nn.Conv2d(4, 4, 3, stride=2, padding=1),
                norm1=nn.BatchNorm2d(4),
                relu=nn.ReLU(),
                conv2=nn.Conv2d(4, 4, 3, padding=1),
                norm2=nn.BatchNorm2d(4),
            )
        )
        nn.init.zeros_(self.branch.norm2.weight)
        self.shortcut = nn.Conv2d(4, 4, 1, stride=2)
        self.last = nn.Conv2d(4, 3, 3, stride=2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.pool(self.stem(x))
        x = self.branch(x) + self.shortcut(x)
        return {"map": self.last(x), "mean": x.mean((2, 3))}


GRAPHS = [
    pytest.param({}, id="network"),
    pytest.param({"output_factor": 2}, id="output_factor"),
    pytest.param({"batch_norm": "per_phase"}, id="per_phase"),
]


@pytest.mark.sample(2)
@pytest.mark.parametrize("options", GRAPHS)
@pytest.mark.parametrize("training", [True, False])
def test_a_right_twin_of_a_graph_passes(options: dict, training: bool) -> None:
    model = Residual().train(training)
    report = verify(model, eliminate_stride(model, (2, 27, 30), **options))
    assert report.passed, report
    assert report.output_difference < 1e-12


@pytest.mark.sample(1)
@pytest.mark.parametrize("options", GRAPHS)
def test_a_weight_behind_a_scale_of_zero_is_compared(options: dict) -> None:
    model = Residual()
    twin = eliminate_stride(model, (2, 27, 30), **options)
    assert verify(model, twin).passed
    with torch.no_grad():
        layer_of(twin, "branch.conv2").weight.view(-1)[3] += 1e-3
    x = random_images(2, (2, 27, 30))
    assert torch.allclose(model.eval()(x)["map"], twin.eval()(x)["map"], atol=1e-5)  # by scale zero
    assert verify(model, twin).first_failure == "branch.conv2"


def test_statistics_that_start_alike_are_compared() -> None:
    model = Residual()
    twin = eliminate_stride(model, (2, 27, 30), batch_norm="per_phase")
    norm = twin.network.get_submodule("branch.norm1")
    with torch.no_grad():
        norm.running_var[1] += 1e-3
    assert verify(model, twin).first_failure == "branch.norm1"


def test_a_missing_mask_of_a_graph_is_found() -> None:
    model = Residual()
    twin = eliminate_stride(model, (2, 27, 30))
    layer = twin.network.get_submodule("branch.conv2")
    assert isinstance(layer[0], PhantomMask)
    layer[0] = nn.Identity()
    assert verify(model, twin).first_failure == "branch.conv2"


def test_an_output_that_is_not_put_back_rightly_is_found() -> None:
    model = Residual()
    twin = eliminate_stride(model, (2, 27, 30), output_factor=2)
    restore = twin.network.get_submodule("restore_last")
    restore.forward = lambda maps: type(restore).forward(restore, maps).flip(2)
    assert verify(model, twin).first_failure == "(outputs)"


def test_a_failure_can_be_raised() -> None:
    model = Residual()
    twin = eliminate_stride(model, (2, 27, 30))
    assert verify(model, twin, raise_on_failure=True).passed
    with torch.no_grad():
        layer_of(twin, "last").weight[0] *= 2
    with pytest.raises(StrideEliminationError, match=r"not equal to the model:(?s:.)*from last on"):
        verify(model, twin, raise_on_failure=True)


def test_networks_of_several_inputs_are_compared() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(1, 2, 3, stride=2), nn.Conv2d(3, 2, 5, stride=2, padding=1)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return torch.cat([self.a(x), self.b(y)], 1)

    model, sizes = Two(), ((1, 19, 15), (3, 19, 15))
    twin = eliminate_stride(model, sizes)
    given = [random_images(2, size) for size in sizes]
    assert verify(model, twin).passed
    assert verify(model, twin, given).passed
    with torch.no_grad():
        layer_of(twin, "b").weight[1] *= 1.001
    assert verify(model, twin, given).first_failure == "b"


# Fails


def test_a_model_that_does_not_compute_what_was_traced_fails_at_once() -> None:
    class Doubled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 2, 3, stride=2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.conv(x)
            return x if isinstance(x, torch.fx.Proxy) else 2 * x

    model = Doubled()
    assert (
        verify(model, eliminate_stride(model, (1, 9, 8), check=False)).first_failure == "(traced)"
    )


def changed_weight(name: str, factor: float) -> Damage:
    """Multiply the largest weight."""

    def damage(twin: UnitStrideNetwork) -> None:
        weight = layer_of(twin, name).weight.view(-1)
        weight[weight.abs().argmax()] *= factor

    return damage


def changed_bias(name: str) -> Damage:
    def damage(twin: UnitStrideNetwork) -> None:
        layer_of(twin, name).bias[3] += 1e-5

    return damage


def block_major(channels: int, phases: int) -> Tensor:
    """Where each channel of a phase form goes if all channels of a phase stand together."""
    return torch.arange(channels * phases).view(channels, phases).T.flatten()


class BlockMajor(nn.Module):
    def __init__(self, rearrange: nn.Module) -> None:
        super().__init__()
        self.rearrange = rearrange

    def forward(self, images: Tensor) -> Tensor:
        maps = self.rearrange(images)
        return maps[:, block_major(2, maps.shape[1] // 2)]


def block_major_rearrangement(twin: UnitStrideNetwork) -> None:
    twin.rearrange = BlockMajor(twin.rearrange)


def block_major_filter(name: str, channels: int) -> Damage:
    def damage(twin: UnitStrideNetwork) -> None:
        weight = layer_of(twin, name).weight
        weight.copy_(weight[:, block_major(channels, weight.shape[1] // channels)])

    return damage


def no_mask(twin: UnitStrideNetwork) -> None:
    layer = twin.network.get_submodule("b")
    assert isinstance(layer[0], PhantomMask)
    layer[0] = nn.Identity()


def swapped_outputs(twin: UnitStrideNetwork) -> None:
    weight = layer_of(twin, "c").weight
    weight.copy_(weight.flip(0))


def shifted_padding(twin: UnitStrideNetwork) -> None:
    (low, high), *rest = twin.rearrange.padding
    twin.rearrange.padding = ((low - 1, high + 1), *rest)


def other_activation(twin: UnitStrideNetwork) -> None:
    twin.network.c_act = nn.Hardtanh()


@pytest.mark.parametrize(
    ("damage", "layers"),
    [
        pytest.param(changed_weight("a", 1 + 1e-6), ["a"], id="a weight of the first layer"),
        pytest.param(changed_weight("b", 1 + 1e-6), ["b"], id="a weight of a masked layer"),
        pytest.param(changed_weight("c", 1 + 1e-6), ["c"], id="a weight of the last convolution"),
        pytest.param(changed_weight("fc", 1 + 1e-6), ["fc"], id="a weight of the Linear layer"),
        pytest.param(changed_weight("b", math.nan), ["b"], id="NaN"),
        pytest.param(changed_weight("b", math.inf), ["b"], id="infinity"),
        pytest.param(changed_bias("a"), ["a"], id="a bias"),
        pytest.param(changed_bias("b"), ["b"], id="a bias of a masked layer"),
        pytest.param(block_major_rearrangement, ["rearrange", "a"], id="block-major images"),
        pytest.param(block_major_filter("a", 2), ["a"], id="block-major filter of images"),
        pytest.param(block_major_filter("c", 6), ["c"], id="block-major filter of maps"),
        pytest.param(no_mask, ["b"], id="no mask"),
        pytest.param(swapped_outputs, ["c"], id="outputs in another order"),
        pytest.param(shifted_padding, ["rearrange", "a"], id="images shifted by one"),
        pytest.param(other_activation, ["c_act"], id="another activation"),
    ],
)
def test_a_wrong_twin_fails_at_the_wrong_layer_and_there_only(
    damage: Damage, layers: list[str]
) -> None:
    """Each layer is compared on the map that it received, but the first on the images themselves."""
    model = network()
    twin = eliminate_stride(model, SIZE)
    with torch.no_grad():
        damage(twin)
    report = verify(model, twin)
    assert not report.passed
    assert report.first_failure == layers[0]
    if not math.isnan(report.output_difference):  # NaN goes on to all that follow
        assert failures(report) == layers


@pytest.mark.parametrize(("dtype", "change"), [(torch.float32, 1e-7), (torch.float64, 1e-13)])
def test_the_bound_is_narrow(dtype: torch.dtype, change: float) -> None:
    model = network().to(dtype)
    twin = eliminate_stride(model, SIZE)
    with torch.no_grad():
        changed_weight("c", 1 + change)(twin)
    assert failures(verify(model, twin)) == ["c"]


def test_a_change_of_the_model_after_conversion_is_found() -> None:
    model = network()
    twin = eliminate_stride(model, SIZE)
    with torch.no_grad():
        model.b.weight[5, 1, 2, 2] += 1e-4
    assert failures(verify(model, twin)) == ["b"]


@pytest.mark.parametrize("training", [True, False])
def test_model_and_twin_are_left_as_they_were(training: bool) -> None:
    model = network().train(training)
    twin = eliminate_stride(model, SIZE)
    x = random_images()
    before = state(model), state(twin), torch.get_rng_state().tolist(), x.clone()
    verify(model, twin, x)
    verify(model, twin)
    compare_scores(model, twin, x, "float64")
    assert (state(model), state(twin), torch.get_rng_state().tolist()) == before[:3]
    assert torch.equal(x, before[3])


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"c": nn.Conv2d(6, 4, 2, stride=(1, 2), padding=(0, 1))}, id="padding"),
        pytest.param({"b": nn.Conv2d(4, 6, 3, stride=2, padding=1)}, id="groups"),
        pytest.param({"a_act": nn.Softplus()}, id="activation"),
        pytest.param({"fc": nn.Linear(40, 6)}, id="outputs"),
    ],
)
def test_a_twin_of_another_architecture_is_refused(changes: dict[str, nn.Module]) -> None:
    twin = eliminate_stride(network(), SIZE)
    other = network(**changes)
    if "padding" in str(changes.get("c")):
        other.fc = nn.Linear(60, 5)
    with pytest.raises(StrideEliminationError, match="other sizes than this model"):
        verify(other, twin)


def test_a_model_with_parametrized_weights_is_left_whole() -> None:
    """A copy's layers have their class in common with the model's, which torch changes to undo this."""
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(1, 2, 3, 2))).eval()
    images = torch.ones(1, 1, 9, 9)
    before = model(images)
    twin = eliminate_stride(model, (1, 9, 9))
    assert verify(model, twin).passed
    assert torch.equal(model(images), before)
    assert isinstance(model[0].parametrizations.weight.original0, nn.Parameter)  # type: ignore[union-attr]
