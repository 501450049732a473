"""The command line before Hydra reads it: options among settings, and settings that say nothing."""

import difflib
import re
from collections.abc import Sequence
from math import prod
from typing import Any

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.types import RangeSweep
from omegaconf import DictConfig, OmegaConf

from stridenet.errors import InputError

MOST_RUNS = 100_000  # of one sweep
OPTION_LINE = re.compile(r"--?[A-Za-z]")


def in_order(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with -m before all settings: among them Hydra takes it for their end.

    Raises InputError for an option that Hydra does not know.
    """
    known = {name for action in get_args_parser()._actions for name in action.option_strings}
    for argument in arguments:
        name = argument.partition("=")[0]
        if OPTION_LINE.match(argument) and name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            meant = f"did you mean {near[0]}?" if near else "settings are written KEY=VALUE"
            raise InputError(f"{name} is no option; {meant} --help lists all that there is")
    flags = [argument for argument in arguments if argument in ("-m", "--multirun")]
    return [*flags[:1], *(argument for argument in arguments if argument not in flags)]


def require_effect(overrides: Sequence[str], settings: DictConfig | None = None) -> None:
    """Raise InputError for a setting that Hydra would take without a word, and without its effect.

    settings: what Hydra made of these overrides. It takes any number but 0 for true.
    """
    for override in overrides:
        key, _, value = override.partition("=")
        now = None if settings is None else OmegaConf.select(settings, key, default=None)
        if isinstance(now, bool) and re.fullmatch(r"[\d.]*", value):
            raise InputError(f"{override} must be true or false")
        if isinstance(now, str) and now != value and re.fullmatch(r"[\w.+-]+", value):
            raise InputError(
                f"{override} would become {now}; in quotes it stays: \"{key}='{value}'\""
            )
        if value.strip() == "{}":
            raise InputError(
                f"{override} changes nothing: Hydra merges dictionaries; ~{key}.NAME removes an entry"
            )
        if value.strip() == "???":
            raise InputError(f"{override} gives no value; leave it out, or give one")


def require_runs(overrides: Sequence[Any]) -> None:
    """Raise InputError unless these make a sweep that can be done, each run of it once.

    overrides: as Hydra's parser returns them. Ranges are counted before they are written out.
    """
    counts = []
    for override in overrides:
        if not override.is_sweep_override():
            continue
        key, value = override.key_or_group, override.value()
        if not override.is_discrete_sweep():
            raise InputError(
                f"{override.input_line}: a sweep takes values, as in {key}=1,2, or a range"
            )
        count = _length(value) if isinstance(value, RangeSweep) else None
        if count is None or count <= MOST_RUNS:
            values = list(override.sweep_string_iterator())
            count = len(values)
            twice = [value for value in values if values.count(value) > 1] if count < 1000 else []
            if twice:
                raise InputError(f"{override.input_line}: {twice[0]} is given twice")
        counts.append(count)
    if prod(counts) > MOST_RUNS:
        raise InputError(f"that makes {prod(counts):,} runs; a sweep has at most {MOST_RUNS:,}")


def _length(span: RangeSweep) -> int:
    start, stop, step = span.start or 0, span.stop, span.step
    if not step or stop is None:
        raise InputError(f"range({start},{stop},{step}) has no end: give its step another value")
    return max(0, int(-((start - stop) // step)))
