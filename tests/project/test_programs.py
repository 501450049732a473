"""The programs in README.md and docs/convert.md run as they are written, one after the other."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(("document", "fewest"), [("README.md", 1), ("docs/convert.md", 3)])
def test_every_program_of_the_document_runs(
    document: str, fewest: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    programs = PROGRAM.findall((ROOT / document).read_text())
    assert len(programs) >= fewest
    for program in programs:
        exec(compile(program, document, "exec"), {})
    assert "equal" in capsys.readouterr().out  # what verify prints
