"""Two files node by node."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stridenet.onnx.files.proof import NodeProof


@dataclass(frozen=True)
class Match:
    """What of the original is in the other file."""

    proofs: tuple[NodeProof, ...] = ()
    unequal: tuple[str, ...] = ()
    unmatched: tuple[str, ...] = ()


def match_files(protos: Sequence[Any], folders: Sequence[Path]) -> Match:
    """Look for each node of the first file in the second."""
    raise NotImplementedError
