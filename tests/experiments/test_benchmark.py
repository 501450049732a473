"""What a step costs: ratios within a round, a peak worked out by hand, all loops on one network."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from experiments.runs.data import Dataset
from experiments.runs.training import History
from experiments.settings.identity import model_identity
from experiments.settings.schema import (
    BenchmarkConfig,
    DataConfig,
    LayerConfig,
    ModelConfig,
    RecipeConfig,
)
from experiments.studies import training_step as bench
from experiments.studies.training_step import (
    benchmark,
    benchmark_for_readers,
    benchmark_section,
    benchmark_table,
)

# By hand, layer by layer of LeNet: filters × kernel × map
STRIDED_ADDS = [20 * 25 * 24**2, 20 * 80 * 12**2, 50 * 500 * 8**2, 50 * 200 * 4**2, 400_000, 5_000]
TWIN_ADDS = [320 * 64 * 6**2, 80 * 320 * 6**2, 200 * 720 * 4**2, 50 * 200 * 4**2, 400_000, 5_000]
SECONDS = {
    "ours_strided": [1e-5, 2e-5, 4e-5],
    "ours_unit_stride": [5e-5, 2e-5, 3e-5],  # 5, 1 and 0.75 times as long
    "plain_strided": [3e-5, 8e-5, 4e-5],  # 3, 4 and 1 times ours
    "plain_unit_stride": [1e-4, 2e-5, 9e-5],  # 2, 1 and 3 times ours
    "matrix_product": [1e-6, 2e-6, 4e-6],
    "rearrangement": [0.2, 0.1, 0.6],
}
ROUNDS = [*zip(*SECONDS.values(), strict=True)]


def measured_with(**changes: Any) -> dict[str, Any]:
    """Return what the benchmark returns of the paper's networks."""
    return {
        "multiply_adds": {"strided": sum(STRIDED_ADDS), "unit_stride": sum(TWIN_ADDS)},
        "first_layer_multiply_adds": {"strided": STRIDED_ADDS[0], "unit_stride": TWIN_ADDS[0]},
        "paper": True,
        "images": 60_000,
        "matrix": 10,
        "seconds": [dict(zip(SECONDS, row, strict=True)) for row in ROUNDS],
        "operators": {
            "strided": {"aten::mm": 0.5, "aten::add": 0.3, "aten::relu": 0.1, "a": 0.06, "b": 0.04},
            "unit_stride": {"aten::conv": 0.876, "aten::copy_": 0.124},
        },
        "device_name": "Abacus 3000",
        "threads": 1,
        "versions": {"torch": "9.9"},
        "config": {"rounds": 3, "steps": 7, "recipe": {"batch_size": 4}},
        **changes,
    }


def quantities(measured: dict[str, Any]) -> pd.DataFrame:
    return benchmark_table(measured).set_index("quantity")


# The table


def test_the_ratio_is_the_median_of_the_rounds_ratios() -> None:
    row = quantities(measured_with()).loc["our loop (ms)"]
    assert row.ratio_median == pytest.approx(1)  # of medians it would be 1.5, of means 1.43
    assert (row.ratio_low, row.ratio_high) == pytest.approx((0.875, 3))
    assert (row.strided_median, row.unit_stride_median) == pytest.approx((0.02, 0.03))
    assert (row.strided_low, row.strided_high) == pytest.approx((0.015, 0.03))
    assert (row.unit_stride_low, row.unit_stride_high) == pytest.approx((0.025, 0.04))


def test_the_plain_loop_is_compared_with_ours_round_by_round() -> None:
    table = quantities(measured_with())
    row = table.loc["plain loop / ours"]
    assert (row.strided_median, row.unit_stride_median) == pytest.approx((3, 2))
    assert (row.strided_low, row.strided_high) == pytest.approx((2, 3.5))
    plain = table.loc["plain loop (ms)"]
    assert (plain.strided_median, plain.unit_stride_median) == pytest.approx((0.04, 0.09))
    assert plain.ratio_median == pytest.approx(9 / 4)  # of 10/3, 1/4 and 9/4


def test_the_order_of_the_rounds_does_not_matter() -> None:
    measured = measured_with()
    turned = measured_with(seconds=measured["seconds"][::-1])
    pd.testing.assert_frame_equal(benchmark_table(measured), benchmark_table(turned))


def test_the_share_of_the_peak_leaves_out_the_gradient_of_the_images() -> None:
    measured = measured_with(
        multiply_adds={"strided": 100, "unit_stride": 160},
        first_layer_multiply_adds={"strided": 40, "unit_stride": 60},
    )
    row = quantities(measured).loc["share of peak (%)"]
    # A product of matrices of 10 rows has 10³ multiply-adds: 10⁹, 5·10⁸ and 2.5·10⁸ in a second.
    # A step has 4 (40·2 + 60·3) = 1040 of the strided network, and 4 (60·2 + 100·3) = 1680.
    strided = [1040 / 1e-5 / 1e9, 1040 / 2e-5 / 5e8, 1040 / 4e-5 / 2.5e8]
    assert strided == pytest.approx([0.104] * 3)
    assert row.strided_median == pytest.approx(10.4)
    twin = [1680 / 5e-5 / 1e9, 1680 / 2e-5 / 5e8, 1680 / 3e-5 / 2.5e8]
    assert row.unit_stride_median == pytest.approx(100 * sorted(twin)[1])
    assert row.unit_stride_high == pytest.approx(100 * (twin[1] + twin[2]) / 2)


