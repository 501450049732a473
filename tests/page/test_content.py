"""What the page is made of: libraries, colours, tables and commands; and every state of a folder."""

import hashlib
import json
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from experiments import sweep
from experiments.command import CONF
from experiments.page import build, content
from experiments.page.build import write_page
from experiments.page.colours import PAPERS, RATIO, contrast, legible, name_of, properties
from experiments.page.runs import ARMS, own_command, published_runs, unfinished
from experiments.page.tables import from_files
from experiments.page.wanted import EXPERIMENTS, wanted_runs
from experiments.reporting.style import COLOURS
from experiments.settings.checks import resolve
from experiments.settings.identity import run_name
from experiments.settings.schema import RunConfig
from experiments.studies.evidence import read_experiments
from tests.experiments.processes import command
from tests.page.pages import (
    HOSTILE,
    REFERENCE,
    ROOT,
    config_for,
    finished_run,
    published_wanted,
)

VENDOR = ROOT / "experiments/page/vendor"


def test_the_libraries_are_those_of_their_versions_with_their_licences() -> None:
    rows = [line.split() for line in (VENDOR / "VERSIONS").read_text().splitlines()[1:]]
    assert len(rows) == 2
    for _package, version, file, expected in rows:
        content = (VENDOR / file).read_bytes()
        assert hashlib.sha256(content).hexdigest() == expected
        assert f"v{version} Copyright".encode() in content[:100]
        licence = VENDOR / f"{file.split('.')[0]}.LICENSE"
        assert "Permission to use, copy, modify, and/or distribute" in licence.read_text()


@pytest.mark.parametrize("theme", PAPERS)
def test_every_network_has_a_legible_colour_of_its_own(theme: str) -> None:
    found = properties(theme)
    assert {name_of(network) for network in COLOURS} < {*found}
    assert min(contrast(colour, PAPERS[theme]) for colour in found.values()) >= RATIO
    assert len({*found.values()}) == len(found)
    assert name_of("a new one") == "--net-other"


def test_contrast_is_that_of_wcag() -> None:
    assert contrast("#ffffff", "#000000") == 21
    assert contrast("#767676", "#ffffff") == pytest.approx(4.54, abs=0.005)  # a known pair
    assert legible("#0072B2", "#ffffff") == "#0072b2"  # legible as it is
    assert (
        contrast("#F0E442", "#ffffff")
        < 1.5
        < RATIO
        <= contrast(legible("#F0E442", "#ffffff"), "#ffffff")
    )


def test_a_table_is_read_as_its_report_wrote_it() -> None:
    table = from_files(REFERENCE, "zoo", "The zoo", "page/zoo.csv")
    assert table is not None
    assert table.columns[0].title == "Network"
    assert {column.title for column in table.columns if not column.number} == {
        "Network",
        "Input",
        "Twin is",
    }
    assert table.rows[1][:6] == (
        "all_cnn_c", "3x32x32", "2", "2", "1.37 → 33.19", "270.80 → 2,113.11"
    )  # fmt: skip
    assert table.caption.startswith("Each network beside its unit-stride twin")
    assert from_files(REFERENCE, "nothing", "", "") is None


def command_name(command: str) -> str:
    """The name of the run that a command does."""
    python, _, module, *given = shlex.split(command)
    assert (python, module) == ("python", "experiments.train")
    settings = OmegaConf.to_container(compose("train", [*given, "hydra.mode=RUN"]))
    return run_name(resolve(OmegaConf.create(settings), RunConfig))


OVERRIDES = (
    ["recipe=smoke", "recipe.steps=40", "outputs=some where"],
    ["recipe=smoke", "model=unit_stride", "reference=null"],
    ["recipe=smoke", "++recipe.rate_scaling=copies", "recipe.fan_in=filter", "sharing=tied"],
    ["recipe=smoke", "model.eliminate_stride=true", "seed=7"],
)


