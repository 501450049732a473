"""What a conversion and the stems cost: the tables by hand, in turn, and no wrong network timed."""

import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_dir
from torch import Tensor, nn
from torchvision import models
from tqdm import tqdm

from experiments.command import CONF
from experiments.runs.files import write_json
from experiments.settings.checks import resolve
from experiments.settings.conversions import ConversionBenchmarkConfig
from experiments.studies import conversion as bench
from experiments.studies.conversion import (
    STEMS,
    benchmark_conversion,
    conversion_sections,
    conversion_table,
    in_turn,
    require_equal,
    stem_table,
)
from stridenet.by_layer.conversion import convert_layers
from stridenet.errors import InputError, StrideEliminationError

CASES = [(name, layout) for name in STEMS for layout in ("contiguous", "channels_last")]


def measured_with(**changes: Any) -> dict[str, Any]:
    """Return what benchmark_conversion returns of one stem."""
    seconds = zip([1e-3, 2e-3, 4e-3], [5e-3, 2e-3, 3e-3], strict=True)  # ratios 5, 1 and 0.75
    return {
        "size": [3, 8, 8],
        "conversion": {
            "model": "net",
            "seconds": [
                {"convert_layers": 0.3, "fuse": 0.1},  # 3 times
                {"convert_layers": 0.8, "fuse": 0.1},  # 8 times
                {"convert_layers": 0.4, "fuse": 0.4},  # once
            ],
        },
        "stems": [
            {
                "stem": "Stem",
                "layer": "2x2 conv 5 stride 2",
                "layout": "contiguous",
                "multiply_adds": {"strided": 100, "unit_stride": 125},
                "seconds": [{"strided": a, "unit_stride": b} for a, b in seconds],
            }
        ],
        "device": "cpu",
        "device_name": "Abacus 3000",
        "threads": 1,
        "versions": {"torch": "9.9"},
        "config": {"rounds": 3, "steps": 7, "batch_size": 4},
        **changes,
    }


def settings(*overrides: str) -> ConversionBenchmarkConfig:
    with initialize_config_dir(CONF, version_base="1.3"):
        composed = compose("conversion_benchmark", overrides=list(overrides))
    return resolve(composed, ConversionBenchmarkConfig)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "SIZE", (3, 48, 48))
    monkeypatch.setattr(bench, "NETWORK", "resnet18")


# The tables


def test_the_ratios_are_medians_of_the_rounds_ratios() -> None:
    (row,) = conversion_table(measured_with()).itertuples()
    assert (row.model, row.ratio_median) == ("net", pytest.approx(3))  # of medians it would be 4
    assert (row.convert_layers_median, row.fuse_median) == pytest.approx((400, 100))
    assert (row.ratio_low, row.ratio_high) == pytest.approx((2, 5.5))
    (row,) = stem_table(measured_with()).itertuples()
    assert (row.strided_median, row.unit_stride_median) == pytest.approx((2, 3))
    assert row.ratio_median == pytest.approx(1)  # of medians it would be 1.5
    assert (row.ratio_low, row.ratio_high) == pytest.approx((0.875, 3))


def test_the_sections_tell_how_it_was_timed_and_are_saved_three_times(tmp_path: Path) -> None:
    conversion, stems = conversion_sections(measured_with())
    assert "on the processor, median (quartiles) of 3 rounds in turn" in conversion.caption
    told = ["3 rounds in turn of 7 passes", "batches of 4 images 3x8x8", "below 1"]
    assert [part for part in told if part not in stems.caption] == []
    assert "Abacus 3000" in stems.about
    assert "400 (350–600)" in conversion.save(tmp_path)
    printed = stems.save(tmp_path)
    assert "3.00 (2.50–4.00) 1.00 (0.88–3.00)" in printed
    assert "stride 2" not in printed  # too wide
    assert "2x2 conv 5 stride 2 | contiguous | 1.25 " in (tmp_path / "stems.md").read_text()
    names = {f"{name}.{kind}" for name in ("conversion", "stems") for kind in ("csv", "md", "tex")}
    assert {path.name for path in tmp_path.iterdir()} == names


def test_a_terminal_holds_the_table(tmp_path: Path) -> None:
    stem = measured_with()["stems"][0]
    wide = {"strided": 0.1234, "unit_stride": 0.2345}
    stems = [
        {**stem, "stem": name, "layout": layout, "seconds": [wide] * 3} for name, layout in CASES
    ]
    text = conversion_sections(measured_with(stems=stems))[1].save(tmp_path)
    assert max(map(len, text.splitlines())) <= 80
    assert len(text.split("\n\n")[1].splitlines()) == 1 + len(CASES)


# The measurement


