"""Which run it is: an identity is of the settings that decide its numbers, and of nothing else."""

import re
import shutil
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from experiments.settings import identity
from experiments.settings.identity import experiment_identity, run_name, strided_source, variant
from experiments.settings.schema import (
    DataConfig,
    LayerConfig,
    ModelConfig,
    RecipeConfig,
    RunConfig,
)
from tests.experiments.settings import Composed, changed

# Identity

# Another value for each field that decides numbers …
DECIDING: dict[str, Any] = {
    "model.eliminate_stride": True,
    "model.max_pooling": True,
    "model.activation": "tanh",
    "model.layers.conv3.kind": "fc",
    "model.layers.conv3.channels": 51,
    "model.layers.conv3.kernel": [5, 4],
    "model.layers.conv3.stride": [1, 2],
    "model.layers.conv3.dilation": [2, 1],
    "model.layers.conv3.padding": [0, 1],
    "model.layers.conv3.groups": 2,
    "model.layers.conv3.bias": False,
    "model.layers.conv3.activation": "identity",
    "data.name": "fashion_mnist",
    "data.image_size": [28, 27],
    "data.train_size": 59_999,
    "data.validation_size": 1,
    "recipe.name": "mine",
    "recipe.epochs": 5,
    "recipe.steps": 1,
    "recipe.evaluations": 3,
    "recipe.batch_size": 65,
    "recipe.optimizer": "adam",
    "recipe.learning_rate": 0.011,
    "recipe.schedule": "constant",
    "recipe.rate_decay": 1e-5,
    "recipe.rate_power": 0.5,
    "recipe.bias_rate_factor": 2.0,
    "recipe.momentum": 0.8,
    "recipe.weight_decay": 0.0,
    "recipe.initialisation": "xavier",
    "recipe.fan_in": "filter",
    "recipe.rate_scaling": "copies",
    "recipe.pixels": "scaled",
    "seed": 1,
    "weights": "copy",
    "sharing": "tied",
}


# … and for each that does not.
NOT_DECIDING = {
    "data.download_timeout": 1.0,
    "recipe.note": "A word to the reader.",
    "device": "cpu",
    "threads": 2,
    "rho_every": 50,
    "published": "there",
    "outputs": "elsewhere",
}


# These differ between the runs of one experiment.
WITHIN_AN_EXPERIMENT = {
    "model.eliminate_stride",
    "model.max_pooling",
    "recipe.fan_in",
    "recipe.rate_scaling",
    "seed",
    "weights",
    "sharing",
}


def leaves(schema: type, prefix: str = "") -> set[str]:
    """The dotted names of all fields of a dataclass and of the dataclasses in it."""
    nested = {
        "model": ModelConfig,
        "data": DataConfig,
        "recipe": RecipeConfig,
        "layers.conv3": LayerConfig,
    }
    found: set[str] = set()
    for field in fields(schema):
        name = "layers.conv3" if field.name == "layers" else field.name
        inner = nested.get(name)
        assert inner is not None or not is_dataclass(field.type)
        found |= leaves(inner, f"{prefix}{name}.") if inner else {f"{prefix}{name}"}
    return found


def test_every_setting_is_known_to_be_in_the_identity_or_not() -> None:
    assert leaves(RunConfig) == DECIDING.keys() | NOT_DECIDING.keys()


@pytest.mark.parametrize("key", DECIDING)
def test_what_decides_numbers_changes_the_run(sgd_config: RunConfig, key: str) -> None:
    other = changed(sgd_config, key, DECIDING[key])
    assert run_name(other).rpartition("-")[2] != run_name(sgd_config).rpartition("-")[2]
    within = experiment_identity(other) == experiment_identity(sgd_config)
    assert within == (key in WITHIN_AN_EXPERIMENT)


@pytest.mark.parametrize("key", NOT_DECIDING)
def test_what_decides_no_numbers_leaves_the_run_as_it_is(sgd_config: RunConfig, key: str) -> None:
    other = changed(sgd_config, key, NOT_DECIDING[key])
    assert other != sgd_config
    assert run_name(other) == run_name(sgd_config)
    assert experiment_identity(other) == experiment_identity(sgd_config)


