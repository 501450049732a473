"""The survey of other people's networks: what is seen of a model, processes and limits, tables."""

import copy
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.settings.conversions import SurveyConfig
from experiments.studies import survey as study
from experiments.studies.survey import (
    by_source,
    faulty,
    kind_of,
    kinds,
    settled,
    survey_packages,
    write_survey,
)
from experiments.surveying import measure as measuring
from experiments.surveying import sources
from experiments.surveying.measure import Task, measure
from experiments.surveying.observation import (
    ModuleCall,
    StridedCalls,
    changes,
    fingerprint,
    output_error,
    share_of_bound,
)
from experiments.surveying.sources import SOURCES, small_first
from stridenet.errors import InputError
from tests import fake_sources

HERE = "tests.fake_sources"
Row = dict[str, Any]

# What is seen while a model runs


@pytest.mark.parametrize(
    ("function", "convolutions", "poolings"),
    [
        (lambda x: F.conv2d(x, torch.ones(2, 3, 2, 2), stride=(1, 2)), 1, 0),
        (lambda x: F.conv2d(x, torch.ones(2, 3, 2, 2)), 0, 0),
        (lambda x: F.conv_transpose2d(x, torch.ones(3, 2, 2, 2), stride=2), 1, 0),
        (lambda x: F.conv1d(x[:, :, 0], torch.ones(2, 3, 2), stride=3), 1, 0),
        (lambda x: torch.ops.aten.convolution(
            x, torch.ones(2, 3, 2, 2), None, [2, 2], [0, 0], [1, 1], False, [0, 0], 1), 1, 0),
        (lambda x: F.max_pool2d(x, 2), 0, 1),
        (lambda x: F.max_pool2d(x, 2, stride=1), 0, 0),
        (lambda x: F.avg_pool2d(x, 3, 2), 0, 1),
        (lambda x: F.adaptive_avg_pool2d(x, 4), 0, 1),
        (lambda x: F.adaptive_max_pool2d(x, 4), 0, 1),
        (lambda x: F.adaptive_avg_pool2d(x, 1), 0, 0),
        (lambda x: F.adaptive_avg_pool2d(x, 8), 0, 0),
        (lambda x: F.adaptive_avg_pool2d(x, 5), 0, 0),  # windows of two and of three positions
    ],
)  # fmt: skip
def test_strided_calls_are_seen_however_they_are_called(
    function: Callable[[Tensor], Tensor], convolutions: int, poolings: int
) -> None:
    x = torch.rand(2, 3, 8, 8)
    with StridedCalls() as calls:
        function(x)
    assert (len(calls.convolutions), len(calls.poolings)) == (convolutions, poolings)


