"""Describes how a host rearranges what an ONNX file reads: in numbers, and the same in words."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def layout_path(path: Path) -> Path:
    """Return where the host's rearrangement is described: NET.layout.json beside NET.onnx."""
    return path.with_suffix(".layout.json")


def layout_of(inputs: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Describe inputs that have name, dtype, image_size, padding, factor and phase_form_size."""
    return {
        "format": "phase form: space-to-depth, channel-major as torch's pixel_unshuffle",
        "inputs": [{**each, **_axis_order(len(each["factor"]))} for each in inputs],
    }


def write_layout(layout: dict[str, Any], path: Path) -> None:
    """Write a layout as stridenet.host.read_layout reads it."""
    path.write_text(json.dumps(layout, indent=2) + "\n", encoding="utf-8")


def _axis_order(axes: int) -> dict[str, Any]:
    """Return the order of values in a phase form, as an einops pattern and in words.

    axes: how many spatial axes there are.
    """
    blocks, factors, phases = (" ".join(f"{x}{axis}" for axis in range(axes)) for x in "ifp")
    split = " ".join(f"(i{axis} f{axis})" for axis in range(axes))
    channel = "c"
    for axis in range(axes):
        channel = f"({channel} * f{axis} + p{axis})"
    positions = ", ".join(f"i{axis} * f{axis} + p{axis}" for axis in range(axes))
    return {
        "einops": f"n c {split} -> n (c {factors}) {blocks}",
        "steps": [
            "put zeros around each image: padding is [before, after] of each spatial axis",
            f"add zeros after the end of each axis up to a multiple of its factor ({factors})",
            f"the phase form's value [n, {channel}, {blocks.replace(' ', ', ')}] is value "
            f"[n, c, {positions}] of that, for each phase ({phases}) from 0 to factor - 1",
            "values lie in row-major order, the last axis contiguous",
        ],
    }
