"""Sources of tiny models for tests/experiments/test_survey.py, in the place of big packages."""

import os
import sys
import time
from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor, nn

from experiments.surveying.sources import Example, images


class Plain(nn.Module):
    """A strided convolution that no output shows, as its head is zero; and a pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.c, self.pool, self.head = nn.Conv2d(3, 4, 3, 2, 1), nn.MaxPool2d(2), nn.Linear(4, 2)
        nn.init.zeros_(self.head.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.c(x)).mean((2, 3)))


class Calls(nn.Module):
    """A strided call of torch's function."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(4, 3, 3, 3))

    def forward(self, x: Tensor, scale: float) -> dict[str, Tensor | None]:
        return {"maps": nn.functional.conv2d(x * scale, self.w, stride=2), "none": None}


class OneWeight(nn.Module):
    """One parameter in convolutions of different strides: refused."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 3, 3, 2, 1), nn.Conv2d(3, 3, 3, 1, 1)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x))


class Aborts(nn.Module):
    """Runs, but ends its process where it is converted; prints, too."""

    def __init__(self) -> None:
        super().__init__()
        self.c = nn.Conv2d(3, 3, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        print('{"ended": "a package prints what might be an answer of ours"}', flush=True)
        if self.c.stride != (2, 2):
            os.abort()
        return self.c(x)


class Exits(Aborts):
    """Likewise, by an exception that is no Exception."""

    def forward(self, x: Tensor) -> Tensor:
        return self.c(x) if self.c.stride == (2, 2) else sys.exit(3)


class Sleeps(Aborts):
    """Likewise, forever."""

    def forward(self, x: Tensor) -> Tensor:
        return self.c(x) if self.c.stride == (2, 2) else time.sleep(60)


class Grows(Aborts):
    """Likewise, with more memory than there may be."""

    def forward(self, x: Tensor) -> Tensor:
        return self.c(x) if self.c.stride == (2, 2) else torch.zeros(2**33)


class Broken(nn.Module):
    """Its own forward raises."""

    def forward(self, x: Tensor) -> Tensor:
        return x.view(7, 11, 13)


KINDS: dict[str, type[nn.Module]] = {
    kind.__name__: kind for kind in (Plain, Calls, OneWeight, Aborts, Exits, Sleeps, Grows, Broken)
}


class Fake:
    package: ClassVar[str] = "torch"
    distribution: ClassVar[str] = "torch"

    def families(self) -> dict[str, list[str]]:
        return {name.lower(): [name, f"{name}-2"] for name in [*KINDS, "unmade", "pointwise"]}

    def make(self, name: str) -> nn.Module:
        return nn.Conv2d(3, 4, 1) if name == "pointwise" else KINDS[name.removesuffix("-2")]()

    def examples(self, name: str, model: nn.Module) -> Iterator[Example]:
        yield Example((images(5, 9, 9),))  # of five channels: too many
        if name == "Calls":
            yield Example((images(3, 9, 9),), {"scale": 2.0})
        yield Example((images(3, 9, 9),))


class Unlisted(Fake):
    def families(self) -> dict[str, list[str]]:
        raise AttributeError("no such list")


class Absent(Fake):
    package = distribution = "no_such_package"
