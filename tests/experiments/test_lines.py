"""Wrong command lines, made up from each command's own settings: one line is said, and nothing else."""

import contextlib
import importlib
import os
import random
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from experiments import command, sweep
from experiments.settings import conversions, schema
from experiments.settings.line import in_order
from stridenet.errors import InputError

COMMANDS: dict[str, Any] = {
    "train": schema.RunConfig,
    "report": schema.ReportConfig,
    "benchmark": schema.BenchmarkConfig,
    "conversion_benchmark": conversions.ConversionBenchmarkConfig,
    "figures": schema.FiguresConfig,
    "evidence": schema.EvidenceConfig,
    "zoo": conversions.ZooConfig,
    "survey": conversions.SurveyConfig,
}
BIG = "99999999999999999999999"
VALUES = {
    "int": ["x", "1.5", "true", "null", "nan", "-1", BIG, "[1]", "{}", "''", "-0", "???"],
    "float": ["x", "true", "null", "nan", "inf", "-inf", "1e300", "-1", "[1]", "-0.0", "???"],
    "bool": ["x", "2", "null", "[true]", "''", "???"],
    "str": ["nope", "''", "null", "[a]", "{}", "é", "a b", "3", "true", "???"],
    "any": ["x", "true", "nan", "-1", "[]", "{}", BIG, "[1,x]", "''", "1.5", "1e300", "???"],
}
SHAPES = ["{key}", "={value}", "{key}==", "{key}=[", "{key}x={value}", "+{key}.x.y={value}",
          "{key}=1,2", "--{key}", "-x", "{key}=choice()", "{key}=range(0,0)"]  # fmt: skip


def settings_of(kind: Any, before: str = "") -> Iterator[tuple[str, str]]:
    """Each setting of a command, and by which of VALUES it is tried."""
    for one in fields(kind):
        key = f"{before}{one.name}"
        if is_dataclass(one.type):
            yield from settings_of(one.type, f"{key}.")
        else:
            name = str(getattr(one.type, "__name__", one.type)).replace(" | None", "")
            yield key, name if name in VALUES else "any"


def lines(many: int) -> list[tuple[str, str]]:
    """So many lines over all commands, the same each time."""
    draw = random.Random(0)
    found = []
    for number in range(many):
        name = [*COMMANDS][number % len(COMMANDS)]
        key, kind = draw.choice([*settings_of(COMMANDS[name])])
        value = draw.choice(VALUES[kind])
        shape = "{key}={value}" if draw.random() < 0.8 else draw.choice(SHAPES)
        found.append((name, shape.format(key=key, value=value)))
    return found


def understood(module: Any, setting: str) -> Callable[..., Any]:
    """The module's own `resolve`, which then prints what the setting became."""
    before = module.resolve

    def resolve(settings: Any, kind: Any) -> Any:
        value: Any = before(settings, kind)
        for name in setting.partition("=")[0].split("."):
            value = value[name] if isinstance(value, dict) else getattr(value, name)
        print(f"became {value!r}")
        raise InputError("understood")

    return resolve


def typed(name: str, *arguments: str, real: bool = False) -> tuple[int, str]:
    """The exit code and all that a command prints, in a process of its own.

    It is forked, as imports are slow. Its work is left out, but for the settings, unless it is real.
    """
    module = importlib.import_module(f"experiments.{name}")
    with tempfile.TemporaryFile() as printed:
        child = os.fork()
        if child == 0:
            code: Any = 70
            try:
                os.dup2(printed.fileno(), 1)
                os.dup2(printed.fileno(), 2)
                sys.stdout = sys.stderr = os.fdopen(1, "w", buffering=1, closefd=False)
                sys.argv = [str(module.__file__), *arguments]
                if not real:
                    module.resolve = understood(module, arguments[-1])
                command.start(module.main, sweep.missing if name == "train" else list)
            except SystemExit as end:
                code = end.code
                if isinstance(code, str):
                    print(code)
                    code = 1
            finally:
                sys.stdout.flush()
                os._exit(code or 0)
        _, status = os.waitpid(child, 0)
        printed.seek(0)
        return os.waitstatus_to_exitcode(status), printed.read().decode()


