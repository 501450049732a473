"""The zoo: networks as they were published, rows that say what the conversion did, and the command."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from experiments.command import failed, start
from experiments.models import convert, load_model
from experiments.settings.conversions import ConversionConfig, ZooConfig
from experiments.studies import zoo as surveys
from experiments.studies.zoo import measure_zoo, write_zoo, zoo_for_readers, zoo_table
from experiments.zoo import main
from stridenet.errors import InputError
from stridenet.zoo import ZOO, Block, all_cnn_c, calibrate, lenet, resnet20

PUBLISHED = {  # parameters; torchvision's as its documentation states them
    "lenet": 442_750,
    "all_cnn_c": 1_369_738,
    "resnet20": 269_722,
    "alexnet": 61_100_840,
    "vgg11_bn": 132_868_840,
    "resnet18": 11_689_512,
    "resnext50_32x4d": 25_028_904,
    "densenet121": 7_978_856,
    "mobilenet_v2": 3_504_872,
    "mobilenet_v3_small": 2_542_856,
    "shufflenet_v2_x0_5": 1_366_792,
    "efficientnet_b0": 5_288_548,
    "regnet_y_400mf": 4_344_144,
    "convnext_tiny": 28_589_128,
    "googlenet": 6_624_904,
    "inception_v3": 27_161_264 - 3_326_696,  # without its auxiliary head
}
Rows = list[dict[str, Any]]


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


# The networks


@pytest.mark.parametrize("name", ZOO)
def test_every_model_of_the_zoo_can_be_made_and_has_the_published_parameters(name: str) -> None:
    computed = name == "regnet_y_400mf"  # its widths, with tensors
    with torch.device("cpu" if computed else "meta"):
        network = load_model(ConversionConfig(**ZOO[name]))
    assert parameters(network) == PUBLISHED[name]


def test_the_zoo_is_what_the_readme_promises() -> None:
    assert [*ZOO] == [*PUBLISHED]
    theorems = {name: settings["theorem"] for name, settings in ZOO.items()}
    assert {name for name in ZOO if theorems[name] == 2} == {*[*ZOO][:3]}


def maps_of(network: nn.Module, images: Tensor) -> list[tuple[int, ...]]:
    """Size of the result of each convolution."""
    sizes: list[tuple[int, ...]] = []
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda *call: sizes.append(tuple(call[2].shape[1:])))
    network(images)
    return sizes


def test_all_cnn_c_averages_over_6x6_positions_as_published() -> None:
    weights = [3 * 96, 96 * 96, 96 * 96, 96 * 192, 192 * 192, 192 * 192, 192 * 192]
    count = 9 * sum(weights) + 192 * 192 + 192 * 10  # by hand, from the paper's table
    assert parameters(all_cnn_c()) == count + 3 * 96 + 5 * 192 + 10 == 1_369_738
    network = all_cnn_c(num_classes=100).eval()
    assert maps_of(network, torch.zeros(1, 3, 32, 32)) == [
        (96, 32, 32), (96, 32, 32), (96, 16, 16),
        (192, 16, 16), (192, 16, 16), (192, 8, 8),
        (192, 6, 6), (192, 6, 6), (100, 6, 6),
    ]  # fmt: skip
    assert [m.p for m in network.modules() if isinstance(m, nn.Dropout)] == [0.2, 0.5, 0.5]


def test_resnet20_has_nineteen_convolutions_and_no_weights_in_its_shortcuts() -> None:
    stages = [3 * 16, 6 * 16 * 16, 16 * 32 + 5 * 32 * 32, 32 * 64 + 5 * 64 * 64]
    norms = 2 * (7 * 16 + 6 * 32 + 6 * 64)
    assert parameters(resnet20()) == 9 * sum(stages) + norms + 64 * 10 + 10 == 269_722
    sizes = maps_of(resnet20(num_classes=7).eval(), torch.zeros(1, 3, 32, 32))
    assert sizes == [(16, 32, 32)] * 7 + [(32, 16, 16)] * 6 + [(64, 8, 8)] * 6
    assert resnet20(num_classes=7).eval()(torch.zeros(2, 3, 32, 32)).shape == (2, 7)


def test_the_shortcut_samples_every_second_position_and_adds_channels_of_zeros() -> None:
    block = Block(2, 5, stride=2).eval()
    nn.init.zeros_(block.bn2.weight)
    x = torch.rand(3, 2, 6, 8)
    expected = torch.zeros(3, 5, 3, 4)
    expected[:, :2] = x[:, :, ::2, ::2]
    assert torch.equal(block(x), expected)


def test_lenet_has_the_maps_of_the_paper() -> None:
    maps = [(20, 24, 24), (20, 12, 12), (50, 8, 8), (50, 4, 4)]
    assert maps_of(lenet(), torch.zeros(1, 1, 28, 28)) == maps
    assert lenet(num_classes=3)(torch.zeros(2, 1, 28, 28)).shape == (2, 3)


def test_calibration_gives_each_batch_norm_the_statistics_of_the_images() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.BatchNorm2d(4))
    network.eval()
    images = 5 + 3 * torch.randn(4, 3, 8, 8)
    before = torch.get_rng_state()
    calibrate(network, images)
    assert torch.equal(torch.get_rng_state(), before)
    maps = network[0](images).detach()
    torch.testing.assert_close(network[1].running_mean, maps.mean((0, 2, 3)))
    torch.testing.assert_close(network[1].running_var, maps.var((0, 2, 3)))
    assert [network[index].momentum for index in (1, 3)] == [0.1, 0.1]
    assert not any(module.training for module in network.modules())


# A survey


def tiny(width: int = 4) -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, width, 3, stride=2), nn.ReLU(), nn.Conv2d(width, 3, 2))


class Undecided(nn.Module):
    """Its forward depends on values, so that it has no twin."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(2, 3, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.convolution(x) if x.sum() > 0 else -self.convolution(x)