@pytest.mark.slow
@pytest.mark.usefixtures("same_torch", "small")
def test_each_stem_is_timed_in_both_layouts_and_comes_back_from_its_file(tmp_path: Path) -> None:
    config = ConversionBenchmarkConfig(
        rounds=2, steps=1, batch_size=1, device="cpu", outputs=str(tmp_path)
    )
    measured = benchmark_conversion(config)
    assert [(stem["stem"], stem["layout"]) for stem in measured["stems"]] == CASES
    for stem in measured["stems"]:
        assert [set(timed) for timed in stem["seconds"]] == [{"strided", "unit_stride"}] * 2
        assert min(min(timed.values()) for timed in stem["seconds"]) > 0
    # ResNet's: 24x24 outputs of 64 filters of 3x7x7, and of 12x4x4 in the twin
    assert measured["stems"][0]["multiply_adds"] == {
        "strided": 24**2 * 64 * 147,
        "unit_stride": 24**2 * 64 * 192,
    }
    conversion = measured["conversion"]
    assert conversion["model"] == "resnet18"
    assert [set(timed) for timed in conversion["seconds"]] == [{"convert_layers", "fuse"}] * 2
    assert measured["config"]["batch_size"] == 1

    write_json(tmp_path / "conversion.json", measured)
    read = json.loads((tmp_path / "conversion.json").read_text())
    for before, after in zip(conversion_sections(measured), conversion_sections(read), strict=True):
        pd.testing.assert_frame_equal(before.table, after.table)
        assert (before.caption, before.about) == (after.caption, after.about)
    assert conversion_sections(read)[1].readable.Layer[0] == "7x7 conv 64 stride 2, padding 3"


@pytest.mark.parametrize(
    ("name", "build"),
    [
        ("ResNet", lambda: models.resnet18(weights=None).conv1),
        ("AlexNet", lambda: models.alexnet(weights=None).features[0]),
        ("ConvNeXt", lambda: models.convnext_tiny(weights=None).features[0][0]),
        ("ViT-B/16", lambda: models.VisionTransformer(224, 16, 1, 12, 768, 8).conv_proj),
    ],
)
def test_a_stem_has_torchvisions_numbers(name: str, build: Any) -> None:
    official, (ours,) = build(), STEMS[name].build()
    numbers = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation")
    for number in (*numbers, "groups"):
        assert getattr(ours, number) == getattr(official, number)


def test_all_are_timed_in_turn_after_a_round_that_is_not_counted() -> None:
    done = []

    def chunk(name: str) -> float:
        done.append(name)
        return float(len(done))

    with tqdm(total=3, disable=True) as bar:
        timed = {name: lambda name=name: chunk(name) for name in "ab"}
        assert in_turn(timed, 2, bar) == [{"a": 3, "b": 4}, {"a": 5, "b": 6}]
    assert done == ["a", "b"] * 3


# A wrong network


class Plus(nn.Module):
    """A network that gives this much more than another."""

    def __init__(self, network: nn.Module, more: float) -> None:
        super().__init__()
        self.network, self.more = network, more

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x) + self.more


@pytest.mark.parametrize("more", [0.01, float("nan"), float("inf")])
def test_a_wrong_network_is_named(more: float) -> None:
    model, images = nn.Conv2d(3, 4, 3), torch.rand(1, 3, 8, 8)
    with pytest.raises(StrideEliminationError, match=r"^Stem: .* is not timed"):
        require_equal("Stem", model, Plus(model, more), images)
    require_equal("Stem", model, Plus(model, 1e-7), images)


@pytest.mark.usefixtures("same_torch", "small")
@pytest.mark.parametrize("part", ["stems", "convert_layers", "fuse"])
def test_a_wrong_network_is_not_timed(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong_twin(model: nn.Module, *size: Any, **options: Any) -> nn.Module:
        twin = convert_layers(model, *size, **options)
        wrong = (part == "stems") == isinstance(model, nn.Sequential)
        if wrong and part != "fuse":
            last = [*twin.parameters()][-1]
            last.data += 1
        return twin

    def timed(chunks: Any, *rest: Any) -> list[dict[str, float]]:
        counted.append([*chunks])
        return []

    counted: list[list[str]] = []
    monkeypatch.setattr(bench, "convert_layers", wrong_twin)
    monkeypatch.setattr(bench, "in_turn", timed)
    if part == "fuse":
        monkeypatch.setattr(bench, "_fuse", lambda: lambda model: Plus(model, 1.0))
    where = "ResNet" if part == "stems" else part
    config = ConversionBenchmarkConfig(rounds=1, steps=1, batch_size=1, device="cpu")
    with pytest.raises(StrideEliminationError, match=f"^{where}: .* not equal"):
        benchmark_conversion(config)
    assert counted == ([["convert_layers", "fuse"]] if part == "stems" else [])


# Settings


def test_the_settings_of_the_command_are_those_of_the_dataclass() -> None:
    assert settings() == ConversionBenchmarkConfig()
    assert settings("rounds=3", "batch_size=1", "device=cpu").batch_size == 1


@pytest.mark.parametrize(
    "setting", ["rounds=0", "steps=0", "batch_size=0", "threads=0", "device=abacus"]
)
def test_a_setting_out_of_range_is_named(setting: str) -> None:
    with pytest.raises(InputError, match=re.escape(setting)):
        settings(setting)
