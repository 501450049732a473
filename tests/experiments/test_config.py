"""Settings: every group composes, and all is written in one way only."""

import itertools
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from experiments.command import CONF
from experiments.settings.checks import resolve
from experiments.settings.identity import (
    experiment_identity,
    run_name,
    strided_source,
)
from experiments.settings.schema import (
    LayerConfig,
    RecipeConfig,
    ReportConfig,
    RunConfig,
)
from stridenet.errors import InputError
from tests.experiments.settings import Composed

GROUPS = {
    group: sorted(path.stem for path in (Path(CONF) / group).glob("*.yaml"))
    for group in ("model", "data", "recipe")
}


COMBINATIONS = list(itertools.product(*GROUPS.values()))


# What the files under conf/ hold


def test_the_groups_hold_what_the_readme_promises() -> None:
    assert {"strided", "unit_stride", "pooling"} <= set(GROUPS["model"])
    assert {"mnist", "fashion_mnist"} <= set(GROUPS["data"])
    assert {"validated", "sgd", "caffe", "smoke"} <= set(GROUPS["recipe"])


@pytest.mark.sample(9)
@pytest.mark.parametrize(("model", "data", "recipe"), COMBINATIONS)
def test_every_combination_composes_for_both_commands_and_they_mean_the_same_experiment(
    composed: Composed, model: str, data: str, recipe: str
) -> None:
    # Given, so that rates not chosen yet do not matter.
    chosen = (f"model={model}", f"data={data}", f"recipe={recipe}", "recipe.learning_rate=0.01")
    run, report = composed(*chosen), composed(*chosen, command="report")
    assert isinstance(run, RunConfig)
    assert type(report) is ReportConfig
    assert (run.model.name, run.data.name, run.recipe.name) == (model, data, recipe)
    assert run.model.eliminate_stride == (model == "unit_stride")
    assert run.model.max_pooling == (model == "pooling")
    assert (run.seed, run.weights, run.outputs) == (0, "scratch", "outputs")
    assert (run.sharing, run.recipe.fan_in, run.recipe.rate_scaling) == ("free", "nonzero", "none")
    assert experiment_identity(run) == experiment_identity(report)


def test_the_network_is_the_papers_and_the_other_two_are_the_same_but_for_their_flag(
    composed: Composed,
) -> None:
    strided, twin, pooling = (
        composed(f"model={name}").model for name in ("strided", "unit_stride", "pooling")
    )
    sizes = [
        (layer.kernel[0], layer.stride[0], layer.channels) for layer in strided.layers.values()
    ]
    assert list(strided.layers) == ["conv1", "conv2", "conv3", "conv4", "fc1", "fc2"]
    assert sizes == [(5, 1, 20), (2, 2, 20), (5, 1, 50), (2, 2, 50), (1, 1, 500), (1, 1, 10)]
    assert twin == replace(strided, eliminate_stride=True)
    assert pooling == replace(strided, max_pooling=True)


def test_the_caffe_recipe_is_lenets_published_solver(composed: Composed) -> None:
    assert composed("recipe=caffe").recipe == RecipeConfig(
        name="caffe",
        epochs=None,
        steps=10_000,
        batch_size=64,
        optimizer="sgd",
        learning_rate=0.01,
        schedule="inverse",
        rate_decay=1e-4,
        rate_power=0.75,
        bias_rate_factor=2,
        momentum=0.9,
        weight_decay=5e-4,
        initialisation="xavier",
        pixels="scaled",
    )


def test_the_default_recipe_is_that_of_the_protocol() -> None:
    with initialize_config_dir(CONF, version_base="1.3"):
        settings = compose("train", ["recipe.learning_rate=0.01"])
    assert resolve(settings, RunConfig).recipe == RecipeConfig(
        name="validated", epochs=4, steps=None, evaluations=None, batch_size=64, optimizer="sgd",
        learning_rate=0.01, schedule="linear", momentum=0.9, weight_decay=0.0005,
    )  # fmt: skip
    assert settings.data.validation_size == 5000
    assert settings.data.train_size is None


# Rates

BY_NETWORK = "recipe.learning_rate={strided: 0.1, unit_stride: 0.2, masked: 0.3, pooling: 0.4}"


