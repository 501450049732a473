"""Random graphs: the twin of a network with branches computes the same, with unit strides only.

The oracle is PyTorch's own forward pass of the model. Where a random network failed, it stands
below in NAMED, shrunk, as it was printed.
"""

import itertools
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import event, given, reject, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from stridenet import StrideEliminationError, convert_layers, eliminate_stride, verify
from stridenet.by_layer.converted import is_converted
from tests.examples import examples
from tests.graphs import networks
from tests.library.named_graphs import NAMED
from tests.networks import Network, TwoInputs, images, randomise

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")
many = examples(200)  # 2,000 in make fuzz


class Recorder(TorchDispatchMode):
    """Keeps the convolutions and poolings that are not of unit stride."""

    def __init__(self) -> None:
        super().__init__()
        self.strided: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        names = [argument.name for argument in func._schema.arguments]
        given = dict(zip(names, args, strict=False)) | (kwargs or {})
        name = func._schema.name
        if "conv" in name or "pool" in name:
            stride = given.get("stride") or given.get("kernel_size", [])  # none means the kernel's
            if "adaptive" in name:  # the same size or one is no stride
                sizes = zip(given["output_size"], args[0].shape[2:], strict=True)
                stride = [1 if m in (1, n) else 2 for m, n in sizes]
            if any(s != 1 for s in pytree.tree_leaves(stride)):
                self.strided.append(f"{name} {tuple(args[0].shape)} {args[1:]} {kwargs}")
        return result


def check(network: Network, input_size: tuple, **options: Any) -> None:
    """The twin of the whole network computes the same, with unit strides and without dilation."""
    twin = eliminate_stride(network, input_size, **options)
    assert_equal(network, twin, input_size)
    assert twin.plan.parameters[1] == sum(p.numel() for p in twin.parameters())
    for layer in twin.plan.layers:
        new = twin.network.get_submodule(layer.name).modules() if layer.maps else ()
        assert all(set(module.dilation) == {1} for module in new if hasattr(module, "dilation"))


def check_by_layer(network: Network, input_size: tuple) -> None:
    """So does the network whose layers are converted one by one; and verify says so."""
    same = convert_layers(network, pooling=True, check=False)
    assert_equal(network, same, input_size)
    if is_converted(same):  # and not without a stride
        report = verify(network, same, tuple(images(input_size)))
        assert report.passed, report


@torch.no_grad()
def assert_equal(network: Network, twin: nn.Module, input_size: tuple) -> None:
    """The twin computes the same, with unit strides only.

    1e-10 is far above rounding and far below the effect of a wrong weight, also in results that
    cancel to almost nothing; the rigorous bound is that of verify().
    """
    inputs = images(input_size)
    expected = network(*[x.clone() for x in inputs])
    with Recorder() as recorder:
        obtained = twin(*inputs)
    assert recorder.strided == []
    obtained, structure = pytree.tree_flatten(obtained)
    expected, expected_structure = pytree.tree_flatten(expected)
    assert structure == expected_structure
    for number, (y, z) in enumerate(zip(expected, obtained, strict=True)):
        assert y.shape == z.shape
        largest = max(float(y.abs().max()), 1e-3)
        error = float((y - z).abs().max())
        assert error <= 1e-10 * largest, f"result {number}: {error} of {largest}"


@pytest.mark.parametrize(
    "code",
    [
        *[f"nn.Conv{axes}d(2, 1, 2, 2)" for axes in (1, 2, 3)],
        *[f"nn.ConvTranspose{axes}d(2, 1, 2, 2)" for axes in (1, 2, 3)],
        *[f"F.{kind}_pool{axes}d(x, 2)" for kind in ("max", "avg") for axes in (1, 2, 3)],
        *[f"nn.AdaptiveAvgPool{axes}d(2)" for axes in (1, 2, 3)],
    ],
)
def test_the_recorder_sees_what_is_strided(code: str) -> None:
    axes = int(code[code.index("d(") - 1])
    with torch.no_grad(), Recorder() as recorder:
        randomise(Network((code, "x")))(*images((2, *[4] * axes)))
    assert len(recorder.strided) == 1


@pytest.mark.sample(11)
@pytest.mark.parametrize("checks", [check, check_by_layer])
@pytest.mark.parametrize("name", NAMED)
def test_the_twin_of_this_network_equals_it(name: str, checks: Callable) -> None:
    input_size, network = NAMED[name]
    checks(randomise(network), input_size)


@many
@given(networks(), st.sampled_from(["shared", "per_phase"]), st.sampled_from([1, 1, 2]))
def test_the_twin_of_a_random_network_equals_it(
    example: tuple, batch_norm: str, output_factor: int
) -> None:
    network, input_size = example
    try:
        check(network, input_size, batch_norm=batch_norm, output_factor=output_factor)
    except StrideEliminationError as error:
        event(f"refused: {error}")
        if network.consistent and "no larger factor is possible" not in str(error):
            raise
    event(f"consistent: {network.consistent}")


@many
@given(networks())
def test_layer_by_layer_no_random_network_is_refused(example: tuple) -> None:
    check_by_layer(*example)


