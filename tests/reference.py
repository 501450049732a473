"""The paper in plain loops: the oracle of these tests, which shares no code with stridenet.

Kong & Lucey, "Take it in your stride: Do we need striding in CNNs?" (2017). The symbols are the
paper's: a filter H, an image X, and indices m, n, p, q that count from 1. For maps with images and
channels, further down, indices count from 0. With integers in the arrays all is exact.
"""
# ruff: noqa: E743, N802, N803, N806

import math
from collections.abc import Sequence

import numpy as np

# The theorem: one filter and one image


def correlate(H: np.ndarray, X: np.ndarray) -> np.ndarray:
    """H ∗ X, the paper's convolution: H laid on X wherever it fits (Eq. 2 and 5)."""
    (a, b), (c, d) = H.shape, X.shape
    Y = np.zeros((max(c - a + 1, 0), max(d - b + 1, 0)), X.dtype)
    for i, j in np.ndindex(Y.shape):
        for row, column in np.ndindex(H.shape):
            Y[i, j] += H[row, column] * X[i + row, j + column]
    return Y


def T(m: int, n: int, s: int, X: np.ndarray) -> np.ndarray:
    """T_{m,n}^{(s)}(X), the sampling function (Definition 3): every s-th entry from (m, n) on."""
    rows, columns = range(m - 1, X.shape[0], s), range(n - 1, X.shape[1], s)
    Y = np.zeros((len(rows), len(columns)), X.dtype)
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            Y[i, j] = X[row, column]
    return Y


def O(m: int, n: int, H: np.ndarray) -> np.ndarray:
    """O_{m,n}(H), the padding operation (Property 4): m zero rows and n zero columns in front."""
    Y = np.zeros((m + H.shape[0], n + H.shape[1]), H.dtype)
    for i, j in np.ndindex(H.shape):
        Y[m + i, n + j] = H[i, j]
    return Y


def correlate_strided(s: int, H: np.ndarray, X: np.ndarray) -> np.ndarray:
    """H ∗_s X by its definition: the convolution, then its first sampling (Eq. 11)."""
    return T(1, 1, s, correlate(H, X))


def theorem_1(s: int, H: np.ndarray, X: np.ndarray) -> np.ndarray:
    """The right-hand side of Theorem 1 (Eq. 10 with Eq. 13): no stride, s·s smaller convolutions.

    A slip of the paper: where s does not divide the sizes, the terms differ in size. What counts is
    the leading corner that they share with H ∗_s X, and they are cropped to it.
    """
    rows, columns = (
        max(math.ceil((x - h + 1) / s), 0) for h, x in zip(H.shape, X.shape, strict=True)
    )
    total = np.zeros((rows, columns), X.dtype)
    for p in range(1, s + 1):
        for q in range(1, s + 1):
            total += correlate(T(p, q, s, H), T(p, q, s, X))[:rows, :columns]
    return total


def lemma_1(m: int, n: int, s: int, H: np.ndarray, X: np.ndarray) -> np.ndarray:
    """The right-hand side of Lemma 1 (Eq. 14): Theorem 1's, of the filter with zeros in front."""
    return theorem_1(s, O(m - 1, n - 1, H), X)


# Whole layers: maps (n, c, *size) with any number of axes


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
    """The same for Y = η(X), if |η(x) − η(x′)| ≤ |x − x′| and each η(x) takes a few roundings."""
    return E + 2 * gamma(4) * (abs(X) + abs(Y))
