"""The table of verdicts in docs/findings.md is what `python -m experiments.evidence` makes."""

from pathlib import Path

from hydra import initialize_config_dir

from experiments import sweep
from experiments.command import CONF
from experiments.studies.claims import CLAIMS, claims_section, claims_table
from experiments.studies.evidence import missing_runs, progress_table, read_experiments

ROOT = Path(__file__).resolve().parents[2]


def test_the_verdicts_are_those_of_the_published_runs() -> None:
    with initialize_config_dir(CONF, version_base="1.3"):
        wanted = {claim.experiment: sweep.names_of(claim.experiment) for claim in CLAIMS.values()}
    published = read_experiments(ROOT / "outputs" / "reference", wanted)
    missing = missing_runs(progress_table(published, wanted))
    verdicts = claims_section(claims_table(published, missing), "").readable
    rows = verdicts.to_markdown(index=False, disable_numparse=True)
    assert len(verdicts) == 7
    assert rows in (ROOT / "docs" / "findings.md").read_text(), (
        "docs/findings.md has other verdicts than the published runs: run `python -m "
        "experiments.evidence` and put outputs/report/verdicts.md there"
    )
