"""Several threads convert at once, and others run and train their own models meanwhile."""

import gc
import sys
import threading
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from stridenet import eliminate_stride
from stridenet.graph.proxies import TensorProxy, current

SIZE = (3, 8, 8)
CALL, GETATTR = nn.Module.__call__, nn.Module.__getattr__


class Residual(nn.Module):
    """Asks for shapes and dtype, so that several passes are made, and reads a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.c, self.d = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, padding=1)
        self.gain = nn.Parameter(torch.ones(1, 4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.c(x)).to(x.dtype)
        return (y + self.gain * self.d(y)).flatten(1).view(len(x), -1)


def plain() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1))


@pytest.fixture
def quick_switches() -> Iterator[None]:
    """Threads take turns a thousand times as often as usual."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(5e-6)
    yield
    sys.setswitchinterval(before)


def failures_of(*jobs: Callable[[], None]) -> list[BaseException]:
    """Run all jobs, each in a thread of its own; what they raised."""
    failures: list[BaseException] = []

    def guarded(job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return failures


@pytest.mark.slow
@pytest.mark.usefixtures("quick_switches")
def test_threads_that_convert_and_threads_that_train_do_not_disturb_each_other() -> None:
    shared = Residual().eval()
    models = [shared, shared, Residual().eval(), plain().eval()]
    x = torch.rand(2, *SIZE)
    wanted = [model(x) for model in models]
    done = threading.Event()
    trained = [0, 0]

    def converts(model: nn.Module, result: Tensor) -> Callable[[], None]:
        def job() -> None:
            for _ in range(20):
                assert torch.allclose(eliminate_stride(model, SIZE)(x), result, atol=1e-5)

        return job

    def trains(index: int, model: nn.Module) -> Callable[[], None]:
        def job() -> None:
            while not done.is_set():
                model(x).square().mean().backward()
                assert nn.Module.__call__ is CALL
                trained[index] += 1

        return job

    def all_convert() -> None:
        failures.extend(failures_of(*map(converts, models, wanted)))
        done.set()

    failures: list[BaseException] = []
    failures += failures_of(all_convert, trains(0, Residual()), trains(1, plain()))
    assert failures == []
    assert min(trained) > 10
    assert nn.Module.__call__ is CALL
    assert nn.Module.__getattr__ is GETATTR
    assert torch.equal(shared(x), wanted[0])
    assert not hasattr(current, "tracer")


def test_nothing_outside_is_changed_while_a_forward_is_traced() -> None:
    import math

    seen: list = []
    before = [
        dict(vars(thing)) for thing in (nn.Module, nn.Conv2d, torch, F, math, fx._symbolic_trace)
    ]

    class Looks(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            things = (nn.Module, nn.Conv2d, torch, F, math, fx._symbolic_trace)
            seen.extend(dict(vars(thing)) for thing in things)
            return super().forward(x)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.look = Looks(3, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            things = (nn.Module, nn.Conv2d, torch, F, math, fx._symbolic_trace)
            seen.extend(dict(vars(thing)) for thing in things)
            return self.look(x)

    eliminate_stride(Model(), SIZE)
    assert seen[:6] == before


def test_other_threads_run_while_a_forward_is_traced() -> None:
    """In the middle of a trace, another thread's model runs and is traced by torch.fx itself."""
    other, results = plain().eval(), []

    class Waits(Residual):
        def forward(self, x: Tensor) -> Tensor:
            thread = threading.Thread(target=runs)
            thread.start()
            thread.join()
            return super().forward(x)

    def runs() -> None:
        results.append(other(torch.ones(1, *SIZE)))
        results.append(fx.symbolic_trace(other)(torch.ones(1, *SIZE)))

    model = Waits().eval()
    twin = eliminate_stride(model, SIZE)
    assert len(results) >= 2
    assert all(type(result) is Tensor for result in results)
    assert all(torch.equal(result, results[0]) for result in results)
    assert torch.allclose(twin(torch.ones(1, *SIZE)), model(torch.ones(1, *SIZE)), atol=1e-5)


def test_no_proxy_is_left_anywhere() -> None:
    class Keeps(Residual):
        def forward(self, x: Tensor) -> Tensor:
            self.kept = [x, {"a": x}]
            return super().forward(x)

    twin = eliminate_stride(Keeps(), SIZE)
    gc.collect()
    assert not [thing for thing in gc.get_objects() if type(thing) is TensorProxy]
    assert twin is not None
