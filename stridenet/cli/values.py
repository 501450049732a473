"""What is typed behind an option: sizes, numbers, JSON. Errors are click's, which name the option."""

import difflib
import json
import math
import re
from typing import Any

import click


class Choice(click.Choice):
    """One of some words, the nearest of which is told to who mistypes it."""

    def get_invalid_choice_message(self, value: Any, ctx: click.Context | None) -> str:
        """Say what there is, and what may have been meant."""
        near = difflib.get_close_matches(str(value), [*map(str, self.choices)], n=1)
        meant = f"; did you mean {near[0]}?" if near else ""
        return f"{value!r} is not one of {', '.join(map(str, self.choices))}{meant}"


class Numbers(click.ParamType):
    """One positive whole number, or one an axis: 2, or 2,1."""

    name = "N[,N…]"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | tuple[int, ...]:
        """Make a number, or a tuple of them."""
        numbers = _numbers(value)
        if numbers is None:
            self.fail(f"{value} is not {self.name}: whole numbers above 0", param, ctx)
        return numbers[0] if len(numbers) == 1 else numbers


class Size(click.ParamType):
    """A size without its batch: 3,224,224, or 3x224x224 as it is printed."""

    name = "C,H,W"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """Make a tuple of numbers."""
        numbers = _numbers(value)
        if numbers is None:
            self.fail(f"{value} is no size of one image, as in 3,224,224", param, ctx)
        return numbers


class NamedSize(click.ParamType):
    """The size of an input, with its batch: images=1,3,224,224."""

    name = "INPUT=N,C,H,W"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, tuple[int, ...]]:
        """Make a name and a tuple of numbers."""
        name, _, size = str(value).rpartition("=")
        numbers = _numbers(size)
        if not name or numbers is None:
            self.fail(f"{value} is not an input's size, as in images=1,3,224,224", param, ctx)
        return name, numbers


class JsonObject(click.ParamType):
    """Arguments by their names: {"num_classes": 10}."""

    name = "JSON"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> dict[str, Any]:
        """Make a dictionary."""
        try:
            found = json.loads(value)
        except ValueError as error:
            found, why = None, f" ({error})"
        else:
            why = ""
        if not isinstance(found, dict):
            self.fail(
                f"{value} is no JSON object{why}; write '{{\"num_classes\": 10}}', in quotes",
                param,
                ctx,
            )
        return found


class Tolerance(click.ParamType):
    """A number from 0 on."""

    name = "NUMBER"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Make a number."""
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not 0 <= number < math.inf:
            self.fail(f"{value} is no number from 0 on", param, ctx)
        return number


def _numbers(text: Any) -> tuple[int, ...] | None:
    """Positive whole numbers with commas or x between them; None if it is anything else."""
    parts = re.split("[,x]", str(text))
    if not all(re.fullmatch(r" *[0-9]{1,9} *", part) for part in parts):
        return None
    numbers = tuple(map(int, parts))
    return numbers if min(numbers) > 0 else None
