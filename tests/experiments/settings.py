"""Settings to begin from, and to change, for tests of settings."""

import copy
from collections.abc import Callable
from typing import Any

Composed = Callable[..., Any]


def changed(settings: Any, key: str, value: Any) -> Any:
    """A copy of dataclasses or dictionaries with a dotted key set to another value."""
    settings = copy.deepcopy(settings)
    *parents, last = key.split(".")
    holder = settings
    for parent in parents:
        holder = holder[parent] if isinstance(holder, dict) else getattr(holder, parent)
    if isinstance(holder, dict):
        holder[last] = value
    else:
        assert hasattr(holder, last)
        setattr(holder, last, value)
    return settings
