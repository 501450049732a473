"""Tells a user about settings: all of them for `--help`, and the nearest one to a mistyped one."""

import difflib
import json
import re
import textwrap
from collections.abc import Collection, Iterator, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.errors import MissingConfigException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    OmegaConfBaseException,
    ValidationError,
)

from experiments.settings.schema import LayerConfig
from stridenet.errors import InputError

WIDTH = 80  # of a terminal
MEANINGS = 34  # the column in which they begin
PURPOSES = {
    "model": "which network",
    "data": "which images",
    "recipe": "how it is trained",
    "arm": "a network with its sharing and rates, as docs/protocol.md names them",
    "size": "how many training images, with the rates that were chosen for them",
    "experiment": "a sweep of docs/protocol.md; it changes all of the above",
}
asked: str | None = None  # the section that `--help SECTION` asks for
SEVERAL_SEEDS = "not a whole number; several are given as seed=range(0,4) or seed=0,1 with -m"


def without_section(arguments: Sequence[str]) -> list[str]:
    """Return the arguments without the word behind --help, which is kept as the section asked for."""
    global asked
    rest, asked = list(arguments), None
    for option in ("--help", "-h"):
        place = rest.index(option) + 1 if option in rest else len(rest)
        if place < len(rest) and re.fullmatch(r"\w+", rest[place]):
            asked = rest.pop(place)
    return rest


def settings_text(settings: DictConfig) -> str:
    """Return the groups and settings of a command, with values, meanings and choices.

    Settings that belong together, as those of the recipe, are listed with their values alone, or alone
    with all that is said of them where they were asked for (`--help recipe`).

    settings: as Hydra composed them, the type of whose root is the command's dataclass. Raises
    InputError if a section was asked for that is not there.
    """
    loader = GlobalHydra.instance().config_loader()
    groups = [
        _line(
            f"{group}={_as_typed(option)}",
            f"{PURPOSES[group]}: {' | '.join(loader.get_group_options(group))}",
        )
        for group, option in reversed(settings.hydra.runtime.choices.items())
        if not group.startswith("hydra/")
    ]
    schema: Any = OmegaConf.get_type(settings)
    sections = {"Groups (GROUP=OPTION)": groups} if groups else {}
    parts = {one.name: one.type for one in fields(schema) if is_dataclass(one.type)}
    if asked:
        if asked not in parts:
            raise InputError(f"--help {asked}: there is {', '.join(parts) or 'no part to ask for'}")
        sections = {asked.capitalize(): [*_lines(parts[asked], settings[asked], f"{asked}.")]}
    else:
        for name, part in parts.items():
            title = f"{name.capitalize()} (--help {name} says what each is)"
            sections[title] = _values(part, settings[name], f"{name}.")
        others = [*_lines(schema, settings, "")]
        sections["Other settings" if groups else "Settings (KEY=VALUE)"] = others
    return "\n\n".join("\n".join([f"{title}:", *lines]) for title, lines in sections.items())


