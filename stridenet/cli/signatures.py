"""Arguments of the library's functions as they are written: names, types, defaults, texts.

They are read from the source, as importing the functions would import torch or onnx, for which `--help`
should not wait.
"""

import ast
import functools
import importlib.util
import inspect
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PARAGRAPH = re.compile(r"^(\w+(?:, \w+)*): (.+(?:\n +.+)*)", re.MULTILINE)


@dataclass(frozen=True)
class Argument:
    """One argument of a function."""

    name: str
    annotation: str  # as it is written
    choices: tuple[str, ...]  # of a Literal; () of any other type
    default: Any  # None where there is none
    text: str  # its paragraph in the docstring; "" without one


def arguments_of(function: str, documented: str = "") -> dict[str, Argument]:
    """The arguments of a function, by their names, in their order.

    function: module and name, as in "stridenet.by_layer.conversion:convert_layers".
    documented: another function, whose docstring tells of arguments that the first one's does not.
    """
    module, _, name = function.partition(":")
    node = _function(module, name)
    texts = {**(_texts_of(documented) if documented else {}), **_texts_of(function)}
    listed = [*node.args.posonlyargs, *node.args.args]
    blank = [None] * (len(listed) - len(node.args.defaults))
    pairs = [
        *zip(listed, [*blank, *node.args.defaults], strict=True),
        *zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True),
    ]
    return {
        given.arg: Argument(
            given.arg,
            ast.unparse(given.annotation) if given.annotation else "",
            _choices(module, given.annotation),
            _value(module, default),
            _sentence(texts.get(given.arg, "")),
        )
        for given, default in pairs
    }


def _texts_of(function: str) -> dict[str, str]:
    """Paragraphs of a docstring that begin with names of arguments; not those that point elsewhere."""
    node = _function(*function.split(":"))
    found = PARAGRAPH.findall(inspect.cleandoc(ast.get_docstring(node) or ""))
    return {
        name: " ".join(text.split())
        for names, text in found
        for name in names.split(", ")
        if not re.match(r"as of \w+\.", text)
    }


def _sentence(text: str) -> str:
    return text and text[0].upper() + text[1:]


@functools.cache
def _tree(module: str) -> ast.Module:
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    return ast.parse(Path(spec.origin).read_text(encoding="utf-8"))


def _function(module: str, name: str) -> ast.FunctionDef:
    found = (n for n in _tree(module).body if isinstance(n, ast.FunctionDef) and n.name == name)
    return next(found)


def _choices(module: str, annotation: ast.expr | None) -> tuple[str, ...]:
    """The strings of a Literal, which may be written down under a name, in another module too."""
    if isinstance(annotation, ast.Name):
        place = _assigned(module, annotation.id)
        return _choices(*place) if place else ()
    if isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) == "Literal":
        values = ast.literal_eval(annotation.slice)
        return values if isinstance(values, tuple) else (values,)
    return ()


def _value(module: str, default: ast.expr | None) -> Any:
    if isinstance(default, ast.Name):
        place = _assigned(module, default.id)
        return _value(*place) if place else None
    return None if default is None else ast.literal_eval(default)


def _assigned(module: str, name: str) -> tuple[str, ast.expr] | None:
    """Where a name of a module gets its value, and what it is; None if not in this library."""
    for node in _tree(module).body:
        if isinstance(node, ast.Assign) and any(ast.unparse(t) == name for t in node.targets):
            return module, node.value
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("stridenet"):
            named = next((a for a in node.names if name in (a.asname, a.name)), None)
            if named is not None:
                return _assigned(str(node.module), named.name)
    return None
