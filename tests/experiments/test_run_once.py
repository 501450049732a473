"""One run: what it measures and leaves behind, and that it is done once."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from experiments.runs import files, run, training
from experiments.runs.data import Dataset
from experiments.runs.estimate import estimate
from experiments.runs.examples import Examples, normalise
from experiments.runs.files import load_weights, save_tensors
from experiments.runs.folder import run_folder
from experiments.runs.networks import build_network, build_strided
from experiments.runs.results import pack_bits, unpack_bits
from experiments.runs.run import run_once
from experiments.runs.training import Evaluation
from experiments.settings.identity import LOOP, experiment_identity, run_name
from experiments.settings.schema import DataConfig, LayerConfig, RunConfig
from stridenet.errors import InputError
from tests.experiments.runs import file_names, network, pooling_of, snapshot, twin_of

# One run


def test_a_run_leaves_weights_and_a_result_that_agree(
    config: RunConfig, tiny_data: Dataset
) -> None:
    for settings in (config, twin_of(config)):
        folder, result, new = run_once(settings)
        assert new
        assert folder == Path(config.outputs) / "runs" / run_name(settings)
        assert file_names(folder) == {"lock", "config.yaml", "weights.pt", "result.json"}
        assert json.loads((folder / "result.json").read_text()) == result
        assert OmegaConf.to_container(OmegaConf.load(folder / "config.yaml")) == result["config"]

        network = build_network(settings.model, (1, 10, 10))
        load_weights(folder / "weights.pt", network)
        splits = normalise(tiny_data, "standardised")
        right = {name: network(x).argmax(1) == labels for name, (x, labels) in splits.items()}
        correct = int(right["test"].sum())
        assert (result["test_correct"], result["test_images"]) == (correct, 50)
        assert result["test_accuracy"] == correct / 50
        assert unpack_bits(result["test_bits"], 50).tolist() == right["test"].tolist()
        assert result["epochs"][-1]["validation_correct"] == int(right["validation"].sum())
        assert (result["loop"], result["diverged"], result["rho"]) == (LOOP, False, [])
        assert (result["network"], result["weights"]) == (settings.model.name, "scratch")
        assert result["training_wall_seconds"] > 0
        assert (result["rearrangement_seconds"] is None) == (settings is config)


def test_the_test_images_are_read_once_after_the_last_step_and_change_nothing_else(
    config: RunConfig, tiny_data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(config, recipe=replace(config.recipe, steps=5))
    seen: list[tuple[int, int]] = []  # how many images were evaluated, after how many steps
    steps, backward, evaluate = [0], training._backward, training.evaluate

    def counting(*given: Any) -> Any:
        steps[0] += 1
        return backward(*given)

    def watched(network: nn.Module, examples: Examples) -> Evaluation:
        seen.append((len(examples), steps[0]))
        return evaluate(network, examples)

    monkeypatch.setattr(training, "_backward", counting)
    for module in (training, run):
        monkeypatch.setattr(module, "evaluate", watched)
    folder, result, _ = run_once(config)
    curve = [(30, 0), (30, 2), (30, 4), (30, 5)]
    assert seen == [*curve, (150, 5), (50, 5)]

    noise = torch.randint(256, tiny_data.test_images.shape, dtype=torch.uint8)
    other = replace(tiny_data, test_images=noise)
    monkeypatch.setattr(run, "load", lambda data, folder, seed: other)
    elsewhere, again, _ = run_once(replace(config, outputs=f"{config.outputs}-noise"))
    assert again["test_bits"] != result["test_bits"]
    assert again["epochs"] == result["epochs"]
    assert (elsewhere / "weights.pt").read_bytes() == (folder / "weights.pt").read_bytes()


def test_both_networks_of_a_seed_are_given_the_data_of_that_seed(
    config: RunConfig, tiny_data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[DataConfig, int]] = []

    def watched(data: DataConfig, folder: Path, seed: int) -> Dataset:
        asked.append((data, seed))
        return tiny_data

    monkeypatch.setattr(run, "load", watched)
    for settings in (replace(config, seed=7), twin_of(config, seed=7), replace(config, seed=8)):
        run_once(settings)
    assert asked == [(config.data, seed) for seed in (7, 7, 8)]


@pytest.mark.parametrize("many", [1, 7, 8, 50, 1000])
def test_bits_come_back_as_they_were_packed(many: int) -> None:
    right = torch.rand(many, generator=torch.Generator().manual_seed(many)) < 0.7
    packed = pack_bits(right)
    assert isinstance(packed, str)
    assert len(packed) <= many / 6 + 4
    assert unpack_bits(packed, many).tolist() == right.tolist()


def test_a_run_that_diverges_is_finished_and_says_so(config: RunConfig) -> None:
    recipe = replace(config.recipe, steps=30, learning_rate=1e30)
    for settings in (config, twin_of(config), twin_of(config, sharing="masked", rho_every=1)):
        folder, result, new = run_once(replace(settings, recipe=recipe))
        assert (result["diverged"], new) == (True, True)
        assert 0 <= result["test_correct"] < 25
        assert result["test_loss"] is None
        assert result["epochs"][-1]["training_loss"] is None
        # Nothing but JSON's own numbers: NaN would be read as one here.
        read = json.loads((folder / "result.json").read_text(), parse_constant=pytest.fail)
        assert read == result
        assert run_once(replace(settings, recipe=recipe))[2] is False  # done
        assert not (folder / "failure.json").exists()


@pytest.mark.parametrize("weights", ["copy", "fine_tune"])
def test_nothing_starts_from_the_weights_of_a_run_that_diverged(
    config: RunConfig, weights: str
) -> None:
    config = replace(config, recipe=replace(config.recipe, steps=30, learning_rate=1e30))
    source, _, _ = run_once(config)
    with pytest.raises(InputError) as caught:
        run_once(twin_of(config, weights=weights))
    for told in (f"weights={weights}: ", source.name, "diverged", "rate than 1e+30"):
        assert told in str(caught.value)


def test_a_run_trains_at_the_rate_of_its_network(config: RunConfig) -> None:
    rates = {"strided": 0.02, "unit_stride": 0.03, "masked": 0.04}
    own = replace(config, recipe=replace(config.recipe, learning_rate=rates))
    for one in (config, twin_of(config, sharing="masked")):
        settings = replace(one, recipe=own.recipe)
        folder, result, _ = run_once(settings)
        rate = rates["masked" if one.sharing == "masked" else "strided"]
        assert result["learning_rate"] == rate
        alone = replace(one, recipe=replace(config.recipe, learning_rate=rate))
        other, same, _ = run_once(alone)
        assert other != folder
        assert same["epochs"] == result["epochs"]
    _, copied, _ = run_once(replace(twin_of(own), weights="copy"))
    assert copied["learning_rate"] is None


def test_the_result_is_written_last_after_the_weights(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[tuple[str, set[str]]] = []
    write = files.write

    def watched(path: Path, content: bytes) -> None:
        written.append((path.name, file_names(path.parent)))
        write(path, content)

    monkeypatch.setattr(files, "write", watched)
    run_once(config)
    first = {"lock", "config.yaml"}
    assert written[1:] == [
        ("checkpoint.pt", first),
        ("weights.pt", {*first, "checkpoint.pt"}),
        ("result.json", {*first, "checkpoint.pt", "weights.pt"}),
    ]


def test_a_run_that_is_done_is_not_touched_again(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, result, _ = run_once(config)
    before = snapshot(folder)
    monkeypatch.setattr(run, "train", lambda *_: pytest.fail("trained again"))
    again = run_once(replace(config, device="auto", threads=2))
    assert again == (folder, result, False)
    assert snapshot(folder) == before


def test_a_run_that_was_killed_before_its_result_is_done_again(config: RunConfig) -> None:
    folder, result, _ = run_once(config)
    (folder / "result.json").unlink()
    save_tensors(folder / "weights.pt", network().state_dict())  # whatever was left
    _, again, new = run_once(config)
    assert new
    assert again["epochs"] == result["epochs"]
    load_weights(folder / "weights.pt", build_strided(config.model, (1, 10, 10)))


# What a run will take


def test_the_estimate_has_the_bytes_of_the_weights_and_grows_with_the_steps(
    config: RunConfig,
) -> None:
    seconds, size = estimate(replace(config, recipe=replace(config.recipe, steps=0)))
    assert size == 4 * ((4 * 9 + 4) + (6 * 4 * 4 + 6) + (10 * 6 * 16 + 10))
    longer, _ = estimate(replace(config, recipe=replace(config.recipe, steps=10**7)))
    assert longer > 100 > seconds > 0


@pytest.mark.slow
@pytest.mark.parametrize("sharing", ["free", "tied", "masked"])
def test_the_estimate_has_the_bytes_of_the_file_however_a_twin_is_shared(
    config: RunConfig, sharing: str
) -> None:
    _, size = estimate(twin_of(config, sharing=sharing))
    assert size == 4 * ((16 * 4 * 2 * 2 + 16) + (6 * 16 + 6) + (10 * 6 * 16 + 10))


# Failures


def test_a_failure_is_told_in_the_folder_until_the_run_succeeds(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(run, "train", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run_once(config)
    folder = run_folder(config)
    assert file_names(folder) == {"lock", "config.yaml", "failure.json"}
    failure = json.loads((folder / "failure.json").read_text())
    assert failure["error"] == "division by zero"
    assert "ZeroDivisionError" in failure["trace"]
    run_once(config)
    assert file_names(folder) == {"lock", "config.yaml", "weights.pt", "result.json"}


# Pooling


def test_a_network_with_pooling_trains_end_to_end(config: RunConfig, tiny_data: Dataset) -> None:
    settings = pooling_of(replace(config, recipe=replace(config.recipe, steps=100)))
    folder, result, _ = run_once(settings)
    assert folder.name.startswith("pooling-scratch-tiny-s0-")
    assert (result["network"], result["rearrangement_seconds"]) == ("pooling", None)
    assert result["experiment"] == experiment_identity(
        replace(settings, model=replace(settings.model, max_pooling=False))
    )
    weights = torch.load(folder / "weights.pt", weights_only=True)
    assert list(weights) == ["conv1.weight", "conv1.bias", "fc1.weight", "fc1.bias"]
    images, labels = normalise(tiny_data, "standardised")["test"]
    maps = nn.functional.conv2d(images, weights["conv1.weight"], weights["conv1.bias"]).relu()
    vectors = nn.functional.max_pool2d(maps, 2).flatten(1)
    scores = nn.functional.linear(vectors, weights["fc1.weight"], weights["fc1.bias"])
    assert result["test_correct"] == int((scores.argmax(1) == labels).sum())
    assert result["test_accuracy"] > 0.6 > 3 * result["epochs"][0]["validation_accuracy"]


def test_weights_drawn_depend_on_the_seed_alone(config: RunConfig) -> None:
    untrained = replace(config, recipe=replace(config.recipe, steps=0))
    states = []
    for seed, torch_seed in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(torch_seed)
        outputs = f"{config.outputs}-{torch_seed}"
        folder, _, _ = run_once(replace(untrained, seed=seed, outputs=outputs))
        states.append(torch.load(folder / "weights.pt", weights_only=True))
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not any(torch.equal(states[0][name], states[2][name]) for name in states[0])


def test_a_network_with_fewer_scores_than_classes_is_an_error(config: RunConfig) -> None:
    layers = {**config.model.layers, "fc1": replace(config.model.layers["fc1"], channels=9)}
    with pytest.raises(InputError, match="9 scores, but there are 10 classes"):
        run_once(replace(config, model=replace(config.model, layers=layers)))


def test_a_layer_larger_than_its_map_is_an_error_and_told_in_the_folder(config: RunConfig) -> None:
    layers = {
        **config.model.layers,
        "conv1": LayerConfig("conv", 4, [11, 3], [1, 1], [1, 1], [0, 0]),
    }
    large = replace(config, model=replace(config.model, layers=layers))
    with pytest.raises(InputError, match=r"model\.layers\.conv1: .*11x3.*data\.image_size"):
        run_once(large)
    assert "conv1" in json.loads((run_folder(large) / "failure.json").read_text())["error"]


def test_a_device_that_is_not_here_is_an_error(config: RunConfig) -> None:
    found = torch.accelerator.current_accelerator(check_available=True)
    absent = "mps" if found is not None and found.type == "cuda" else "cuda"
    with pytest.raises(InputError, match=f"device={absent} is not here"):
        run_once(replace(config, device=absent))


def test_circumstances_are_in_the_result(config: RunConfig) -> None:
    _, result, _ = run_once(config, jobs_at_once=2)
    assert (result["device"], result["threads"], result["jobs_at_once"]) == ("cpu", 1, 2)
    assert run_once(replace(config, seed=1), jobs_at_once=None)[1]["jobs_at_once"] is None
    assert result["versions"]["torch"].startswith(torch.__version__.partition("+")[0])
    assert result["experiment"] == experiment_identity(config)
    assert result["config"]["model"]["layers"]["conv2"]["stride"] == [2, 2]
    assert result["device_name"]
