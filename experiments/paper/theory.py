"""The paper word for word: its definitions, properties, lemma and theorems, small enough to read.

Kong & Lucey, "Take it in your stride: Do we need striding in CNNs?" (2017), in its order and its
symbols: a filter H (a×b), an image X (c×d), and m, n, p, q, i, j, k, l that count from 1. Nothing is
fast, and nothing is shared with the rest of the library, which is tested against it. With integers
in the arrays every equality is exact.

Where the paper slips, the right statement stands here, and the printed one beside it as
…_as_printed; docs/paper.md lists all slips.
"""
# ruff: noqa: E741, E743, N802, N803, N806

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

Maps = list[np.ndarray]  # the channels of a layer, X^(ℓ,1) … X^(ℓ,C)
Activation = Callable[[np.ndarray], np.ndarray]


# §3, Convolution as tensor product


def tensor_product(A: np.ndarray, X: np.ndarray) -> np.ndarray:
    """Return the product of a tensor (m×n×c×d) and a matrix (c×d), m×n (Definition 1).

    [A X]_{i,j} = Σ_{k,l} A_{i,j,k,l} X_{k,l}: Eq. 1 with the subscripts of X exchanged.
    """
    return np.einsum("ijkl,kl->ij", A, X)


def tensor_product_as_printed(A: np.ndarray, X: np.ndarray) -> np.ndarray:
    """Return Eq. 1 to the letter: A is m×n×d×c and meets X_{l,k}; Property 3 would give H ∗ Xᵀ."""
    return np.einsum("ijkl,lk->ij", A, X)


def convolutional_tensor(H: np.ndarray, c: int, d: int) -> np.ndarray:
    """Return the tensor of a filter (a×b) for images c×d (Definition 2): (c−a+1)×(d−b+1)×c×d.

    A(i, j, i : i+a−1, j : j+b−1) = H (Eq. 2) for every i and j at which H lies on the image, and zero
    elsewhere, which the paper does not say.

    >>> convolutional_tensor(np.array([[1, 2]]), 1, 3)[0, :, 0]
    array([[1, 2, 0],
           [0, 1, 2]])
    """
    a, b = H.shape
    A = np.zeros((c - a + 1, d - b + 1, c, d), H.dtype)
    for i, j in np.ndindex(A.shape[:2]):
        A[i, j, i : i + a, j : j + b] = H
    return A


def filter_of(A: np.ndarray) -> np.ndarray:
    """Return the filter of a convolutional tensor: the (c−m+1)×(d−n+1) corner of A(1, 1, :, :)."""
    m, n, c, d = A.shape
    return A[0, 0, : c - m + 1, : d - n + 1]


def is_shift_invariant(A: np.ndarray) -> bool:
    """Tell whether A_{i,j,k,l} = A_{i+1,j,k+1,l} = A_{i,j+1,k,l+1} where these exist (Eq. 3, 4).

    Property 1: a convolutional tensor is. Property 2 as printed says that no other tensor is, which is
    false: 2×2×2×2 ones are, too.
    """
    down = np.array_equal(A[:-1, :, :-1, :], A[1:, :, 1:, :])
    right = np.array_equal(A[:, :-1, :, :-1], A[:, 1:, :, 1:])
    return down and right


def is_convolutional(A: np.ndarray) -> bool:
    """Tell whether Property 2, put right, holds: Eq. 4, and zero unless 0 ≤ k−i < a and 0 ≤ l−j < b.

    a = c−m+1 and b = d−n+1 are the sizes that a filter must have for the tensor to be m×n×c×d.
    """
    m, n, c, d = A.shape
    return is_shift_invariant(A) and all(
        0 <= k - i <= c - m and 0 <= l - j <= d - n for i, j, k, l in np.argwhere(A)
    )


def correlate(H: np.ndarray, X: np.ndarray) -> np.ndarray:
    """Return H ∗ X, (c−a+1)×(d−b+1): H, not flipped, on X wherever it fits (Property 3, Eq. 5)."""
    (a, b), (c, d) = H.shape, X.shape
    Y = np.zeros((max(c - a + 1, 0), max(d - b + 1, 0)), X.dtype)
    for i, j in np.ndindex(Y.shape):
        Y[i, j] = (H * X[i : i + a, j : j + b]).sum()
    return Y


def T(m: int, n: int, s: int, X: np.ndarray) -> np.ndarray:
    """Return T_{m,n}^{(s)}(X), the sampling function (Definition 3): every s-th entry from (m, n) on.

    It is a view of X. Raises ValueError unless 1 ≤ m, n ≤ s; the paper leaves out the 1.
    """
    _require_grid(m, n, s)
    return X[m - 1 :: s, n - 1 :: s]