def converted(example: tuple, **options: Any) -> tuple:
    """A network, its twin, both in training mode, and the inputs of each, which want gradients."""
    network, input_size = example
    if not network.consistent:
        reject()
    twin = eliminate_stride(network.train(), input_size, **options)
    inputs = images(input_size)
    return network, twin, *[[x.clone().requires_grad_() for x in inputs] for _ in range(2)]


def backward(results: Any) -> None:
    sum(
        (y * torch.arange(1.0, y.numel() + 1).view(y.shape).cos()).sum() for y in results
    ).backward()


def check_training(example: tuple) -> None:
    """Equal results, gradients and statistics."""
    network, twin, inputs, twin_inputs = converted(example)
    expected, obtained = (
        pytree.tree_leaves(made(*given)) for made, given in [(network, inputs), (twin, twin_inputs)]
    )
    backward(expected)
    backward(obtained)
    pairs = list(zip(expected, obtained, strict=True))
    pairs += [(x.grad, z.grad) for x, z in zip(inputs, twin_inputs, strict=True)]
    pairs += [(b, twin.network.get_buffer(name)) for name, b in network.named_buffers()]
    for y, z in pairs:
        largest = max(float(y.detach().abs().max()), 1)
        torch.testing.assert_close(z, y, rtol=0, atol=1e-8 * largest)


@many
@given(networks(training=True))
def test_a_random_network_and_its_twin_train_alike(example: tuple) -> None:
    check_training(example)


NAMED_TRAINING: dict[str, tuple[Network, tuple]] = {
    "statistics that are the mean of all batches'": (
        Network(
            ("nn.Conv1d(1, 2, 3)", "x"),
            ("nn.BatchNorm1d(2, momentum=None)", 0),
            ("nn.Conv1d(2, 2, 3, 2)", 1),
        ),
        (1, 9),
    ),
}


@pytest.mark.parametrize("name", NAMED_TRAINING)
def test_this_network_and_its_twin_train_alike(name: str) -> None:
    network, input_size = NAMED_TRAINING[name]
    check_training((randomise(network), input_size))


def test_phases_of_fewer_than_two_numbers_keep_their_statistics() -> None:
    """A map of five positions, in six phases."""
    network = randomise(
        Network(
            ("nn.Conv1d(1, 1, 1)", "x"),
            ("nn.BatchNorm1d(1)", 0),
            ("nn.Conv1d(1, 1, 2, 3, 2)", 1),
            ("nn.Conv1d(1, 1, 2, 2, 1)", 2),
        )
    )
    twin = eliminate_stride(network.train(), (1, 5), batch_norm="per_phase")
    old = {name: buffer.clone() for name, buffer in twin.network.step1.named_buffers()}
    images = torch.arange(10.0, dtype=torch.float64).view(2, 1, 5)
    for x, followed in (images[:1], 0), (images, 5):
        assert twin(x).isfinite().all()
        for name in ("running_mean", "running_var"):
            changed = twin.network.step1.get_buffer(name) != old[name]
            assert changed.tolist() == [True] * followed + [False] * (6 - followed)


@many
@given(networks(training=True))
def test_statistics_per_phase_are_those_of_real_positions(example: tuple) -> None:
    network, twin, inputs, twin_inputs = converted(example, batch_norm="per_phase")
    maps = network.step0(inputs[0])
    factor = twin.plan.layers[0].output.factor
    old = {name: buffer.clone() for name, buffer in network.step1.named_buffers()}
    results = pytree.tree_leaves(twin(*twin_inputs))
    new = dict(twin.network.step1.named_buffers())
    for number, phase in enumerate(itertools.product(*map(range, factor))):
        part = maps[(..., *[slice(p, None, f) for p, f in zip(phase, factor, strict=True)])]
        part = part.transpose(0, 1).flatten(1)
        if part.numel():
            for name, value in ("running_mean", part.mean(1)), ("running_var", part.var(1)):
                obtained = new[name].unflatten(0, (len(maps[0]), -1))[:, number]
                torch.testing.assert_close(obtained, 0.9 * old[name] + 0.1 * value)
    backward(results)
    for value in (*results, *new.values(), *[x.grad for x in twin_inputs]):
        assert value.isfinite().all()


@pytest.mark.slow
def test_the_random_networks_are_what_these_tests_need() -> None:
    """Most have results that differ from place to place, and a twin as a whole."""
    seen: Counter = Counter()

    @settings(max_examples=200, derandomize=True, database=None)
    @given(networks())
    def count(example: tuple) -> None:
        network, input_size = example
        with torch.no_grad():
            results = pytree.tree_leaves(network(*images(input_size)))
        assert all(result.isfinite().all() for result in results)
        assert max(float(result.abs().max()) for result in results) < 1e6
        seen["all"] += 1
        seen["constant"] += any(float(y.std()) < 1e-3 for y in results if y.numel() > 1)
        seen["inconsistent"] += not network.consistent
        seen["two inputs"] += isinstance(network, TwoInputs)
        seen["several results"] += len(results) > 1
        code = " ".join(str(step[0]) for step in network.steps)
        for operation in ("Conv1d", "Conv2d", "Conv3d", "max_pool", "avg_pool", "cat", "BatchNorm"):
            seen[operation] += operation in code

    count()
    share = {what: number / seen["all"] for what, number in seen.items()}
    assert share.pop("constant") < 0.1
    assert 0 < share.pop("inconsistent") < 0.1
    assert min(share.values()) > 0.02, share
