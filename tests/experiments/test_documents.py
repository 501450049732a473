"""Tables in documents are written from the published runs: the mechanism, and README and findings."""

from pathlib import Path

import pandas as pd
import pytest
from hydra import initialize_config_dir

from experiments import sweep
from experiments.command import CONF
from experiments.reporting.documents import with_tables
from experiments.settings.schema import EvidenceConfig
from experiments.studies import evidence
from experiments.studies.claims import CLAIMS
from stridenet.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
TABLE = pd.DataFrame({"Of": ["a", "b", "c"], "n": ["1", "2", "3"]})


def test_a_marked_table_is_written_anew_and_nothing_else_is_touched() -> None:
    before = (
        "x\n<!-- table: one -->\nold\n<!-- end -->\ny\n<!-- table: one Of=c,a -->\n<!-- end -->\n"
    )
    after = with_tables(before, {"one": TABLE})
    assert after.split("\n<!-- end -->") == [
        "x\n<!-- table: one -->\n\n| Of   | n   |\n|:-----|:----|\n"
        "| a    | 1   |\n| b    | 2   |\n| c    | 3   |\n",
        "\ny\n<!-- table: one Of=c,a -->\n\n| n   |\n|:----|\n| 1   |\n| 3   |\n",
        "\n",
    ]  # fmt: skip
    assert with_tables(after, {"one": TABLE}) == after
    with pytest.raises(InputError, match="no table two to be marked; there are one"):
        with_tables("<!-- table: two -->\n<!-- end -->", {"one": TABLE})


@pytest.mark.parametrize(
    ("document", "told"),
    [
        ("<!-- table: one -->\nold\n\nProse.\n\n<!-- table: one -->\n<!-- end -->", "needs a line"),
        ("<!-- table: one -->\nold\n", "needs a line"),
        ("<!-- table: one X=1 -->\n<!-- end -->", "no column X; there are Of, n"),
        ("<!-- table: one n=4 -->\n<!-- end -->", "no row with n=4"),
    ],
)
def test_a_mark_without_an_end_a_column_or_a_row_is_refused(document: str, told: str) -> None:
    with pytest.raises(InputError, match=told):
        with_tables(document, {"one": TABLE})
    numbers = with_tables(
        "<!-- table: one n=2 -->\n<!-- end -->", {"one": TABLE.astype({"n": int})}
    )
    assert "| b    |" in numbers


def test_published_tables_are_those_of_the_published_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is published, and what a claim rests on, is composed; the others are not complete."""
    monkeypatch.setattr(evidence, "save_figure", lambda *_: None)
    reference = ROOT / "outputs" / "reference"
    needed = {claim.experiment for claim in CLAIMS.values()}
    with initialize_config_dir(CONF, version_base="1.3"):
        wanted = {
            name: sweep.names_of(name) if name in needed or (reference / name).exists() else None
            for name in evidence.EXPERIMENTS
        }
    documents = [ROOT / "README.md", ROOT / "docs" / "findings.md"]
    copies = [tmp_path / document.name for document in documents]
    for document, copied in zip(documents, copies, strict=True):
        copied.write_text(document.read_text())
    config = EvidenceConfig(str(reference), str(tmp_path / "outputs"), [*map(str, copies)])
    evidence.write_evidence(config, wanted)
    for document, copied in zip(documents, copies, strict=True):
        assert "<!-- table: " in document.read_text()
        assert copied.read_text() == document.read_text(), f"run `make publish` for {document.name}"
    written = pd.read_csv(tmp_path / "outputs" / "report" / "differences.csv")
    pd.testing.assert_frame_equal(pd.read_csv(reference / "differences.csv"), written)