def S(i: int, j: int, p: int, q: int, s: int, A: np.ndarray) -> np.ndarray:
    """Return S_{p,q,s}^{i,j}(A), the same in the plane of a tensor's dimensions i and j (Definition 4).

    Raises ValueError unless 1 ≤ p, q ≤ s.
    """
    _require_grid(p, q, s)
    entries = [slice(None)] * 4
    entries[i - 1], entries[j - 1] = slice(p - 1, None, s), slice(q - 1, None, s)
    return A[tuple(entries)]


def _require_grid(m: int, n: int, s: int) -> None:
    if not (1 <= m <= s and 1 <= n <= s):
        raise ValueError(f"a grid of stride {s} begins from 1 to {s}, not at ({m}, {n})")


def O(m: int, n: int, H: np.ndarray) -> np.ndarray:
    """Return O_{m,n}(H), the padding operation (Property 4): m rows and n columns of zeros in front."""
    return np.pad(H, ((m, 0), (n, 0)))


def sampled_tensor(p: int, q: int, m: int, n: int, s: int, A: np.ndarray) -> np.ndarray:
    """Return S_{p,q,s}^{3,4}(S_{m,n,s}^{1,2}(A)) (Eq. 6): convolutional if A is (Property 4)."""
    return S(3, 4, p, q, s, S(1, 2, m, n, s, A))


def sampled_filter(p: int, q: int, m: int, n: int, s: int, H: np.ndarray) -> np.ndarray:
    """Return T_{p,q}^{(s)}(O_{m−1,n−1}(H)) (Eq. 7), the filter of the sampled tensor of H.

    A slip: the sampled tensor may lack the last shift of it, where s does not divide the sizes. Its
    filter is then this one with zeros behind.
    """
    return T(p, q, s, O(m - 1, n - 1, H))


# §4, Eliminating stride from convolution


def correlate_strided(s: int, H: np.ndarray, X: np.ndarray) -> np.ndarray:
    """Return H ∗_s X by its definition: the convolution, then its first sampling (Eq. 11)."""
    return T(1, 1, s, correlate(H, X))


def grid(s: int) -> Iterable[tuple[int, int]]:
    """Yield all (p, q) from (1, 1) to (s, s), row by row."""
    return ((p, q) for p in range(1, s + 1) for q in range(1, s + 1))


def terms(s: int, H: np.ndarray, X: np.ndarray) -> Maps:
    """Return the s·s convolutions H_{p,q} ∗ X_{p,q} of samples of H and X (Eq. 10 with Eq. 13)."""
    return [correlate(T(p, q, s, H), T(p, q, s, X)) for p, q in grid(s)]


def leading_sum(matrices: Iterable[np.ndarray]) -> np.ndarray:
    """Return the sum of matrices, each cropped to the leading corner that all of them have."""
    matrices = list(matrices)
    rows, columns = np.min([matrix.shape for matrix in matrices], axis=0)
    return np.sum([matrix[:rows, :columns] for matrix in matrices], axis=0)


def sum_as_printed(matrices: Iterable[np.ndarray]) -> np.ndarray:
    """Return the sum of matrices of one size; raises ValueError if they are of several."""
    matrices = list(matrices)
    sizes = {matrix.shape for matrix in matrices}
    if len(sizes) > 1:
        raise ValueError(f"matrices of sizes {sorted(sizes)} have no sum")
    return np.sum(matrices, axis=0)


def theorem_1(s: int, H: np.ndarray, X: np.ndarray) -> np.ndarray:
    """Return the right-hand side of Theorem 1 (Eq. 10): H ∗_s X without a stride.

    A slip: the terms differ in size unless s divides c−a and d−b. What counts is their common corner.
    """
    return leading_sum(terms(s, H, X))


def theorem_1_as_printed(s: int, H: np.ndarray, X: np.ndarray) -> np.ndarray:
    """Return the same to the letter; raises ValueError unless s divides c−a and d−b."""
    return sum_as_printed(terms(s, H, X))


def equation_16(m: int, n: int, s: int, H: np.ndarray, X: np.ndarray) -> np.ndarray:
    """Return S_{m,n,s}^{1,2}(A) X, with A the tensor of H: a sampling of H ∗ X is a sampling of A."""
    return tensor_product(S(1, 2, m, n, s, convolutional_tensor(H, *X.shape)), X)


def equation_17(m: int, n: int, s: int, H: np.ndarray, X: np.ndarray) -> np.ndarray:
    """Return it as a sum over samples of X: Σ_{p,q} S_{p,q,s}^{3,4}(S_{m,n,s}^{1,2}(A)) T_{p,q}(X)."""
    A = convolutional_tensor(H, *X.shape)
    products = [tensor_product(sampled_tensor(p, q, m, n, s, A), T(p, q, s, X)) for p, q in grid(s)]
    return np.sum(products, axis=0)


