"""Where a run starts from: copied weights, fine-tuning, files of weights, and twins that share."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

from experiments.runs.data import Dataset
from experiments.runs.examples import normalise
from experiments.runs.files import load_weights
from experiments.runs.folder import run_folder
from experiments.runs.networks import build_network, build_strided
from experiments.runs.run import run_once
from experiments.runs.starting import rate_scales
from experiments.settings.data_sets import DATA_SETS
from experiments.settings.identity import variant
from experiments.settings.schema import RunConfig
from stridenet import eliminate_stride
from stridenet.errors import InputError
from stridenet.sharing import origins, plain_name
from stridenet.sharing_measures import distance_from_tied
from tests.experiments.runs import pooling_of, snapshot, twin_of


def test_copying_needs_the_strided_run_and_names_its_missing_file(config: RunConfig) -> None:
    for weights in ("copy", "fine_tune"):
        with pytest.raises(InputError) as caught:
            run_once(twin_of(config, weights=weights))
        missing = run_folder(config) / "weights.pt"
        assert f"weights={weights} needs {missing}" in str(caught.value)


def test_copying_needs_a_run_that_is_finished(config: RunConfig) -> None:
    source, _, _ = run_once(config)
    (source / "result.json").unlink()
    with pytest.raises(InputError, match="finished run"):
        run_once(twin_of(config, weights="copy"))


def test_copied_weights_are_the_strided_ones_expanded_and_not_trained(config: RunConfig) -> None:
    source, trained, _ = run_once(config)
    folder, result, _ = run_once(twin_of(config, weights="copy"))
    strided = build_strided(config.model, (1, 10, 10))
    load_weights(source / "weights.pt", strided)
    expected = eliminate_stride(strided, (1, 10, 10)).state_dict()
    state = torch.load(folder / "weights.pt", weights_only=True)
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in state)
    assert len(result["epochs"]) == 1
    assert result["training_wall_seconds"] is None
    assert result["test_correct"] == trained["test_correct"]
    assert set(result["copied"]) == {"float32", "float64"}
    for found in result["copied"].values():
        assert (found["agreeing"], found["images"]) == (50, 50)
    assert 0 < result["copied"]["float64"]["largest_difference"] < 1e-14
    assert 1e-9 < result["copied"]["float32"]["largest_difference"] < 1e-5


def test_fine_tuning_starts_from_copied_weights_and_trains(config: RunConfig) -> None:
    run_once(config)
    _, copied, _ = run_once(twin_of(config, weights="copy"))
    folder, result, _ = run_once(twin_of(config, weights="fine_tune"))
    assert result["epochs"][0] == copied["epochs"][0]
    assert result["test_loss"] != copied["test_loss"]
    assert result["training_wall_seconds"] > 0
    copied_folder = run_folder(twin_of(config, weights="copy"))
    assert (folder / "weights.pt").read_bytes() != (copied_folder / "weights.pt").read_bytes()


def test_fine_tuning_the_strided_network_goes_on_from_its_own_run(config: RunConfig) -> None:
    source, trained, _ = run_once(config)
    before = snapshot(source)
    folder, result, new = run_once(replace(config, weights="fine_tune"))
    assert new
    assert folder.name.startswith("strided-fine_tune-tiny-s0-")
    assert result["weights"] == "fine_tune"
    first, last = trained["epochs"][-1], result["epochs"][-1]
    assert result["epochs"][0]["validation_loss"] == first["validation_loss"]
    assert last["validation_loss"] < first["validation_loss"]
    assert snapshot(source) == before
    with pytest.raises(InputError, match=r"weights=fine_tune needs .*-s1-.*weights\.pt"):
        run_once(replace(config, weights="fine_tune", seed=1))


def test_all_fine_tuning_starts_from_the_same_function(config: RunConfig) -> None:
    _, trained, _ = run_once(config)
    last, ends = trained["epochs"][-1], set()
    for sharing in ("tied", "masked", "free"):
        _, result, _ = run_once(twin_of(config, weights="fine_tune", sharing=sharing))
        first = result["epochs"][0]
        assert first["validation_loss"] == pytest.approx(last["validation_loss"], rel=1e-5)
        assert all(parts["zeros"] == parts["copies"] == 0 for parts in first["distance"].values())
        ends.add(result["test_loss"])
    assert len(ends) == 3


# Twins that share


@pytest.mark.parametrize("sharing", ["free", "tied", "masked"])
def test_the_result_of_a_twin_says_how_it_shares_and_how_far_it_is_from_tied(
    config: RunConfig, tiny_data: Dataset, sharing: str
) -> None:
    settings = twin_of(config, sharing=sharing)
    folder, result, _ = run_once(settings)
    assert (result["sharing"], result["variant"]) == (sharing, variant(settings))
    assert result["run"].startswith(
        f"unit_stride-{'' if sharing == 'free' else sharing + '-'}scratch-"
    )

    twin = build_network(settings.model, (1, 10, 10))
    load_weights(folder / "weights.pt", twin)
    splits = normalise(tiny_data, "standardised")
    loss = nn.functional.cross_entropy(twin(splits["test"][0]), splits["test"][1])
    assert result["test_loss"] == pytest.approx(loss.item(), rel=1e-5)
    images, labels = splits["training"]
    scores = twin(images).detach()
    assert result["fit_images"] == len(labels) == 150
    assert result["fit_accuracy"] == float((scores.argmax(1) == labels).double().mean())
    loss = float(nn.functional.cross_entropy(scores, labels))
    assert result["fit_loss"] == pytest.approx(loss, rel=1e-5)

    assert len(result["epochs"]) == 2
    for row in result["epochs"]:
        assert {"conv1.weight", "conv1.bias"} <= row["distance"].keys()
        assert not any(name.startswith("fc1") for name in row["distance"])
        weight = row["distance"]["conv1.weight"]
        assert (weight["zeros"] > 0) == (sharing == "free")
        assert (weight["copies"] > 0) == (sharing != "tied")
    last = result["epochs"][-1]["distance"]["conv1.weight"]
    assert last["norm"] == pytest.approx(float(twin.network.conv1.weight.detach().norm()))
    assert last == pytest.approx(distance_from_tied(twin)["conv1.weight"], rel=1e-12)


def test_other_networks_have_no_distance_and_a_copy_fits_nothing(config: RunConfig) -> None:
    _, strided, _ = run_once(config)
    _, pooling, _ = run_once(pooling_of(config))
    _, copied, _ = run_once(twin_of(config, weights="copy"))
    for result in (strided, pooling):
        assert (result["sharing"], result["variant"]) == ("free", "")
        assert all("distance" not in row for row in result["epochs"])
        assert result["fit_images"] == 150
    assert "fit_images" not in copied
    assert copied["test_loss"] == pytest.approx(strided["test_loss"], rel=1e-5)
    (row,) = copied["epochs"]
    assert row["distance"]["conv1.weight"]["norm"] > 0
    assert row["distance"]["conv1.weight"]["copies"] == 0


@pytest.mark.parametrize("numbers", [1, 2, 10_000])
def test_the_fit_is_of_as_many_training_images_as_are_tested(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, numbers: int
) -> None:
    monkeypatch.setitem(DATA_SETS, "mnist", replace(DATA_SETS["mnist"], test_images=numbers))
    _, result, _ = run_once(config)
    assert result["fit_images"] == min(numbers, 150)
    assert result["fit_accuracy"] * result["fit_images"] == pytest.approx(
        round(result["fit_accuracy"] * result["fit_images"])
    )


def test_a_tied_run_is_the_strided_run_in_other_names(config: RunConfig) -> None:
    recipe = replace(config.recipe, steps=20, bias_rate_factor=2)
    config = replace(config, recipe=recipe)
    source, strided, _ = run_once(config)
    folder, tied, _ = run_once(twin_of(config, sharing="tied"))
    original = build_strided(config.model, (1, 10, 10))
    load_weights(source / "weights.pt", original)
    expected = eliminate_stride(original, (1, 10, 10)).state_dict()
    state = torch.load(folder / "weights.pt", weights_only=True)
    assert state.keys() == expected.keys()
    torch.testing.assert_close(state, dict(expected), rtol=1e-3, atol=1e-5)
    for one, other in zip(tied["epochs"], strided["epochs"], strict=True):
        assert one["validation_loss"] == pytest.approx(other["validation_loss"], rel=1e-4)
    # The free twin of the same seed goes elsewhere.
    _, free, _ = run_once(twin_of(config))
    assert free["test_loss"] != pytest.approx(strided["test_loss"], rel=1e-3)


@pytest.mark.slow
def test_scaled_rates_change_the_numbers_of_a_run(config: RunConfig) -> None:
    for sharing, scaling in (("masked", "copies"), ("free", "copies"), ("free", "effective")):
        scaled = replace(config, recipe=replace(config.recipe, rate_scaling=scaling))
        _, plain, _ = run_once(twin_of(config, sharing=sharing))
        _, result, _ = run_once(twin_of(scaled, sharing=sharing))
        assert result["variant"].endswith(f"by_{scaling}")
        assert result["epochs"][0] == plain["epochs"][0]
        assert result["test_loss"] < plain["test_loss"]  # two steps, the longer ones are ahead


# Of LeNet's filters, by hand. Copies: the phases of the map that each gives. Inputs of a filter,
# strided and free: 5·5 and 16·2·2, 20·2·2 and 320, 20·5·5 and 80·3·3, 50·2·2 and 200.
@pytest.mark.parametrize(
    ("sharing", "scaling", "expected"),
    [
        ("free", "copies", [16, 4, 4, 1]),
        ("masked", "copies", [16, 4, 4, 1]),
        ("free", "effective", [16 * 25 / 64, 4 * 80 / 320, 4 * 500 / 720, 1]),
        ("masked", "effective", [16, 4, 4, 1]),  # structural zeros are no inputs
    ],
)
def test_the_scales_of_lenets_rates_are_those_of_the_step_account(
    composed: Callable[..., RunConfig], sharing: str, scaling: str, expected: list[float]
) -> None:
    model = composed("model=unit_stride").model
    twin = build_network(model, (1, 28, 28), sharing)
    scales = rate_scales(twin, origins(twin), scaling, sharing)
    assert scales.keys() == dict(twin.network.named_parameters()).keys()
    by_name = {plain_name(name): scale for name, scale in scales.items()}
    convolutions = ("conv1", "conv2", "conv3", "conv4")
    assert [by_name[f"{name}.weight"] for name in convolutions] == pytest.approx(expected)
    assert [by_name[f"{name}.bias"] for name in convolutions] == [16, 4, 4, 1]
    assert {
        by_name[f"{name}.{kind}"] for name in ("fc1", "fc2") for kind in ("weight", "bias")
    } == {1}
    assert rate_scales(twin, origins(twin), "none", sharing) == {}


@pytest.mark.parametrize("sharing", ["tied", "masked", "free"])
def test_a_tied_runs_file_is_where_any_twin_starts(config: RunConfig, sharing: str) -> None:
    source, tied, _ = run_once(twin_of(config, sharing="tied"))
    state = torch.load(source / "weights.pt", weights_only=True)
    names = {
        f"network.{n}.{kind}" for n in ("conv1", "conv2", "fc1") for kind in ("weight", "bias")
    }
    assert state.keys() == names
    settings = twin_of(config, sharing=sharing, weights=str(source / "weights.pt"))
    folder, result, _ = run_once(settings)
    assert result["weights"] == "file"
    first, last = result["epochs"]
    assert first["validation_loss"] == tied["epochs"][-1]["validation_loss"]
    assert last["validation_loss"] < first["validation_loss"]
    again = torch.load(folder / "weights.pt", weights_only=True)
    assert again.keys() == names
    assert bool((again["network.conv1.weight"][state["network.conv1.weight"] == 0] == 0).all()) == (
        sharing != "free"
    )


@pytest.mark.parametrize(
    ("saved", "wanted"), [("free", "tied"), ("free", "masked"), ("masked", "tied")]
)
def test_a_file_that_cannot_be_shared_so_is_an_error_that_says_what_was_expected(
    config: RunConfig, saved: str, wanted: str
) -> None:
    source, _, _ = run_once(twin_of(config, sharing=saved))
    file = source / "weights.pt"
    with pytest.raises(InputError) as caught:
        run_once(twin_of(config, sharing=wanted, weights=str(file)))
    message = str(caught.value)
    assert message.startswith(f"sharing={wanted} starts from weights that are {wanted} already")
    assert str(file) in message
    assert "\n" not in message


def test_a_file_of_weights_is_where_training_starts(config: RunConfig) -> None:
    source, trained, _ = run_once(config)
    folder, result, _ = run_once(replace(config, weights=str(source / "weights.pt")))
    assert folder.name.startswith("strided-file-tiny-s0-")
    assert result["weights"] == "file"
    assert result["epochs"][0]["validation_loss"] == trained["epochs"][-1]["validation_loss"]
    assert result["test_loss"] != trained["test_loss"]


def test_a_twin_does_not_start_from_a_strided_networks_file(config: RunConfig) -> None:
    source, _, _ = run_once(config)
    with pytest.raises(InputError, match="of another network"):
        run_once(twin_of(config, weights=str(source / "weights.pt")))
