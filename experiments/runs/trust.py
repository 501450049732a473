"""Whether a run's result can be trusted: its keys, types and ranges, that its parts agree, its hashes.

A result of this training loop has all keys of `RESULT` and `ABOUT`. What results of other loops lack is
their own affair: of them only what is there is looked at. Those from before hashes have none.
"""

import base64
import binascii
import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np

from experiments.settings.identity import LOOP
from experiments.settings.schema import STARTING_WEIGHTS
from stridenet.options import SHARING

LARGEST = 2**63  # what no whole number reaches


@dataclass(frozen=True)
class Kind:
    """What a value must be: in words, and as a test."""

    words: str
    holds: Callable[[Any], bool]

    def or_none(self) -> "Kind":
        """The same, or nothing."""
        return Kind(f"{self.words} or null", lambda value: value is None or self.holds(value))


def _is_number(value: Any) -> bool:
    return _is_whole(value) or (isinstance(value, float) and math.isfinite(value))


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < LARGEST


def _is_date(value: Any) -> bool:
    try:
        return isinstance(value, str) and datetime.fromisoformat(value) is not None
    except ValueError:
        return False


def _one_of(*names: str) -> Kind:
    return Kind(f"one of {', '.join(names)}", lambda value: value in names)


NUMBER = Kind("a finite number", _is_number)
AMOUNT = Kind("a finite number from 0 on", lambda value: _is_number(value) and value >= 0)
RATE = Kind("a finite number above 0", lambda value: _is_number(value) and value > 0)
SHARE = Kind("a number from 0 to 1", lambda value: _is_number(value) and 0 <= value <= 1)
WHOLE = Kind("a whole number from 0 on", lambda value: _is_whole(value) and value >= 0)
COUNT = Kind("a whole number from 1 on", lambda value: _is_whole(value) and value >= 1)
SEED = Kind("a whole number below 2**32", lambda value: _is_whole(value) and 0 <= value < 2**32)
TRUTH = Kind("true or false", lambda value: isinstance(value, bool))
TEXT = Kind("a text", lambda value: isinstance(value, str) and bool(value))
ANY_TEXT = Kind("a text", lambda value: isinstance(value, str))
TABLE = Kind("a table of keys", lambda value: isinstance(value, dict))
LIST = Kind("a list", lambda value: isinstance(value, list))

ALWAYS = {"experiment": TEXT, "config": TABLE}  # of a result of whatever loop
RESULT = {
    "run": TEXT,
    "loop": COUNT,
    "network": _one_of("strided", "unit_stride", "pooling"),
    "weights": _one_of(*STARTING_WEIGHTS, "file"),
    "sharing": _one_of(*SHARING),
    "variant": ANY_TEXT,
    "seed": SEED,
    "learning_rate": RATE.or_none(),
    "diverged": TRUTH,
    "test_accuracy": SHARE,
    "test_correct": WHOLE,
    "test_images": COUNT,
    "test_loss": AMOUNT.or_none(),
    "test_bits": TEXT,
    "training_wall_seconds": AMOUNT.or_none(),
    "training_cpu_seconds": AMOUNT.or_none(),
    "rearrangement_seconds": AMOUNT.or_none(),
    "copied": TABLE,
    "epochs": LIST,
    "rho": LIST,
}
ABOUT = {
    "device": TEXT,
    "device_name": ANY_TEXT,
    "threads": COUNT,
    "jobs_at_once": COUNT.or_none(),
    "versions": TABLE,
    "git_commit": TEXT.or_none(),
    "date": Kind("a date", _is_date),
}
WHERE_ASKED = {  # what a run may lack
    "fit_accuracy": SHARE,
    "fit_loss": AMOUNT.or_none(),
    "fit_images": COUNT,
    "run_seconds": AMOUNT,
    "sha256": TABLE,
}
EPOCH = {
    "epoch": AMOUNT,
    "training_loss": AMOUNT.or_none(),
    "validation_loss": AMOUNT.or_none(),
    "validation_correct": WHOLE,
    "validation_accuracy": SHARE,
    "diverged": TRUTH,
    "distance": TABLE,
}
COPIED = {"agreeing": WHOLE, "images": COUNT, "largest_difference": AMOUNT.or_none()}


class DamagedError(ValueError):
    """What is wrong with a result, in a few words."""


def require(result: Any, run: str) -> None:
    """Raise DamagedError unless this can be the result of the run of that name."""
    if not isinstance(result, dict):
        raise DamagedError("it is not a run's result")
    of_this_loop = result.get("loop") == LOOP
    _check(result, ALWAYS, needed=True)
    _check(result, RESULT | ABOUT, needed=of_this_loop)
    _check(result, WHERE_ASKED, needed=False)
    if result.get("run", run) != run:
        raise DamagedError(f"it is of the run {result['run']}, and lies in the folder of another")
    for part in ("data", "recipe"):
        _check(result["config"], {part: TABLE}, needed=True, place="config.")
        _check(result["config"][part], {"name": TEXT}, needed=True, place=f"config.{part}.")
    _check_parts(result)
    if of_this_loop:
        _check_agreement(result)
    _check_hashes(result)


