"""Options are the library's arguments, and --help has their text; it answers at once."""

import importlib
import inspect
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from pkgutil import resolve_name
from typing import get_args

import pytest

from stridenet.cli.app import app
from stridenet.cli.models import FORMS
from stridenet.cli.options import CONVERT, PLAN, VERIFY, Part
from stridenet.cli.signatures import arguments_of
from stridenet.onnx.files import options as of_files
from tests.command import Cli

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = {"plan": PLAN, "convert": CONVERT, "verify": VERIFY}

# What the commands give by themselves: MODEL, OUT, and numbers of a size that was typed.
OF_THE_COMMAND = {
    "plan_file": {"source"},
    "plan_layers": {"model", "example_inputs"},
    "plan_elimination": {"model", "input_size"},
    "convert_file": {"source", "target"},
    "convert_layers": {"model", "example_inputs", "inplace"},
    "eliminate_stride": {"model", "input_size"},
    "export_onnx": {"network", "path", "input_size", "example_inputs"},
    "verify_files": {"original", "converted"},
    "benchmark_files": {"original", "converted", "sizes"},
}
BY_ITSELF = {"verify": {"check"}}  # compares, and needs no check before


@pytest.mark.parametrize("command", COMMANDS)
def test_every_argument_of_the_functions_is_an_option(command: str) -> None:
    """Read their signatures from Python, which the command does not look at."""
    options = {option.name: option for option in app.commands[command].params}
    for part in COMMANDS[command]:
        function = resolve_name(part.function)
        wanted = {*inspect.signature(function).parameters} - OF_THE_COMMAND[function.__name__]
        wanted -= BY_ITSELF.get(command, set())
        assert wanted
        assert wanted <= {*options}, f"{command} lacks arguments of {function.__name__}"
        assert wanted == {*part.arguments}
        for name in wanted:
            assert options[name].opts == [f"--{name.replace('_', '-')}"]


@pytest.mark.parametrize("part", [p for parts in COMMANDS.values() for p in parts])
def test_defaults_choices_and_texts_are_those_of_the_functions(part: Part) -> None:
    function = resolve_name(part.function)
    parameters = inspect.signature(function).parameters
    texts = " ".join(
        " ".join((resolve_name(each).__doc__ or "").split())
        for each in filter(None, (part.function, part.documented))
    )
    for name, argument in part.arguments.items():
        default = parameters[name].default
        assert argument.default == (None if default is inspect.Parameter.empty else default)
        annotation = parameters[name].annotation
        if isinstance(annotation, str):
            annotation = getattr(importlib.import_module(function.__module__), annotation)
        words = [each for each in get_args(annotation) if isinstance(each, str)]
        assert [*argument.choices] == words
        assert len(argument.text) > 10
        assert argument.text[1:] in texts


def test_a_new_argument_is_an_option_and_one_of_an_unknown_type_is_no_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stridenet.cli.options import options_of

    (tmp_path / "gains.py").write_text(
        "LEAST = 3\n\ndef gained(model, *, least: int = LEAST, only: bool = False):\n"
        '    """Do.\n\n    least: how many,\n        at least.\n    only: no more.\n    """\n\n'
        "def unknown(model, odd: complex = 1j):\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    arguments = arguments_of("gains:gained")
    assert (arguments["least"].default, arguments["least"].text) == (3, "How many, at least.")
    part = Part("a subject", "gains:gained", frozenset({"model"}))
    assert [each.opts[0] for each in options_of([part])] == ["--least", "--only"]
    with pytest.raises(KeyError, match="complex"):
        options_of([Part("", "gains:unknown", frozenset({"model"}))])


def test_literals_are_found_under_their_names() -> None:
    arguments = arguments_of("stridenet.onnx.files.api:convert_file")
    assert arguments["rearrange"].choices == get_args(of_files.Rearrange)
    assert arguments["pooling"].choices == ()


# Help


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help_has_examples_that_are_taken_and_fits_80_columns(name: str, cli: Cli) -> None:
    said = cli(*filter(None, [name]), "--help")
    assert (said.code, said.err) == (0, "")
    text, _, options = said.out.partition("Options:")
    long = [line for line in said.out.splitlines() if len(line) > 80]
    assert not [line for line in long if not line.startswith("  stridenet ")]
    examples = re.findall(r"^  stridenet (\w+) .*", text, re.MULTILINE)
    assert len(examples) > 3
    assert {*examples} <= {*COMMANDS}
    assert "--help" in options
    if name:
        described = re.findall(r"^  (?:-o, )?(--[\w-]+)", options, re.MULTILINE)
        assert {*described} == {p.opts[-1] for p in app.commands[name].params
                                if p.opts[0].startswith("-")} | {"--help"}  # fmt: skip


def test_bare_it_shows_help_and_the_version_is_the_librarys(cli: Cli) -> None:
    assert cli().out == cli("--help").out
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert cli("--version").out == f"stridenet {version}\n"
    assert FORMS in " ".join(cli("--help").out.split())


@pytest.mark.parametrize("arguments", [["--help"], ["convert", "--help"], ["plan", "--ful"]])
def test_help_and_mistakes_wait_for_neither_torch_nor_onnx_nor_numpy(arguments: list[str]) -> None:
    program = (
        "import atexit, sys\n"
        "heavy = ('torch', 'onnx', 'onnx_ir', 'numpy', 'onnxruntime', 'einops')\n"
        "atexit.register(lambda: print(*(m for m in heavy if m in sys.modules), file=sys.stderr))\n"
        f"sys.argv = ['stridenet', *{arguments}]\n"
        "from stridenet.cli import main\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=100
    )
    assert done.stderr.splitlines()[-1] == ""
    assert done.returncode == (0 if "--help" in arguments else 2)


def test_the_entry_point_is_the_command_and_the_module_too() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    main = resolve_name(project["scripts"]["stridenet"])
    assert main is importlib.import_module("stridenet.cli").main
    assert any(each.startswith("click") for each in project["optional-dependencies"]["onnx"])
    done = subprocess.run(
        [sys.executable, "-m", "stridenet", "--version"],
        cwd=ROOT, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.stdout.startswith("stridenet ")


@pytest.mark.parametrize(
    ("typed", "completed"),
    [("stridenet pl", "plan"), ("stridenet convert --rearr", "--rearrange"),
     ("stridenet convert net.onnx --kernel o", "odd")],
)  # fmt: skip
def test_a_shell_completes(typed: str, completed: str) -> None:
    words = typed.split()
    asked = {
        "_STRIDENET_COMPLETE": "bash_complete",
        "COMP_WORDS": typed,
        "COMP_CWORD": str(len(words) - 1),
    }
    done = subprocess.run(
        [sys.executable, "-m", "stridenet"],
        cwd=ROOT, env=os.environ | asked, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, f"plain,{completed}\n", "")
