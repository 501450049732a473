"""Random networks for the tests.

Every map has a rate: how many input positions one of its positions stands for, the product of the
strides before it. Where only maps of one size and one rate are merged, a network can be rearranged as a
whole: a map of rate r gets the factor R / r, for one R.
"""

import functools
import itertools
import math
import operator
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.networks import Network, TwoInputs, evaluate, randomise

Size = tuple[int, ...]
Rate = tuple[Fraction, ...]


# What fits on an axis: all (kernel, stride, padding, dilation), small numbers first


@functools.cache
def windows(kind: str, axes: int, length: int, stride: int, target: int | None, ceil: bool) -> list:
    found = []
    for dilation, padding, kernel in itertools.product((1, 2, 3), range(4), (2, 1, 3, 4)):
        room = length + 2 * padding - dilation * (kernel - 1) - 1
        count = (-(-room // stride) if ceil else room // stride) + 1
        if ceil and stride * (count - 1) >= length + padding:
            count -= 1  # no window starts behind the map
        taps = [range(stride * m - padding, length, dilation)[:kernel] for m in range(count)]
        real = [any(tap >= 0 for tap in window) for window in taps]  # holds more than padding
        if (
            room >= 0
            and count == (target or count)
            and (any(real) if kind == "conv" else all(real) and padding <= kernel // 2)
            and (kind in ("conv", "max") or dilation == 1)
            and (kind != "slice" or (kernel, padding) == (1, 0))
            and ((kind, axes) != ("avg", 3) or kernel <= length)  # PyTorch's limit
        ):
            found.append((kernel, stride, padding, dilation))
    return found


@functools.cache
def transposed_windows(length: int, stride: int, targets: range) -> list:
    """(kernel, stride, padding, output_padding, dilation) of transposed convolutions."""
    return [
        (kernel, stride, padding, extra, dilation)
        for dilation, extra, padding, kernel in itertools.product(
            (1, 2), range(3), range(3), (2, 1, 3, 4)
        )
        if extra < max(stride, dilation)
        and (length - 1) * stride - 2 * padding + dilation * (kernel - 1) + extra + 1 in targets
    ]


def plain(numbers: Sequence[int]) -> int | Sequence[int]:
    """(2, 2) as 2."""
    return numbers[0] if len(set(numbers)) == 1 else numbers


# The generator

ACTIVATIONS = [
    "nn.ReLU()", "nn.LeakyReLU(0.2)", "nn.ELU()", "nn.SiLU()", "nn.GELU()", "nn.Sigmoid()",
    "nn.Hardswish()", "nn.Softplus()", "nn.Tanh()", "nn.ReLU6()", "nn.Identity()", "nn.Dropout()",
    "F.relu(x)", "F.gelu(x)", "F.leaky_relu(x, 0.3)", "F.softplus(x)", "torch.sigmoid(x)",
    "torch.relu(x)", "x.relu()", "x.tanh()", "x.sigmoid()", "x.clamp(-1, 1)",
    "x + 0.5", "1 - x", "2 * x", "x / 3", "-x", "x * torch.sigmoid(x)", "(x.abs() + 0.5).log()",
    "x.to(x.dtype)", "x + torch.max(x, 1)[0].unsqueeze(1)", "x - x.mean(1)[:, None]",
    "torch.stack((x, x.relu()), 1).sum(1)", "torch.max(x, -x)", "x + x.amax(1, True).expand_as(x)",
]  # fmt: skip
IN_PLACE = ["nn.ReLU(inplace=True)", "F.silu(x, inplace=True)", "x.relu_()"]
FRESH = ("nn.Conv", "nn.BatchNorm", "x + y")  # give a map of their own, never a view
SUMS = ["x + y", "torch.add(x, y)", "x.add(y)", "x - y", "torch.maximum(x, y)"]
LIMITS = {1: (24, 8), 2: (11, 6), 3: (5, 3)}  # axes: the largest size and factor


class Map(NamedTuple):
    name: int | str
    channels: int
    size: Size
    rate: Rate


class Builder:
    """Draws steps; keeps what they make of zeros, which tells the sizes."""

    def __init__(self, draw: st.DrawFn, training: bool) -> None:
        self.training = training  # without what draws numbers, or cancels to nothing but rounding
        self.draw, self.axes = draw, draw(st.sampled_from([2, 1, 3]))
        self.d = f"{self.axes}d"
        self.largest, self.largest_factor = LIMITS[self.axes]
        self.steps: list[tuple] = []
        self.values: dict[Any, Any] = {}
        self.inputs: list[Map] = []
        self.shared: set = {"x", "y"}  # what must not be overwritten, since it is read later
        self.consistent = True
        self.depth = 0
        one = (Fraction(1),) * self.axes
        self.rates: set[Rate] = {one}
        size = draw(st.tuples(*[st.integers(1, self.largest)] * self.axes))
        self.maps = [self.input(size, one)]  # what later blocks may read too

    def pick(self, *options: Any) -> Any:
        return self.draw(st.sampled_from(options))

    def chance(self, n: int = 2) -> bool:
        """True once in n times; False is the simpler."""
        return self.draw(st.integers(0, n - 1)) == n - 1

    def input(self, size: Size, rate: Rate) -> Map:
        self.inputs.append(Map("xy"[len(self.inputs)], self.draw(st.integers(1, 3)), size, rate))
        one = self.inputs[-1]
        self.values[one.name] = torch.zeros(1, one.channels, *size)
        return one

    @torch.no_grad()
    def add(self, code: str | int, *maps: Map, rate: Rate | None = None) -> Map:
        """One more step; its rate is that of its first operand unless given."""
        name, rate = len(self.steps), rate or (maps[0].rate if maps else ())
        value = evaluate(self.steps[code][0] if isinstance(code, int) else code)
        if isinstance(value, nn.Module):
            value.eval()
        if not isinstance(value, nn.Parameter):
            value = value(*[self.values[m.name] for m in maps])
        self.steps.append((code, *[m.name for m in maps]))
        self.values[name] = value
        if not isinstance(value, Tensor) or not rate:
            return Map(name, 0, (), rate)
        self.rates.add(rate)
        return Map(name, value.shape[1], tuple(value.shape[2:]), rate)

    def overwritable(self, x: Map) -> bool:
        """Tell whether a step shall work in place: on the result just before, read nowhere else."""
        fresh = x.name == len(self.steps) - 1 and str(self.steps[-1][0]).startswith(FRESH)
        if not fresh or x.name in self.shared or not self.chance():
            return False
        self.maps = [m for m in self.maps if m.name != x.name]
        return True

    def strides(self, x: Map, scale: Callable, limit: Sequence[int] = ()) -> list[Size]:
        """Those after which all factors stay small; scale(rate, stride) is the rate they give."""

        def small(first: Fraction, stride: int, axis: int) -> bool:
            rates = [scale(first, stride), *[rate[axis] for rate in self.rates]]
            whole = math.lcm(*[r.numerator for r in rates])
            unit = math.gcd(*[r.denominator for r in rates])
            return Fraction(whole, unit) / min(rates) <= self.largest_factor

        choices = [
            [s for s in (2, 3, 1) if small(rate, s, axis) and (not limit or s <= limit[axis])]
            for axis, rate in enumerate(x.rate)
        ]
        return list(itertools.product(*choices))

    # Steps that may change the size

    def window(
        self,
        x: Map,
        kinds: Sequence[str] = ("conv", "max", "avg", "slice"),
        stride: Size | None = None,
        size: Size | None = None,
    ) -> Map:
        """A convolution, pooling or slice, of the given strides and giving the given size."""
        stride = stride or self.pick(*self.strides(x, operator.mul))
        rate = tuple(map(operator.mul, x.rate, stride))
        fits = {
            (kind, ceil): [
                windows(kind, self.axes, *axis, ceil)
                for axis in zip(x.size, stride, size or [None] * self.axes, strict=True)
            ]
            for kind, ceil in itertools.product(kinds, (False, True))
            if (not ceil or kind in ("max", "avg")) and (kind != "slice" or max(stride) > 1)
        }
        possible = [key for key, axes in fits.items() if all(axes)]
        kind = self.pick(*dict.fromkeys(kind for kind, _ in possible))
        ceil = self.pick(*[ceil for other, ceil in possible if other == kind])
        drawn = [self.pick(*axis) for axis in fits[kind, ceil]]
        kernel, _, padding, dilation = map(plain, zip(*drawn, strict=True))
        if kind == "slice":
            return self.add(f"x[:, :, {', '.join(f'::{s}' for s in stride)}]", x, rate=rate)
        if kind == "conv":
            if set(stride) == {1} and size in (None, x.size) and self.chance(4):
                padding = "same"
            elif padding == 0 and self.chance(4):
                padding = "valid"
            return self.convolution(x, (kernel, plain(stride), padding, dilation), rate)
        options = f"{kernel}, {plain(stride)}, {padding}, "
        options += f"{dilation}, ceil_mode={ceil}" if kind == "max" else f"{ceil}, {self.chance()}"
        if kind == "avg" and self.axes > 1 and self.chance(3):
            options += f", divisor_override={self.draw(st.integers(1, 5))}"
        codes = f"F.{kind}_pool{self.d}(x, {options})", f"nn.{kind.title()}Pool{self.d}({options})"
        return self.add(self.pick(*codes), x, rate=rate)

    def convolution(self, x: Map, geometry: tuple, rate: Rate | None = None) -> Map:
        """Transposed with five numbers: output_padding too."""
        out = self.draw(st.integers(1, 4))
        groups = self.pick(*[g for g in (1, 2, 3, 4) if x.channels % g == out % g == 0])
        *first, dilation = geometry
        name, options = ("Conv" if len(first) == 3 else "ConvTranspose"), [x.channels, out, *first]
        code = f"nn.{name}{self.d}({', '.join(map(repr, options))}, dilation={dilation}, "
        return self.add(f"{code}groups={groups}, bias={not self.chance(3)})", x, rate=rate)

    def upsample(self, x: Map, stride: Size, size: Size | None = None) -> Map:
        """Nearest upsampling or a transposed convolution (to the given size, if given)."""
        rate = tuple(map(operator.truediv, x.rate, stride))
        grown = tuple(map(operator.mul, x.size, stride))
        targets = [range(m, m + 1) for m in size or ()] or [range(1, self.largest + 1)] * self.axes
        fits = list(map(transposed_windows, x.size, stride, targets))
        if all(map(operator.contains, targets, grown)) and (not all(fits) or self.chance()):
            options = [f"nn.Upsample(scale_factor={plain(stride)})", f"F.interpolate(x, {grown})"]
            mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[self.axes]
            options += [f"F.interpolate(x, {grown}, mode={mode!r}, align_corners={self.chance()})"]
            return self.add(self.pick(*options), x, rate=rate)
        drawn = [self.pick(*axis) for axis in fits]
        return self.convolution(x, tuple(map(plain, zip(*drawn, strict=True))), rate)

    def up(self, x: Map) -> Map:
        limit = [self.largest // n for n in x.size]
        fits = self.strides(x, operator.truediv, limit) if min(limit) else []
        return self.upsample(x, self.pick(*fits)) if fits else self.window(x)

    def pad(self, x: Map) -> Map:
        if self.chance(3):
            return self.pad_with_the_map(x)
        zeros = tuple(self.draw(st.integers(0, 2)) for _ in range(2 * self.axes))
        return self.add(self.pick(f"nn.ZeroPad{self.d}({zeros})", f"F.pad(x, {zeros})"), x)

    def pad_with_the_map(self, x: Map) -> Map:
        mode = self.pick("replicate", "reflect", "circular")
        most = {"replicate": 2, "reflect": min(x.size) - 1, "circular": min(x.size)}[mode]
        extent = self.draw(st.integers(0, min(most, 2)))
        return self.add(f"F.pad(x, {(extent, 0) * self.axes}, mode={mode!r})", x)

    def adaptive(self, x: Map) -> Map:
        """Adaptive pooling to divisors of the size, but not to 1: see pooled."""
        strides = [
            stride
            for stride in self.strides(x, operator.mul, x.size)
            if all(s == 1 or 0 == n % s < s < n for n, s in zip(x.size, stride, strict=True))
        ]
        stride = self.pick(*strides)
        size = tuple(map(operator.floordiv, x.size, stride))
        kind = self.pick("avg", "max")
        options = (
            f"F.adaptive_{kind}_pool{self.d}(x, {size})",
            f"nn.Adaptive{kind.title()}Pool{self.d}({size})",
        )
        return self.add(self.pick(*options), x, rate=tuple(map(operator.mul, x.rate, stride)))

    def fork(self, x: Map) -> Map:
        """Two or three ways from one size to another, with one stride (Inception)."""
        self.shared.add(x.name)
        ways = [self.window(self.chain(x))]
        stride = tuple(int(b / a) for a, b in zip(x.rate, ways[0].rate, strict=True))
        for _ in range(self.draw(st.integers(1, 2))):
            y = self.chain(x)
            if self.chance(8) and (others := self.misfits(y, stride, ways[0].size)):
                y = self.window(y, ("conv",), self.pick(*others), ways[0].size)
                self.consistent = False
            else:
                y = self.window(y, stride=stride, size=ways[0].size)
            ways.append(self.chain(y))
        return self.merge(ways)

    def misfits(self, x: Map, stride: Size, size: Size) -> list[Size]:
        """Other strides that lead to the same size by chance."""
        convolutions = functools.partial(windows, "conv", self.axes, ceil=False)
        others = self.strides(x, operator.mul)
        return [s for s in others if s != stride and all(map(convolutions, x.size, s, size))]

    # Steps that keep it

    def same_size(self, x: Map) -> Map:
        return self.window(x, ("conv", "max", "avg"), (1,) * self.axes, x.size)

    def pointwise(self, x: Map, channels: int) -> Map:
        return self.add(f"nn.Conv{self.d}({x.channels}, {channels}, 1)", x)

    def activation(self, x: Map) -> Map:
        if self.overwritable(x):
            return self.add(self.pick(*IN_PLACE), x)
        used = [i for i, (code, *_) in enumerate(self.steps) if code in ACTIVATIONS[:11]]
        if used and self.chance(4):
            return self.add(self.pick(*used), x)  # the same module again
        options = [*ACTIVATIONS, f"nn.PReLU({x.channels})", "nn.PReLU()"]
        if self.training:
            options.remove("nn.Dropout()")
        return self.add(self.pick(*options), x)

    def norm(self, x: Map) -> Map:
        c, d = x.channels, self.d
        options = [f"nn.BatchNorm{d}({c})", f"nn.BatchNorm{d}({c}, affine=False)"]
        if self.training:
            options += [f"nn.BatchNorm{d}({c}, momentum=None)"]
            if math.prod(x.size) > 1:
                options += [f"nn.BatchNorm{d}({c}, track_running_stats=False)"]
            return self.add(self.pick(*options), x)
        options += [f"nn.InstanceNorm{d}({c}, track_running_stats=True)", f"nn.Dropout{d}()"]
        if math.prod(x.size) > 1:
            options += [f"nn.InstanceNorm{d}({c}, affine={self.chance()})"]
            options += [f"nn.GroupNorm({g}, {c})" for g in (1, 2, 3) if c % g == 0]
        return self.add(self.pick(*options), x)

    def halves(self, x: Map) -> Map:
        """Gated halves of the channels (GLU)."""
        x = x if x.channels % 2 == 0 else self.pointwise(x, 2 * x.channels)
        return self.add(self.pick("nn.GLU(1)", "F.glu(x, 1)"), x)

    def shuffle(self, x: Map) -> Map:
        groups = self.pick(*[g for g in range(x.channels, 0, -1) if x.channels % g == 0])
        by_hand = f"x.unflatten(1, ({groups}, -1)).transpose(1, 2)"
        options = f"nn.ChannelShuffle({groups})", f"torch.channel_shuffle(x, {groups})"
        return self.add(
            self.pick(*options, f"{by_hand}.reshape(x.shape)", f"{by_hand}.flatten(1, 2)"), x
        )

    def scale(self, x: Map) -> Map:
        """Learned numbers: of each channel, or a few that are computed from others."""
        size = x.channels, *[1] * self.axes
        if self.chance():
            return self.add("x * y", x, self.add(f"nn.Parameter(torch.ones({size}))"))
        code = self.pick("y.sigmoid()[0] * x", "x / (1 + y.abs().sum())", "x + F.softmax(y, 0)[1]")
        return self.add(code, x, self.add("nn.Parameter(torch.ones(2))"))

    def pooled(self, x: Map) -> Map:
        """The global mean or maximum; every axis has the size 1."""
        axes = tuple(range(2, 2 + self.axes))
        options = [f"F.adaptive_avg_pool{self.d}(x, 1)", f"F.avg_pool{self.d}(x, {x.size})"]
        options += [f"nn.Adaptive{kind}Pool{self.d}(1)" for kind in ("Avg", "Max")]
        options += [f"x.{kind}({axes}, keepdim=True)" for kind in ("mean", "amax")]
        return self.add(self.pick(*options, f"torch.mean(x, {axes}, True)"), x)

    def gate(self, x: Map) -> Map:
        """Squeeze-excite, or a gate for each position."""
        self.shared.add(x.name)
        y = self.pointwise(self.pooled(x) if self.chance() else x, self.pick(1, x.channels))
        y = self.add(self.pick("torch.sigmoid(x)", "nn.Hardsigmoid()", "x.tanh()"), y)
        return self.add(self.pick("x * y", "torch.mul(x, y)", "x.mul(y)"), x, y)

    def chain(self, x: Map) -> Map:
        self.depth += 1
        for _ in range(self.draw(st.integers(0, 2))):
            x = self.keep(x)
        self.depth -= 1
        return x

    def merge(self, maps: Sequence[Map]) -> Map:
        """Maps of one size as one: side by side, or added."""
        if sum(m.channels for m in maps) <= 8 and self.chance():
            names = ", ".join("xyzw"[: len(maps)])
            code = self.pick(f"torch.cat([{names}], 1)", f"torch.cat(({names}), dim=1)")
            return self.add(code, *maps)
        total, *others = maps
        for other in others:
            if other.channels not in (1, total.channels):  # one channel is added to all
                other = self.pointwise(other, total.channels)
            if other.channels == total.channels and self.overwritable(other):
                total = self.add("x.add_(y)", other, total)
            else:
                total = self.add(self.pick(*SUMS), total, other)
        return total

    def residual(self, x: Map) -> Map:
        self.shared.add(x.name)
        return self.merge([x, self.chain(self.same_size(x))])

    def split(self, x: Map) -> Map:
        """Some channels go through a chain, the others do not; then they are shuffled."""
        if x.channels == 1:
            return self.residual(x)
        self.shared.add(x.name)
        parts = [x.channels // 2, x.channels - x.channels // 2]
        options = [f"torch.split(x, {parts}, 1)", f"x.split({parts}, dim=1)"]
        if x.channels % 2 == 0:
            options += ["x.chunk(2, 1)", "torch.chunk(x, 2, dim=1)"]
        if self.chance(3):
            first = self.add(f"x[:, :{parts[0]}]", x)
            second = self.add(f"x[:, {parts[0]}:]", x)
        else:
            both = self.add(self.pick(*options), x)
            first, second = (self.add(f"x[{part}]", both) for part in (0, 1))
        self.shared |= {first.name, second.name}  # views of one memory
        second = self.chain(self.same_size(second))
        return self.shuffle(self.add("torch.cat([x, y], 1)", first, second))

    def hourglass(self, x: Map) -> Map:
        """Down, and up to the size before, where the map before joins again (U-Net)."""
        self.shared.add(x.name)
        stride = self.pick(*self.strides(x, operator.mul))
        size = tuple(-(-n // s) for n, s in zip(x.size, stride, strict=True))
        y = self.chain(self.window(x, ("conv", "max", "avg"), stride, size))
        return self.merge([x, self.upsample(y, stride, x.size)])

    def join(self, x: Map) -> Map:
        """Merge it with an earlier map of the same size, or a second input."""
        earlier = [m for m in self.maps if m.size == x.size and m.name != x.name]
        alike = [m for m in earlier if m.rate == x.rate]
        if len(self.inputs) == 1 and self.chance(3):
            alike = [self.input(x.size, x.rate)]
        elif len(alike) < len(earlier) and self.chance(6):
            alike, self.consistent = [m for m in earlier if m.rate != x.rate], False
        return self.merge([x, self.pick(*alike)]) if alike else self.residual(x)

    def keep(self, x: Map) -> Map:
        blocks = [self.activation, self.same_size, self.norm, self.halves]
        if self.depth < 3:
            blocks += [self.residual, self.gate, self.hourglass, self.join, self.scale]
            blocks += [self.shuffle, self.split]
        return self.pick(*blocks)(x)

    def change(self, x: Map) -> Map:
        return self.pick(self.window, self.fork, self.fork, self.adaptive, self.up, self.pad)(x)

    def head(self, x: Map) -> Map:
        """What the network returns of its last map: itself, or a vector."""
        kind = self.pick("map", "flat map", "flat pooled map", "pooled map", "mean")
        if kind == "mean":
            x = self.add(f"x.mean({tuple(range(-self.axes, 0))})", x)
        elif "pooled" in kind:
            x = self.pooled(x)
        if "flat" in kind:
            x = self.add(self.pick("nn.Flatten()", "torch.flatten(x, 1)", "x.flatten(1)"), x)
        if x.size:
            return x
        return self.add(f"nn.Linear({x.channels}, {self.draw(st.integers(2, 4))})", x)


@st.composite
def networks(draw: st.DrawFn, training: bool = False) -> tuple[Network, tuple]:
    """A network with random weights, and its input size (or the sizes of both inputs).

    For training, with BatchNorm as its second step.
    """
    builder = Builder(draw, training)
    x = builder.window(builder.maps[0], ("conv",))
    if training:
        x = builder.add(f"nn.BatchNorm{builder.d}({x.channels})", x)
    for _ in range(draw(st.integers(0, 5))):
        builder.maps.append(x)
        x = builder.change(x) if builder.chance() else builder.keep(x)
    result: Any = builder.head(x).name
    others = [m.name for m in builder.maps if m.name not in ("x", "y", result)]
    if others and builder.chance(4):
        names = [result, *draw(st.lists(st.sampled_from(others), max_size=2))]
        result = builder.pick(tuple(names), {f"out{i}": name for i, name in enumerate(names)})
    sizes = tuple((m.channels, *m.size) for m in builder.inputs)
    network = (TwoInputs if len(sizes) > 1 else Network)(*builder.steps, result=result)
    network.consistent = builder.consistent
    randomise(network, draw(st.integers(0, 99)))
    return network, sizes if len(sizes) > 1 else sizes[0]
