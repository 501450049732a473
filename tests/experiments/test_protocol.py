"""The experiments in conf/experiment are those that docs/protocol.md fixes."""

import hashlib
import re
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from hydra import initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser

from experiments import sweep
from experiments.command import CONF
from experiments.runs.results import arms
from experiments.settings.identity import variant
from experiments.studies.claims import CLAIMS, EFFECTIVE, FREE, MASKED_BY_COPIES, SIZES, STRIDED
from experiments.studies.evidence import EXPERIMENTS
from stridenet.errors import InputError

ROOT = Path(__file__).parents[2]
PROTOCOL = (ROOT / "docs" / "protocol.md").read_text()
ARMS = "strided,tied,masked,free,masked_by_copies,free_by_copies,free_effective"
RATES = "0.005,0.01,0.02,0.04,0.08"
# What the page's tables say: first and last seed, arms, number of runs, and what else varies.
FIXED: dict[str, tuple[int, int, str, int, dict[str, str]]] = {
    # 0.16 and 0.32 were added by the page's rule: beyond an edge that a chosen rate lay on.
    "rates": (2000, 2002, "strided,free,masked", 63, {"recipe.learning_rate": f"{RATES},0.16,0.32"}),
    "table1": (3000, 3049, "strided,free", 100, {}),
    "swapped": (3000, 3019, "strided,free", 40, {}),
    "caffe": (4000, 4009, "strided,free", 20, {}),
    "sharing": (5000, 5009, ARMS, 140, {"weights": "scratch,fine_tune"}),
    "train_size_rates": (2100, 2102, "strided,free,masked", 180,
                         {"recipe.learning_rate": RATES, "data.train_size": "300,1000,3000,10000"}),
    "train_size": (6000, 6014, "strided,free,masked", 180,
                   {"size": "images_300,images_1000,images_3000,images_10000"}),
    "fashion_rates": (2200, 2202, "strided,free", 30, {"recipe.learning_rate": RATES}),
    "fashion": (7000, 7029, "strided,free", 60, {}),
    "paper_level_steps": (8000, 8009, "strided", 50, {"recipe.steps": "100,200,300,450,650"}),
    "paper_level": (8100, 8119, "strided,free", 40, {}),
    "adam_rates": (2300, 2302, "strided,free", 30,
                   {"recipe.learning_rate": "0.0005,0.001,0.002,0.004,0.008"}),
    "adam": (9000, 9019, "strided,free", 40, {}),
}  # fmt: skip
SETTINGS = {  # beyond recipe=validated
    "rates": {},
    "table1": {},
    "swapped": {},
    "train_size_rates": {"epochs": None, "steps": 1000},
    "train_size": {"epochs": None, "steps": 1000},
    "fashion_rates": {},
    "fashion": {},
    "paper_level_steps": {"epochs": None},
    "adam_rates": {"optimizer": "adam", "epochs": 2, "weight_decay": 0},
    "adam": {"optimizer": "adam", "epochs": 2, "weight_decay": 0},
}
NOT_FIXED = (
    "name",
    "learning_rate",
    "evaluations",
)  # of a recipe: known by other tests, or no numbers

COMMITTED = "fef4e1ef1f96027c193fce95fda2d4eb8d65f37eee51066fd994f2c78c9bf12e"

# What the file of an experiment says that the page does not fix.
OUTSIDE = "\n# Result:   not in docs/protocol.md"


def text_of(name: str) -> str:
    return (Path(CONF) / "experiment" / f"{name}.yaml").read_text()


def content_of(name: str) -> dict[str, Any]:
    content = yaml.safe_load(text_of(name))
    assert isinstance(content, dict)
    return content


def test_what_was_written_before_the_runs_is_not_edited() -> None:
    """The SHA-256 is that of the text as it was committed, before the first run."""
    written = PROTOCOL.partition("\n## Deviations")[0]
    assert hashlib.sha256(written.encode()).hexdigest() == COMMITTED


def test_the_number_of_all_runs_is_that_of_the_page_on_scale() -> None:
    runs = sum(row[3] for row in FIXED.values())
    assert f"is {runs} runs of about 15" in (ROOT / "docs" / "scale.md").read_text()


def test_the_experiments_are_those_of_the_page_in_its_order() -> None:
    files = {path.stem for path in (Path(CONF) / "experiment").glob("*.yaml")}
    files = {name for name in files if OUTSIDE not in text_of(name)}
    assert files == set(FIXED) == set(EXPERIMENTS)
    table = PROTOCOL.partition("| experiment | arms |")[2].partition("\n\n")[0]
    rows = [line.split("|")[1] for line in table.splitlines()[2:]]
    assert re.findall(r"`(\w+)`", "".join(rows)) == [*EXPERIMENTS] == [*FIXED]
    (made,) = re.findall(r"^EXPERIMENTS := ((?:.*\\\n)*.*)$", (ROOT / "Makefile").read_text(), re.M)
    assert made.replace("\\\n", " ").split() == [*EXPERIMENTS]


@pytest.mark.parametrize("name", FIXED)
def test_an_experiment_has_the_seeds_arms_rates_and_runs_of_the_page(name: str) -> None:
    first, last, arms, runs, others = FIXED[name]
    params = content_of(name)["hydra"]["sweeper"]["params"]
    expected = {"arm": arms, **others}
    assert {key: str(value).replace(" ", "") for key, value in params.items() if key != "seed"} == (
        expected
    )
    parser = OverridesParser.create()
    swept = [
        [*parser.parse_override(f"{k}={v}").sweep_string_iterator()]
        if parser.parse_override(f"{k}={v}").is_sweep_override()
        else [str(v)]
        for k, v in params.items()
    ]
    seeds = swept[[*params].index("seed")]
    assert [int(seed) for seed in seeds] == [*range(first, last + 1)]
    assert len([*product(*swept)]) == runs
    assert f"{first}–{last}" in PROTOCOL


