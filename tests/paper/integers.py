"""Tensors of small integers, on which the paper's statements hold exactly."""

import numpy as np
from hypothesis import strategies as st

from tests.arrays import integers
from tests.examples import examples

many = examples(200)


some = examples(50)


Case = tuple[np.ndarray, np.ndarray]


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
