"""Reports of convert_file, verify_files and benchmark_files."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles

from stridenet.onnx.files.comparing import FileComparison
from stridenet.onnx.files.proof import NodeProof
from stridenet.onnx.strides import StridedNode


@dataclass(frozen=True)
class ConversionReport:
    """Says what convert_file has written, and what its proof found."""

    path: Path
    data: Path | None  # the file beside it with large weights
    layout: Path | None  # describes the rearrangement that is left to the host
    converted: tuple[str, ...]  # names of nodes, or of their outputs where they have none
    kept: tuple[StridedNode, ...]  # with strides above one, which were not asked to go
    operators: dict[str, int]  # how many nodes of each, the most frequent first
    proofs: tuple[NodeProof, ...]  # one a converted node; () without the check
    comparison: FileComparison | None  # None without the check

    def __str__(self) -> str:
        lines = [
            f"{self.path}: {', '.join(f'{n} {name}' for name, n in self.operators.items())}",
            f"converted: {len(self.converted)} nodes",
            f"strides above 1: {'; '.join(map(str, self.kept)) or 'none'}",
        ]
        if self.proofs:
            lines.append(_proven(self.proofs))
        if self.comparison is not None:
            lines.append(str(self.comparison))
        lines += [f"{path}: large weights" for path in (self.data,) if path]
        lines += [f"{path}: how the host rearranges the images" for path in (self.layout,) if path]
        return "\n".join(lines)


def _proven(proofs: tuple[NodeProof, ...]) -> str:
    kinds = Counter(proof.operator for proof in proofs)
    counted = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    return (
        f"each converted node equal to the bit, on integers and an impulse in each phase: {counted}"
    )


@dataclass(frozen=True)
class FilesReport:
    """Says whether a converted file is equal to the original, and which strides it has left."""

    proofs: tuple[NodeProof, ...]  # of nodes that stand for strided ones, equal to the bit
    unequal: tuple[str, ...]  # nodes that are not equal, and what is wrong with them
    unmatched: tuple[str, ...]  # the original's nodes that the other file does not have as they are
    strided: tuple[StridedNode, ...]  # strides above one in the converted file
    comparison: FileComparison

    @property
    def passed(self) -> bool:
        """Tell whether the files are equal.

        They are if every node is either the original's, byte by byte, or proven to stand for it. Where
        another tool has changed nodes, the outputs decide: none may differ by ten times what a change
        of 1e-7 of the input does.
        """
        if self.unequal:
            return False
        if self.unmatched:
            return not self.comparison.reason and not self.comparison.is_large
        return True

    def __str__(self) -> str:
        lines = [_proven(self.proofs)] if self.proofs else []
        lines += [f"NOT equal: {each}" for each in self.unequal]
        if self.unmatched:
            shown = ", ".join(self.unmatched[:5]) + (", …" if self.unmatched[5:] else "")
            lines.append(f"{len(self.unmatched)} nodes are not as in the original: {shown}")
        lines.append(str(self.comparison))
        lines.append(f"strides above 1: {'; '.join(map(str, self.strided)) or 'none'}")
        lines.append("equal" if self.passed else "NOT equal")
        return "\n".join(lines)


@dataclass(frozen=True)
class FileTimes:
    """Holds the times of both files in onnxruntime, in milliseconds, one for each round."""

    original: tuple[float, ...]
    converted: tuple[float, ...]
    size: str  # of the inputs
    threads: int

    @property
    def ratio(self) -> float:
        """Return how many times as long the converted file takes, by the medians."""
        return median(self.converted) / median(self.original)

    def __str__(self) -> str:
        one, other = _spread(self.original), _spread(self.converted)
        return (
            f"onnxruntime, {self.size}, {self.threads} threads, median of {len(self.original)} "
            f"(quartiles): {one} ms -> {other} ms ({self.ratio:.2f} times)"
        )


def _spread(times: tuple[float, ...]) -> str:
    """Return the median, with the quartiles in brackets, as text."""
    low, middle, high = quantiles(times, n=4, method="inclusive") if times[1:] else times * 3
    return f"{middle:.3g} ({low:.3g}–{high:.3g})"