def test_another_training_loop_is_another_run_of_another_experiment(
    sgd_config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, experiment = run_name(sgd_config), experiment_identity(sgd_config)
    monkeypatch.setattr(identity, "LOOP", identity.LOOP + 1)
    assert run_name(sgd_config).rpartition("-")[2] != name.rpartition("-")[2]
    assert experiment_identity(sgd_config) != experiment


def test_a_layer_more_one_less_and_their_order_change_the_experiment(sgd_config: RunConfig) -> None:
    layers = sgd_config.model.layers
    fewer = {name: layer for name, layer in layers.items() if name != "conv4"}
    swapped = {name: layers[name] for name in ("conv3", "conv2", "conv1", "conv4", "fc1", "fc2")}
    renamed = {name.replace("conv4", "conv5"): layer for name, layer in layers.items()}
    variants = [layers, fewer, swapped, renamed, {**layers, "fc3": layers["fc2"]}]
    identities = {
        experiment_identity(changed(sgd_config, "model.layers", variant)) for variant in variants
    }
    assert len(identities) == len(variants)


@pytest.mark.sample(3)
@pytest.mark.parametrize(
    ("one", "other"),
    [
        (["model.layers.conv1.kernel=5"], ["model.layers.conv1.kernel=[5,5]"]),
        (["model.layers.conv2.stride=[2,2]"], []),
        (["recipe.learning_rate=1e-2"], ["recipe.learning_rate=0.01"]),
        (["recipe.rate_decay=0"], ["recipe.rate_decay=0.0"]),
        (["seed=3", "recipe.momentum=0.5"], ["recipe.momentum=0.5", "seed=3"]),
        (
            ["recipe=smoke"],
            [
                "recipe=sgd",
                "recipe.name=smoke",
                "recipe.epochs=null",
                "recipe.steps=60",
                "recipe.learning_rate=0.05",
            ],
        ),
        (
            ["recipe.learning_rate={strided: 0.10, masked: 2}"],
            ["recipe.learning_rate={masked: 2.0, strided: 0.1}"],
        ),
        (["model=unit_stride"], ["model.eliminate_stride=true"]),
        (
            ["+model.layers.conv5={channels: 5}"],
            ["+model.layers.conv5={kind: conv, channels: 5, kernel: [1, 1], padding: 0}"],
        ),
    ],
)
def test_the_spelling_of_settings_does_not_change_the_run(
    composed: Composed, one: list[str], other: list[str]
) -> None:
    assert run_name(composed(*one)) == run_name(composed(*other))


@pytest.mark.parametrize(
    ("overrides", "beginning"),
    [
        (["seed=3"], "strided-scratch-sgd-s3"),
        (["model=unit_stride", "weights=copy", "recipe=caffe"], "unit_stride-copy-caffe-s0"),
        (["model=unit_stride", "weights=fine_tune", "seed=12"], "unit_stride-fine_tune-sgd-s12"),
    ],
)
def test_a_runs_folder_tells_what_it_is_and_ends_in_the_identity(
    composed: Composed, overrides: list[str], beginning: str
) -> None:
    assert re.fullmatch(f"{beginning}-[0-9a-f]{{8}}", run_name(composed(*overrides)))


# Folders of results that are published or kept.
KEPT = {
    ("recipe=sgd",): ("strided-scratch-sgd-s0-3a906154", "ca61f985"),
    ("recipe=sgd", "seed=3"): ("strided-scratch-sgd-s3-6aa6cc19", "ca61f985"),
    ("recipe=smoke", "model=unit_stride"): ("unit_stride-scratch-smoke-s0-46723402", "aa7d063d"),
    ("recipe=caffe", "model=unit_stride", "weights=copy"): (
        "unit_stride-copy-caffe-s0-855be539",
        "c686e89e",
    ),
    (
        "recipe=sgd",
        "data=fashion_mnist",
        "model=unit_stride",
        "sharing=masked",
        "weights=fine_tune",
    ): ("unit_stride-masked-fine_tune-sgd-s0-365dfee2", "03e5e32e"),
    (
        "recipe=sgd",
        "recipe.learning_rate={strided: 0.01, unit_stride: 0.02}",
        "arm=free_effective",
    ): ("unit_stride-by_effective-scratch-sgd-s0-20dc7371", "708ec05e"),
}


@pytest.mark.parametrize("overrides", KEPT)
def test_a_run_keeps_its_folder(composed: Composed, overrides: tuple[str, ...]) -> None:
    config = composed(*overrides)
    assert (run_name(config), experiment_identity(config)) == KEPT[overrides]


# What is beside the paper in a run of a twin, in words, and how its folder begins.
TREATED = {
    (): ("", "unit_stride-scratch"),
    ("sharing=tied",): ("tied", "unit_stride-tied-scratch"),
    ("sharing=masked",): ("masked", "unit_stride-masked-scratch"),
    ("recipe.rate_scaling=copies",): ("by_copies", "unit_stride-by_copies-scratch"),
    ("recipe.rate_scaling=effective",): ("by_effective", "unit_stride-by_effective-scratch"),
    ("sharing=masked", "recipe.rate_scaling=copies"): (
        "masked by_copies",
        "unit_stride-masked-by_copies-scratch",
    ),
    ("sharing=masked", "recipe.fan_in=filter"): (
        "masked fan_in=filter",
        "unit_stride-masked-fan_in-filter-scratch",
    ),
    ("sharing=masked", "recipe.fan_in=filter", "recipe.rate_scaling=copies"): (
        "masked fan_in=filter by_copies",
        "unit_stride-masked-fan_in-filter-by_copies-scratch",
    ),
    ("sharing=tied", "weights=fine_tune"): ("tied", "unit_stride-tied-fine_tune"),
    ("sharing=masked", "weights=fine_tune"): ("masked", "unit_stride-masked-fine_tune"),
}


@pytest.mark.slow
def test_each_way_of_sharing_is_a_run_of_its_own_in_one_experiment(composed: Composed) -> None:
    runs = [composed("model=unit_stride", *overrides) for overrides in TREATED]
    for run, (words, beginning) in zip(runs, TREATED.values(), strict=True):
        assert variant(run) == words
        assert re.fullmatch(f"{beginning}-sgd-s0-[0-9a-f]{{8}}", run_name(run))
    assert len({run_name(run).rpartition("-")[2] for run in runs}) == len(TREATED)
    others = [composed(), composed("model=pooling")]
    assert len({run_name(run).rpartition("-")[2] for run in (*runs, *others)}) == len(TREATED) + 2
    assert len({experiment_identity(run) for run in (*runs, *others)}) == 1


@pytest.mark.sample(3)
@pytest.mark.parametrize(
    ("overrides", "ineffective"),
    [
        (["model=strided"], "recipe.rate_scaling=copies"),
        (["model=pooling"], "recipe.rate_scaling=copies"),
        (["model=unit_stride", "sharing=tied"], "recipe.rate_scaling=copies"),
        (["model=unit_stride", "weights=copy"], "recipe.rate_scaling=copies"),
        (["model=strided"], "recipe.fan_in=filter"),
        (["model=unit_stride"], "recipe.fan_in=filter"),
        (["model=unit_stride", "sharing=tied"], "recipe.fan_in=filter"),
        (["model=unit_stride", "sharing=masked", "weights=fine_tune"], "recipe.fan_in=filter"),
        (["model=unit_stride", "sharing=masked", "weights=copy"], "recipe.fan_in=filter"),
    ],
)
def test_a_setting_that_changes_nothing_makes_no_other_run(
    composed: Composed, overrides: list[str], ineffective: str
) -> None:
    assert composed(*overrides, ineffective) == composed(*overrides)


def test_a_file_of_weights_is_known_by_its_content_not_its_path(
    composed: Composed, tmp_path: Path
) -> None:
    here, there, other = (tmp_path / name for name in ("here.pt", "there.pt", "other.pt"))
    here.write_bytes(b"weights")
    shutil.copy(here, there)
    other.write_bytes(b"other weights")
    name = run_name(composed(f"weights={here}"))
    assert re.fullmatch("strided-file-sgd-s0-[0-9a-f]{8}", name)
    assert run_name(composed(f"weights={there}")) == name
    assert run_name(composed(f"weights={other}")) != name


def test_copied_weights_come_from_the_strided_run_of_the_same_settings(composed: Composed) -> None:
    common = ["seed=7", "recipe=caffe", "model.layers.conv1.kernel=3", "outputs=there"]
    source = strided_source(composed("model=unit_stride", "weights=copy", *common))
    assert source == composed("model=strided", *common)
    fine_tuned = composed("model=unit_stride", "weights=fine_tune", *common)
    assert strided_source(fine_tuned) == source
    assert run_name(source).startswith("strided-scratch-caffe-s7-")


@pytest.mark.parametrize(
    "overrides",
    [
        ["model=strided"],
        ["model=unit_stride", "sharing=tied"],
        ["model=unit_stride", "sharing=masked"],
        ["model=unit_stride", "sharing=masked", "recipe.rate_scaling=copies"],
        ["model=unit_stride", "recipe.rate_scaling=copies"],
    ],
)
def test_all_fine_tuning_starts_from_one_strided_run(
    composed: Composed, overrides: list[str]
) -> None:
    fine_tuned = composed(*overrides, "weights=fine_tune", "seed=7")
    assert strided_source(fine_tuned) == composed("seed=7")
    filters = replace(fine_tuned, recipe=replace(fine_tuned.recipe, fan_in="filter"))
    assert strided_source(filters) == composed("seed=7")  # whoever did not resolve the settings
