"""Rearranges images for a twin on a host without torch, with NumPy and the standard library alone.

This file imports nothing of stridenet, so that it can be copied next to the .onnx file and its
.layout.json. On the device:

    layout = read_layout("lenet-unit_stride.layout.json")
    session.run(None, {"input": rearrange(layout, images)})

The layout also says in words what is done to an image, for a host that runs no Python.
"""

import json
import math
import os
from collections.abc import Sequence
from os import PathLike
from typing import Any

import numpy as np

MOST_VALUES = 2**30  # of one image in its phase form: 4 GiB in float32
REQUIRED = {"name", "image_size", "factor", "padding"}
OPTIONAL = {"dtype", "phase_form_size", "einops", "steps"}


def read_layout(path: str | PathLike[str]) -> dict[str, Any]:
    """Return the layout that an export has put next to its .onnx file.

    Raises OSError where it cannot be read, and ValueError where it is no layout that an export writes.
    """
    if os.path.exists(path) and not os.path.isfile(path):  # a pipe, say, might never end
        raise ValueError(
            f"{os.fspath(path)} is no file; name the .layout.json beside the .onnx file"
        )
    try:
        with open(path, encoding="utf-8") as file:
            layout = json.load(file, parse_constant=_refuse)
        check_layout(layout)
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{os.fspath(path)} is no layout ({reason}); export the network again with rearrange=host"
        ) from error
    return layout


def check_layout(layout: Any) -> None:
    """Raise ValueError, in one line, unless these are a layout's keys, types and possible numbers."""
    if not isinstance(layout, dict) or not layout.keys() <= {"format", "inputs"}:
        raise ValueError("a layout is {format: …, inputs: […]} and nothing else")
    if not isinstance(layout.get("format", ""), str):
        raise ValueError(f"format={_shortened(layout['format'])} is no text")
    inputs = layout.get("inputs")
    if not isinstance(inputs, list) or not inputs:
        raise ValueError(f"inputs={_shortened(inputs)} is no list of one input or more")
    for number, entry in enumerate(inputs):
        _check_input(f"inputs[{number}]", entry)
    names = [entry["name"] for entry in inputs]
    if len({*names}) < len(names):
        raise ValueError(f"two inputs have one name, in {_shortened(names)}")


def _check_input(place: str, entry: Any) -> None:
    if not isinstance(entry, dict) or not REQUIRED <= entry.keys() <= REQUIRED | OPTIONAL:
        found = sorted(map(str, entry)) if isinstance(entry, dict) else entry
        raise ValueError(
            f"{place} must have {', '.join(sorted(REQUIRED))}, and has {_shortened(found)}"
        )
    for key in ("name", "einops"):
        if not isinstance(entry.get(key, "…"), str) or not entry.get(key, "…"):
            raise ValueError(f"{place}.{key}={_shortened(entry[key])} is no text")
    steps = entry.get("steps", [])
    if not isinstance(steps, list) or not all(isinstance(step, str) for step in steps):
        raise ValueError(f"{place}.steps={_shortened(steps)} is no list of texts")
    if entry.get("dtype", "float32") != "float32":
        raise ValueError(f"{place}.dtype={_shortened(entry['dtype'])} is not float32")
    size = _whole_numbers(f"{place}.image_size", entry["image_size"], 1)
    if len(size) < 2:
        raise ValueError(f"{place}.image_size={_shortened(size)} lacks channels or an axis")
    form = _phase_form(place, size, entry["factor"], entry["padding"])
    if "phase_form_size" in entry:
        _whole_numbers(f"{place}.phase_form_size", entry["phase_form_size"], 1)
        if list(entry["phase_form_size"]) != form:
            raise ValueError(
                f"{place}.phase_form_size={_shortened(entry['phase_form_size'])}, but size, factor and "
                f"padding make {form}"
            )


