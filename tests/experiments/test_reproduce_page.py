"""docs/reproduce.md follows one number down to its rows and code: each step of it is true."""

import re
import subprocess
import sys
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "reproduce.md").read_text()


def test_its_program_prints_what_the_page_and_readme_say() -> None:
    (program,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    (said,) = re.findall(r"It prints `(.*)`", PAGE)
    assert done.stdout.strip() == said
    mean, low, high, n = re.findall(r"[-+]?\d[\d.]*", said)
    readme = " ".join((ROOT / "README.md").read_text().split())
    assert f"{mean} points (95 % interval {low} to {high}; the twin is ahead in" in readme
    assert f"of {n} pairs" in readme
    assert f"**{mean} points**" in PAGE


def test_its_pair_is_in_the_published_rows() -> None:
    runs = pd.read_csv(ROOT / "outputs/reference/table1/runs.csv", dtype=str).set_index("run")
    rows = re.findall(r"^\| (\S+-s3000-\w+) \|(.*)\|$", PAGE, re.MULTILINE)
    assert len(rows) == 2
    for run, cells in rows:
        told = [cell.strip() for cell in cells.split("|")]
        columns = ["network", "seed", "learning_rate", "test_correct", "git_commit"]
        stored = [*runs.loc[run, columns]]
        assert told == [*stored[:-1], stored[-1][:8]]
        assert told[3] in PAGE.split("**3. The command.**")[1]


def test_the_functions_that_it_names_are_in_their_files() -> None:
    steps = re.findall(r"\]\(\.\./(\S+\.py)\)((?: `\w+`,?)+)", PAGE)
    assert len(steps) >= 9
    for path, names in steps:
        for name in re.findall(r"`(\w+)`", names):
            assert f"def {name}(" in (ROOT / path).read_text(), f"{path} has no {name}"