def lemma_1(m: int, n: int, s: int, H: np.ndarray, X: np.ndarray) -> np.ndarray:
    """Return the right-hand side of Lemma 1 (Eq. 14): T_{m,n}^{(s)}(H ∗ X) without sampling it.

    It is Theorem 1's, of the filter with zeros in front. The slip is the same, but worse: where all
    s·s samplings have an entry, the printed sum exists for one pair (m, n) only.
    """
    return theorem_1(s, O(m - 1, n - 1, H), X)


def lemma_1_as_printed(m: int, n: int, s: int, H: np.ndarray, X: np.ndarray) -> np.ndarray:
    """Return the same to the letter; raises ValueError unless s divides c−a−m+1 and d−b−n+1."""
    return theorem_1_as_printed(s, O(m - 1, n - 1, H), X)


# §5, Eliminating stride from CNN


@dataclass(frozen=True)
class Layer:
    """Describes a convolutional layer ℓ: its filters and its stride."""

    H: list[Maps]  # H[c−1][k−1]: the filter from channel k of layer ℓ to channel c of layer ℓ+1
    s: int = 1


def forward(layers: Sequence[Layer], eta: Activation, X: Maps) -> list[Maps]:
    """Return all feature maps X^(0), …, X^(L) of a network, from the first.

    X^(ℓ+1,c) = η{Σ_k H^(ℓ,c,k) ∗_s X^(ℓ,k)}: Eq. 18, where the filter lacks c (so that all channels of
    a layer would be equal), and with s = 1 Eq. 22 and 31, where filter and image are exchanged.
    """
    maps = [X]
    for layer in layers:
        sums = (
            leading_sum(correlate_strided(layer.s, h, x) for h, x in zip(H, maps[-1], strict=True))
            for H in layer.H
        )
        maps.append([eta(total) for total in sums])
    return maps


def composed(m: int, n: int, s: int, s_l: int) -> tuple[int, int, int]:
    """Return m′, n′ and s′ of the sampling that T_{m,n}^{(s)} ∘ T_{1,1}^{(s_l)} is (Eq. 25, 26)."""
    return (m - 1) * s_l + 1, (n - 1) * s_l + 1, s * s_l


def reshaped(s: int, X: Maps) -> Maps:
    """Return X̃ (Eq. 20, 30): the samples T_{p,q}^{(s)} of every channel k, ordered by (k, p, q).

    A "certain reshape" of X: every entry is there exactly once. Where s does not divide the sizes,
    the samples are not all of one size.
    """
    return [T(p, q, s, x) for x in X for p, q in grid(s)]


def reshaped_back(s: int, X_tilde: Maps) -> Maps:
    """Return the X of which X̃ is the reshape: the inverse of `reshaped`."""
    X = []
    for first in range(0, len(X_tilde), s * s):
        samples = dict(zip(grid(s), X_tilde[first : first + s * s], strict=True))
        rows = sum(samples[p, 1].shape[0] for p in range(1, s + 1))
        columns = sum(samples[1, q].shape[1] for q in range(1, s + 1))
        x = np.zeros((rows, columns), samples[1, 1].dtype)
        for (p, q), sample in samples.items():
            T(p, q, s, x)[:] = sample
        X.append(x)
    return X


def reshaped_filters(layer: Layer, s: int) -> list[Maps]:
    """Return H̃ of a layer whose output is wanted as X̃ of stride s (Eq. 29; with s = 1, Eq. 21).

    Filters c′ in the order of (c, m, n), their channels in that of (k, p, q), p and q up to s′ and k
    up to C_ℓ; after Eq. 30 the paper prints the s_{L−1} and C_{L−1} of the last layer.
    """
    H_tilde = []
    for H in layer.H:
        for m, n in grid(s):
            m_, n_, s_ = composed(m, n, s, layer.s)
            H_tilde.append([sampled_filter(p, q, m_, n_, s_, h) for h in H for p, q in grid(s_)])
    return H_tilde


def twin(layers: Sequence[Layer]) -> tuple[list[Layer], list[int]]:
    """Return the network with strides of one, by the induction of Theorem 2 from the last layer on.

    Its layers come first; then, for ℓ = 0, …, L, the s by which its X̃^(ℓ) is a reshape of X^(ℓ), which
    is the product of all strides from layer ℓ on. The basis of the induction is its step with s = 1.
    """
    twins: list[Layer] = []
    strides = [1]
    for layer in reversed(layers):
        twins.append(Layer(reshaped_filters(layer, strides[-1])))
        strides.append(strides[-1] * layer.s)
    return twins[::-1], strides[::-1]


# §6, Discussion and implication


def weights_of_section_6(layer: Layer, s: int) -> int:
    """Return s²·C_ℓ·C_{ℓ+1}·W_ℓ·H_ℓ, which the paper calls the size of H̃.

    It is the number of its entries that are weights of H. The filters, which all have the size of the
    largest, have zeros beside them, also in the paper's own example of 12×128×3×3.
    """
    return s**2 * sum(h.size for H in layer.H for h in H)
