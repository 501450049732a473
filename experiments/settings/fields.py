"""A setting as a field of a dataclass, and the checks of values that several settings share."""

import copy
import math
import os
from collections.abc import Collection, Iterable
from dataclasses import field, fields, is_dataclass
from pathlib import Path
from typing import Any

from stridenet.errors import InputError

MOST = 10**9  # for a number whose place sets no limit of its own; float32 holds its square
MOST_SIZE = 65_536  # of an image, a kernel, a stride: along one axis
PUBLISHED = "outputs/reference"  # in the repository
NO_VALUE = "{} has no value yet: give it, or make the search that its comment in conf/ names"


def setting(default: Any, meaning: str, choices: Collection[Any] = (), most: float = MOST) -> Any:
    """Return a field of a dataclass, with what `--help` says of it.

    choices: the values that it may have; most: the largest number that it may be.
    """
    metadata = {"meaning": meaning, "choices": choices, "most": most}
    return field(default_factory=lambda: copy.deepcopy(default), metadata=metadata)


def check_choices(config: Any, place: str = "") -> None:
    """Raise InputError unless each setting that has choices, here and below, is one of them."""
    for one in fields(config):
        key, value = f"{place}{one.name}", getattr(config, one.name)
        if is_dataclass(value):
            check_choices(value, f"{key}.")
        elif (choices := one.metadata.get("choices")) and value is not None:
            one_of(key, value, choices)


def check_numbers(config: Any, place: str = "") -> None:
    """Raise InputError for a number that is too large, here or below; turn -0.0 into 0.0."""
    for one in fields(config):
        key, value = f"{place}{one.name}", getattr(config, one.name)
        if is_dataclass(value):
            check_numbers(value, f"{key}.")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            most = one.metadata["most"]
            if not abs(value) <= most:  # not a number fails too
                raise InputError(f"{key}={value} must be at most {most:,}, and finite")
            setattr(config, one.name, value + type(value)(0))


def check_path(key: str, path: str) -> str:
    """Return the path of a setting.

    Raises InputError where no file or folder can have that name.
    """
    if not path.strip() or "\0" in path:
        raise InputError(f"{key}={path!r} names no file or folder; name one, or leave {key}= out")
    return path


def check_published(key: str, folder: str | None) -> None:
    """Raise InputError where published results are to be read from a folder that is not there.

    The repository's own may be missing, where a command is called from another folder.
    """
    if folder not in (None, PUBLISHED) and not Path(folder).is_dir():
        raise InputError(f"{key}={folder} is no folder; published results are in {PUBLISHED}")


def check_seed(seed: int) -> None:
    if not 0 <= seed < 2**32:
        raise InputError(f"seed={seed} must be from 0 to {2**32 - 1}")


def check_threads(threads: int) -> None:
    cores = os.cpu_count() or 1
    if not 1 <= threads <= cores:
        raise InputError(f"threads={threads} must be from 1 to {cores}, the cores there are")


def at_least(key: str, value: float, least: int) -> None:
    if not least <= value < math.inf:  # not a number fails too
        raise InputError(f"{key}={value} must be at least {least}, and finite")


def one_of(key: str, value: Any, known: Iterable[Any]) -> None:
    if value not in known:
        raise InputError(f"{key}={value} is unknown; take one of {', '.join(map(str, known))}")


def as_names(key: str, value: Any) -> list[str] | None:
    """Return one name or several as a list; None stays None.

    Raises InputError for anything else.
    """
    names = [value] if isinstance(value, str) else value
    if names == []:
        raise InputError(f"{key}=[] names nothing; name one at least, or leave {key}= out for all")
    if names is None or (isinstance(names, list) and all(map(_is_filled_text, names))):
        return names
    raise InputError(f"{key}={value} must be a name, or a list of names as in [one,other]")


def _is_filled_text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def as_rates(given: Any, networks: Collection[str]) -> float | dict[str, float]:
    """Return one positive number, or one for each of some networks. Raises InputError otherwise."""
    rates = given if isinstance(given, dict) else {"": given}
    for name, rate in rates.items():
        key = f"recipe.learning_rate{name and '.'}{name}"
        if name not in ("", *networks):
            raise InputError(f"{key} is of no network; a rate is for one of {', '.join(networks)}")
        if rate is None:
            raise InputError(NO_VALUE.format(key))
        if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 < rate <= MOST:
            raise InputError(f"{key}={rate} must be a number above 0, and at most {MOST:,}")
    if not rates:
        raise InputError("recipe.learning_rate={} has no rate for any network")
    numbers = {name: float(rate) for name, rate in sorted(rates.items())}
    return numbers if isinstance(given, dict) else numbers[""]


def is_size(value: Any) -> bool:
    """Tell whether these are positive whole numbers, one for each axis."""
    return isinstance(value, list) and value != [] and all(map(_is_positive, value))


def _is_positive(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= MOST


def per_axis(key: str, value: Any, least: int) -> list[int]:
    """Return one number for both axes, or [h, w], as a list of two. Raises InputError otherwise."""
    axes = value if isinstance(value, list) else [value, value]
    whole = all(isinstance(extent, int) and not isinstance(extent, bool) for extent in axes)
    if len(axes) != 2 or not whole or min(axes) < least or max(axes) > MOST_SIZE:
        raise InputError(
            f"{key}={value} must be one whole number or [h, w], at least {least}, at most {MOST_SIZE:,}"
        )
    return axes


def require_convolution(name: str, convolutions: Collection[str]) -> None:
    """Raise InputError unless the layer is one of the network's convolutions."""
    if name not in convolutions:
        cure = f"take one of {', '.join(convolutions)}" if convolutions else "the network has none"
        raise InputError(f"layer={name} is no convolution; {cure}")
