"""Batch normalisation in training: statistics of all phases together, or of each by itself."""

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from stridenet import eliminate_stride
from stridenet.pixels import PhaseBatchNorm, SharedBatchNorm
from tests import reference
from tests.library.between_phases import close, integers, maps_and_factors, some, tensor, twin_of

BATCH_NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


# Batch normalisation


@st.composite
def batch_norms(draw: st.DrawFn) -> tuple:
    case = draw(maps_and_factors(channels=3))
    options = {
        "momentum": draw(st.sampled_from([0.1, 0.7, None])),
        "affine": draw(st.booleans()),
        "track_running_stats": draw(st.sampled_from([True, True, False])),
        "eps": 1e-3,
    }
    layer = BATCH_NORMS[case[0].ndim - 2](3, **options).double()
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(generator=generator)
        for name, buffer in layer.named_buffers():
            if name.endswith("mean"):
                buffer.normal_(generator=generator)
            elif name.endswith("var"):
                buffer.uniform_(0.5, 2, generator=generator)
    return layer, case


def weigh(result: Tensor) -> Tensor:
    """One number that depends on each of the result's."""
    return (result * torch.arange(1.0, result.numel() + 1).view(result.shape).cos()).sum()


@some
@given(batch_norms())
def test_batch_normalisation_with_the_statistics_of_all_phases(example: tuple) -> None:
    layer, case = example
    model = nn.Sequential(layer).train()
    twin = twin_of(model, case[0].shape[1:], case[1]).train()
    own = twin.network.get_submodule("0")
    assert isinstance(own, SharedBatchNorm) or math.prod(case[1]) == 1
    for seed in (1, 2):  # the second step tells what momentum=None has counted
        x = integers(case[0].shape, seed)
        mean, variance, count = reference.statistics(x)
        old = {name: buffer.clone() for name, buffer in layer.named_buffers()}
        results, gradients = [], []
        for network in (model, twin):
            given = tensor(x).requires_grad_()
            network.zero_grad()
            results.append(network(given))
            weigh(results[-1]).backward()
            gradients.append([given.grad, *(p.grad for p in network.parameters())])
        shape = (1, 3, *[1] * len(case[1]))
        expected = tensor(reference.normalise(x, mean, variance, layer.eps))
        if layer.affine:
            expected = expected * layer.weight.view(shape) + layer.bias.view(shape)
        assert close(results[0], expected.detach())
        assert close(results[1], expected.detach())
        assert len(gradients[0]) == len(gradients[1]) == (3 if layer.affine else 1)
        for strided, unit_stride in zip(*gradients, strict=True):
            torch.testing.assert_close(unit_stride, strided, rtol=1e-9, atol=1e-9)
        assert dict(own.named_buffers(recurse=False)).keys() == old.keys()
        if layer.track_running_stats:
            step = 1 / seed if layer.momentum is None else layer.momentum
            followed = {
                "running_mean": mean,
                "running_var": variance * count / (count - 1),
            }
            assert own.num_batches_tracked == layer.num_batches_tracked == seed
            for name, value in followed.items():
                new = (1 - step) * old[name] + step * tensor(value)
                torch.testing.assert_close(own.get_buffer(name), new, rtol=1e-10, atol=1e-10)
                torch.testing.assert_close(layer.get_buffer(name), new, rtol=1e-10, atol=1e-10)
    assert close(twin.eval()(tensor(x)), model.eval()(tensor(x)).detach())


def phases_of(size: Sequence[int], factor: Sequence[int]) -> dict[tuple, tuple]:
    """The index of each phase of a map that has a position at all."""
    starts = itertools.product(*(range(min(f, n)) for f, n in zip(factor, size, strict=True)))
    return {
        phase: (..., *(slice(p, None, f) for p, f in zip(phase, factor, strict=True)))
        for phase in starts
    }


@some
@given(batch_norms())
def test_batch_normalisation_of_each_phase_by_itself(example: tuple) -> None:
    """What torch does with each phase as a batch of its own, and loops say of its statistics."""
    layer, case = example
    factor = case[1]
    twin = eliminate_stride(
        nn.Sequential(layer), case[0].shape[1:], output_factor=factor, batch_norm="per_phase"
    ).train()
    own = twin.network.get_submodule("0")
    ragged = any(n % f for n, f in zip(case[0].shape[2:], factor, strict=True))
    assert isinstance(own, PhaseBatchNorm) == ragged
    place = {phase: i for i, phase in enumerate(itertools.product(*map(range, factor)))}
    for seed in (1, 2):
        x = tensor(integers(case[0].shape, seed)).requires_grad_()
        old = {name: buffer.clone() for name, buffer in own.named_buffers(recurse=False)}
        twin.zero_grad()
        obtained = twin(x)
        weigh(obtained).backward()
        found = x.grad
        alone = x.detach().clone().requires_grad_()
        parameters = [p.detach().clone().requires_grad_() for p in layer.parameters()]
        expected = torch.zeros_like(alone)
        for phase, index in phases_of(x.shape[2:], factor).items():
            part = alone[index]
            expected[index] = F.batch_norm(
                part, None, None, *parameters, training=True, eps=layer.eps
            )
            if not layer.track_running_stats:
                continue
            mean, variance, count = reference.statistics(part.detach().numpy())
            step = 1 / seed if layer.momentum is None else layer.momentum
            for name, value in (
                ("running_mean", mean), ("running_var", variance * count / (count - 1)),
            ):  # fmt: skip
                before, after = (
                    b.unflatten(0, (3, len(place)))[:, place[phase]]
                    for b in (old[name], own.get_buffer(name))
                )
                torch.testing.assert_close(
                    after, (1 - step) * before + step * tensor(value), rtol=1e-10, atol=1e-10
                )
        weigh(expected).backward()
        assert close(obtained, expected.detach())
        torch.testing.assert_close(found, alone.grad, rtol=1e-9, atol=1e-9)
        for one, all_phases in zip(parameters, own.parameters(), strict=True):
            summed = all_phases.grad.unflatten(0, (3, len(place))).sum(1)
            torch.testing.assert_close(summed, one.grad, rtol=1e-9, atol=1e-9)
        if layer.track_running_stats:
            assert own.num_batches_tracked == seed
    twin.eval()
    assert twin(x).isfinite().all()
