"""A twin's input on a host without torch: NumPy and the standard library, nothing else.

A file of its own, so that it can be copied next to the .onnx file and its .layout.json. On the device:

    layout = read_layout("lenet-unit_stride.layout.json")
    session.run(None, {"input": rearrange(layout, images)})

What it does to an image is also in the layout in words, for a host that runs no Python.
"""

import json
from collections.abc import Sequence
from os import PathLike
from typing import Any

import numpy as np


def read_layout(path: str | PathLike[str]) -> dict[str, Any]:
    """The layout that an export has put next to its .onnx file."""
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def rearrange(layout: dict[str, Any], *images: np.ndarray) -> Any:
    """What `twin.rearrange(*images)` gives, bit for bit: the phase form of each input.

    images: one array (n, c, h, w) for each of the layout's inputs, in their order; 1-D and 3-D alike.
    Returns an array (n, c·f_h·f_w, ceil(h/f_h), ceil(w/f_w)), where h and w count the padding; for
    several inputs a tuple of arrays. The type of the numbers stays. Raises ValueError on another size.
    """
    inputs = layout["inputs"]
    if len(images) != len(inputs):
        names = ", ".join(entry["name"] for entry in inputs)
        raise ValueError(f"{len(images)} arrays were given, but the network's inputs are: {names}")
    for entry, array in zip(inputs, images, strict=True):
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
    """Images (n, c, h, w) with zeros around them, then at the end up to a multiple of the factor, as
    their phase form: channel (c·f_h + p)·f_w + q holds rows p, p + f_h, … and columns q, q + f_w, …

    >>> space_to_depth(np.arange(5.0).reshape(1, 1, 5), factor=[2], padding=[[1, 0]])
    array([[[0., 1., 3.],
            [0., 2., 4.]]])
    """
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
    split = images.reshape(
        count, channels, *(extent for pair in zip(blocks, factor, strict=True) for extent in pair)
    )
    phase_axes, block_axes = range(3, split.ndim, 2), range(2, split.ndim, 2)
    phases = split.transpose(0, 1, *phase_axes, *block_axes)
    phases = phases.reshape(count, channels * int(np.prod(factor)), *blocks)
    return np.ascontiguousarray(phases)  # where it is handed to a device as plain memory
