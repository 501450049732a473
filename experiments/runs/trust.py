"""Checks whether a run's result can be trusted: its keys, their agreement, its hashes.

A result of this training loop has all required keys of `Result`. Results of other loops may lack some
of them: only what is there is checked. Results from before there were hashes have none.
"""

import base64
import binascii
import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.runs.result_keys import (
    AMOUNT,
    COUNT,
    FILLED_TEXT,
    NUMBER,
    TABLE,
    Copied,
    CurvePoint,
    Kind,
    Result,
    is_whole,
    keys_of,
)
from experiments.settings.identity import LOOP

RESULT, CURVE_POINT, COPIED = keys_of(Result), keys_of(CurvePoint), keys_of(Copied)
# A result of whatever loop has these.
ALWAYS = {name: RESULT.required[name] for name in ("experiment", "config")}


class DamagedError(ValueError):
    """Says what is wrong with a result, in a few words."""


def require(result: Any, run: str) -> None:
    """Raise DamagedError unless this can be the result of the run of that name."""
    if not isinstance(result, dict):
        raise DamagedError("it is not a run's result")
    of_this_loop = result.get("loop") == LOOP
    _check(result, ALWAYS, needed=True)
    _check(result, RESULT.required, needed=of_this_loop)
    _check(result, RESULT.optional, needed=False)
    if result.get("run", run) != run:
        raise DamagedError(f"it is of the run {result['run']}, and lies in the folder of another")
    for part in ("data", "recipe"):
        _check(result["config"], {part: TABLE}, needed=True, place="config.")
        _check(result["config"][part], {"name": FILLED_TEXT}, needed=True, place=f"config.{part}.")
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
    """Check the points of the curves, what was noted of gradients, and copied weights."""
    for key in ("epochs", "rho"):
        for number, row in enumerate(result.get(key, [])):
            _check({"": row}, {"": TABLE}, needed=True, place=f"{key}[{number}]")
    for number, row in enumerate(result.get("epochs", [])):
        place = f"epochs[{number}]."
        _check(row, CURVE_POINT.required, needed=True, place=place)
        _check(row, CURVE_POINT.optional, needed=False, place=place)
        for layer, found in row.get("distance", {}).items():
            _check({layer: found}, {layer: TABLE}, needed=True, place=f"{place}distance.")
            parts = dict.fromkeys(("zeros", "copies", "norm"), AMOUNT)
            _check(found, parts, needed=True, place=f"{place}distance.{layer}.")
    for number, row in enumerate(result.get("rho", [])):
        kinds = {"step": COUNT, **{layer: NUMBER for layer in row if layer != "step"}}
        _check(row, kinds, needed=True, place=f"rho[{number}].")
    for numbers, found in result.get("copied", {}).items():
        _check({numbers: found}, {numbers: TABLE}, needed=True, place="copied.")
        _check(found, COPIED.required, needed=True, place=f"copied.{numbers}.")


def _check_agreement(result: dict[str, Any]) -> None:
    """Check that parts of a result which say the same thing agree."""
    correct, images = result["test_correct"], result["test_images"]
    if not math.isclose(result["test_accuracy"] * images, correct, abs_tol=1e-6):
        raise DamagedError(
            f"test_accuracy is {result['test_accuracy']}, but {correct} of {images} are right"
        )
    if _count_right(result["test_bits"], images) != correct:
        raise DamagedError(f"test_bits have another sum than test_correct, {correct}")
    if not result["epochs"]:
        raise DamagedError("it has no epochs")
    _check(result["config"], {"model": TABLE}, needed=True, place="config.")
    held = result["config"]["data"].get("validation_size")
    for row in result["epochs"]:
        if is_whole(held) and row.get("validation_correct", 0) > held:
            raise DamagedError(f"of {held} validation images {row['validation_correct']} are right")
    needed = ("float32", "float64") if result["weights"] == "copy" else ()
    _check(result["copied"], dict.fromkeys(needed, TABLE), needed=True, place="copied.")
    _check(result["versions"], {"torch": FILLED_TEXT.or_none()}, needed=True, place="versions.")


def _count_right(packed: str, images: int) -> int:
    """Return how many of the images are classified rightly, by the packed bits."""
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


def hashed(result: Result, weights: str) -> Result:
    """Return the result with the SHA-256 of its weights' file, of its bits and of all that it says.

    weights: the SHA-256 of weights.pt.
    """
    bits = hashlib.sha256(_octets(result["test_bits"])).hexdigest()
    whole = {**result, "sha256": {"weights": weights, "bits": bits}}
    plain: Result = json.loads(json.dumps(whole))
    plain["sha256"]["result"] = _hash_of(plain)
    return plain


def _hash_of(result: Mapping[str, Any]) -> str:
    """Hash everything in the result but this hash itself, however the file is spaced."""
    parts = {name: value for name, value in result["sha256"].items() if name != "result"}
    text = json.dumps({**result, "sha256": parts}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _check_hashes(result: dict[str, Any]) -> None:
    """Check the hashes for which the weights are not needed."""
    if "sha256" not in result:
        if "run_seconds" in result:  # which came with them
            raise DamagedError("it has no sha256")
        return
    _check(
        result["sha256"],
        dict.fromkeys(("weights", "bits", "result"), FILLED_TEXT),
        needed=True,
        place="sha256.",
    )
    bits = hashlib.sha256(_octets(result.get("test_bits", ""))).hexdigest()
    if bits != result["sha256"]["bits"]:
        raise DamagedError("the SHA-256 of test_bits is another one")
    if _hash_of(result) != result["sha256"]["result"]:
        raise DamagedError("its SHA-256 is another one: something in it has been changed")