@pytest.mark.slow
@pytest.mark.parametrize("arm", [*ARMS, "pooling", "unit_stride masked fan_in=filter"])
@pytest.mark.parametrize("overrides", OVERRIDES)
def test_a_command_does_the_run_of_its_row(arm: str, overrides: list[str]) -> None:
    with initialize_config_dir(CONF, version_base="1.3"):
        found = command_name(own_command(arm, "scratch", 3, overrides))
        wanted = ["recipe=smoke", *(o for o in overrides if o == "recipe.steps=40"), "seed=3"]
        network, *treated = arm.split()
        wanted += [f"model={network}"]
        for part in treated:
            scaling = f"recipe.rate_scaling={part.removeprefix('by_')}"
            other = f"recipe.{part}" if "=" in part else f"sharing={part}"
            wanted.append(scaling if part.startswith("by_") else other)
        settings = OmegaConf.to_container(compose("train", wanted))
        assert found == run_name(resolve(OmegaConf.create(settings), RunConfig))


def test_a_run_from_a_file_leaves_the_file_to_be_filled_in() -> None:
    line = own_command("strided", "file", 3, ["recipe=smoke"])
    assert line.endswith("recipe=smoke arm=strided weights=FILE seed=3")


def test_the_command_of_a_published_run_is_its_experiments() -> None:
    found = read_experiments(REFERENCE, {"swapped": None, "sharing": None})
    with initialize_config_dir(CONF, version_base="1.3"):
        known = {name: sweep.overrides_of(name) for name in found}
        rows = published_runs(found, known)
        for name in found:
            of = rows[rows.source == name]
            assert [*of.run] == [*found[name].runs.run]
            assert {*of.network} == {"swapped": {"strided", "unit_stride"}, "sharing": {*ARMS}}[
                name
            ]
            for row in (of.iloc[0], of.iloc[-1]):
                assert command_name(row.command) == row.run


def test_a_published_run_at_chance_has_diverged_whatever_its_loss() -> None:
    found = read_experiments(REFERENCE, {"table1": None})["table1"]
    found.runs.loc[3, "validation_correct"] = 400
    known = {"table1": {run: [] for run in found.runs.run}}
    assert [*published_runs({"table1": found}, known).diverged] == [
        place == 3 for place in range(100)
    ]


def test_without_any_run_the_page_says_what_is_missing(tmp_path: Path) -> None:
    text = write_page(replace(config_for(tmp_path), reference=None)).read_text()
    assert text.count('class="missing"') >= 9
    for told in ("make evidence", "make reproduce", "make zoo", "make survey", "make bench",
                    "python -m experiments.figures"):  # fmt: skip
        assert f"<code>{told}</code>" in text
    assert "There is none of these settings." in text


def test_without_own_runs_the_published_ones_are_there(tmp_path: Path) -> None:
    text = write_page(config_for(tmp_path), [], published_wanted).read_text()
    assert "+0.017 points" in text
    assert "strided-scratch-validated-s3000-a05c1596" in text
    assert "This folder has no finished run of these settings yet" in text


@pytest.mark.slow
def test_the_report_of_no_run_writes_the_page_and_fails(tmp_path: Path) -> None:
    found = command("report", "recipe=smoke", outputs=tmp_path)
    page = tmp_path / "report/index.html"
    assert found.returncode == 1
    assert found.stdout == f"A page of what is published, without any runs of yours: {page}\n"
    assert found.stderr.startswith("error: no finished run in ")
    assert "strided-scratch-validated-s3000-a05c1596" in page.read_text()


def pairs_in(text: str) -> list[dict[str, Any]]:
    """The data of the chart of pairs."""
    (data,) = re.findall(r'<script[^>]*id="page-data"[^>]*>(.*?)</script>', text, re.DOTALL)
    return json.loads(data)["charts"]["pairs"]


def test_a_network_of_other_layers_is_not_beside_the_papers_difference(tmp_path: Path) -> None:
    config = config_for(tmp_path, "recipe=smoke", "model.layers.conv1.channels=8")
    for network in ("strided", "unit_stride"):
        finished_run(config, network, 0)
    assert {one["source"]: one["paper"] for one in pairs_in(write_page(config).read_text())} == {
        "table1": 0.06,
        "yours": None,
    }


