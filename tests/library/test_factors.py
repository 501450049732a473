"""Factors are found in a number of steps that grows with the number of axes, not with its square."""

from typing import Any

from stridenet.graph.factors import Factors


class CountingDict(dict):
    """A dictionary that counts how often one of its values is read."""

    reads = 0

    def __getitem__(self, key: Any) -> Any:
        self.reads += 1
        return super().__getitem__(key)


def chain_of(length: int, backwards: bool) -> tuple[Factors, CountingDict]:
    """A network of so many layers in a row, the first of which has a stride of two."""
    factors, above = Factors(), CountingDict()
    factors._above = above
    layers = range(length)
    for layer in reversed(layers) if backwards else layers:
        factors.tie(layer, layer + 1, 2 if layer == 0 else 1, f"layer {layer}")
    return factors, above


def test_a_long_chain_of_layers_is_walked_a_few_times_and_not_once_for_each_axis() -> None:
    for backwards in (False, True):
        reads = []
        for length in (1_000, 4_000):
            factors, above = chain_of(length, backwards)
            assert factors.solve({}) == {0: 2, **dict.fromkeys(range(1, length + 1), 1)}
            reads.append(above.reads)
        assert reads[1] < 5 * reads[0]  # four times the layers; a square would be sixteen
        assert reads[1] < 10 * 4_000


def test_the_paths_that_are_shortened_keep_their_ratios() -> None:
    factors = Factors()
    for axis, ratio in enumerate((2, 3, 1, 5)):
        factors.tie(axis, axis + 1, ratio, f"layer {axis}")
    for _ in range(2):  # the second time from the shortened paths
        assert factors.solve({}) == {0: 30, 1: 15, 2: 5, 3: 5, 4: 1}
