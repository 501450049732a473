"""Whole layers in plain loops: an oracle of these tests, which shares no code with stridenet.

Filters are H and maps X, as in the paper, whose own statements are in stridenet/theory.py. Maps are
(n, c, *size) with any number of axes, and indices count from 0. With integers in the arrays all is
exact.
"""
# ruff: noqa: N803, N806

import itertools
import math
from collections.abc import Sequence

import numpy as np

# The paper's layers


def phase_form(X: np.ndarray, factor: Sequence[int]) -> np.ndarray:
    """X̃ (Eq. 20 and 30): all T_{p,q}(X) as channels, filled up with zeros at the end.

    In two dimensions X̃[n, (c·r_h + p)·r_w + q, i, j] = X[n, c, i·r_h + p, j·r_w + q].
    """
    images, channels, *size = X.shape
    blocks = [math.ceil(length / r) for length, r in zip(size, factor, strict=True)]
    Y = np.zeros((images, channels * math.prod(factor), *blocks), X.dtype)
    for n, c, *position in np.ndindex(X.shape):
        channel, block = c, []
        for x, r in zip(position, factor, strict=True):
            channel = channel * r + x % r
            block.append(x // r)
        Y[n, channel, *block] = X[n, c, *position]
    return Y


def convolve(
    X: np.ndarray,
    H: np.ndarray,
    b: np.ndarray | None,
    stride: Sequence[int],
    dilation: Sequence[int],
    padding: Sequence[tuple[int, int]],
    groups: int = 1,
) -> np.ndarray:
    """A layer before its activation (under the η of Eq. 18), as deep-learning libraries define it.

    Y[n, o, u] = b[o] + Σ_{i,k} H[o, i, k] · X[n, i of o's group, stride·u + dilation·k − low], with
    X zero outside. padding: (low, high) for each axis. A Linear layer is one without axes.
    """
    images, _, *size = X.shape
    outputs, inputs, *kernel = H.shape
    axes = list(zip(size, kernel, stride, dilation, padding, strict=True))
    out = [(x + low + high - d * (k - 1) - 1) // s + 1 for x, k, s, d, (low, high) in axes]
    Y = np.zeros((images, outputs, *out), X.dtype)
    for n, o, *u in np.ndindex(Y.shape):
        first = inputs * (o // (outputs // groups))
        total = 0 if b is None else b[o]
        for k in np.ndindex(*kernel):
            x = [s * u[a] + d * k[a] - low for a, (_, _, s, d, (low, _)) in enumerate(axes)]
            if all(0 <= place < length for place, length in zip(x, size, strict=True)):
                for i in range(inputs):
                    total += H[o, i, *k] * X[n, first + i, *x]
        Y[n, o, *u] = total
    return Y


# Other layers; one number for each axis unless said otherwise


def inside(position: Sequence[int], size: Sequence[int]) -> bool:
    return all(0 <= x < length for x, length in zip(position, size, strict=True))


def pooled_length(n: int, k: int, stride: int, dilation: int, padding: int, ceil: bool) -> int:
    """How many windows pooling lays on an axis of n positions with padding on both sides.

    In ceil mode one window more if the last leaves something over, but none that starts behind the
    map.
    """
    reach, windows = dilation * (k - 1) + 1, 0
    while stride * windows + reach <= n + 2 * padding:
        windows += 1
    rest = stride * (windows - 1) + reach < n + 2 * padding
    return windows + (ceil and rest and stride * windows - padding < n)


def maximum(
    X: np.ndarray,
    kernel: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    padding: Sequence[int],
    out: Sequence[int],
) -> np.ndarray:
    """Max pooling with `out` windows: the largest number under each, −∞ if it lies on padding only."""
    Y = np.full((*X.shape[:2], *out), -math.inf)
    for n, c, *u in np.ndindex(Y.shape):
        for k in np.ndindex(*kernel):
            axes = zip(u, k, stride, dilation, padding, strict=True)
            x = [s * i + d * j - p for i, j, s, d, p in axes]
            if inside(x, X.shape[2:]):
                Y[n, c, *u] = max(Y[n, c, *u], X[n, c, *x])
    return Y


def average(
    X: np.ndarray,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    out: Sequence[int],
    include_padding: bool,
    divisor: int | None,
) -> np.ndarray:
    """Average pooling with `out` windows.

    Divided is by `divisor` if there is one, else by the window's positions on the map, or on the map
    and its padding; never by those behind the padding, which windows in ceil mode may have.
    """
    Y = np.zeros((*X.shape[:2], *out))
    for n, c, *u in np.ndindex(Y.shape):
        total = real = padded = 0
        for k in np.ndindex(*kernel):
            x = [s * i + j - p for i, j, s, p in zip(u, k, stride, padding, strict=True)]
            if inside(x, X.shape[2:]):
                total, real = total + X[n, c, *x], real + 1
            padded += all(
                i < length + p for i, length, p in zip(x, X.shape[2:], padding, strict=True)
            )
        Y[n, c, *u] = total / (divisor or (padded if include_padding else real))
    return Y


def adaptive(X: np.ndarray, out: Sequence[int], largest: bool) -> np.ndarray:
    """Adaptive pooling: average (or largest) of positions ⌊u·N / M⌋ up to before ⌈(u + 1)·N / M⌉."""
    Y = np.zeros((*X.shape[:2], *out))
    for n, c, *u in np.ndindex(Y.shape):
        spans = [
            range(i * length // many, -(-(i + 1) * length // many))
            for i, length, many in zip(u, X.shape[2:], out, strict=True)
        ]
        numbers = [X[n, c, *x] for x in itertools.product(*spans)]
        Y[n, c, *u] = max(numbers) if largest else sum(numbers) / len(numbers)
    return Y


def transposed_length(
    n: int, k: int, stride: int, dilation: int, padding: int, output_padding: int
) -> int:
    """Positions from the first that a tap reaches to the last, less padding on both sides."""
    return stride * (n - 1) + dilation * (k - 1) + 1 - 2 * padding + output_padding


def convolve_transposed(
    X: np.ndarray,
    H: np.ndarray,
    b: np.ndarray | None,
    stride: Sequence[int],
    dilation: Sequence[int],
    padding: Sequence[int],
    output_padding: Sequence[int],
    groups: int = 1,
) -> np.ndarray:
    """A transposed convolution: each input adds the filter, times itself, around its place.

    H: (in, out / groups, *kernel). Tap k of input x stands at position stride·x + dilation·k −
    padding; what falls outside is lost.
    """
    images, inputs, *size = X.shape
    _, outputs, *kernel = H.shape
    axes = zip(size, kernel, stride, dilation, padding, output_padding, strict=True)
    Y = np.zeros((images, outputs * groups, *(transposed_length(*axis) for axis in axes)), X.dtype)
    if b is not None:
        for o in range(len(b)):
            Y[:, o] = b[o]
    for n, i, *x in np.ndindex(X.shape):
        first = outputs * (i // (inputs // groups))
        for o, *k in np.ndindex(H.shape[1:]):
            places = zip(x, k, stride, dilation, padding, strict=True)
            u = [s * j + d * t - p for j, t, s, d, p in places]
            if inside(u, Y.shape[2:]):
                Y[n, first + o, *u] += H[i, o, *k] * X[n, i, *x]
    return Y


def upsample(X: np.ndarray, scale: Sequence[int]) -> np.ndarray:
    """Nearest upsampling by whole numbers: Y[u] = X[⌊u / scale⌋]."""
    size = [length * r for length, r in zip(X.shape[2:], scale, strict=True)]
    Y = np.zeros((*X.shape[:2], *size), X.dtype)
    for n, c, *u in np.ndindex(Y.shape):
        Y[n, c, *u] = X[n, c, *(i // r for i, r in zip(u, scale, strict=True))]
    return Y


def pad(X: np.ndarray, pairs: Sequence[tuple[int, int]], value: float) -> np.ndarray:
    """`value` before and after the channels and each axis; a negative number takes positions away."""
    size = [n + low + high for n, (low, high) in zip(X.shape[1:], pairs, strict=True)]
    Y = np.full((len(X), *size), value, X.dtype)
    for n, *u in np.ndindex(Y.shape):
        x = [i - low for i, (low, _) in zip(u, pairs, strict=True)]
        if inside(x, X.shape[1:]):
            Y[n, *u] = X[n, *x]
    return Y


def positions(X: np.ndarray, spans: Sequence[range]) -> np.ndarray:
    """Only the positions in `spans`, one for each axis: what a slice with steps leaves."""
    Y = np.zeros((*X.shape[:2], *map(len, spans)), X.dtype)
    for n, c, *u in np.ndindex(Y.shape):
        Y[n, c, *u] = X[n, c, *(span[i] for span, i in zip(spans, u, strict=True))]
    return Y


def shuffle_channels(X: np.ndarray, groups: int) -> np.ndarray:
    """Channel j of group i comes at place i of the j-th new group."""
    Y = np.zeros_like(X)
    each = X.shape[1] // groups
    for i in range(groups):
        for j in range(each):
            Y[:, j * groups + i] = X[:, i * each + j]
    return Y


def gate(X: np.ndarray) -> np.ndarray:
    """GLU over channels: Y[n, c] = X[n, c] / (1 + exp(−X[n, c + C]))."""
    images, channels, *size = X.shape
    Y = np.zeros((images, channels // 2, *size))
    for n, c, *position in np.ndindex(Y.shape):
        Y[n, c, *position] = X[n, c, *position] / (
            1 + math.exp(-X[n, c + channels // 2, *position])
        )
    return Y


def statistics(X: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Mean and variance of each channel, over images and positions, and of how many numbers."""
    means, variances = [], []
    for c in range(X.shape[1]):
        numbers = [X[n, c, *x] for n, *x in np.ndindex(len(X), *X.shape[2:])]
        mean = sum(numbers) / len(numbers)
        means.append(mean)
        variances.append(sum((number - mean) ** 2 for number in numbers) / len(numbers))
    return np.array(means), np.array(variances), len(numbers)


def normalise(X: np.ndarray, mean: np.ndarray, variance: np.ndarray, eps: float) -> np.ndarray:
    """Each channel less its mean, divided by the root of its variance (and a little more)."""
    Y = np.zeros(X.shape)
    for n, c, *x in np.ndindex(X.shape):
        Y[n, c, *x] = (X[n, c, *x] - mean[c]) / math.sqrt(variance[c] + eps)
    return Y


# Rounding in float64


def gamma(n: int) -> float:
    """γ_n = nu / (1 − nu): the relative error of a sum of n products, whatever their order."""
    u = 2.0**-53
    return n * u / (1 - n * u)


def convolution_error(
    E: np.ndarray, X: np.ndarray, H: np.ndarray, b: np.ndarray | None, *geometry: object
) -> np.ndarray:
    """How far apart a layer's two computed outputs can lie: |H| ∗ E + 2γ_n·(|H| ∗ |X| + |b|).

    One is computed from the map X and one from a map within E of it (hence the 1 + γ_n below). n
    counts the terms of a sum: all taps of the strided filter, and the bias.
    """
    g = gamma(H[0].size + 1)
    b = None if b is None else 2 * g * abs(b)
    return convolve((1 + g) * E + 2 * g * abs(X), abs(H), b, *geometry)


def activation_error(E: np.ndarray, X: np.ndarray, Y: np.ndarray) -> np.ndarray:
    """Likewise bound Y = η(X), if |η(x) − η(x′)| ≤ |x − x′| and each η(x) takes a few roundings."""
    return E + 2 * gamma(4) * (abs(X) + abs(Y))
