"""Options of the commands, made from the signatures and docstrings of the library's functions."""

import json
import math
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from stridenet.cli.signatures import Argument, arguments_of
from stridenet.errors import InputError
from stridenet.onnx.files.options import did_you_mean

OPTION_WIDTH = 24  # columns of the help in which an option is named beside its text


@dataclass(frozen=True)
class Part:
    """Describes the options of a command that are arguments of one function of the library."""

    subject: str  # what these options are for
    function: str  # "module:name"
    provided: frozenset[str]  # arguments that the command gives by itself, so that no option does
    documented: str = ""  # another function, whose docstring has arguments that this one's lacks

    @property
    def arguments(self) -> dict[str, Argument]:
        """Return the function's arguments that are options, by their names."""
        every = arguments_of(self.function, self.documented)
        return {name: each for name, each in every.items() if name not in self.provided}

    def typed(self, ctx: click.Context) -> dict[str, Any]:
        """Return the options of this part that were typed, as keyword arguments of its function."""
        return {name: value for name, value in typed(ctx).items() if name in self.arguments}


_FILES = "stridenet.onnx.files.api:"
_LAYERS = "stridenet.by_layer.conversion:convert_layers"
_WHOLE = "stridenet.elimination:eliminate_stride"
_BY_LAYER = "PyTorch models converted layer by layer (--theorem 1)"
_AS_A_WHOLE = "PyTorch models converted as a whole (--theorem 2)"
_OF_LAYERS = frozenset({"model", "example_inputs", "inplace"})
_OF_WHOLE = frozenset({"model", "input_size"})
_COMPARED = frozenset({"original", "converted"})

# The parts of every command: for ONNX files, Theorem 1, Theorem 2, and in some cases one more.
PLAN = (
    Part("ONNX files", f"{_FILES}plan_file", frozenset({"source"}), f"{_FILES}convert_file"),
    Part(_BY_LAYER, "stridenet.by_layer.plan:plan_layers", _OF_LAYERS, _LAYERS),
    Part(_AS_A_WHOLE, "stridenet.elimination:plan_elimination", _OF_WHOLE, _WHOLE),
)
CONVERT = (
    Part("ONNX files", f"{_FILES}convert_file", frozenset({"source", "target"})),
    Part(_BY_LAYER, _LAYERS, _OF_LAYERS),
    Part(_AS_A_WHOLE, _WHOLE, _OF_WHOLE),
    Part(
        "ONNX files of PyTorch models",
        "stridenet.onnx.export:export_onnx",
        frozenset({"network", "path", "input_size", "example_inputs"}),
        f"{_FILES}convert_file",
    ),
)
# verify compares the models that it converts, so that the conversion need not check them before.
# It gives benchmark_files the sizes that verify_files has.
VERIFY = (
    Part("two ONNX files", f"{_FILES}verify_files", _COMPARED),
    Part(_BY_LAYER, _LAYERS, _OF_LAYERS | {"check"}),
    Part(_AS_A_WHOLE, _WHOLE, _OF_WHOLE | {"check"}),
    Part("two ONNX files with --benchmark", f"{_FILES}benchmark_files", _COMPARED | {"sizes"}),
)


class Command(click.Command):
    """Is a command with the options of some functions, which its help lists by function."""

    def __init__(self, name: str, parts: Sequence[Part], params: list[Any], **more: Any) -> None:
        super().__init__(name, params=[*params, *_model_options(), *options_of(parts)], **more)
        self.parts = parts

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the command's own options, then those of each part with the function's own text."""
        options = [each for each in self.get_params(ctx) if isinstance(each, click.Option)]
        records = {str(each.name): each.get_help_record(ctx) for each in options}
        of_parts = {name for part in self.parts for name in part.arguments}
        own = [record for name, record in records.items() if record and name not in of_parts]
        with formatter.section("Options"):
            formatter.write_dl(own, OPTION_WIDTH)
        for part in self.parts:
            rows = [
                (record[0], _description(argument))
                for name, argument in part.arguments.items()
                if (record := records[name])
            ]
            with formatter.section(f"For {part.subject}"):
                formatter.write_dl(rows, OPTION_WIDTH)


def _description(argument: Argument) -> str:
    """Return the text of an argument, with its choices and its default."""
    text = re.sub(r"`(\w+)`", lambda match: flag(match[1]), argument.text)
    if argument.choices and not all(f'"{choice}"' in text for choice in argument.choices):
        text = f"{' | '.join(argument.choices)}. {text}"
    if argument.default is True:
        return f"{text} Done by default."
    return text if argument.default in (None, False) else f"{text} Default: {argument.default}."


def _model_options() -> list[click.Option]:
    """Return the options for PyTorch models that are no arguments of the library's functions."""
    return [
        click.Option(
            ["--input-size"], type=image_size, multiple=True, metavar="C,H,W",
            help="Size of one image of a PyTorch model, without the batch, as in 3,224,224; once for "
            "each input. The model is run on random numbers of this size.",
        ),
        click.Option(
            ["--theorem"], type=Choice(["1", "2"]), default="1", metavar="1|2", show_default=True,
            help="1 converts each layer of a PyTorch model by itself, 2 converts it as a whole.",
        ),
        click.Option(
            ["--args"], type=json_object, metavar="JSON",
            help="Arguments of the function that makes the network, as in '{\"num_classes\": 10}'.",
        ),
        click.Option(
            ["--weights"], metavar="FILE",
            help="A file with the network's state_dict, loaded with weights_only=True. By default the "
            "weights are those that the function gives the network.",
        ),
        click.Option(
            ["--seed"], type=click.IntRange(0, 2**32 - 1), default=0, metavar="N", show_default=True,
            help="Seed of the random weights and inputs.",
        ),
    ]  # fmt: skip