@pytest.mark.sample(2)
@pytest.mark.parametrize(
    ("arm", "rate"),
    [("strided", 0.1), ("free", 0.2), ("free_by_copies", 0.2), ("free_effective", 0.2),
     ("masked", 0.3), ("masked_by_copies", 0.3)],
)  # fmt: skip
def test_each_network_has_its_own_rate_in_one_experiment(
    composed: Composed, arm: str, rate: float
) -> None:
    run = composed(BY_NETWORK, f"arm={arm}")
    assert run.rate == rate
    assert experiment_identity(run) == experiment_identity(composed(BY_NETWORK))
    assert composed("recipe.learning_rate=0.5", f"arm={arm}").rate == 0.5


def test_the_network_with_pooling_and_a_fine_tuned_one_have_rates_too(composed: Composed) -> None:
    assert composed(BY_NETWORK, "model=pooling").rate == 0.4
    assert composed(BY_NETWORK, "model=strided", "weights=fine_tune").rate == 0.1
    tuned = composed(BY_NETWORK, "arm=masked", "weights=fine_tune")
    assert (tuned.rate, strided_source(tuned).rate) == (0.3, 0.1)


def test_a_network_without_a_rate_is_an_error_that_names_it_unless_it_is_not_trained(
    composed: Composed,
) -> None:
    with pytest.raises(
        InputError, match=r"none for tied; \+recipe\.learning_rate\.tied=RATE adds one$"
    ):
        composed(BY_NETWORK, "arm=tied")
    only = "recipe.learning_rate={strided: 0.1}"
    with pytest.raises(InputError, match=r"rates for strided, but none for unit_stride; \+recipe"):
        composed(only, "arm=free")
    assert composed(only, "arm=free", "weights=copy").weights == "copy"


@pytest.mark.parametrize(
    ("chosen", "key"),
    [
        ("recipe.learning_rate=null", "recipe.learning_rate"),
        ("recipe.learning_rate={strided: null}", "recipe.learning_rate.strided"),
        ("recipe.learning_rate={strided: '???'}", "recipe.learning_rate.strided"),
        ("recipe.epochs=null", "recipe.steps"),
    ],
)
def test_what_has_not_been_chosen_yet_is_an_error_that_says_what_to_do(
    composed: Composed, chosen: str, key: str
) -> None:
    with pytest.raises(InputError, match=rf"^{re.escape(key)} has no value yet.*: give"):
        composed(chosen)


def content(path: str) -> Any:
    """Return the content of a file under conf/, as it is."""
    return OmegaConf.to_container(OmegaConf.load(Path(CONF) / path))


def test_no_recipe_falls_back_on_the_rates_of_another() -> None:
    """Over numbers, ??? leaves those; only validated, which is over nothing, may have it."""
    paths = [path.relative_to(CONF) for path in Path(CONF).rglob("*.yaml")]
    assert [str(path) for path in paths if "???" in (Path(CONF) / path).read_text()] in (
        [],
        ["recipe/validated.yaml"],
    )


def schema_of(name: str) -> Any:
    """Return the defaults of a command's settings: the one schema that its file starts from."""
    starts = content(f"{name}.yaml")["defaults"]
    (schema,) = [one for one in starts if str(one).endswith("_schema")]
    return ConfigStore.instance().load(f"{schema}.yaml").node


def test_a_default_of_the_schema_is_not_written_again_in_a_file() -> None:
    """Recipes are an exception: validated.yaml is the protocol's, and is read as a whole."""
    names = {path.stem for path in Path(CONF).glob("*.yaml")} - {"settings"}
    assert names >= {"train", "report"}
    for name in names:
        defaults = schema_of(name)
        for key, value in content(f"{name}.yaml").items():
            assert key not in defaults or value != defaults[key], f"{name}.yaml: {key}"
    for name in GROUPS["data"]:
        assert content(f"data/{name}.yaml").keys() == {"name", "image_size"}


def test_one_rate_that_stands_in_two_files_is_the_same_in_both() -> None:
    rates = {
        name: None if rate == "???" else rate
        for name, rate in content("recipe/validated.yaml")["learning_rate"].items()
    }
    assert content("recipe/sharing.yaml")["learning_rate"] == rates["strided"]
    assert content("experiment/swapped.yaml")["recipe"]["learning_rate"] == {
        "strided": rates["unit_stride"],
        "unit_stride": rates["strided"],
    }


# One way of writing