def judge(name: str, line: str, code: int, told: str) -> None:
    assert "Traceback" not in told, told
    assert code == 1, told
    said = told.splitlines()
    if said[0].startswith("became "):  # a success, were the work done: then it means what was typed
        value, text = said[0].removeprefix("became "), line.partition("=")[2]
        meant = yaml.safe_load(text)
        meant = meant + 0.0 if isinstance(meant, float) else meant  # without a minus before zero
        assert value in (repr(meant), repr(text), repr(str(meant)), f"[{meant!r}, {meant!r}]",
                         f"{meant}.0", f"[{meant!r}]"), (line, value)  # fmt: skip
        said = said[1:]
    assert len(said) == 1, told
    assert said[0].startswith("error: "), told
    assert len(said[0]) < 450, told


@pytest.fixture
def somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("STRIDENET_TRACEBACK", raising=False)
    return tmp_path


@pytest.mark.sample(20)
@pytest.mark.parametrize(("name", "line"), lines(60))
def test_a_wrong_line_is_told_in_one_line(name: str, line: str, somewhere: Path) -> None:
    code, told = typed(name, line)
    judge(name, line, code, told)
    named = (
        line.partition("=")[2].replace("true", "True") if line.startswith("outputs=") else "outputs"
    )
    assert [path.name for path in somewhere.iterdir()] in ([], [named])


@pytest.mark.long
@pytest.mark.parametrize(("name", "line"), lines(360)[60:])
def test_three_hundred_more_wrong_lines(name: str, line: str, somewhere: Path) -> None:
    test_a_wrong_line_is_told_in_one_line(name, line, somewhere)


SMOKE = ["recipe=smoke", "outputs=results"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("train", ["data.image_size=60000"], "more memory than there is"),
        ("train", ["model.layers.conv1.channels=1000000000"], "more memory than there is"),
        ("train", ["model.layers.conv1.padding=60000"], "more memory than there is"),
        ("train", ["recipe.batch_size=1000000"], "more than the 55000 training images"),
        ("train", ["model.layers={}"], "model.layers={} changes nothing"),
        ("train", ["recipe.learning_rate=???"], "gives no value"),
        ("train", ["-m", "seed=1,1"], "1 is given twice"),
        ("train", ["-m", "seed=range(0,0)"], "makes no run"),
        ("train", ["-m", "seed=range(0,1000000000)"], "1,000,000,000 runs"),
        ("train", ["-m", "seed=interval(0,1)"], "a sweep takes values"),
        ("train", ["seed=0", "-m", "threads=1,0"], "threads=0 must be from 1"),
        ("figures", ["model.layers.conv1.channels=100000000"], "more memory than there is"),
    ],
)
def test_what_only_the_work_itself_would_find(
    name: str, arguments: list[str], expected: str, somewhere: Path, mnist_folder: Path
) -> None:
    (somewhere / "results").mkdir()
    (somewhere / "results" / "data").symlink_to(mnist_folder, target_is_directory=True)
    given = SMOKE if name == "train" else SMOKE[1:]
    code, told = typed(name, *given, *arguments, real=True)
    assert code == 1
    assert len(told.splitlines()) == 1, told
    assert expected in told


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["a=1", "-m", "b=2"], ["-m", "a=1", "b=2"]),
        (["--multirun", "a=1"], ["--multirun", "a=1"]),
        (["a=-1", "b=-x"], ["a=-1", "b=-x"]),
        (["--cfg", "job", "a=1"], ["--cfg", "job", "a=1"]),
    ],
)
def test_options_may_stand_among_settings(given: list[str], expected: list[str]) -> None:
    assert in_order(given) == expected


def test_minus_zero_makes_the_run_that_zero_makes(composed: Callable[..., Any]) -> None:
    zero, minus = (composed(f"recipe.weight_decay={n}") for n in ("0.0", "-0.0"))
    assert str(minus.recipe.weight_decay) == "0.0"
    assert repr(minus) == repr(zero)


with contextlib.suppress(ImportError):  # before the forks, each of which would import it anew
    for _name in COMMANDS:
        importlib.import_module(f"experiments.{_name}")
    import experiments.runs.run  # noqa: F401