OF_MODELS = frozenset({"input_size", "theorem", "args", "weights", "seed"})


def options_of(parts: Iterable[Part]) -> list[click.Option]:
    """Return one option for each name among the arguments of the parts.

    Raises KeyError for an argument of a type that has no option in TYPES.
    """
    same_name: dict[str, list[Argument]] = {}
    for part in parts:
        for name, argument in part.arguments.items():
            same_name.setdefault(name, []).append(argument)
    return [_option(name, arguments) for name, arguments in same_name.items()]


def _option(name: str, arguments: Sequence[Argument]) -> click.Option:
    """Return the option for the arguments of this name, which takes the choices of all of them."""
    choices = dict.fromkeys(choice for each in arguments for choice in each.choices)
    if choices:
        metavar = name.upper().replace("_", "-")
        return click.Option([flag(name)], type=Choice([*choices]), metavar=metavar)
    annotation = arguments[0].annotation.removesuffix(" | None")
    if annotation == "bool":
        negative = flag(f"no_{name}")
        return click.Option([f"{flag(name)}/{negative}"], default=arguments[0].default)
    return click.Option([flag(name)], **TYPES[annotation])


def flag(name: str) -> str:
    """Return an argument's name as it is typed."""
    return f"--{name.replace('_', '-')}"


def typed(ctx: click.Context) -> dict[str, Any]:
    """Return the values of the options that were typed, without those that have a default."""
    source = click.core.ParameterSource.COMMANDLINE
    return {n: value for n, value in ctx.params.items() if ctx.get_parameter_source(n) is source}


def refuse_others(ctx: click.Context, allowed: Collection[str], file: Path | None = None) -> None:
    """Raise InputError for an option that was typed and would do nothing.

    allowed: names of the functions' arguments that have an effect here.
    file: the ONNX file that the command is about; None if it is about a PyTorch model.
    """
    assert isinstance(ctx.command, Command)
    for name in typed(ctx):
        if file is not None and name in OF_MODELS:
            raise InputError(f"{flag(name)} has no effect on {file}: it is for PyTorch models")
        subjects = [part.subject for part in ctx.command.parts if name in part.arguments]
        if subjects and name not in allowed:
            raise InputError(
                f"{flag(name)} has no effect here: it is for {', and for '.join(subjects)}"
            )


# The types of values, whose errors click completes with the name of the option


class Choice(click.Choice):
    """Takes one of some words; its error names the word that is nearest to a mistyped one."""

    def get_invalid_choice_message(self, value: Any, ctx: click.Context | None) -> str:
        """Say which words there are, and which may have been meant."""
        words = [*map(str, self.choices)]
        return f"{value!r} is not one of {', '.join(words)}{did_you_mean(str(value), words)}"


def number_or_numbers(text: str) -> int | tuple[int, ...]:
    """Read one positive whole number, or one for each axis: 2, or 2,1."""
    numbers = _positive_numbers(text)
    if not numbers:
        raise click.BadParameter(f"{text} is not N[,N…]: whole numbers above 0")
    return numbers if numbers[1:] else numbers[0]


def image_size(text: str) -> tuple[int, ...]:
    """Read a size without its batch: 3,224,224, or 3x224x224 as it is printed."""
    numbers = _positive_numbers(text)
    if not numbers:
        raise click.BadParameter(f"{text} is no size of one image, as in 3,224,224")
    return numbers


def size_of_input(text: str) -> tuple[str, tuple[int, ...]]:
    """Read the name of an input and its size with the batch: images=1,3,224,224."""
    name, _, size = text.rpartition("=")
    numbers = _positive_numbers(size)
    if not name or not numbers:
        raise click.BadParameter(f"{text} is not an input's size, as in images=1,3,224,224")
    return name, numbers


def _positive_numbers(text: str) -> tuple[int, ...]:
    """Read positive whole numbers with commas or x between them; () if the text is anything else."""
    parts = re.split("[,x]", text)
    if not all(re.fullmatch(r" *[0-9]{1,9} *", part) for part in parts):
        return ()
    numbers = tuple(map(int, parts))
    return numbers if min(numbers) > 0 else ()


def json_object(text: str) -> dict[str, Any]:
    """Read arguments by their names: {"num_classes": 10}."""
    why = ""
    try:
        found = json.loads(text)
    except ValueError as error:
        found, why = None, f" ({error})"
    if not isinstance(found, dict):
        cure = "write '{\"num_classes\": 10}', in quotes"
        raise click.BadParameter(f"{text} is no JSON object{why}; {cure}")
    return found


def tolerance(text: str) -> float:
    """Read a finite number that is not negative."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise click.BadParameter(f"{text} is no number from 0 on")
    return number


# How click takes the arguments, by the types that their functions' signatures have.
TYPES: dict[str, dict[str, Any]] = {
    "int": {"type": click.IntRange(min=1), "metavar": "N"},
    "float": {"type": tolerance, "metavar": "NUMBER"},
    "int | Sequence[int]": {"type": number_or_numbers, "metavar": "N[,N…]"},
    "Sequence[str]": {"multiple": True, "metavar": "NAME"},
    "Mapping[str, Sequence[int]]": {
        "type": size_of_input,
        "multiple": True,
        "metavar": "INPUT=N,C,H,W",
        "callback": lambda _ctx, _option, sizes: dict(sizes),
    },
}