class Holder(nn.Module):
    """Attributes of many kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.c, self.norm = nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4)
        self.register_buffer("hidden", torch.zeros(2), persistent=False)
        self.notes = {"shapes": [(1, 2)], "sets": {3}}
        self.grid = torch.rand(3)
        self.other = type("Other", (), {})()
        self.other.count = 0


def add_hook(model: Any) -> None:
    model.c.register_forward_hook(lambda *_: None)


TOUCHES: dict[str, Callable[[Any], Any]] = {
    "a weight": lambda m: m.c.weight.data.mul_(1 + 1e-7),
    "a parameter as another object": lambda m: setattr(
        m.c, "weight", nn.Parameter(m.c.weight.detach().clone())
    ),
    "whether it is trained": lambda m: m.c.weight.requires_grad_(False),
    "a buffer": lambda m: m.norm.running_mean.add_(1),
    "a buffer out of the state": lambda m: m.hidden.add_(1),
    "the mode": lambda m: m.norm.train(),
    "a tensor": lambda m: m.grid.add_(1),
    "an attribute that is new": lambda m: setattr(m, "features", 1),
    "a list within": lambda m: m.notes["shapes"].append(1),
    "a dictionary within": lambda m: m.notes.pop("sets"),
    "a set within": lambda m: m.notes["sets"].add(4),
    "an object within": lambda m: setattr(m.other, "count", 1),
    "a hook": add_hook,
    "a class": lambda m: setattr(m.c, "__class__", type("Mine", (nn.Conv2d,), {})),
    "a module that is new": lambda m: m.add_module("new", nn.ReLU()),
    "torch's random state": lambda m: torch.rand(1),
    "Python's random state": lambda m: random.random(),
}


@pytest.mark.parametrize("touch", TOUCHES)
def test_whatever_is_touched_is_seen(touch: str) -> None:
    model = Holder().eval()
    before = fingerprint(model)
    assert changes(before, fingerprint(model)) == []
    TOUCHES[touch](model)
    assert changes(before, fingerprint(model))


def test_what_torch_itself_has_is_looked_at_too(monkeypatch: pytest.MonkeyPatch) -> None:
    before = fingerprint(nn.ReLU())
    monkeypatch.setattr(nn.Module, "__call__", lambda *_: None)
    assert any("Module itself" in place for place in changes(before, fingerprint(nn.ReLU())))


class Pair(NamedTuple):
    a: Tensor
    b: Any


def test_results_are_compared_whatever_they_are_made_of() -> None:
    x = torch.arange(6.0)
    assert output_error(Pair(x, [None, {"n": 1}]), Pair(x.clone(), [None, {"n": 1}])) == 0
    assert output_error({"a": x}, {"a": x + 0.05}) == pytest.approx(0.01, rel=1e-5)
    infinite = [
        (Pair(x, None), (x, None)),
        (Pair(x, 1), Pair(x, 2)),
        ([x], [x, x]),
        ({"a": x}, {"b": x}),
        (x, x.double()),
        (x, x[:5]),
        (x.int(), x.int() + 1),
        (x / 0, x),
    ]
    assert all(output_error(*pair) == float("inf") for pair in infinite)
    assert output_error(x / x, (x / x).clone()) == 0  # not a number at the same place


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
def test_a_call_is_held_against_the_bound_of_rounding(kind: type[nn.Module]) -> None:
    layer, x = kind(3, 4, 3, 2, 1), torch.randn(2, 3, 9, 9) * 1000
    with torch.no_grad():
        right = layer(x)
        wide = copy.deepcopy(layer).double()(x.double()).float()
        assert share_of_bound(layer, ModuleCall("", (x,), {}, wide)) <= 1
        wrong = right + 3e-4 * right.abs().max()
        assert share_of_bound(layer, ModuleCall("", (x,), {}, wrong)) > 1
        wrong = right.clone()
        wrong[1, 2, 3, 4] = float("nan")
        assert share_of_bound(layer, ModuleCall("", (x,), {}, wrong)) == float("inf")
        assert share_of_bound(layer, ModuleCall("", (x,), {}, right[:1])) == float("inf")


# One model


def row_of(name: str, **options: bool) -> Row:
    """What is said of a fake model, in this process."""
    row: Row = {"ended": "ok"}
    settings = {"seed": 0, "pooling": True, "network": True} | options
    measure(Task(fake_sources.Fake(), name, **settings), row.update)  # type: ignore[arg-type]
    return settled(row)


def test_a_model_that_is_converted() -> None:
    row = row_of("Plain")
    assert (row["runs"], row["input"], row["strided_convolutions"], row["strided_poolings"]) == (
        True, "2x3x9x9", 1, 1,
    )  # fmt: skip
    assert (row["layers"], row["pooling"], row["network"]) == ("converted", "converted", "planned")
    assert (row["layers_calls_compared"], row["pooling_calls_compared"]) == (1, 2)
    assert row["layers_precision"] == "float64"
    assert 0 <= row["layers_share_of_bound"] <= 1
    assert not faulty(row)


def test_strided_calls_in_a_forward_are_converted_with_keyword_arguments() -> None:
    row = row_of("Calls")
    assert (row["layers"], row["network"]) == ("converted", "not asked")


def converting(monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Any, Any], Any]) -> None:
    """From now on conversions are spoiled: spoil(model, twin) returns what is given instead."""
    convert = measuring.convert_by_layers
    monkeypatch.setattr(
        measuring, "convert_by_layers", lambda model, *rest: spoil(model, convert(model, *rest))
    )


def change(tensor: Tensor) -> None:
    tensor.data[0] *= 1.001


def test_an_error_that_no_output_shows_is_seen_at_its_call(monkeypatch: pytest.MonkeyPatch) -> None:
    converting(monkeypatch, lambda model, twin: change(twin.c.weight) or twin)
    row = row_of("Plain", pooling=False)
    assert (row["layers"], row["layers_worst_call"], row["layers_output_error"]) == (
        "wrong",
        "c",
        0,
    )
    assert faulty(row)


def test_an_output_that_is_another_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    converting(monkeypatch, lambda model, twin: change(twin.w) or twin)
    assert row_of("Calls")["layers"] == "wrong"


def test_strides_that_are_left_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    converting(monkeypatch, lambda model, twin: copy.deepcopy(model))
    row = row_of("Plain")
    assert row["layers"] == "strides left"
    assert "convolution" in row["layers_reason"]
    assert faulty(row)


def test_a_model_that_is_touched_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    converting(monkeypatch, lambda model, twin: setattr(model, "features", 1) or twin)
    row = row_of("Plain", pooling=False)
    assert (row["layers"], row["layers_touched"]) == ("converted", [".features"])
    assert faulty(row)
    assert by_source([row | {"source": "s", "version": "1"}]).touched.tolist() == [1, 1]


class Returns(nn.Module):
    """A twin that writes into the model it was made of, whenever it runs."""

    def __init__(self, twin: Any, model: Any) -> None:
        super().__init__()
        self.twin, self.own = twin, [model]

    def forward(self, x: Tensor) -> Tensor:
        self.own[0].seen = x
        return self.twin(x)


def test_a_model_that_its_twin_touches_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    converting(monkeypatch, lambda model, twin: Returns(twin, model))
    assert row_of("Plain", pooling=False, network=False)["layers_touched"] == [".seen"]


def test_a_random_state_that_moves_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    converting(monkeypatch, lambda model, twin: (torch.rand(1), twin)[1])
    row = row_of("Plain", network=False)
    assert row["layers_touched"] == row["pooling_touched"] == ["random state"]


def test_a_conversion_that_raises_is_a_crash_with_its_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    converting(monkeypatch, lambda model, twin: 1 / 0)
    row = row_of("Plain")
    assert row["layers"] == "crashed"
    assert "ZeroDivisionError" in row["layers_reason"]
    assert "test_survey.py" in row["layers_reason"]


# Processes


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> SurveyConfig:
    names = [f"{HERE}:{name}" for name in ("Fake", "Unlisted", "Absent")]
    return SurveyConfig(
        sources=names, seconds=10, gigabytes=16, outputs=str(tmp_path_factory.mktemp("out"))
    )


@pytest.fixture(scope="module")
def surveyed(config: SurveyConfig) -> tuple[dict[str, Row], dict[str, str]]:
    """Rows by model, of a survey of the fake sources; and what is missing."""
    rows, missing = survey_packages(config)
    return {row["model"]: row for row in rows}, missing


@pytest.mark.slow
def test_each_model_is_in_a_process_of_its_own_so_that_none_stops_the_survey(
    surveyed: tuple[dict[str, Row], dict[str, str]],
) -> None:
    rows, _ = surveyed
    assert {name: row["runs"] and row["layers"] for name, row in rows.items()} == {
        "Plain": "converted",
        "Calls": "converted",
        "OneWeight": "refused",
        "Aborts": "crashed",
        "Exits": "crashed",
        "Sleeps": "timeout",
        "Grows": "out of memory",
        "Broken": False,
        "unmade": False,
        "pointwise": "converted",
    }
    assert "one parameter" in rows["OneWeight"]["layers_reason"]
    assert rows["Aborts"]["layers_reason"] == "killed by signal 6"
    assert rows["Exits"]["layers_reason"] == "SystemExit: 3"
    assert rows["Broken"]["why_not"].startswith("RuntimeError: shape '[7, 11, 13]' is invalid")
    assert rows["unmade"]["why_not"].startswith("cannot be made: KeyError: 'unmade'")
    assert rows["Plain"]["version"] == torch.__version__


@pytest.mark.slow
def test_a_source_that_is_not_installed_is_skipped_and_said(
    surveyed: tuple[dict[str, Row], dict[str, str]], config: SurveyConfig
) -> None:
    rows, missing = surveyed
    assert [*missing] == [f"{HERE}:Unlisted", f"{HERE}:Absent"]
    assert missing[f"{HERE}:Unlisted"] == "AttributeError: no such list"
    printed = write_survey(config, [*rows.values()], missing)
    assert any("no_such_package is not installed: pip install '.[survey]'" in p for p in printed)
    assert {path.name for path in (Path(config.outputs) / "report").iterdir()} == {
        "survey_models.csv",
        *(f"{name}.{end}" for name in ("survey", "survey_kinds") for end in ("csv", "md", "tex")),
    }


class NoWorker:
    """Stands in the place of a worker that may not be asked to measure."""

    missing, version = None, torch.__version__

    def __init__(self, source: str, threads: int) -> None:
        self.source = source
        if not source.endswith("Fake"):
            self.missing = "absent"

    def __enter__(self) -> "NoWorker":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def close(self) -> None:
        pass

    def families(self) -> dict[str, list[str]]:
        return fake_sources.Fake().families()


@pytest.mark.slow
def test_what_has_been_measured_is_not_measured_again(
    surveyed: tuple[dict[str, Row], dict[str, str]],
    config: SurveyConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(study, "Worker", NoWorker)
    rows, _ = survey_packages(config)
    assert rows == [*surveyed[0].values()]
    for other in (replace(config, force=True), replace(config, seed=1), replace(config, all=True)):
        with pytest.raises(AttributeError, match="has_ended"):  # asked to measure
            survey_packages(other)
    monkeypatch.setattr(NoWorker, "version", "another")
    with pytest.raises(AttributeError, match="has_ended"):
        survey_packages(config)


def test_names_choose_models_and_unknown_ones_are_told(
    surveyed: object, config: SurveyConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study, "Worker", NoWorker)
    rows, _ = survey_packages(replace(config, every=3))
    assert [row["model"] for row in rows] == ["Plain", "Aborts", "Grows", "pointwise"]
    rows, _ = survey_packages(replace(config, models=["Plain"]))
    assert [row["model"] for row in rows] == ["Plain"]
    with pytest.raises(InputError, match="models: Plane is in none of tests"):
        survey_packages(replace(config, models=["Plane"]))
    with pytest.raises(InputError, match="none of the sources can be used"):
        survey_packages(replace(config, sources=[f"{HERE}:Absent"]))


# Sources and tables


def test_every_source_can_be_found_and_says_what_it_needs() -> None:
    for location in SOURCES.values():
        module, _, name = location.partition(":")
        kind = getattr(sources.imported(module), name)
        assert kind.package
        assert kind.distribution
        assert callable(kind.families)


def test_small_models_stand_for_their_family_but_not_those_of_tests() -> None:
    names = ["resnet101", "resnet18", "test_resnet", "resnet50"]
    assert small_first(names) == ["resnet18", "resnet50", "resnet101", "test_resnet"]
    assert small_first(["swin_base", "swin_tiny", "swin_small"])[0] == "swin_tiny"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("conv1 (Conv2d) has 3 of 5", "features.0.1 (Convolution) has 17 of 2x3x4"),
        ("only: 'a' is no layer", "only: 'b.c' is no layer"),
        ("add_3 (add) on a map 2x128x24x24 needs", "sum_14 (sum) on a map 96x48x48 needs"),
        ("RuntimeError: bad 3.5 (a.py:30)", "RuntimeError: bad 7.25 (other_file.py:4)"),
    ],
)
def test_messages_of_one_kind_differ_in_names_and_numbers_alone(one: str, other: str) -> None:
    assert kind_of(one) == kind_of(other)
    assert kind_of(one) != kind_of(f"not so: {other}")


def made_row(model: str, **values: Any) -> Row:
    row = {"source": "s", "version": "1", "model": model, "runs": True, "strided_convolutions": 2}
    return row | {"layers": "converted", "network": "refused", "network_reason": "x (X) 1"} | values


ROWS = [
    made_row("a"),
    made_row("b", pooling="converted", network="planned"),
    made_row("c", layers="refused", layers_reason="one 1"),
    made_row("d", layers="refused", layers_reason="one 2", network="not asked"),
    made_row("e", layers="timeout", layers_reason="timeout", network=None),
    made_row("f", strided_convolutions=0),
    made_row("g", runs=False, why_not="no", network=None),
    made_row("h", source="t", pooling="wrong", pooling_reason="not equal"),
]


def test_the_table_counts_models_that_run_and_have_strides() -> None:
    table = by_source(ROWS).set_index("source")
    expected = {"tried": 7, "run": 6, "strided": 5, "converted": 2, "converted_percent": 40.0,
                "refused": 2, "stopped": 1, "pooling_asked": 1, "pooling_converted": 1,
                "network_asked": 3, "network_planned": 1, "wrong": 0}  # fmt: skip
    assert table.loc["s", [*expected]].to_dict() == expected
    assert table.loc["t", ["converted", "wrong"]].tolist() == [1, 1]
    assert table.loc["all", ["tried", "strided", "converted"]].tolist() == [8, 6, 3]


def test_reasons_are_counted_by_kind() -> None:
    table = kinds(ROWS)
    counted = table.set_index(["conversion", "kind"]).models.to_dict()
    assert counted == {
        ("by layers", "one …"): 2,
        ("by layers", "timeout"): 1,
        ("with pooling", "not equal"): 1,
        ("Theorem 2", "… (…) …"): 4,
        ("its own forward", "no"): 1,
    }
    assert isinstance(table, pd.DataFrame)
    assert table.example.iloc[0] == "s c"