def entry(name: str, **arguments: Any) -> dict[str, Any]:
    model = {"_target_": f"{__name__}.{name}", **arguments}
    return {"model": model, "input_size": [2, 9, 9], "theorem": 2, "pooling": False}


TINY = {"narrow": entry("tiny"), "impossible": entry("Undecided"), "wide": entry("tiny", width=6)}


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ZooConfig:
    """Settings of a survey of three tiny models, of which the second has no twin."""
    monkeypatch.setattr(surveys, "ZOO", TINY)
    return ZooConfig(model={"_target_": None}, input_size=None, rounds=3, outputs=str(tmp_path))


def counting(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the models that are measured from now on."""
    measured: list[str] = []
    measure_model = surveys.measure_model

    def counted(name: str, *rest: Any, **options: Any) -> dict[str, Any]:
        measured.append(name)
        return measure_model(name, *rest, **options)

    monkeypatch.setattr(surveys, "measure_model", counted)
    return measured


def test_a_row_says_what_a_twin_costs_and_how_near_it_is(config: ZooConfig) -> None:
    row, _, wide = measure_zoo(config)
    # By hand: a 3x3 filter at stride 2 becomes 2x2 on 4 phases; the maps are 4x4, then 3x3.
    assert (row["strided_layers"], row["strided_parameters"]) == (1, 4 * 18 + 4 + 3 * 16 + 3)
    assert row["unit_stride_parameters"] == 4 * 8 * 4 + 4 + 3 * 16 + 3
    assert row["strided_multiply_adds"] == 4 * 18 * 16 + 3 * 16 * 9
    assert row["unit_stride_multiply_adds"] == 4 * 8 * 4 * 16 + 3 * 16 * 9
    assert wide["strided_parameters"] == 6 * 18 + 6 + 3 * 24 + 3
    assert row["passed"]
    assert 0 <= row["share_of_bound"] <= 1
    assert 0 <= row["relative_error"] < 1e-14
    assert 0 <= row["output_difference"] < 1e-13
    assert [set(seconds) for seconds in row["seconds"]] == [{"strided", "unit_stride"}] * 3
    assert all(seconds["strided"] > 0 for seconds in row["seconds"])
    assert (row["input"], row["threads"]) == ("2x9x9", 1)
    assert row["versions"]["torch"] == torch.__version__


def test_a_model_without_a_twin_has_a_row_with_the_reason(config: ZooConfig) -> None:
    rows = measure_zoo(config)
    assert [row["model"] for row in rows] == ["narrow", "impossible", "wide"]
    assert ["reason" in row for row in rows] == [False, True, False]
    assert "passed" not in rows[1]
    assert "Undecided" in rows[1]["reason"]


def test_an_interrupted_survey_goes_on_where_it_was(
    config: ZooConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = counting(monkeypatch)
    counted = surveys.measure_model

    def stopped(name: str, *rest: Any, **options: Any) -> dict[str, Any]:
        if name == "wide":
            raise KeyboardInterrupt
        return counted(name, *rest, **options)

    monkeypatch.setattr(surveys, "measure_model", stopped)
    with pytest.raises(KeyboardInterrupt):
        measure_zoo(config)
    assert measured == ["narrow", "impossible"]
    monkeypatch.setattr(surveys, "measure_model", counted)
    rows = measure_zoo(config)
    assert measured == ["narrow", "impossible", "wide"]
    assert measure_zoo(config) == rows
    assert len(measured) == 3


def test_rows_of_other_settings_and_damaged_ones_are_measured_again(
    config: ZooConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config.models = ["narrow"]
    measure_zoo(config)
    measured = counting(monkeypatch)
    measure_zoo(config)
    assert measured == []
    measure_zoo(replace(config, rounds=2))
    measure_zoo(replace(config, rounds=2, force=True))
    assert len(measured) == 2
    measure_zoo(config)
    assert len(measured) == 3
    path = Path(config.outputs) / "zoo" / "narrow.json"
    for damage in ("", "[]", "{}", path.read_text()[:50]):
        path.write_text(damage)
        measure_zoo(config)
    assert len(measured) == 7
    assert json.loads(path.read_text())["model"] == "narrow"


def test_a_twin_that_differs_is_told(config: ZooConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(model: nn.Module, config: ZooConfig, check: bool) -> nn.Module:
        twin = convert(model, config, check)
        with torch.no_grad():
            next(twin.parameters()).mul_(1.001)
        return twin

    monkeypatch.setattr(surveys, "convert", wrong)
    row, *_ = measure_zoo(config)
    assert not row["passed"]
    assert row["first_failure"] == "0"
    assert surveys.outcome_line(row) == "NOT equal, from 0 on"


def test_a_model_of_ones_own_is_measured_every_time_and_as_it_is(
    config: ZooConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = replace(config, **TINY["wide"])
    measured = counting(monkeypatch)
    calibrated = []
    monkeypatch.setattr(surveys, "calibrate", lambda *_: calibrated.append(True))
    for _ in range(2):
        (row,) = measure_zoo(own)
    assert measured == [f"{__name__}.tiny"] * 2
    assert row["unit_stride_parameters"] == 6 * 8 * 4 + 6 + 3 * 24 + 3
    assert calibrated == []
    measure_zoo(config)
    assert len(calibrated) == 3


def test_a_name_that_is_not_in_the_zoo_is_told_with_those_that_are(config: ZooConfig) -> None:
    with pytest.raises(InputError, match="resnet1 is not in the zoo; it has narrow, impossible"):
        measure_zoo(replace(config, models=["narrow", "resnet1"]))


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["theorem=1"], "theorem=1: the zoo's models have settings of their own"),
        (["model.width=3"], "the zoo's models have settings of their own"),
        (["input_size=[3,8,8]"], "the zoo's models have settings of their own"),
        (["model._target_=a.b"], "input_size=None must be"),
        (["model._target_=a.b", "input_size=[3,8,8]", "models=[lenet]"], "give one of the two"),
        (["models=3"], "models=3 must be a name"),
        (["rounds=0"], "rounds=0 must be at least 1"),
        (["threads=0"], "threads=0 must be from 1"),
        (["seed=-1"], "seed=-1 must be from 0"),
    ],
)
def test_settings_of_the_zoo_that_contradict_each_other_are_refused(
    composed: Callable, overrides: list[str], told: str
) -> None:
    with pytest.raises(InputError, match=told):
        composed(*overrides, command="zoo")


def test_one_name_is_a_list_of_one(composed: Callable) -> None:
    assert composed("models=lenet", command="zoo").models == ["lenet"]


# The table


def made_rows() -> Rows:
    """Rows as survey gives them, with round numbers."""
    about = {
        "input": "2x9x9", "config": {"theorem": 1}, "device_name": "Abacus 3000", "threads": 1,
        "jobs_at_once": 1, "versions": {"torch": "9.9"}, "git_commit": "abc", "date": "today",
    }  # fmt: skip
    numbers = {
        "strided_layers": 3, "strided_parameters": 2_000_000, "unit_stride_parameters": 3_456_000,
        "strided_multiply_adds": 10_000_000, "unit_stride_multiply_adds": 1_234_567_890,
        "layers_compared": 7, "relative_error": 1.5e-13, "share_of_bound": 0.25,
        "output_difference": 1e-15, "passed": True, "first_failure": None, "conversion_seconds": 2.0,
    }  # fmt: skip
    pairs = [(1e-3, 5e-3), (2e-3, 2e-3), (4e-3, 3e-3)]
    seconds = [{"strided": strided, "unit_stride": twin} for strided, twin in pairs]
    return [
        {"model": "good", **about, **numbers, "seconds": seconds},
        {"model": "hopeless", **about, "reason": "fc_1 (Foo) has no rule"},
        {"model": "bad", **about, **numbers, "seconds": seconds, "passed": False,
         "first_failure": "conv1", "share_of_bound": None},
    ]  # fmt: skip


def test_the_table_has_medians_of_the_rounds_and_whole_numbers_whole() -> None:
    table = zoo_table(made_rows()).set_index("model")
    row = table.loc["good"]
    assert (row.strided_median, row.unit_stride_median) == pytest.approx((2, 3))
    assert row.ratio_median == pytest.approx(1)  # of 5, 1 and 0.75
    assert (row.ratio_low, row.ratio_high) == pytest.approx((0.875, 3))
    text = table.to_csv()
    assert "2000000,3456000" in text
    assert "fc_1 (Foo) has no rule" in text


def test_readers_get_both_networks_in_one_entry_and_no_numbers_where_there_is_no_twin() -> None:
    readable = zoo_for_readers(zoo_table(made_rows())).set_index("Network")
    assert not readable.map(lambda entry: "nan" in str(entry) or "NA" in str(entry)).any(axis=None)
    good, hopeless, bad = (readable.loc[name] for name in ("good", "hopeless", "bad"))
    assert (good["Parameters (M)"], good["Multiply-adds (M)"]) == (
        "2.00 → 3.46",
        "10.00 → 1,234.57",
    )
    assert (good["Error"], good["of bound"], good["ratio"]) == (
        "1.5e-13",
        "0.25",
        "1.00 (0.88–3.00)",
    )
    assert [row["Twin is"] for row in (good, hopeless, bad)] == ["equal", "no twin", "NOT equal"]
    numbers = ["Strided layers", "Parameters (M)", "Multiply-adds (M)", "Error", "ms", "ratio"]
    assert [hopeless[name] for name in numbers] == [""] * len(numbers)
    assert hopeless["Reason"] == "fc_1 (Foo) has no rule"
    assert "Reason" not in zoo_for_readers(zoo_table(made_rows()[:1]))


def test_the_report_has_the_table_in_three_forms_and_every_round(config: ZooConfig) -> None:
    texts = write_zoo(config, made_rows())
    assert "hopeless: fc_1 (Foo) has no rule" in texts
    assert "Abacus 3000, 1 thread(s)" in texts[-1]
    assert texts[-1].endswith("commit abc.")
    report = Path(config.outputs) / "report"
    names = {path.name for path in report.iterdir()}
    assert names == {"zoo.csv", "zoo.md", "zoo.tex", "zoo.json"}
    assert json.loads((report / "zoo.json").read_text()) == made_rows()
    assert len(pd.read_csv(report / "zoo.csv")) == 3
    assert "Abacus 3000" in (report / "zoo.md").read_text()
    assert "fc\\_1 (Foo)" in (report / "zoo.tex").read_text()


def test_a_model_of_ones_own_leaves_the_zoos_table_alone(config: ZooConfig) -> None:
    write_zoo(config, made_rows())
    table = Path(config.outputs) / "report" / "zoo.csv"
    before = table.read_bytes()
    write_zoo(replace(config, **TINY["wide"]), made_rows()[:1])
    assert table.read_bytes() == before
    assert len(pd.read_csv(table.with_name("own_model.csv"))) == 1


# The command


def zoo(monkeypatch: pytest.MonkeyPatch, *overrides: str) -> int:
    """The exit code of the command in this process."""
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # as the command leaves it
    monkeypatch.setattr(sys, "argv", ["zoo", *overrides])
    failed.clear()
    with pytest.raises(SystemExit) as ended:
        start(main)
    failed.clear()
    return int(ended.value.code or 0)


def test_the_command_succeeds_where_a_model_has_no_twin_and_fails_where_one_differs(
    config: ZooConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = ("rounds=1", f"outputs={config.outputs}")
    assert zoo(monkeypatch, *overrides) == 0
    told = capsys.readouterr().out
    assert "impossible: no twin: Undecided" in told
    assert "wide: equal up to rounding" in told

    kept = Path(config.outputs) / "zoo" / "wide.json"
    kept.write_text(kept.read_text().replace('"passed": true', '"passed": false'))
    assert zoo(monkeypatch, *overrides) == 1
    assert "NOT equal" in capsys.readouterr().out


def test_the_command_takes_a_model_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = ["model._target_=torch.nn.Conv2d", "model.in_channels=3", "model.out_channels=5",
           "model.kernel_size=4", "model.stride=3", "input_size=[3,20,20]", "theorem=1"]  # fmt: skip
    assert zoo(monkeypatch, *own, "rounds=2", f"outputs={tmp_path}") == 0
    (row,) = pd.read_csv(tmp_path / "report" / "own_model.csv").to_dict("records")
    assert (row["model"], row["theorem"], row["strided_layers"]) == ("torch.nn.Conv2d", 1, 1)
    assert row["strided_parameters"] == 5 * 3 * 16 + 5


def test_a_mistake_is_one_line(
    config: ZooConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert zoo(monkeypatch, "models=[narow]", f"outputs={config.outputs}") == 1
    printed = capsys.readouterr()
    known = "narrow, impossible, wide"
    assert printed.err == f"error: models: narow is not in the zoo; it has {known}\n"
    assert printed.out == ""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["all_cnn_c", "resnet20"])
def test_the_small_networks_have_twins_as_a_whole(name: str, tmp_path: Path) -> None:
    config = ZooConfig(model={"_target_": None}, models=[name], rounds=1, outputs=str(tmp_path))
    (row,) = measure_zoo(config)
    assert row.get("reason") is None
    assert row["passed"]
    assert row["strided_layers"] == 2
