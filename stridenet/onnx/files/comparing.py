"""Two whole files on random inputs: how far they differ, beside what rounding does to the original."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from stridenet.errors import InputError
from stridenet.onnx.files.running import session
from stridenet.onnx.strides import reason

Feed = dict[str, np.ndarray]
RELATIVE_CHANGE = 1e-7  # of the input
SUSPICIOUS = 10  # times as large as what such a change does
SPATIAL = ((64, 96), (224, 320), (32, 48), (16, 20))  # tried in turn where sizes are free
MOST_ROWS = 10


@dataclass(frozen=True)
class Difference:
    """One output, or the output of one node: largest values over all of its numbers."""

    name: str
    difference: float
    sensitivity: (
        float  # how far the original's own moves under a relative change of 1e-7 of its input
    )
    largest: float

    @property
    def is_large(self) -> bool:
        """Whether it is ten times as large as the sensitivity."""
        return not self.difference <= SUSPICIOUS * self.sensitivity


@dataclass(frozen=True)
class FileComparison:
    """Two files in onnxruntime, without its optimisations."""

    sizes: tuple[str, ...]  # of the inputs, once for each comparison
    outputs: tuple[Difference, ...]  # the one of each comparison that differs most
    nodes: tuple[Difference, ...] = ()  # where an output differs by much: from where on
    reason: str = ""  # why there is no comparison

    @property
    def is_large(self) -> bool:
        """Whether an output differs by ten times what a change of 1e-7 of the input does."""
        return any(each.is_large for each in self.outputs)

    def __str__(self) -> str:
        if self.reason:
            return f"whole file: not compared ({self.reason})"
        lines = [
            f"whole file, {size}: largest difference {each.difference:.2g} in {each.name}; a "
            f"relative change of 1e-7 of the input moves it by {each.sensitivity:.2g} (largest value "
            f"{each.largest:.2g})"
            for size, each in zip(self.sizes, self.outputs, strict=True)
        ]
        lines += [
            f"  {each.name}: difference {each.difference:.2g}, sensitivity {each.sensitivity:.2g}"
            for each in self.nodes
        ]
        return "\n".join(lines)


def compare_files(
    original: Path,
    converted: Path,
    proto: Any,
    sizes: Mapping[str, Sequence[int]] | None = None,
    fed: Callable[[Feed], Feed] = lambda feed: feed,
) -> FileComparison:
    """Run both at two sizes, as far as their sizes are free.

    proto: of the original, for its inputs.
    sizes: of inputs, by their names; else they are guessed.
    fed: what the converted file reads in place of the original's inputs.
    """
    require_names(proto, sizes)
    try:
        one, other = session(original), session(converted)
    except InputError:
        raise
    except Exception as error:  # its errors have no common class
        return FileComparison((), (), reason=f"onnxruntime does not load it: {reason(error)}")
    found: list[tuple[str, Difference, Feed]] = []
    last = "no sizes were tried"
    for feed in feeds_of(proto, sizes):
        try:
            worst = _worst(one, other, feed, fed)
        except Exception as error:
            last = reason(error)
            continue
        found.append((sizes_of(feed), worst, feed))
        if len(found) == 2:
            break
    if not found:
        return FileComparison(
            (),
            (),
            reason=f"onnxruntime does not run the original: {last}; sizes=… gives its inputs'",
        )
    nodes: tuple[Difference, ...] = ()
    for _, worst, feed in found:
        if worst.is_large and not nodes:
            nodes = _node_by_node(original, converted, feed, fed)
    return FileComparison(
        tuple(size for size, _, _ in found), tuple(worst for _, worst, _ in found), nodes
    )


def sizes_of(feed: Feed) -> str:
    """The sizes of inputs, as text."""
    return ", ".join(f"{name} {'x'.join(map(str, array.shape))}" for name, array in feed.items())


def _worst(one: Any, other: Any, feed: Feed, fed: Callable[[Feed], Feed]) -> Difference:
    names = [output.name for output in one.get_outputs()]
    ours, moved = one.run(None, feed), one.run(None, nudged(feed))
    rows = _differences(names, ours, moved, other.run(None, fed(feed)))
    return max(rows, key=lambda each: (each.is_large, each.difference - each.sensitivity))


def _differences(
    names: Sequence[str], ours: Sequence[Any], moved: Sequence[Any], theirs: Sequence[Any]
) -> list[Difference]:
    rows = []
    for name, a, b, c in zip(names, ours, moved, theirs, strict=True):
        if isinstance(a, np.ndarray) and a.dtype.kind in "fiub":
            rows.append(
                Difference(name, _largest(a, c), _largest(a, b), _largest(a, np.zeros_like(a)))
            )
    return rows


def _largest(a: np.ndarray, b: np.ndarray) -> float:
    """The largest difference; of values that are the same, infinities among them, none."""
    if a.shape != b.shape:
        return float("inf")
    with np.errstate(invalid="ignore"):
        a, b = a.astype(np.float64), b.astype(np.float64)
        same = (a == b) | (np.isnan(a) & np.isnan(b))
        return float(np.where(same, 0, np.abs(a - b)).max(initial=0))


def nudged(feed: Feed) -> Feed:
    """Move each number by 1e-7 of itself, or by one last place of its type."""
    draw = np.random.default_rng(2)
    moved = {}
    for name, array in feed.items():
        if array.dtype.kind == "f":
            step = max(RELATIVE_CHANGE, float(np.finfo(array.dtype).eps))
            signs = draw.choice([-1.0, 1.0], array.shape)
            moved[name] = (array * (1 + step * signs)).astype(array.dtype)
        else:
            moved[name] = array
    return moved


def _node_by_node(
    original: Path, converted: Path, feed: Feed, fed: Callable[[Feed], Feed]
) -> tuple[Difference, ...]:
    """The first maps, in the order of the original, that differ by much: where it begins."""
    try:
        protos = [onnx.load(str(path)) for path in (original, converted)]
        both = [
            {name for node in each.graph.node for name in node.output if name} for each in protos
        ]
        shared = [
            name
            for node in protos[0].graph.node
            for name in node.output
            if name in both[0] & both[1]
        ]
        runs = []
        for proto in protos:
            outputs = {output.name for output in proto.graph.output}
            for name in shared:
                if name not in outputs:
                    proto.graph.output.add(name=name)
            runs.append(session(proto.SerializeToString()))
        ours, moved = runs[0].run(shared, feed), runs[0].run(shared, nudged(feed))
        theirs = runs[1].run(shared, fed(feed))
    except Exception:  # as of a file beyond 2 GB: the outputs have been compared
        return ()
    rows = _differences(shared, ours, moved, theirs)
    return tuple(row for row in rows if row.is_large)[:MOST_ROWS]


# Random inputs


def require_names(proto: Any, sizes: Mapping[str, Sequence[int]] | None) -> None:
    """Raise InputError for the sizes of what is no input."""
    from stridenet.onnx.files.options import did_you_mean

    names = [each.name for each in _inputs(proto)]
    for name in sizes or ():
        if name not in names:
            raise InputError(
                f"sizes: {name!r} is no input{did_you_mean(name, names)}; there are: {', '.join(names)}"
            )


def _inputs(proto: Any) -> list[Any]:
    """Those that have no default."""
    defaults = {tensor.name for tensor in proto.graph.initializer}
    return [each for each in proto.graph.input if each.name not in defaults]


def feeds_of(proto: Any, sizes: Mapping[str, Sequence[int]] | None) -> Iterator[Feed]:
    """Random inputs of two sizes for each of SPATIAL; the same sizes never twice."""
    seen = set()
    for pair in SPATIAL:
        for batch, free in enumerate(pair, 1):
            feed = {
                each.name: _drawn(each, batch, free, (sizes or {}).get(each.name))
                for each in _inputs(proto)
            }
            if sizes_of(feed) not in seen:
                seen.add(sizes_of(feed))
                yield feed


def _drawn(given: Any, batch: int, free: int, size: Sequence[int] | None) -> np.ndarray:
    """Numbers of the input's type: normal, or small integers."""
    kind = given.type.tensor_type
    if size is None:
        size = [
            dim.dim_value if dim.dim_value > 0 else batch if axis == 0 else 3 if axis == 1 else free
            for axis, dim in enumerate(kind.shape.dim)
        ]
    draw = np.random.default_rng(0)
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
    if dtype.kind in "iub":
        return draw.integers(0, 2, size).astype(dtype)
    return draw.standard_normal(size).astype(dtype)
