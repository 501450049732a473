"""The training loop on tiny data: rates, every step, history, clock, evaluation."""

import copy
import json
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from experiments.runs import training
from experiments.runs.data import Dataset
from experiments.runs.examples import Examples, normalise
from experiments.runs.training import Checkpoint, History, TwinTraining, evaluate, train
from experiments.settings.schema import RecipeConfig
from stridenet import eliminate_stride
from stridenet.sharing import fold_back, share
from stridenet.sharing_measures import distance_from_tied, gradient_ratios, number_of_copies
from stridenet.twin import UnitStrideNetwork
from tests.experiments.tiny_networks import CPU, RECIPE, Recorder, examples, run, strided

# Steps


# The rate at step t of 2,000, over the given one.
SCHEDULES: dict[str, Callable[[int], float]] = {
    "linear": lambda t: (2000 - t) / 2000,
    "constant": lambda t: 1,
    "inverse": lambda t: (1 + 0.0001 * t) ** -0.75,  # as Caffe's
}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_rate_follows_its_schedule_and_biases_have_twice_as_much(
    monkeypatch: pytest.MonkeyPatch, schedule: str
) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(1, 2))
    rates: list[dict[int, float]] = []
    used: list[torch.optim.Optimizer] = []

    def read(optimizer: torch.optim.Optimizer) -> None:
        rates.append({id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]})
        used[:] = [optimizer]

    monkeypatch.setattr(torch.optim.SGD, "step", read)
    recipe = RecipeConfig(
        steps=2000, batch_size=1, learning_rate=0.01, schedule=schedule, bias_rate_factor=2
    )
    given = Examples(torch.zeros(700, 1, 1, 1), torch.zeros(700).long(), CPU)
    train(network, {"training": given}, recipe, 0, CPU)
    assert len(rates) == 2000
    weight, bias = (id(network[1].weight), id(network[1].bias))
    for t in (0, 1, 1000, 1999):
        expected = 0.01 * SCHEDULES[schedule](t)
        assert rates[t][weight] == pytest.approx(expected, rel=1e-12)
        assert rates[t][bias] == pytest.approx(2 * expected, rel=1e-12)
    read(used[0])  # behind the last step
    assert rates[2000][weight] == pytest.approx(0.01 * SCHEDULES[schedule](2000), rel=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_training_is_step_for_step_a_plain_loop(
    tiny_data: Dataset, optimizer: str, schedule: str
) -> None:
    recipe = RecipeConfig(
        epochs=2, optimizer=optimizer, learning_rate=0.03, schedule=schedule, rate_decay=0.2,
        rate_power=0.75, bias_rate_factor=2, momentum=0.8, weight_decay=0.01,
    )  # fmt: skip
    recorder = Recorder(strided().double())
    splits = examples(tiny_data, torch.float64)
    history = train(recorder, splits, recipe, 0, CPU)

    plain = strided().double()
    groups = [
        {"params": [plain[0].weight, plain[2].weight, plain[5].weight]},
        {"params": [plain[0].bias, plain[2].bias, plain[5].bias]},
    ]
    steps: torch.optim.Optimizer = torch.optim.SGD(groups, momentum=0.8, weight_decay=0.01)
    if optimizer == "adam":
        steps = torch.optim.Adam(groups, betas=(0.8, 0.999), weight_decay=0.01)
    images, labels = next(splits["training"].batches(150))
    losses = []
    for t, batch in enumerate(recorder.batches):
        torch.testing.assert_close(recorder.states[t], plain.state_dict(), rtol=0, atol=1e-13)
        same = (batch[:, None] == images[None]).flatten(2).all(2)
        assert (same.sum(1) == 1).all()  # no two images are the same
        falls = {"linear": 1 - t / 4, "constant": 1, "inverse": (1 + 0.2 * t) ** -0.75}
        for group, factor in zip(steps.param_groups, (1, 2), strict=True):
            group["lr"] = 0.03 * falls[schedule] * factor
        loss = F.cross_entropy(plain(batch), labels[same.int().argmax(1)])
        steps.zero_grad()
        loss.backward()
        steps.step()
        losses.append(loss.item())
    torch.testing.assert_close(
        recorder.network.state_dict(), plain.state_dict(), rtol=0, atol=1e-13
    )
    assert [len(batch) for batch in recorder.batches] == [64] * 4
    assert history.epochs[1]["training_loss"] == pytest.approx(sum(losses[:2]) / 2)
    assert history.epochs[2]["training_loss"] == pytest.approx(sum(losses[2:]) / 2)


# Twins that share

FULL = RecipeConfig(
    "full", epochs=4, batch_size=150, learning_rate=0.03, schedule="inverse", rate_decay=0.2,
    rate_power=0.75, bias_rate_factor=2, momentum=0.9, weight_decay=0.01,
)  # fmt: skip


# This tells whether each parameter of the twin is a bias, and how often it has each strided number.
PARAMETERS = {
    "free": {
        "0.weight": (False, 4), "0.bias": (True, 4), "2.weight": (False, 1), "2.bias": (True, 1),
        "5.weight": (False, 1), "5.bias": (True, 1),
    },
    "masked": {
        "0.parametrizations.weight.original": (False, 4),
        "0.parametrizations.bias.original": (True, 4),
        "2.parametrizations.weight.original": (False, 1), "2.bias": (True, 1),
        "5.weight": (False, 1), "5.bias": (True, 1),
    },
}  # fmt: skip


def twin_and_its_data(
    sharing: str, data: Dataset, dtype: torch.dtype = torch.float64
) -> tuple[UnitStrideNetwork, dict[str, Examples]]:
    """The twin of `strided`, and the images rearranged for its network."""
    twin = share(eliminate_stride(strided().to(dtype), (1, 10, 10)), sharing)
    splits = {
        name: Examples(twin.rearrange(x.to(dtype)), labels, CPU)
        for name, (x, labels) in normalise(data, "standardised").items()
    }
    return twin, splits


@pytest.mark.parametrize("sharing", PARAMETERS)
def test_scales_multiply_the_rate_and_divide_the_decay_of_weights_and_biases(
    tiny_data: Dataset, sharing: str
) -> None:
    twin, splits = twin_and_its_data(sharing, tiny_data)
    expected = copy.deepcopy(twin.network)
    train(twin.network, splits, FULL, 0, CPU, twin=TwinTraining(number_of_copies(twin)))

    images, labels = next(splits["training"].batches(150))
    velocity = {name: torch.zeros_like(p) for name, p in expected.named_parameters()}
    assert velocity.keys() == PARAMETERS[sharing].keys()
    for t in range(4):
        expected.zero_grad()
        F.cross_entropy(expected(images), labels).backward()
        with torch.no_grad():
            for name, parameter in expected.named_parameters():
                is_bias, many = PARAMETERS[sharing][name]
                assert parameter.grad is not None
                velocity[name] *= 0.9
                velocity[name] += parameter.grad + 0.01 / many * parameter
                rate = 0.03 * (1 + 0.2 * t) ** -0.75 * many * (2 if is_bias else 1)
                parameter -= rate * velocity[name]
    trained = twin.network.state_dict()
    torch.testing.assert_close(trained, expected.state_dict(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("sharing", PARAMETERS)
def test_with_rates_by_copies_the_twins_step_is_the_strided_networks(
    tiny_data: Dataset, sharing: str
) -> None:
    one = replace(FULL, epochs=1)
    original, start = strided().double(), strided().double().state_dict()
    train(original, examples(tiny_data, torch.float64), one, 0, CPU)
    for by_copies in (True, False):
        twin, splits = twin_and_its_data(sharing, tiny_data)
        copies = number_of_copies(twin)
        train(twin.network, splits, one, 0, CPU, twin=TwinTraining(copies if by_copies else {}))
        folded = fold_back(twin).state_dict()
        for name, value in original.state_dict().items():
            equal = torch.allclose(folded[name], value, rtol=0, atol=1e-13)
            assert equal == (by_copies or not name.startswith("0.")), name
            assert not torch.allclose(value, start[name], rtol=0, atol=1e-5)


def test_a_tied_twin_trains_as_the_strided_network_does(tiny_data: Dataset) -> None:
    original = strided().double()
    history = train(original, examples(tiny_data, torch.float64), FULL, 0, CPU)
    twin, splits = twin_and_its_data("tied", tiny_data)
    tied = train(twin.network, splits, FULL, 0, CPU)
    folded = fold_back(twin).state_dict()
    torch.testing.assert_close(folded, original.state_dict(), rtol=0, atol=1e-12)
    assert not torch.allclose(folded["0.weight"], strided().double()[0].weight, atol=1e-3)
    assert tied.epochs[-1] == pytest.approx(history.epochs[-1], rel=1e-10)


def test_a_masked_twin_keeps_its_zeros_and_a_free_one_does_not(tiny_data: Dataset) -> None:
    for sharing in ("masked", "free"):
        twin, splits = twin_and_its_data(sharing, tiny_data)
        first = twin.network.get_submodule("0")
        zeros = first.weight == 0
        assert zeros.sum() == 16 * (16 - 9)
        train(twin.network, splits, FULL, 0, CPU)
        assert bool((first.weight[zeros] == 0).all()) == (sharing == "masked")
        assert bool((first.weight[~zeros] != 0).all())


def test_training_learns(tiny_data: Dataset) -> None:
    history = run(strided(), tiny_data, epochs=20, batch_size=10, learning_rate=0.05)
    assert history.epochs[0]["validation_accuracy"] < 0.4
    assert history.epochs[-1]["validation_accuracy"] > 0.9
    assert history.epochs[-1]["training_loss"] < 0.2


def test_the_same_seed_repeats_bit_for_bit_and_another_does_not(tiny_data: Dataset) -> None:
    networks = [strided() for _ in range(3)]
    histories = [
        run(network, tiny_data, seed) for network, seed in zip(networks, (1, 1, 2), strict=True)
    ]
    weights = [network.state_dict() for network in networks]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert histories[0].epochs == histories[1].epochs
    assert not any(torch.equal(weights[0][name], weights[2][name]) for name in weights[0])


# Lengths and history


@pytest.mark.parametrize(
    ("length", "steps", "rows"),
    [
        ({"epochs": 1}, 2, [0, 1]),
        ({"epochs": 2}, 4, [0, 1, 2]),
        ({"steps": 1}, 1, [0, 0.5]),
        ({"steps": 2}, 2, [0, 1]),
        ({"steps": 5}, 5, [0, 1, 2, 2.5]),
        ({"epochs": 0}, 0, [0]),
        ({"steps": 0}, 0, [0]),
        ({"epochs": 2, "evaluations": 1}, 4, [0, 2]),
        ({"epochs": 2, "evaluations": 4}, 4, [0, 0.5, 1, 1.5, 2]),
        ({"steps": 5, "evaluations": 2}, 5, [0, 1, 2.5]),
        ({"steps": 2, "evaluations": 5}, 2, [0, 0.5, 1]),
        ({"steps": 0, "evaluations": 3}, 0, [0]),
    ],
)
def test_steps_are_whole_batches_and_the_curves_have_the_points_asked_for(
    tiny_data: Dataset, length: dict[str, int], steps: int, rows: list[float]
) -> None:
    recorder = Recorder(strided())
    history = run(recorder, tiny_data, **{"epochs": None, **length})
    assert [len(batch) for batch in recorder.batches] == [64] * steps
    assert history.steps == steps
    assert [row["epoch"] for row in history.epochs] == rows


def test_no_epochs_train_nothing_and_take_no_time(tiny_data: Dataset) -> None:
    network = strided()
    before = copy.deepcopy(network.state_dict())
    history = run(network, tiny_data, epochs=0)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert (history.wall_seconds, history.cpu_seconds) == (0, 0)


def test_a_row_holds_what_evaluation_finds_on_validation_images_alone(tiny_data: Dataset) -> None:
    network = strided()
    splits: dict[str, Any] = {**examples(tiny_data), "test": None}  # which would fail if looked at
    rows = []
    for epochs in (0, 3):
        history = train(network, splits, replace(RECIPE, epochs=epochs), 0, CPU)
        found = evaluate(network, splits["validation"])
        row = dict(history.epochs[-1])
        training_loss = row.pop("training_loss")
        assert row == {
            "epoch": epochs,
            "validation_loss": found.loss,
            "validation_correct": found.correct,
            "validation_accuracy": found.correct / 30,
        }
        assert (training_loss is None) == (epochs == 0)
        rows.append(row)
    assert rows[0]["validation_loss"] > rows[1]["validation_loss"]


def test_without_validation_images_a_row_holds_the_training_loss(tiny_data: Dataset) -> None:
    splits = {"training": examples(tiny_data)["training"]}
    history = train(strided(), splits, RECIPE, 0, CPU)
    assert [row.keys() for row in history.epochs] == [{"epoch", "training_loss"}] * 3


def test_what_is_observed_stands_in_each_row_with_what_it_is_then(tiny_data: Dataset) -> None:
    network = strided()
    norms = [float(network[0].weight.detach().norm())]

    def observe() -> dict[str, object]:
        return {"norm": float(network[0].weight.detach().norm()), "layers": {"0": [1, 2]}}

    history = train(network, examples(tiny_data), RECIPE, 0, CPU, twin=TwinTraining(observe=observe),
                    save=lambda _: norms.append(float(network[0].weight.detach().norm())))  # fmt: skip
    assert len(set(norms)) == 3
    assert [row["norm"] for row in history.epochs] == norms
    assert all(row["layers"] == {"0": [1, 2]} for row in history.epochs)
    without = run(strided(), tiny_data)
    assert without.epochs == [
        {key: value for key, value in row.items() if key not in ("norm", "layers")}
        for row in history.epochs
    ]


def test_gradients_are_probed_before_they_are_used_every_so_many_steps(tiny_data: Dataset) -> None:
    recorder = Recorder(strided())
    weight = recorder.network.get_parameter("0.weight")

    def probe() -> dict[str, float]:
        assert weight.grad is not None
        return {"weight": float(weight.detach().sum()), "gradient": float(weight.grad.sum())}

    recipe = replace(RECIPE, momentum=0, weight_decay=0, schedule="constant")
    twin = TwinTraining(probe=probe, probe_every=2)
    history = train(recorder, examples(tiny_data), recipe, 0, CPU, twin=twin)
    assert [seen["step"] for seen in history.rho] == [0, 2]
    for seen in history.rho:
        before, after = (recorder.states[seen["step"] + k]["0.weight"].sum() for k in (0, 1))
        assert seen["weight"] == float(before)
        assert float(before - after) == pytest.approx(0.01 * seen["gradient"], rel=1e-2)


# Evaluation


def test_every_step_is_done_in_training_mode(tiny_data: Dataset) -> None:
    modes: list[bool] = []
    network = strided().eval()
    network[1].register_forward_hook(lambda module, *_: modes.append(module.training))
    run(network, tiny_data, epochs=2)
    assert modes == [False] + ([True] * 2 + [False]) * 2


# Checkpoints


@pytest.mark.parametrize(
    ("changes", "epochs"),
    [
        ({"epochs": 3}, [1, 2, 3]),
        ({"epochs": None, "steps": 5, "evaluations": 3}, [0.5, 1.5, 2.5]),
        ({"epochs": 2, "evaluations": 3, "optimizer": "adam"}, [0.5, 1, 2]),
        ({"epochs": 2, "evaluations": 3, "schedule": "inverse", "rate_decay": 0.1}, [0.5, 1, 2]),
    ],
)
def test_training_goes_on_from_any_point_bit_for_bit(
    tiny_data: Dataset, changes: dict[str, Any], epochs: list[float]
) -> None:
    recipe = replace(RECIPE, bias_rate_factor=2, **changes)
    whole = strided()
    checkpoints: list[Checkpoint] = []
    history = train(whole, examples(tiny_data), recipe, 0, CPU,
                    save=lambda state: checkpoints.append(copy.deepcopy(state)))  # fmt: skip
    assert [state["history"]["epochs"][-1]["epoch"] for state in checkpoints] == epochs
    for state in checkpoints:
        network = strided()
        nn.init.zeros_(network[0].weight)  # all comes from the checkpoint
        resumed = train(network, examples(tiny_data), recipe, 0, CPU, resume=state)
        assert resumed.epochs == history.epochs
        assert resumed.steps == history.steps
        for name, value in whole.state_dict().items():
            assert torch.equal(value, network.state_dict()[name])


@pytest.mark.slow
@pytest.mark.parametrize("sharing", ["tied", "masked"])
@pytest.mark.parametrize("by_copies", [False, True])
def test_training_of_a_twin_that_shares_goes_on_from_any_point_bit_for_bit(
    tiny_data: Dataset, sharing: str, by_copies: bool
) -> None:
    recipe = replace(RECIPE, epochs=2, evaluations=3, bias_rate_factor=2)
    twin, splits = twin_and_its_data(sharing, tiny_data, torch.float32)
    given = number_of_copies(twin) if by_copies else None

    def train_on(twin: UnitStrideNetwork, **options: Any) -> History:
        return train(
            twin.network, splits, recipe, 0, CPU, **options,
            twin=TwinTraining(given or {}, lambda: {"distance": distance_from_tied(twin)},
                              lambda: gradient_ratios(twin), probe_every=1),
        )  # fmt: skip

    checkpoints: list[Checkpoint] = []
    history = train_on(twin, save=lambda state: checkpoints.append(copy.deepcopy(state)))
    for state in checkpoints[:2]:
        again, _ = twin_and_its_data(sharing, tiny_data, torch.float32)
        for parameter in again.parameters():
            nn.init.zeros_(parameter)  # all comes from the checkpoint
        resumed = train_on(again, resume=state)
        assert (resumed.epochs, resumed.rho) == (history.epochs, history.rho)
        for name, value in twin.state_dict().items():
            assert torch.equal(value, again.state_dict()[name])
    moved = history.epochs[-1]["distance"]["0.weight"]
    assert moved["zeros"] == 0
    assert (moved["copies"] > 0) == (sharing == "masked")


def test_a_checkpoint_is_what_weights_only_loading_takes(
    tiny_data: Dataset, tmp_path: Path
) -> None:
    states: list[Checkpoint] = []
    train(strided(), examples(tiny_data), RECIPE, 0, CPU, save=states.append)
    torch.save(states[-1], tmp_path / "checkpoint.pt")
    loaded = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert loaded["history"] == states[-1]["history"]
    assert loaded["schedule"] == states[-1]["schedule"]
    assert loaded["network"].keys() == states[-1]["network"].keys()


# Divergence


@pytest.mark.parametrize("rate", [1e6, 1e30])
def test_a_loss_that_is_no_number_ends_training_as_diverged(
    tiny_data: Dataset, rate: float
) -> None:
    recorder, saved = Recorder(strided()), []
    recipe = replace(RECIPE, epochs=1000, learning_rate=rate, batch_size=1)
    history = train(recorder, examples(tiny_data), recipe, 0, CPU, save=saved.append)
    assert history.diverged
    assert history.steps == len(recorder.batches) <= 40  # the end of an epoch of 150 is not awaited
    assert history.epochs[1:] == [
        {"epoch": history.steps / 150, "training_loss": None, "diverged": True}
    ]
    assert saved == []  # nothing to go on from
    json.dumps(asdict(history), allow_nan=False)


def test_weights_that_became_infinite_in_the_last_step_are_a_divergence_too(
    tiny_data: Dataset,
) -> None:
    twin, splits = twin_and_its_data("free", tiny_data, torch.float32)
    twin.network.get_parameter("5.weight").data.mul_(1e4)  # for gradients above 1
    recipe = replace(RECIPE, epochs=None, steps=1, learning_rate=1e38)
    observed = TwinTraining(observe=lambda: {"distance": distance_from_tied(twin)})
    history = train(twin.network, splits, recipe, 0, CPU, twin=observed)
    assert (history.diverged, history.steps) == (True, 1)
    json.dumps(asdict(history), allow_nan=False)


# Clock


def test_the_seconds_are_those_of_the_steps_alone(
    tiny_data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0

    def forward(module: nn.Module, *_: object) -> None:
        nonlocal now
        now += 1 if module.training else 1000  # an evaluation would be seen at once

    network = strided()
    network.register_forward_hook(forward)
    clock = SimpleNamespace(perf_counter=lambda: now, process_time=lambda: 2 * now)
    monkeypatch.setattr(training, "time", clock)
    history = run(network, tiny_data, epochs=4)
    assert history.wall_seconds == history.steps == 8
    assert history.cpu_seconds == 16
    assert math.isclose(now, 8 + 1000 * 5)