def test_sizes_become_height_and_width(composed: Composed) -> None:
    layers = composed(
        "model.layers.conv1.kernel=3",
        "model.layers.conv2.stride=[2,3]",
        "model.layers.conv3.padding=[1,0]",
        "model.layers.conv3.dilation=2",
        "data.image_size=[32,20]",
    ).model.layers
    assert layers["conv1"] == LayerConfig("conv", 20, [3, 3], [1, 1], [1, 1], [0, 0], 1, True)
    assert layers["conv2"].stride == [2, 3]
    assert (layers["conv3"].padding, layers["conv3"].dilation) == ([1, 0], [2, 2])


def test_an_added_convolution_goes_before_the_fully_connected_layers(composed: Composed) -> None:
    layers = composed("+model.layers.conv5={channels: 30, kernel: 3}").model.layers
    assert list(layers) == ["conv1", "conv2", "conv3", "conv4", "conv5", "fc1", "fc2"]
    assert layers["conv5"] == LayerConfig("conv", 30, [3, 3], [1, 1], [1, 1], [0, 0], 1, True)


def test_a_layer_can_be_removed(composed: Composed) -> None:
    assert list(composed("~model.layers.conv3").model.layers) == [
        "conv1",
        "conv2",
        "conv4",
        "fc1",
        "fc2",
    ]


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1])
def test_every_seed_is_kept_zero_too(composed: Composed, seed: int) -> None:
    config = composed(f"seed={seed}")
    assert config.seed == seed
    assert f"-s{seed}-" in run_name(config)


# The experiment on sharing

ARMS = {  # network, sharing and rate_scaling of each
    "strided": ("strided", "free", "none"),
    "tied": ("unit_stride", "tied", "none"),
    "masked": ("unit_stride", "masked", "none"),
    "free": ("unit_stride", "free", "none"),
    "masked_by_copies": ("unit_stride", "masked", "copies"),
    "free_by_copies": ("unit_stride", "free", "copies"),
    "free_effective": ("unit_stride", "free", "effective"),
}


def test_the_experiment_on_sharing_sweeps_all_arms_from_both_starts() -> None:
    with initialize_config_dir(CONF, version_base="1.3"):
        hydra = compose("train", ["experiment=sharing"], return_hydra_config=True).hydra
    assert hydra.mode.name == "MULTIRUN"
    parser = OverridesParser.create()
    parsed = [parser.parse_override(f"{k}={v}") for k, v in hydra.sweeper.params.items()]
    assert {each.key_or_group: [*each.sweep_string_iterator()] for each in parsed} == {
        "weights": ["scratch", "fine_tune"],
        "arm": list(ARMS),
        "seed": list(map(str, range(5000, 5010))),
    }
    assert {path.stem for path in (Path(CONF) / "arm").glob("*.yaml")} == ARMS.keys()
    # What is trained from scratch comes first, for fine-tuning begins where the strided runs end.
    assert parsed[0].key_or_group == "weights"


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["scratch", "fine_tune"])
def test_an_arm_is_its_network_sharing_and_rates_and_nothing_else(
    composed: Composed, weights: str
) -> None:
    rate, same = "recipe.learning_rate=0.02", ("seed=9", "rho_every=50")
    strided = composed("recipe=sharing", rate, *same)
    assert (strided.recipe.epochs, strided.recipe.learning_rate) == (2, 0.02)
    names = set()
    for arm, (network, sharing, scaling) in ARMS.items():
        config = composed("experiment=sharing", rate, f"arm={arm}", f"weights={weights}", "seed=9")
        model = replace(strided.model, eliminate_stride=network == "unit_stride")
        recipe = replace(strided.recipe, rate_scaling=scaling)
        changes = {"model": model, "recipe": recipe, "weights": weights}
        assert config == replace(strided, **changes, sharing=sharing)
        assert experiment_identity(config) == experiment_identity(strided)
        assert strided_source(config) == strided
        names.add(run_name(config).rpartition("-")[2])
    assert len(names) == len(ARMS)


def test_an_arm_goes_with_any_recipe(composed: Composed) -> None:
    for recipe in ("smoke", "caffe"):
        given = (f"recipe={recipe}", "recipe.batch_size=32")
        config = composed("arm=masked_by_copies", *given)
        assert config.recipe == replace(composed(*given).recipe, rate_scaling="copies")
        assert (config.model.name, config.sharing) == ("unit_stride", "masked")


def test_resolved_settings_resolve_to_themselves(sgd_config: RunConfig) -> None:
    assert resolve(OmegaConf.create(asdict(sgd_config)), RunConfig) == sgd_config
