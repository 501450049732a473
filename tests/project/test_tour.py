"""docs/tour.ipynb runs from its first cell to its last, and is stored without outputs."""

import ast
import json
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).resolve().parents[2] / "docs" / "tour.ipynb"
CELLS = json.loads(NOTEBOOK.read_text())["cells"]
PROGRAMS = ["".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "code"]


def run(program: str, names: dict[str, object]) -> object:
    """Run a cell; returns what a notebook would show below it, its last line's value."""
    *before, last = ast.parse(program).body
    if not isinstance(last, ast.Expr):
        exec(compile(program, NOTEBOOK.name, "exec"), names)
        return None
    exec(compile(ast.Module(before, []), NOTEBOOK.name, "exec"), names)
    return eval(compile(ast.Expression(last.value), NOTEBOOK.name, "eval"), names)


@pytest.mark.slow
def test_the_tour_runs_and_shows_what_its_text_says(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, object] = {}
    shown = [run(program, names) for program in PROGRAMS]
    assert shown[0].tolist() == shown[1].tolist() == [[[17.0, 20.0, 75.0]]]  # both sums, by hand
    assert shown[6] == (25, 400, 1024)
    assert shown[-1] < 1e-4
    said = capsys.readouterr().out
    assert "[[ 0  2]\n  [ 1 -1]]" in said
    assert said.count("equal") >= 2


def test_it_is_stored_without_outputs() -> None:
    for cell in CELLS:
        assert cell.get("outputs", []) == []
        assert cell.get("execution_count") is None
