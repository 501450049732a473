"""Reads the arguments of the library's functions from their source: types, defaults, docstrings.

Importing the functions would import torch or onnx, for which `--help` should not wait.
"""

import ast
import functools
import importlib.util
import inspect
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# A paragraph of a docstring that begins with names of arguments, with its continuation lines.
PARAGRAPH = re.compile(r"^(\w+(?:, \w+)*): (.+(?:\n +.+)*)", re.MULTILINE)


@dataclass(frozen=True)
class Argument:
    """Describes one argument of a function."""

    name: str
    annotation: str  # as the source has it
    choices: tuple[str, ...]  # the strings of a Literal; () for any other type
    default: Any  # None if the argument has none
    text: str  # its paragraph in the docstring; "" if it has none


def arguments_of(function: str, documented: str = "") -> dict[str, Argument]:
    """Return the arguments of a function by their names, in their order.

    function: module and name, as in "stridenet.by_layer.conversion:convert_layers".
    documented: another function, whose docstring has the arguments that this one's lacks.
    """
    module, name = function.split(":")
    node = _definition(module, name)
    texts = {**(_paragraphs(documented) if documented else {}), **_paragraphs(function)}
    positional = [*node.args.posonlyargs, *node.args.args]
    required = [None] * (len(positional) - len(node.args.defaults))
    defaults = [*required, *node.args.defaults, *node.args.kw_defaults]
    return {
        each.arg: Argument(
            each.arg,
            ast.unparse(each.annotation) if each.annotation else "",
            _choices(module, each.annotation),
            ast.literal_eval(_resolved(module, default) or ast.Constant(None)),
            texts.get(each.arg, ""),
        )
        for each, default in zip([*positional, *node.args.kwonlyargs], defaults, strict=True)
    }


def _paragraphs(function: str) -> dict[str, str]:
    """Return what a docstring says of each argument, but not where it points to another function."""
    docstring = inspect.cleandoc(ast.get_docstring(_definition(*function.split(":"))) or "")
    return {
        name: f"{text[0].upper()}{' '.join(text.split())[1:]}"
        for names, text in PARAGRAPH.findall(docstring)
        for name in names.split(", ")
        if not re.match(r"as of \w+\.", text)
    }


@functools.cache
def _statements(module: str) -> list[ast.stmt]:
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    return ast.parse(Path(spec.origin).read_text(encoding="utf-8")).body


def _definition(module: str, name: str) -> ast.FunctionDef:
    functions = (each for each in _statements(module) if isinstance(each, ast.FunctionDef))
    return next(function for function in functions if function.name == name)


def _choices(module: str, annotation: ast.expr | None) -> tuple[str, ...]:
    """Return the strings of a Literal."""
    value = _resolved(module, annotation)
    if isinstance(value, ast.Subscript) and ast.unparse(value.value) == "Literal":
        strings = ast.literal_eval(value.slice)
        return strings if isinstance(strings, tuple) else (strings,)
    return ()


def _resolved(module: str, value: ast.expr | None) -> ast.expr | None:
    """Follow a name to the value that it is assigned, in this module or one of the library's others.

    Return None for a name that is assigned nowhere in the library.
    """
    if not isinstance(value, ast.Name):
        return value
    for each in _statements(module):
        if isinstance(each, ast.Assign) and any(ast.unparse(t) == value.id for t in each.targets):
            return _resolved(module, each.value)
        if isinstance(each, ast.ImportFrom) and str(each.module).startswith("stridenet"):
            for alias in each.names:
                if value.id == (alias.asname or alias.name):
                    return _resolved(str(each.module), ast.Name(alias.name))
    return None
