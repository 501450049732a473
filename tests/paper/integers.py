"""Tensors of small integers, on which the paper's statements hold exactly."""

from collections.abc import Sequence

import numpy as np
import torch
from hypothesis import strategies as st

from tests.examples import examples

many = examples(200)


some = examples(50)


Case = tuple[np.ndarray, np.ndarray]


def integers(shape: Sequence[int], seed: int = 0, largest: int = 9) -> np.ndarray:
    """Entries from −largest to largest, without 0."""
    random = np.random.default_rng(seed)
    return random.integers(1, largest + 1, shape) * random.choice([-1, 1], shape)


def equal(obtained: Sequence | np.ndarray, expected: Sequence | np.ndarray) -> bool:
    return np.array_equal(np.asarray(obtained), np.asarray(expected))


def tensor(array: Sequence | np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.asarray(array)).double()


@st.composite
def cases(draw: st.DrawFn, largest: int = 9) -> Case:
    """A filter and an image on which it fits."""
    (a, b), seed = draw(st.tuples(*[st.integers(1, 4)] * 2)), draw(st.integers(0, 99))
    c, d = draw(st.integers(a, largest)), draw(st.integers(b, largest))
    return integers((a, b), seed), integers((c, d), seed + 1)


@st.composite
def samplings(draw: st.DrawFn, largest: int = 4) -> tuple[int, int, int]:
    """m, n and s."""
    s = draw(st.integers(1, largest))
    return draw(st.integers(1, s)), draw(st.integers(1, s)), s