def test_multiply_adds_grow_by_1_687_and_the_papers_seconds_by_1_507() -> None:
    table = quantities(measured_with())
    adds, paper = table.loc["multiply-adds"], table.loc["paper's training (s)"]
    assert (adds.strided_median, adds.unit_stride_median) == (2_683_400, 4_527_880)
    assert adds.ratio_median == pytest.approx(1.687, abs=5e-4)
    assert (paper.strided_median, paper.unit_stride_median) == (451.91, 680.97)
    assert paper.ratio_median == pytest.approx(1.507, abs=5e-4)


def test_rearrangement_is_told_of_the_twin_alone() -> None:
    row = quantities(measured_with()).loc["rearrangement (ms)"]
    assert row.unit_stride_median == pytest.approx(200)
    assert (row.unit_stride_low, row.unit_stride_high) == pytest.approx((150, 400))
    assert row[[name for name in row.index if not name.startswith("unit_stride")]].isna().all()


def test_readers_get_medians_with_quartiles_and_blanks_where_there_is_nothing() -> None:
    readable = benchmark_for_readers(benchmark_table(measured_with())).set_index("")
    assert not readable.map(lambda entry: "nan" in entry or "None" in entry).any(axis=None)
    strided, twin, ratio = (readable.iloc[:, column] for column in range(3))
    assert ratio["our loop (ms)"] == "1.00 (0.88–3.00)"
    assert strided["our loop (ms)"] == "0.0200 (0.0150–0.0300)"
    assert strided["multiply-adds"] == "2,683,400"
    assert (strided["paper's training (s)"], ratio["paper's training (s)"]) == ("452", "1.51")
    assert (strided["rearrangement (ms)"], ratio["rearrangement (ms)"]) == ("", "")
    assert twin["rearrangement (ms)"] == "200 (150–400)"
    assert strided["plain loop / ours"] == "3.00 (2.00–3.50)"
    blank = {"plain loop / ours", "share of peak (%)", "rearrangement (ms)"}
    assert {quantity for quantity in readable.index if not ratio[quantity]} == blank


def test_the_caption_tells_the_largest_operators_and_how_it_was_timed() -> None:
    section = benchmark_section(measured_with())
    told = ["3 rounds of 7 steps", "batches of 4", "60,000", "aten::mm 50%", "aten::conv 88%"]
    assert [part for part in told if part not in section.caption] == []
    assert "b 4%" not in section.caption  # the fifth
    assert "Abacus 3000" in section.about


# The measurement


@pytest.fixture
def config(tmp_path: Path) -> BenchmarkConfig:
    layers = {
        "conv1": LayerConfig("conv", 4, [3, 3], [1, 1], [1, 1], [0, 0]),
        "conv2": LayerConfig("conv", 6, [2, 2], [2, 2], [1, 1], [0, 0]),
        "fc1": LayerConfig("fc", 10, [1, 1], [1, 1], [1, 1], [0, 0]),
    }
    return BenchmarkConfig(
        model=ModelConfig(activation="relu", layers=layers),
        data=DataConfig("mnist", [10, 10]),
        recipe=RecipeConfig("tiny", steps=900, batch_size=8),
        outputs=str(tmp_path),
        rounds=2,
        steps=3,
        device="cpu",
    )