@pytest.mark.parametrize("change", [{}, {"mean": 0.5}, {"n": 49}, {"experiment": "caffe"}])
def test_the_interval_on_new_images_is_that_of_the_same_pairs(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    shutil.copytree(REFERENCE / "table1", tmp_path / "reference" / "table1")
    row = pd.read_csv(REFERENCE / "differences.csv").head(1).assign(**change)
    row.to_csv(tmp_path / "reference" / "differences.csv", index=False)
    write_page(replace(config_for(tmp_path), reference=str(tmp_path / "reference")))
    found = pd.read_csv(tmp_path / "report/page/differences.csv")
    assert found.new_low.notna().tolist() == [not change]


def test_all_curves_are_in_the_csv_and_the_means_however_many_are_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(content, "MOST_ROWS", 60)
    text = write_page(config_for(tmp_path)).read_text()  # of no run is the command known
    epochs = pd.read_csv(tmp_path / "report/page/epochs.csv")
    assert epochs.run.nunique() == 100
    assert epochs.groupby("network").run.nunique().to_dict() == {"strided": 50, "unit_stride": 50}
    assert "40 more curves are only in the csv." in text


def test_the_command_of_the_page_can_be_pasted_and_sources_have_their_digits(
    tmp_path: Path,
) -> None:
    config = config_for(tmp_path)
    finished_run(config, "strided", 1, git_commit="sources-0123456789abcdef")
    finished_run(config, "strided", 2, git_commit="fedcba9876543210+ then 0123456789abcdef")
    text = write_page(config, ["outputs=some where"]).read_text()
    assert "python -m experiments.report &#39;outputs=some where&#39;" in text
    assert ">sources-01234567<" in text
    assert ">fedcba98+ then 01234567<" in text


def test_runs_of_another_data_set_are_not_beside_the_papers(tmp_path: Path) -> None:
    config = config_for(tmp_path, "data=fashion_mnist", "recipe=smoke")
    for network in ("strided", "unit_stride"):
        finished_run(config, network, 0)
    finished_run(config_for(tmp_path), "strided", 1)  # of other settings: left out
    text = write_page(config, ["data=fashion_mnist", "recipe=smoke"]).read_text()
    assert {one["source"]: one["paper"] for one in pairs_in(text)} == {
        "table1": 0.06,
        "yours": None,
    }
    rows = (tmp_path / "report/page/runs.csv").read_text().splitlines()
    assert len(rows) == 3
    assert "data=fashion_mnist recipe=smoke arm=strided seed=0" in rows[1]


def test_what_runs_say_cannot_end_the_elements_that_it_stands_in(tmp_path: Path) -> None:
    config = config_for(tmp_path)
    finished_run(config, "strided", 0, variant=HOSTILE, git_commit=HOSTILE)
    text = write_page(config, [HOSTILE]).read_text()
    assert "<img src=x" not in text
    data = text.split('id="page-data">')[1].split("</script>")[0]
    assert json.loads(data)["networks"][0]["key"] == f"strided {HOSTILE}"


def test_a_library_that_would_end_its_element_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "HERE", tmp_path)
    (tmp_path / "page.js").write_text("'</SCRIPT >'")
    with pytest.raises(ValueError, match="would end the element"):
        build._inlined("page.js")


def test_what_the_claims_want_is_composed_once(tmp_path: Path) -> None:
    asked: list[str] = []

    def composed(name: str) -> dict[str, list[str]] | None:
        asked.append(name)
        return {"a-run": ["seed=0"]} if name == "table1" else None

    kept = tmp_path / "wanted.json"
    first = wanted_runs(kept, composed)
    assert asked == [*EXPERIMENTS]
    assert (
        wanted_runs(kept, composed)
        == first
        == {**dict.fromkeys(EXPERIMENTS), "table1": {"a-run": ["seed=0"]}}
    )
    assert asked == [*EXPERIMENTS]  # and not again
    for damage in ("", "[]", '{"state": "of another conf", "runs": {}}'):
        kept.write_text(damage)
        asked.clear()
        assert wanted_runs(kept, composed) == first
        assert asked == [*EXPERIMENTS]


def test_a_run_without_a_result_is_named_with_its_reason(tmp_path: Path) -> None:
    for name, failure in {"begun": None, "failed": '{"error": "no\\nroom"}', "odd": "{"}.items():
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        if failure:
            (folder / "failure.json").write_text(failure)
    begun = "It has been begun, and is not finished."
    assert [each["reason"] for each in unfinished(tmp_path)] == [begun, "no room", begun]