def _values(schema: Any, settings: DictConfig, place: str) -> list[str]:
    """Return the settings of a dataclass with their values alone, as many in a line as it takes."""
    lines = [line for line in _lines(schema, settings, place) if not line.startswith(" " * 4)]
    typed = [line.split()[0] for line in lines]
    return textwrap.wrap(
        "  ".join(typed), WIDTH, initial_indent="  ", subsequent_indent="  ",
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


def _lines(schema: Any, settings: DictConfig, place: str) -> Iterator[str]:
    """Yield the settings of a dataclass but for the dataclasses in it."""
    for one in fields(schema):
        if is_dataclass(one.type):
            continue
        key, value = f"{place}{one.name}", settings.get(one.name)
        choices = " | ".join(map(str, one.metadata["choices"]))
        meaning = ": ".join(filter(None, [choices, one.metadata["meaning"]]))
        if key == "model.layers":
            yield from _layers(value, meaning)
        elif isinstance(value, DictConfig):
            (first, *more) = (f"{key}.{name!s}={_as_typed(value[name])}" for name in value)
            yield from (_line(first, meaning), *(_line(other, "") for other in more))
        else:
            left_open = OmegaConf.is_missing(settings, one.name)
            yield _line(key if left_open else f"{key}={_as_typed(value)}", meaning)


def _layers(layers: DictConfig, meaning: str) -> Iterator[str]:
    """Yield the layers with what is not a layer's default, and each setting that they have."""
    defaults = OmegaConf.structured(LayerConfig)
    yield _line("model.layers", meaning)
    for name, layer in layers.items():
        chosen = [f"{k}={_as_typed(layer[k])}" for k in layer if layer[k] != defaults.get(k)]
        yield _line(f"  {name!s}", " ".join(chosen))
    yield from _lines(LayerConfig, defaults, "model.layers.LAYER.")


def _line(setting: str, meaning: str) -> str:
    """Return a setting with its meaning beside it, or below it where the setting is long."""
    blank = " " * MEANINGS
    if len(setting) + 4 > MEANINGS:
        long = textwrap.wrap(setting, WIDTH, initial_indent="  ", subsequent_indent="    ")
        return "\n".join([*long, *textwrap.wrap(meaning, WIDTH, initial_indent=blank,
                                                subsequent_indent=blank)])  # fmt: skip
    beside = f"  {setting}".ljust(MEANINGS)
    return textwrap.fill(meaning, WIDTH, initial_indent=beside, subsequent_indent=blank)


def _as_typed(value: Any) -> str:
    """Return a value as it is typed on the command line."""
    if isinstance(value, ListConfig):
        return f"[{','.join(map(_as_typed, value))}]"
    return value if isinstance(value, str) else json.dumps(value)


def advice(error: BaseException, place: str = "") -> str | None:
    """Return one line on what a mistyped setting or option may have meant.

    Returns None for other errors.

    place: in all settings, where those stand that the error is of.
    """
    composing = type(error).__module__.startswith("hydra")  # which names the error that it met
    cause = error.__cause__ if composing and error.__cause__ else error
    if isinstance(cause, (ConfigAttributeError, ConfigKeyError)):
        return _unknown_setting(cause, place)
    if isinstance(cause, ValidationError) and cause.full_key == "seed":
        value = re.search(r"[Vv]alue '(.*?)'", str(cause))
        return f"seed: '{value[1] if value else 'null'}' is {SEVERAL_SEEDS}"
    if isinstance(error, MissingConfigException) and "submitit_" in str(error.missing_cfg_file):
        return "hydra/launcher=slurm needs the extra slurm: pip install '.[slurm]'"
    if match := re.fullmatch(r"Error merging override (.*)", str(error).splitlines()[0]):
        return _wrong_type(match[1], str(cause))
    if "LexerNoViableAltException" in str(error):
        line = str(error).partition(": ")[2].splitlines()[0]
        return f"{line} cannot be read; put what is no plain word in quotes: \"KEY='VALUE'\""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, option = error.missing_cfg_file.rpartition("/")
        return f"{group}={option} is unknown; {_nearest(option, error.options, f'{group}=')}"
    if re.search(r"override '\+?'.*No match", str(error)):
        return "a setting is written KEY=VALUE, and one has no KEY; --help lists them"
    if match := re.search(r"override '(.*)'.*No match in the defaults list", str(error)):
        return f"this command takes no {match[1]}; its groups and settings are listed by --help"
    if match := re.search(r"(?:Ambiguous value for argument|Sweep parameters) '(.*)'", str(error)):
        return f"{match[1]}: several values make a sweep, which needs -m"
    return None


def _wrong_type(override: str, reason: str) -> str | None:
    """Return what the value of an override has to be."""
    wanted = {"Integer": "a whole number", "Float": "a number", "Boolean": "true or false"}
    if match := re.search(r"could not be converted to (\w+)", reason):
        return f"{override} must be {wanted.get(match[1], match[1])}"
    if "is not Optional" in reason:
        return f"{override} must have a value"
    return None


def _unknown_setting(error: OmegaConfBaseException, place: str) -> str | None:
    """Return what a key that is not there may have meant."""
    if not isinstance(error.parent_node, DictConfig) or error.full_key is None:
        return None
    key, full = str(error.key), ".".join(filter(None, [place, str(error.full_key)]))
    before = full.removesuffix(key)
    known = [str(name) for name in error.parent_node if name != "hydra"]
    if before == "model.layers.":
        adding = f"'+{full}={{kernel: 3, channels: 20}}' adds one"
        return f"{full} is unknown; the layers are {', '.join(known)}; {adding}"
    if re.fullmatch(r"model\.layers\.\w+\.", before) and key in LayerConfig.__annotations__:
        return f"{full} is not written there; +{full}=… adds it"
    return f"{full} is unknown; {_nearest(key, known, before)}"


def _nearest(word: str, known: Collection[str], before: str) -> str:
    """Return what was meant, by its initials or its letters; or all that there is."""
    near = [name for name in known if word.lower() == "".join(re.findall(r"(?:^|_)(.)", name))]
    near = near or difflib.get_close_matches(word.lower(), known, n=1)
    return f"did you mean {before}{near[0]}?" if near else f"take one of {', '.join(known)}"