def _phase_form(place: str, size: Sequence[int], factor: Any, padding: Any) -> list[int]:
    """Return the size of one image (channels, extents…) in its phase form.

    Raises ValueError where factor and padding cannot be those of an image of this size.
    """
    _whole_numbers(f"{place}.factor", factor, 1)
    if not isinstance(padding, (list, tuple)):
        raise ValueError(f"{place}.padding={_shortened(padding)} is no list of [before, after]")
    for pair in padding:
        if len(_whole_numbers(f"{place}.padding", pair, 0)) != 2:
            raise ValueError(f"{place}.padding={_shortened(padding)} is no list of [before, after]")
    if not len(size) - 1 == len(factor) == len(padding):
        raise ValueError(
            f"{place}: {len(size) - 1} axes have {len(factor)} factors and {len(padding)} paddings"
        )
    blocks = [
        -(-(before + n + after) // f)
        for n, f, (before, after) in zip(size[1:], factor, padding, strict=True)
    ]
    form = [size[0] * math.prod(factor), *blocks]
    if math.prod(form) > MOST_VALUES:
        raise ValueError(
            f"{place}: an image would have {_shortened(math.prod(form))} values, {MOST_VALUES} at most"
        )
    return form


def _whole_numbers(place: str, values: Any, least: int) -> Sequence[int]:
    """Return the values. Raises ValueError unless they are whole numbers, `least` to MOST_VALUES."""
    if not isinstance(values, (list, tuple)) or not values:
        raise ValueError(f"{place}={_shortened(values)} is no list of whole numbers")
    for value in values:
        if (  # bool is a subclass of int, and JSON's true would count as 1
            isinstance(value, bool)
            or not isinstance(value, (int, np.integer))
            or not least <= value <= MOST_VALUES
        ):
            raise ValueError(
                f"{place} has {_shortened(value)}, which is no whole number from {least} to "
                f"{MOST_VALUES}"
            )
    return values


def _shortened(value: Any) -> str:
    """Return a value as text for a message, cut where it is long."""
    if isinstance(value, int) and abs(value) > 10**40:  # Python refuses to print very long numbers
        return "a number of more than 40 digits"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _refuse(name: str) -> float:
    raise ValueError(f"{name} is no number")


def rearrange(layout: dict[str, Any], *images: np.ndarray) -> Any:
    """Return what `twin.rearrange(*images)` gives, bit for bit: the phase form of each input.

    images: one array (n, c, h, w) for each of the layout's inputs, in their order; 1-D and 3-D alike.
    Returns an array (n, c·f_h·f_w, ceil(h/f_h), ceil(w/f_w)), where h and w count the padding; for
    several inputs a tuple of arrays. The type of the numbers stays. Raises ValueError on another size,
    and on a layout whose numbers cannot be.
    """
    check_layout(layout)
    inputs = layout["inputs"]
    if len(images) != len(inputs):
        names = ", ".join(entry["name"] for entry in inputs)
        raise ValueError(f"{len(images)} arrays were given, but the network's inputs are: {names}")
    for entry, array in zip(inputs, images, strict=True):
        if not isinstance(array, np.ndarray):
            raise ValueError(f"{entry['name']} is a {type(array).__name__}; give a NumPy array")
        if list(array.shape[1:]) != list(entry["image_size"]):
            raise ValueError(
                f"{entry['name']} has the size {list(array.shape)}; this network takes a batch of "
                f"{list(entry['image_size'])}"
            )
    phases = tuple(
        space_to_depth(array, entry["factor"], entry["padding"])
        for entry, array in zip(inputs, images, strict=True)
    )
    return phases if len(phases) > 1 else phases[0]


def space_to_depth(
    images: np.ndarray, factor: Sequence[int], padding: Sequence[Sequence[int]]
) -> np.ndarray:
    """Return the phase form of images (n, c, h, w), with zeros put around them first.

    At the end of each axis, further zeros make its size a multiple of the factor. Channel
    (c·f_h + p)·f_w + q of the result holds rows p, p + f_h, … and columns q, q + f_w, …

    >>> space_to_depth(np.arange(5.0).reshape(1, 1, 5), factor=[2], padding=[[1, 0]])
    array([[[0., 1., 3.],
            [0., 2., 4.]]])

    Raises ValueError where these cannot be the numbers of such images.
    """
    _phase_form("space_to_depth", images.shape[1:], factor, padding)
    padded = [
        before + n + after for n, (before, after) in zip(images.shape[2:], padding, strict=True)
    ]
    blocks = [-(-n // f) for n, f in zip(padded, factor, strict=True)]
    zeros = [
        (before, after + b * f - n)
        for (before, after), n, f, b in zip(padding, padded, factor, blocks, strict=True)
    ]
    images = np.pad(images, [(0, 0), (0, 0), *zeros])
    count, channels = images.shape[:2]
    # Each spatial axis becomes (blocks, factor); then the factors, which are the phases, come before
    # all blocks, so that the last reshape merges them with the channels.
    split = images.reshape(
        count, channels, *(extent for pair in zip(blocks, factor, strict=True) for extent in pair)
    )
    phase_axes, block_axes = range(3, split.ndim, 2), range(2, split.ndim, 2)
    phases = split.transpose(0, 1, *phase_axes, *block_axes)
    phases = phases.reshape(count, channels * int(np.prod(factor)), *blocks)
    return np.ascontiguousarray(phases)  # a runtime may hand it to a device as plain memory
