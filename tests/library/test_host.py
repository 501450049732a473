"""A host refuses a layout whose numbers cannot be, in one line, and takes what an export writes."""

import copy
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from stridenet import eliminate_stride, host
from stridenet.onnx.exportable import describe_layout
from tests.devices import harmless_device

SIZE = (2, 21, 18)
ABSURD = (0, -1, True, 1.0, math.nan, math.inf, -math.inf, "2", None, [], {}, 2**31, 2**63, 10**30,
          10**5000)  # fmt: skip


def layout() -> dict[str, Any]:
    network = nn.Sequential(nn.Conv2d(2, 3, 5, stride=2, padding=2), nn.Conv2d(3, 2, 3, stride=2))
    return json.loads(json.dumps(describe_layout(eliminate_stride(network, SIZE).plan)))


GOOD = layout()


def refused(path: Path, content: Any) -> str:
    """What is said of a layout, from its file and from memory."""
    path.write_text(content if isinstance(content, str) else dumped(content))
    with pytest.raises(ValueError, match=r"is no layout \(.*; export the network again") as caught:
        host.read_layout(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    return str(caught.value)


def dumped(content: Any) -> str:
    return json.dumps(content, default=str) if not huge(content) else "{}"


def huge(content: Any) -> bool:
    """Tell whether Python would not write it."""
    if isinstance(content, dict):
        return any(map(huge, content.values()))
    if isinstance(content, list):
        return any(map(huge, content))
    return isinstance(content, int) and abs(content) > 10**4000


def with_value(place: tuple[Any, ...], value: Any) -> dict[str, Any]:
    changed = copy.deepcopy(GOOD)
    inner: Any = changed["inputs"][0]
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return changed


def test_what_an_export_writes_is_taken(tmp_path: Path) -> None:
    (tmp_path / "net.layout.json").write_text(json.dumps(GOOD))
    assert host.read_layout(tmp_path / "net.layout.json") == GOOD
    assert host.rearrange(GOOD, np.zeros((3, *SIZE))).shape[0] == 3


@pytest.mark.parametrize("value", ABSURD, ids=range(len(ABSURD)))
@pytest.mark.parametrize(
    "place",
    [
        ("image_size", 0),
        ("image_size", 1),
        ("factor", 1),
        ("padding", 0, 1),
        ("phase_form_size", 0),
    ],
    ids=str,
)
def test_absurd_numbers_are_refused(tmp_path: Path, place: tuple[Any, ...], value: Any) -> None:
    if value == 0 and place[0] == "padding":
        return  # which is none
    changed = with_value(place, value)
    refused(tmp_path / "net.layout.json", changed)
    with pytest.raises(ValueError, match=r"inputs\[0\]") as caught:
        host.rearrange(changed, np.zeros((1, *SIZE), np.float32))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "changes",
    [
        {"image_size": [2, 2**15, 2**15]},
        {"image_size": [2**30, 2**30, 2**30]},
        {"padding": [[2**20, 0], [0, 2**20]]},
        {"factor": [2**16, 2**16]},
    ],
    ids=str,
)
def test_what_would_take_terabytes_is_refused_before_anything_is_allocated(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    changed = {"inputs": [{**GOOD["inputs"][0], **changes}]}
    changed["inputs"][0].pop("phase_form_size")
    told = refused(tmp_path / "net.layout.json", changed)
    assert "values, 1073741824 at most" in told
    with pytest.raises(ValueError, match="at most"):
        host.space_to_depth(np.zeros((1, 1, 4, 4)), [2, 2], [[2**20, 0], [0, 2**20]])


@pytest.mark.parametrize("place", [("image_size", 0), ("factor", 0), ("padding", 0, 0)], ids=str)
@pytest.mark.parametrize("value", [True, 1.0, "1", np.bool_(True)])
def test_what_only_equals_a_whole_number_is_refused(place: tuple[Any, ...], value: Any) -> None:
    ones = {"name": "x", "image_size": [1, 1], "factor": [1], "padding": [[1, 0]]}
    assert host.rearrange({"inputs": [ones]}, np.zeros((1, 1, 1))).shape == (1, 1, 2)
    inner: Any = ones
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    with pytest.raises(ValueError, match="is no whole number from"):
        host.rearrange({"inputs": [ones]}, np.zeros((1, 1, 1)))


WRONG: list[Callable[[dict[str, Any]], Any]] = [
    lambda good: [],
    lambda good: None,
    lambda good: 7,
    lambda good: {},
    lambda good: good | {"inputs": []},
    lambda good: good | {"inputs": {}},
    lambda good: good | {"inputs": ["x"]},
    lambda good: good | {"inputs": good["inputs"] * 2},  # two of one name
    lambda good: good | {"version": 2},
    lambda good: good | {"format": 1},
    *(lambda good, key=key: {"inputs": [{k: v for k, v in good["inputs"][0].items() if k != key}]}
      for key in ("name", "image_size", "factor", "padding")),
    *(lambda good, more=more: {"inputs": [good["inputs"][0] | more]}
      for more in (
          {"stride": 2}, {"name": ""}, {"name": 3}, {"dtype": "float64"}, {"dtype": 1}, {"einops": 1},
          {"steps": "x"}, {"steps": [1]}, {"image_size": 28}, {"image_size": [2]}, {"factor": 4},
          {"factor": [4]}, {"factor": [4, 4, 4]}, {"padding": 0}, {"padding": [0, 0]},
          {"padding": [[0, 0]]}, {"padding": [[0], [0]]}, {"padding": [[0, 0, 0], [0, 0, 0]]},
          {"padding": "0000"}, {"phase_form_size": [1, 1, 1]}, {"phase_form_size": 7},
      )),
]  # fmt: skip


@pytest.mark.parametrize("change", WRONG, ids=range(len(WRONG)))
def test_wrong_types_and_keys_are_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], Any]
) -> None:
    wrong = change(copy.deepcopy(GOOD))
    refused(tmp_path / "net.layout.json", wrong)
    with pytest.raises(ValueError, match=r"layout|inputs|format"):
        host.rearrange(wrong, np.zeros((1, *SIZE), np.float32))


@pytest.mark.parametrize(
    "text", ["", "{", "hello", "NaN", '{"inputs": NaN}', "[" * 10**5, "9" * 5000, "\x00"],
    ids=range(8),
)  # fmt: skip
def test_what_is_no_json_is_refused(tmp_path: Path, text: str) -> None:
    refused(tmp_path / "net.layout.json", text)


def test_what_is_no_text_and_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="is no layout"):
        host.read_layout(tmp_path / "bytes")
    with harmless_device() as device:
        for path in (tmp_path / "pipe", device):
            with pytest.raises(ValueError, match="is no file; name the"):
                host.read_layout(path)
    with pytest.raises(FileNotFoundError):
        host.read_layout(tmp_path / "nothing")


def test_what_is_no_array_is_named() -> None:
    with pytest.raises(ValueError, match="is a list; give a NumPy array"):
        host.rearrange(GOOD, [[1, 2]])