@pytest.mark.parametrize("name", FIXED)
def test_the_page_says_the_number_of_pairs(name: str) -> None:
    first, last, *_ = FIXED[name]
    (row,) = [line for line in PROTOCOL.partition("## The experiments")[2].splitlines()
              if line.startswith("| `") and f"`{name}`" in line.split("|")[1]]  # fmt: skip
    if name.endswith("_rates") or name == "paper_level_steps":
        return  # the row's n and last seeds are of the experiment that follows
    assert int(row.split("|")[3]) == last - first + 1
    assert row.split("|")[4].strip().endswith(f"{first}–{last}")


@pytest.mark.parametrize("name", SETTINGS)
def test_an_experiment_differs_from_the_recipe_in_what_the_page_says(name: str) -> None:
    content = content_of(name)
    assert {"override /recipe": "validated"} in content["defaults"]
    recipe = {
        key: value for key, value in content.get("recipe", {}).items() if key not in NOT_FIXED
    }
    assert recipe == SETTINGS[name]
    data = [one for one in content["defaults"] if "override /data" in one]
    assert data == [{"override /data": "fashion_mnist"}] * name.startswith("fashion")


def test_the_recipe_is_that_of_the_page() -> None:
    recipe = yaml.safe_load((Path(CONF) / "recipe" / "validated.yaml").read_text())
    of_page = {"epochs": 4, "steps": None, "batch_size": 64, "optimizer": "sgd", "schedule": "linear",
               "momentum": 0.9, "weight_decay": 0.0005, "rate_scaling": "none"}  # fmt: skip
    assert {key: recipe[key] for key in of_page} == of_page
    sharing = yaml.safe_load((Path(CONF) / "recipe" / "sharing.yaml").read_text())
    assert (sharing["epochs"], sharing["defaults"][0]) == (2, "validated")
    assert content_of("sharing")["rho_every"] == 50


@pytest.mark.parametrize("name", FIXED)
def test_a_files_header_has_command_cost_and_result(name: str) -> None:
    header = "".join(line for line in text_of(name).splitlines(True) if line.startswith("#"))
    assert f"\n# Command:  make evidence EXPERIMENT={name}\n" in header
    (runs,) = re.findall(r"^# Cost:     (\d+) runs, about .* CPU-hours?$", header, re.M)
    assert int(runs) == FIXED[name][3]
    assert re.search(rf"^# Result:   outputs/reference/{name}/($|;)", header, re.M)


def test_the_claims_are_those_of_the_page() -> None:
    table = PROTOCOL.partition("| | claim | primary outcome")[2].partition("\n\n")[0]
    rows = [[cell.strip() for cell in line.split("|")] for line in table.splitlines()[2:]]
    assert [row[1] for row in rows] == [*CLAIMS]
    for _, key, _, outcome, claimed, _ in rows:
        claim = CLAIMS[key]
        assert outcome.startswith(f"`{claim.experiment}`")
        assert claimed == ("0" if claim.equality else "above 0")
    margins = {key: claim.margin for key, claim in CLAIMS.items() if claim.margin is not None}
    assert margins == {"C1": 0.06}
    swept = content_of("train_size")["hydra"]["sweeper"]["params"]["size"].split(",")
    assert [f"images_{size}" for size in SIZES] == swept


def test_the_runs_of_an_experiment_are_known_by_name_once_its_settings_have_values(
    composed: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with initialize_config_dir(CONF, version_base="1.3"):
        names = sweep.names_of("caffe")
        assert names is not None
        assert len({*names}) == 20
        assert names[1].startswith("unit_stride-scratch-caffe-s4000-")

    def unchosen(experiment: str) -> Any:
        return composed("recipe=sgd", "recipe.learning_rate=null")

    monkeypatch.setattr(sweep, "jobs_of", unchosen)
    assert sweep.names_of("caffe") is None
    monkeypatch.setattr(sweep, "jobs_of", lambda _: composed("recipe=sgd", "seed=-1"))
    with pytest.raises(InputError, match="seed=-1"):  # any other mistake is told
        sweep.names_of("caffe")


@pytest.mark.parametrize(
    ("arm", "name"),
    {
        "strided": STRIDED,
        "free": FREE,
        "masked_by_copies": MASKED_BY_COPIES,
        "free_effective": EFFECTIVE,
    }.items(),
)
def test_the_arms_of_the_claims_are_those_that_runs_of_the_settings_have(
    composed: Callable[..., Any], arm: str, name: str
) -> None:
    config = composed("recipe=sharing", f"arm={arm}")
    row = pd.DataFrame([{"network": config.model.name, "variant": variant(config)}])
    assert arms(row).item() == name


@pytest.mark.parametrize("size", SIZES)
def test_each_size_has_its_number_of_images_and_rates(size: int) -> None:
    content = yaml.safe_load((Path(CONF) / "size" / f"images_{size}.yaml").read_text())
    assert content["data"] == {"train_size": size}
    assert {*content["recipe"]["learning_rate"]} == {"strided", "unit_stride", "masked"}
