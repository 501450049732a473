"""Options of the commands, made from the signatures and docstrings of the library's functions."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import click

from stridenet.cli.signatures import Argument, arguments_of
from stridenet.cli.values import Choice, NamedSize, Numbers, Tolerance
from stridenet.errors import InputError


@dataclass(frozen=True)
class Part:
    """Options of a command that are arguments of one function, and go to it."""

    title: str  # of what they are, in the help
    purpose: str  # the same within a sentence
    function: str  # "module:name"
    provided: frozenset[str]  # arguments that the command gives itself
    documented: str = ""  # another function, which tells of those that this one does not tell of

    @property
    def arguments(self) -> dict[str, Argument]:
        """Those that are options, by their names."""
        every = arguments_of(self.function, self.documented)
        return {name: a for name, a in every.items() if name not in self.provided}


FILES = "stridenet.onnx.files.api:"
LAYERS = "stridenet.by_layer.conversion:convert_layers"
WHOLE = "stridenet.elimination:eliminate_stride"
_ONNX = ("An ONNX file", "ONNX files")
_FIRST = (
    "A PyTorch model, layer by layer (--theorem 1)",
    "PyTorch models converted layer by layer (--theorem 1)",
)
_SECOND = (
    "A PyTorch model as a whole (--theorem 2)",
    "PyTorch models converted as a whole (--theorem 2)",
)
_OF_LAYERS = frozenset({"model", "example_inputs", "inplace"})
_OF_WHOLE = frozenset({"model", "input_size"})

PLAN = (
    Part(*_ONNX, f"{FILES}plan_file", frozenset({"source"}), f"{FILES}convert_file"),
    Part(*_FIRST, "stridenet.by_layer.plan:plan_layers", _OF_LAYERS, LAYERS),
    Part(*_SECOND, "stridenet.elimination:plan_elimination", _OF_WHOLE, WHOLE),
)
CONVERT = (
    Part(*_ONNX, f"{FILES}convert_file", frozenset({"source", "target"})),
    Part(*_FIRST, LAYERS, _OF_LAYERS),
    Part(*_SECOND, WHOLE, _OF_WHOLE),
    Part(
        "A PyTorch model into an ONNX file",
        "ONNX files of PyTorch models",
        "stridenet.onnx.export:export_onnx",
        frozenset({"network", "path", "input_size", "example_inputs"}),
        f"{FILES}convert_file",
    ),
)
VERIFY = (
    Part(
        "Two ONNX files",
        "two ONNX files",
        f"{FILES}verify_files",
        frozenset({"original", "converted"}),
    ),
    Part(
        "Two ONNX files with --benchmark",
        "two ONNX files with --benchmark",
        f"{FILES}benchmark_files",
        frozenset({"original", "converted", "sizes"}),  # those of verify_files
    ),
    # What is made is compared by verify, so that it needs no check before.
    Part(*_FIRST, LAYERS, _OF_LAYERS | {"check"}),
    Part(*_SECOND, WHOLE, _OF_WHOLE | {"check"}),
)


def option_of(argument: Argument, others: Iterable[Argument] = ()) -> click.Option:
    """The option that an argument is; others: arguments of the same name, of other functions."""
    name = flag(argument.name)
    kind = argument.annotation.removesuffix(" | None")
    if kind == "bool":
        return click.Option([f"{name}/--no-{name[2:]}"], default=argument.default)
    many = {"Sequence[str]": click.STRING, "Mapping[str, Sequence[int]]": NamedSize()}
    if kind in many:
        metavar = "NAME" if many[kind] is click.STRING else None
        return click.Option([name], type=many[kind], multiple=True, metavar=metavar)
    choices = dict.fromkeys(c for each in (argument, *others) for c in each.choices)
    if choices:
        return click.Option([name], type=Choice([*choices]), metavar=name[2:].upper())
    types: dict[str, click.ParamType] = {
        "int": click.IntRange(min=1),
        "float": Tolerance(),
        "int | Sequence[int]": Numbers(),
    }
    metavar = "N" if kind == "int" else None
    return click.Option([name], type=types[kind], metavar=metavar)


def flag(name: str) -> str:
    """How an argument's name is typed."""
    return f"--{name.replace('_', '-')}"


def options_of(parts: Iterable[Part]) -> list[click.Option]:
    """An option for each name among the arguments of the parts."""
    named: dict[str, list[Argument]] = {}
    for part in parts:
        for name, argument in part.arguments.items():
            named.setdefault(name, []).append(argument)
    return [option_of(first, others) for first, *others in named.values()]


def given(ctx: click.Context, name: str) -> bool:
    """Whether an option was typed."""
    return ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE


def arguments_for(ctx: click.Context, part: Part) -> dict[str, Any]:
    """What was typed of a part's options, as keyword arguments of its function."""
    names = [name for name in part.arguments if given(ctx, name)]
    return {name: _plain(ctx.params[name], part.arguments[name]) for name in names}


def _plain(value: Any, argument: Argument) -> Any:
    if argument.annotation.startswith("Mapping"):
        return dict(value)
    return list(value) if argument.annotation.startswith("Sequence") else value


def refuse_others(ctx: click.Context, allowed: Iterable[str], parts: Mapping[str, str]) -> None:
    """Raise InputError for an option that was typed and would do nothing.

    allowed: names of options that do something here.
    parts: what each of the others is for, by its name.
    """
    allowed = set(allowed)
    for name, told in parts.items():
        if name not in allowed and given(ctx, name):
            raise InputError(f"{flag(name)} has no effect here: it is for {told}")


def purposes(parts: Iterable[Part]) -> dict[str, str]:
    """What each option is for, in words."""
    told: dict[str, list[str]] = {}
    for part in parts:
        for name in part.arguments:
            told.setdefault(name, []).append(part.purpose)
    return {name: ", and for ".join(dict.fromkeys(purposes)) for name, purposes in told.items()}