def _check(
    content: Mapping[str, Any], kinds: Mapping[str, Kind], needed: bool, place: str = ""
) -> None:
    for key, kind in kinds.items():
        if key not in content and needed:
            raise DamagedError(f"it has no {place}{key}")
        if key in content and not kind.holds(content[key]):
            value = repr(content[key])
            shown = value if len(value) <= 40 else f"{value[:37]}…"
            raise DamagedError(f"{place}{key} is {shown}, not {kind.words}")


def _check_parts(result: dict[str, Any]) -> None:
    """The rows of the curves, of what was seen of gradients, and of copied weights."""
    for key in ("epochs", "rho"):
        for number, row in enumerate(result.get(key, [])):
            _check({"": row}, {"": TABLE}, needed=True, place=f"{key}[{number}]")
    for number, row in enumerate(result.get("epochs", [])):
        place = f"epochs[{number}]."
        _check(row, {"epoch": AMOUNT}, needed=True, place=place)
        _check(row, EPOCH, needed=False, place=place)
        for layer, found in row.get("distance", {}).items():
            _check({layer: found}, {layer: TABLE}, needed=True, place=f"{place}distance.")
            parts = dict.fromkeys(("zeros", "copies", "norm"), AMOUNT)
            _check(found, parts, needed=True, place=f"{place}distance.{layer}.")
    for number, row in enumerate(result.get("rho", [])):
        kinds = {"step": WHOLE, **{layer: NUMBER for layer in row if layer != "step"}}
        _check(row, kinds, needed=True, place=f"rho[{number}].")
    for numbers, found in result.get("copied", {}).items():
        _check({numbers: found}, {numbers: TABLE}, needed=True, place="copied.")
        _check(found, COPIED, needed=True, place=f"copied.{numbers}.")


def _check_agreement(result: dict[str, Any]) -> None:
    """What several parts of a result say of one thing."""
    correct, images = result["test_correct"], result["test_images"]
    if not math.isclose(result["test_accuracy"] * images, correct, abs_tol=1e-6):
        raise DamagedError(
            f"test_accuracy is {result['test_accuracy']}, but {correct} of {images} are right"
        )
    if _right(result["test_bits"], images) != correct:
        raise DamagedError(f"test_bits have another sum than test_correct, {correct}")
    if not result["epochs"]:
        raise DamagedError("it has no epochs")
    _check(result["config"], {"model": TABLE}, needed=True, place="config.")
    held = result["config"]["data"].get("validation_size")
    for row in result["epochs"]:
        if _is_whole(held) and row.get("validation_correct", 0) > held:
            raise DamagedError(f"of {held} validation images {row['validation_correct']} are right")
    needed = ("float32", "float64") if result["weights"] == "copy" else ()
    _check(result["copied"], dict.fromkeys(needed, TABLE), needed=True, place="copied.")
    _check(result["versions"], {"torch": TEXT.or_none()}, needed=True, place="versions.")


def _right(packed: str, images: int) -> int:
    """How many of so many images the packed bits call right."""
    octets = np.frombuffer(_octets(packed), dtype=np.uint8)
    if len(octets) != -(-images // 8):
        raise DamagedError(f"test_bits are of another number of images than {images}")
    return int(np.unpackbits(octets, count=images).sum())


def _octets(packed: str) -> bytes:
    try:
        return base64.b64decode(packed, validate=True)
    except (binascii.Error, ValueError) as error:
        raise DamagedError(f"test_bits are no base64 ({error})") from error


# Hashes ---------------------------------------------------------------------------------------------


def hashed(result: dict[str, Any], weights: str) -> dict[str, Any]:
    """The result with the SHA-256 of its weights' file, of its bits and of all that it says.

    weights: the SHA-256 of weights.pt.
    """
    bits = hashlib.sha256(_octets(result["test_bits"])).hexdigest()
    plain = json.loads(json.dumps(result | {"sha256": {"weights": weights, "bits": bits}}))
    plain["sha256"]["result"] = _hash_of(plain)
    return plain


def _hash_of(result: dict[str, Any]) -> str:
    """Hash everything in the result but this hash itself, however the file is spaced."""
    parts = {name: value for name, value in result["sha256"].items() if name != "result"}
    text = json.dumps(result | {"sha256": parts}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _check_hashes(result: dict[str, Any]) -> None:
    """Those that can be checked without the weights."""
    if "sha256" not in result:
        if "run_seconds" in result:  # which came with them
            raise DamagedError("it has no sha256")
        return
    _check(
        result["sha256"],
        dict.fromkeys(("weights", "bits", "result"), TEXT),
        needed=True,
        place="sha256.",
    )
    bits = hashlib.sha256(_octets(result.get("test_bits", ""))).hexdigest()
    if bits != result["sha256"]["bits"]:
        raise DamagedError("the SHA-256 of test_bits is another one")
    if _hash_of(result) != result["sha256"]["result"]:
        raise DamagedError("its SHA-256 is another one: something in it has been changed")
