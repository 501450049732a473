"""The command stridenet, called within the process of a test, and what it says."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from stridenet.cli.app import run


@dataclass(frozen=True)
class Said:
    code: int
    out: str
    err: str

    @property
    def line(self) -> str:
        """The one line that there is."""
        (line,) = self.err.splitlines()
        assert self.out == ""
        return line


Cli = Callable[..., Said]


@pytest.fixture
def cli(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Cli]:
    """Call the command in a folder of its own, from which no module stays imported."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> Said:
        capsys.readouterr()
        code = run([str(each) for each in arguments])
        return Said(code, *capsys.readouterr())

    yield call
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


def files_in(folder: Path) -> list[str]:
    """All names, hidden ones too."""
    return sorted(path.name for path in folder.iterdir())