@pytest.mark.slow
@pytest.mark.usefixtures("same_torch")
def test_a_benchmark_times_both_networks_in_every_round_and_counts_by_hand(
    config: BenchmarkConfig, tiny_data: Dataset, mnist_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = []
    train = bench.train

    def watched(
        network: nn.Module, splits: dict[str, Any], recipe: RecipeConfig, *rest: Any, **named: Any
    ) -> History:
        history = train(network, splits, recipe, *rest, **named)
        inputs = splits["training"].take(torch.arange(2))[0].shape
        weights = sum(p.numel() for p in network.parameters())
        trained.append((tuple(inputs), weights, history.steps, recipe.batch_size))
        return history

    rates = {"strided": 0.01, "unit_stride": 0.02}
    config = replace(config, recipe=replace(config.recipe, learning_rate=rates))
    monkeypatch.setattr(bench, "load", lambda data, folder: tiny_data)
    monkeypatch.setattr(bench, "train", watched)
    monkeypatch.setattr(bench, "MATRIX", 100)
    (Path(config.outputs) / "data").symlink_to(mnist_folder, target_is_directory=True)
    measured = benchmark(config)

    assert len(measured["seconds"]) == 2
    for timed in measured["seconds"]:
        assert set(timed) == set(SECONDS)
        assert min(timed.values()) > 0
    # conv1 8x8, conv2 4x4; the twin's phases are 4 channels of 5x5, 16 of 4x4
    assert measured["multiply_adds"] == {
        "strided": 4 * 9 * 64 + 6 * 16 * 16 + 960,
        "unit_stride": 16 * 16 * 16 + 6 * 16 * 16 + 960,
    }
    assert measured["first_layer_multiply_adds"] == {
        "strided": 4 * 9 * 64,
        "unit_stride": 16 * 16 * 16,
    }
    assert (measured["images"], measured["matrix"]) == (150, 100)
    assert measured["model"] == model_identity(config)
    assert measured["config"]["rounds"] == 2
    for shares in measured["operators"].values():
        assert sum(shares.values()) == pytest.approx(1)
        assert [*shares.values()] == sorted(shares.values(), reverse=True)
        assert any("conv" in name for name in shares)
    # Once to warm up, in two rounds, and for the profile.
    strided = ((2, 1, 10, 10), 40 + 102 + 970, 3, 8)
    twin = ((2, 4, 5, 5), 16 * 16 + 16 + 102 + 970, 3, 8)
    assert sorted(trained) == [strided] * 4 + [twin] * 4
    assert trained[:6] == [strided, twin] * 3  # in turn

    table = benchmark_section(measured).table
    assert len(table) == 6  # the paper timed another network
    assert table.unit_stride_median.notna().all()


@pytest.mark.parametrize("name", ["strided", "unit_stride"])
def test_the_plain_loop_takes_its_steps_of_gradient_descent_on_the_network_that_ours_has(
    config: BenchmarkConfig, tiny_data: Dataset, name: str
) -> None:
    config = replace(config, recipe=replace(config.recipe, weight_decay=0.5))
    images = tiny_data.train_images.float() / 255
    batches = [(images[k : k + 8], tiny_data.train_labels[k : k + 8]) for k in range(0, 80, 8)]
    taken = []

    def loader() -> Iterator[tuple[Tensor, Tensor]]:
        for batch in batches:
            taken.append(batch)
            yield batch

    network, by_hand = bench._network(config, name), bench._network(config, name)
    chunk = bench._plain_loop(network, loader(), config, torch.device("cpu"))  # type: ignore[arg-type]
    assert chunk() > 0
    assert len(taken) == config.steps

    velocity = [torch.zeros_like(p) for p in by_hand.parameters()]
    for inputs, labels in taken:
        scores = by_hand(inputs).log_softmax(1)
        loss = -scores.gather(1, labels[:, None]).mean()
        gradients = torch.autograd.grad(loss, [*by_hand.parameters()])
        with torch.no_grad():
            for parameter, gradient, v in zip(
                by_hand.parameters(), gradients, velocity, strict=True
            ):
                v.mul_(0.9).add_(gradient + 0.5 * parameter)
                parameter.sub_(0.01 * v)
    for parameter, expected in zip(network.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(parameter, expected)


def test_each_network_is_timed_at_its_own_rate(config: BenchmarkConfig) -> None:
    recipe = replace(config.recipe, learning_rate={"strided": 0.1, "unit_stride": 0.2})
    rates = [
        bench._at_its_rate(replace(config, recipe=recipe), name).recipe.learning_rate
        for name in ("strided", "unit_stride")
    ]
    assert rates == [0.1, 0.2]
    assert bench._at_its_rate(config, "strided") == config


def test_the_networks_of_a_benchmark_are_a_strided_one_and_its_twin(
    config: BenchmarkConfig,
) -> None:
    strided, twin = (bench._network(config, name) for name in ("strided", "unit_stride"))
    steps = [
        [module.stride for module in network.modules() if isinstance(module, nn.Conv2d)]
        for network in (strided, twin)
    ]
    assert steps == [[(1, 1), (2, 2)], [(1, 1), (1, 1)]]
    assert strided(torch.zeros(2, 1, 10, 10)).shape == twin(torch.zeros(2, 1, 10, 10)).shape


def test_two_networks_are_the_same_to_a_benchmark_whatever_the_recipe(
    config: BenchmarkConfig,
) -> None:
    same = BenchmarkConfig(config.model, config.data, RecipeConfig("other", epochs=3))
    other = BenchmarkConfig(ModelConfig(activation="tanh", layers=config.model.layers), config.data)
    larger = BenchmarkConfig(config.model, DataConfig("mnist", [12, 12]))
    assert model_identity(same) == model_identity(config)
    assert len({model_identity(each) for each in (config, other, larger)}) == 3


def test_seconds_are_of_one_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(bench, "time", SimpleNamespace(perf_counter=lambda: clock[0]))

    def work() -> None:
        clock[0] += 2.0

    assert bench.seconds(work, 5, torch.device("cpu")) == 2.0
    assert clock[0] == 10.0
