"""Compares two whole files on random inputs, beside what rounding does to the original's outputs."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx

from stridenet.errors import InputError
from stridenet.onnx.files.options import did_you_mean
from stridenet.onnx.files.running import session
from stridenet.onnx.strides import reason
from stridenet.sizes import format_size

Feed = dict[str, np.ndarray]
RELATIVE_CHANGE = 1e-7  # of the input
SUSPICIOUS = 10  # a difference is large that is so many times what such a change does
SPATIAL = ((64, 96), (224, 320), (32, 48), (16, 20))  # tried in turn where sizes are free
MOST_ROWS = 10


@dataclass(frozen=True)
class OutputDifference:
    """Says how far one output of a node or file differs in two files, at its largest."""

    name: str
    difference: float
    sensitivity: float  # how far a relative change of 1e-7 of the input moves the original's
    largest: float  # of the original's values

    @property
    def is_large(self) -> bool:
        """Tell whether it is more than ten times as large as the sensitivity, or not a number."""
        return not self.difference <= SUSPICIOUS * self.sensitivity


@dataclass(frozen=True)
class FileComparison:
    """Says how far two files differ in onnxruntime, without its optimisations."""

    sizes: tuple[str, ...]  # of the inputs, once for each comparison
    outputs: tuple[OutputDifference, ...]  # the output of each comparison that differs most
    nodes: tuple[OutputDifference, ...] = ()  # the first that differ, if an output differs by much
    reason: str = ""  # why there is no comparison

    @property
    def is_large(self) -> bool:
        """Tell whether an output differs by ten times what a change of 1e-7 of the input does."""
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


class _Trial(NamedTuple):
    """Holds one comparison of two files."""

    feed: Feed
    worst: OutputDifference


def compare_files(
    original: Path,
    converted: Path,
    proto: Any,
    sizes: Mapping[str, Sequence[int]] | None = None,
    rearrange: Callable[[Feed], Feed] = lambda feed: feed,
) -> FileComparison:
    """Run both files on random inputs of two sizes, or of one where the file fixes the sizes.

    proto: the original as protobuf has it, for its inputs.
    sizes: of inputs, by their names; those that are free are guessed.
    rearrange: returns what the converted file reads in place of the original's inputs.
    """
    require_names(proto, sizes)
    try:
        sessions = session(original), session(converted)
    except InputError:
        raise
    except Exception as error:  # its errors have no common class
        return FileComparison((), (), reason=f"onnxruntime does not load it: {reason(error)}")
    trials: list[_Trial] = []
    last = "no sizes were tried"
    for feed in feeds_of(proto, sizes):
        try:
            trials.append(_Trial(feed, _worst(*sessions, feed, rearrange)))
        except Exception as error:
            last = reason(error)
        if len(trials) == 2:
            break
    if not trials:
        why = f"onnxruntime does not run the original: {last}; sizes=… gives its inputs'"
        return FileComparison((), (), reason=why)
    nodes: tuple[OutputDifference, ...] = ()
    for trial in trials:
        if trial.worst.is_large and not nodes:
            nodes = _node_by_node(original, converted, trial.feed, rearrange)
    return FileComparison(
        tuple(sizes_of(each.feed) for each in trials), tuple(each.worst for each in trials), nodes
    )


def sizes_of(feed: Feed) -> str:
    """Return the sizes of inputs as text."""
    return ", ".join(f"{name} {format_size(array.shape)}" for name, array in feed.items())


def _worst(one: Any, other: Any, feed: Feed, rearrange: Callable[[Feed], Feed]) -> OutputDifference:
    """Run both files, and return the output that differs most."""
    names = [output.name for output in one.get_outputs()]
    ours, moved = one.run(None, feed), one.run(None, nudged(feed))
    rows = _differences(names, ours, moved, other.run(None, rearrange(feed)))
    return max(rows, key=lambda each: (each.is_large, each.difference - each.sensitivity))


def _differences(
    names: Sequence[str], ours: Sequence[Any], moved: Sequence[Any], theirs: Sequence[Any]
) -> list[OutputDifference]:
    return [
        OutputDifference(
            name,
            difference=_largest_difference(own, other),
            sensitivity=_largest_difference(own, perturbed),
            largest=_largest_difference(own, np.zeros_like(own)),
        )
        for name, own, perturbed, other in zip(names, ours, moved, theirs, strict=True)
        if isinstance(own, np.ndarray) and own.dtype.kind in "fiub"
    ]


def _largest_difference(a: np.ndarray, b: np.ndarray) -> float:
    """Return the largest difference; equal infinities, and two NaN, do not differ."""
    if a.shape != b.shape:
        return float("inf")
    with np.errstate(invalid="ignore"):
        a, b = a.astype(np.float64), b.astype(np.float64)
        same = (a == b) | (np.isnan(a) & np.isnan(b))
        return float(np.where(same, 0, np.abs(a - b)).max(initial=0))


def nudged(feed: Feed) -> Feed:
    """Return inputs in which each number is moved by 1e-7 of itself, or by its type's rounding."""
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
    original: Path, converted: Path, feed: Feed, rearrange: Callable[[Feed], Feed]
) -> tuple[OutputDifference, ...]:
    """Return the first maps that differ by much, in the order of the original's nodes."""
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
        theirs = runs[1].run(shared, rearrange(feed))
    except Exception:  # as for a file beyond 2 GB; its outputs have been compared anyway
        return ()
    rows = _differences(shared, ours, moved, theirs)
    return tuple(row for row in rows if row.is_large)[:MOST_ROWS]


# Random inputs


def require_names(proto: Any, sizes: Mapping[str, Sequence[int]] | None) -> None:
    """Raise InputError for a size of something that is no input."""
    names = [each.name for each in _inputs(proto)]
    for name in sizes or ():
        if name not in names:
            raise InputError(
                f"sizes: {name!r} is no input{did_you_mean(name, names)}; there are: {', '.join(names)}"
            )


def _inputs(proto: Any) -> list[Any]:
    """Return the inputs that have no default."""
    defaults = {tensor.name for tensor in proto.graph.initializer}
    return [each for each in proto.graph.input if each.name not in defaults]


def feeds_of(proto: Any, sizes: Mapping[str, Sequence[int]] | None) -> Iterator[Feed]:
    """Yield random inputs of two sizes for each pair in SPATIAL, but no sizes twice."""
    seen = set()
    for pair in SPATIAL:
        for batch, free in enumerate(pair, 1):
            feed = {
                each.name: _random_input(each, batch, free, (sizes or {}).get(each.name))
                for each in _inputs(proto)
            }
            if sizes_of(feed) not in seen:
                seen.add(sizes_of(feed))
                yield feed


def _random_input(given: Any, batch: int, free: int, size: Sequence[int] | None) -> np.ndarray:
    """Return random numbers of the input's type: normally distributed, or zeros and ones.

    batch, free: the sizes of the first and the spatial axes that are free, if no `size` is given.
    """
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
