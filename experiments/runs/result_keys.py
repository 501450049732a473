"""The keys of result.json, each with its type and with what its value must be.

`Result` is the schema: what writes, reads and checks results takes its keys from here.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import (
    Annotated,
    Any,
    NamedTuple,
    NotRequired,
    Required,
    TypedDict,
    get_origin,
    get_type_hints,
)

from experiments.settings.schema import STARTING_WEIGHTS
from stridenet.options import SHARING

LARGEST = 2**63  # whole numbers in a result are below it


@dataclass(frozen=True)
class Kind:
    """Says what a value must be: in words, and as a test."""

    words: str
    holds: Callable[[Any], bool]

    def or_none(self) -> "Kind":
        """Return the kind that null belongs to, too."""
        return Kind(f"{self.words} or null", lambda value: value is None or self.holds(value))


def is_whole(value: Any) -> bool:
    """Tell whether the value is a whole number that a result can have."""
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < LARGEST


def _is_number(value: Any) -> bool:
    return is_whole(value) or (isinstance(value, float) and math.isfinite(value))


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
COUNT = Kind("a whole number from 0 on", lambda value: is_whole(value) and value >= 0)
POSITIVE = Kind("a whole number from 1 on", lambda value: is_whole(value) and value >= 1)
SEED = Kind("a whole number below 2**32", lambda value: is_whole(value) and 0 <= value < 2**32)
TRUTH = Kind("true or false", lambda value: isinstance(value, bool))
FILLED_TEXT = Kind("a text", lambda value: isinstance(value, str) and bool(value))
ANY_TEXT = Kind("a text", lambda value: isinstance(value, str))
TABLE = Kind("a table of keys", lambda value: isinstance(value, dict))
LIST = Kind("a list", lambda value: isinstance(value, list))


class RunIdentity(TypedDict):
    """Says which run it is."""

    run: Annotated[str, FILLED_TEXT]  # the name of its folder
    loop: Annotated[int, POSITIVE]
    experiment: Annotated[str, FILLED_TEXT]
    network: Annotated[str, _one_of("strided", "unit_stride", "pooling")]
    weights: Annotated[str, _one_of(*STARTING_WEIGHTS, "file")]
    sharing: Annotated[str, _one_of(*SHARING)]
    variant: Annotated[str, ANY_TEXT]
    seed: Annotated[int, SEED]
    learning_rate: Annotated[float | None, RATE.or_none()]


class Copied(TypedDict):
    """Compares a twin that has a strided network's weights with that network, over test images."""

    agreeing: Annotated[int, COUNT]
    images: Annotated[int, POSITIVE]
    largest_difference: Annotated[float | None, AMOUNT.or_none()]


class CurvePoint(TypedDict, total=False):
    """Describes one point of a run's curves."""

    epoch: Required[Annotated[float, AMOUNT]]
    training_loss: Annotated[float | None, AMOUNT.or_none()]
    validation_loss: Annotated[float | None, AMOUNT.or_none()]
    validation_correct: Annotated[int, COUNT]
    validation_accuracy: Annotated[float, SHARE]
    diverged: Annotated[bool, TRUTH]
    distance: Annotated[dict[str, dict[str, float]], TABLE]  # of a twin from the tied, by layer


class Fit(TypedDict, total=False):
    """Says how well the training images are learned; a run that was not trained has no fit."""

    fit_accuracy: Annotated[float, SHARE]
    fit_loss: Annotated[float | None, AMOUNT.or_none()]
    fit_images: Annotated[int, POSITIVE]


class Measurements(Fit):
    """Says what the run measured."""

    diverged: Annotated[bool, TRUTH]
    test_accuracy: Annotated[float, SHARE]
    test_correct: Annotated[int, COUNT]
    test_images: Annotated[int, POSITIVE]
    test_loss: Annotated[float | None, AMOUNT.or_none()]
    test_bits: Annotated[str, FILLED_TEXT]  # results.pack_bits
    training_wall_seconds: Annotated[float | None, AMOUNT.or_none()]
    training_cpu_seconds: Annotated[float | None, AMOUNT.or_none()]
    rearrangement_seconds: Annotated[float | None, AMOUNT.or_none()]
    copied: Annotated[dict[str, Copied], TABLE]  # by number format
    epochs: Annotated[list[CurvePoint], LIST]
    rho: Annotated[list[dict[str, Any]], LIST]  # a step, and the ratio of each layer's gradients


class Circumstances(TypedDict):
    """Says where, when and with what code the run was done."""

    device: Annotated[str, FILLED_TEXT]
    device_name: Annotated[str, ANY_TEXT]
    threads: Annotated[int, POSITIVE]
    jobs_at_once: Annotated[int | None, POSITIVE.or_none()]
    versions: Annotated[dict[str, str | None], TABLE]
    git_commit: Annotated[str | None, FILLED_TEXT.or_none()]
    date: Annotated[str, Kind("a date", _is_date)]


class Result(RunIdentity, Measurements, Circumstances):
    """Describes result.json. Results from before there were hashes lack the last two keys."""

    config: Annotated[dict[str, Any], TABLE]
    run_seconds: NotRequired[Annotated[float, AMOUNT]]
    sha256: NotRequired[Annotated[dict[str, str], TABLE]]


class Keys(NamedTuple):
    """Holds the keys of a schema, each with the kind of its value."""

    required: dict[str, Kind]
    optional: dict[str, Kind]


def keys_of(schema: Any) -> Keys:
    """Return the keys of one of the TypedDicts above."""
    kinds = {}
    for name, hint in get_type_hints(schema, include_extras=True).items():
        annotated = hint.__args__[0] if get_origin(hint) in (Required, NotRequired) else hint
        kinds[name] = annotated.__metadata__[0]
    required = {name: kind for name, kind in kinds.items() if name in schema.__required_keys__}
    return Keys(required, {name: kinds[name] for name in kinds if name not in required})
