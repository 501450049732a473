"""Settings: every group composes, all is written in one way only, and an identity is of its numbers."""

import copy
import itertools
import math
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf

from experiments.command import CONF, one_line
from experiments.settings import identity
from experiments.settings.checks import resolve
from experiments.settings.conversions import (
    ConversionBenchmarkConfig,
    SurveyConfig,
    ZooConfig,
)
from experiments.settings.identity import (
    experiment_identity,
    run_name,
    strided_source,
    variant,
)
from experiments.settings.schema import (
    BenchmarkConfig,
    DataConfig,
    EvidenceConfig,
    FiguresConfig,
    LayerConfig,
    ModelConfig,
    RecipeConfig,
    ReportConfig,
    RunConfig,
)
from stridenet.errors import InputError

GROUPS = {
    group: sorted(path.stem for path in (Path(CONF) / group).glob("*.yaml"))
    for group in ("model", "data", "recipe")
}
COMBINATIONS = list(itertools.product(*GROUPS.values()))
Composed = Callable[..., Any]


@pytest.fixture(scope="module")
def plain() -> dict[str, Any]:
    """The settings of a run with recipe=sgd as plain dictionaries, before they are resolved."""
    with initialize_config_dir(CONF, version_base="1.3"):
        return OmegaConf.to_container(compose("train", ["recipe=sgd"]))


@pytest.fixture(scope="module")
def config(plain: dict[str, Any]) -> RunConfig:
    """That run, resolved."""
    return resolve(OmegaConf.create(plain), RunConfig)


def changed(settings: Any, key: str, value: Any) -> Any:
    """A copy of dataclasses or dictionaries with a dotted key set to another value."""
    settings = copy.deepcopy(settings)
    *parents, last = key.split(".")
    holder = settings
    for parent in parents:
        holder = holder[parent] if isinstance(holder, dict) else getattr(holder, parent)
    if isinstance(holder, dict):
        holder[last] = value
    else:
        assert hasattr(holder, last)
        setattr(holder, last, value)
    return settings


# What the files under conf/ hold


def test_the_groups_hold_what_the_readme_promises() -> None:
    assert {"strided", "unit_stride", "pooling"} <= set(GROUPS["model"])
    assert {"mnist", "fashion_mnist"} <= set(GROUPS["data"])
    assert {"validated", "sgd", "caffe", "smoke"} <= set(GROUPS["recipe"])


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
    """Of a file under conf/, as it is."""
    return OmegaConf.to_container(OmegaConf.load(Path(CONF) / path))


def test_no_recipe_falls_back_on_the_rates_of_another() -> None:
    """Over numbers, ??? leaves those; only validated, which is over nothing, may have it."""
    paths = [path.relative_to(CONF) for path in Path(CONF).rglob("*.yaml")]
    assert [str(path) for path in paths if "???" in (Path(CONF) / path).read_text()] in (
        [],
        ["recipe/validated.yaml"],
    )


SCHEMAS = {"train": RunConfig, "report": ReportConfig, "benchmark": BenchmarkConfig,
            "conversion_benchmark": ConversionBenchmarkConfig, "figures": FiguresConfig,
            "findings": ReportConfig, "evidence": EvidenceConfig, "zoo": ZooConfig,
            "survey": SurveyConfig}  # fmt: skip


def test_a_default_of_the_schema_is_not_written_again_in_a_file() -> None:
    """Recipes are an exception: validated.yaml is the protocol's, and is read as a whole."""
    names = {path.stem for path in Path(CONF).glob("*.yaml")} - {"settings"}
    assert names == SCHEMAS.keys()
    for name, schema in SCHEMAS.items():
        defaults = OmegaConf.structured(schema)
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
def test_what_decides_numbers_changes_the_run(config: RunConfig, key: str) -> None:
    other = changed(config, key, DECIDING[key])
    assert run_name(other).rpartition("-")[2] != run_name(config).rpartition("-")[2]
    within = experiment_identity(other) == experiment_identity(config)
    assert within == (key in WITHIN_AN_EXPERIMENT)


@pytest.mark.parametrize("key", NOT_DECIDING)
def test_what_decides_no_numbers_leaves_the_run_as_it_is(config: RunConfig, key: str) -> None:
    other = changed(config, key, NOT_DECIDING[key])
    assert other != config
    assert run_name(other) == run_name(config)
    assert experiment_identity(other) == experiment_identity(config)


def test_another_training_loop_is_another_run_of_another_experiment(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, experiment = run_name(config), experiment_identity(config)
    monkeypatch.setattr(identity, "LOOP", identity.LOOP + 1)
    assert run_name(config).rpartition("-")[2] != name.rpartition("-")[2]
    assert experiment_identity(config) != experiment


def test_a_layer_more_one_less_and_their_order_change_the_experiment(config: RunConfig) -> None:
    layers = config.model.layers
    fewer = {name: layer for name, layer in layers.items() if name != "conv4"}
    swapped = {name: layers[name] for name in ("conv3", "conv2", "conv1", "conv4", "fc1", "fc2")}
    renamed = {name.replace("conv4", "conv5"): layer for name, layer in layers.items()}
    variants = [layers, fewer, swapped, renamed, {**layers, "fc3": layers["fc2"]}]
    identities = {
        experiment_identity(changed(config, "model.layers", variant)) for variant in variants
    }
    assert len(identities) == len(variants)


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


def test_each_way_of_sharing_is_a_run_of_its_own_in_one_experiment(composed: Composed) -> None:
    runs = [composed("model=unit_stride", *overrides) for overrides in TREATED]
    for run, (words, beginning) in zip(runs, TREATED.values(), strict=True):
        assert variant(run) == words
        assert re.fullmatch(f"{beginning}-sgd-s0-[0-9a-f]{{8}}", run_name(run))
    assert len({run_name(run).rpartition("-")[2] for run in runs}) == len(TREATED)
    others = [composed(), composed("model=pooling")]
    assert len({run_name(run).rpartition("-")[2] for run in (*runs, *others)}) == len(TREATED) + 2
    assert len({experiment_identity(run) for run in (*runs, *others)}) == 1


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


# Mistakes

NOT_THERE = "/nowhere/weights.pt"
BAD_VALUES: list[tuple[str, Any, str]] = [
    *[(f"model.layers.conv2.{size}", value, "one whole number or [h, w]")
      for size in ("kernel", "stride", "dilation", "padding")
      for value in (-1, 2.5, "3", True, None, [], [1], [1, 2, 3], [1, -1], [1, 0.5], [1, None])],
    *[(f"model.layers.conv2.{size}", value, "at least 1")
      for size in ("kernel", "stride", "dilation") for value in (0, [0, 1], [1, 0])],
    *[("data.image_size", value, "one whole number or [h, w]")
      for value in ([], [28], [28, 28, 1], [0, 28], [28, -1])],
    *[(f"model.layers.conv2.{key}", value, "at least 1")
      for key in ("channels", "groups") for value in (0, -1)],
    *[(f"recipe.{key}", value, "at least 0")
      for key in ("rate_decay", "rate_power", "bias_rate_factor", "momentum", "weight_decay")
      for value in (-1.0, -1e-9, math.nan)],
    *[("recipe.learning_rate", value, "above 0") for value in (0.0, -0.1, math.nan, math.inf)],
    ("recipe.momentum", 1.0, "below 1"),
    ("recipe.batch_size", 0, "at least 1"),
    ("recipe.batch_size", -64, "at least 1"),
    ("recipe.epochs", -1, "at least 0"),
    ("recipe.steps", 5, "give one"),
    ("recipe.evaluations", 0, "at least 1"),
    ("recipe.optimizer", "lion", "sgd, adam"),
    ("recipe.schedule", "cosine", "linear, constant, inverse"),
    ("recipe.rate_scaling", "all", "none, copies, effective"),
    ("recipe.learning_rate", "fast", "a number above 0"),
    ("recipe.learning_rate", True, "a number above 0"),
    ("recipe.learning_rate", {}, "no rate for any network"),
    ("rho_every", -1, "at least 0"),
    ("recipe.initialisation", "he", "pytorch, xavier"),
    ("recipe.fan_in", "all", "nonzero, filter"),
    ("recipe.pixels", "raw", "standardised, scaled"),
    ("recipe.name", "a/b", "letters"),
    ("recipe.name", "", "letters"),
    ("recipe.name", "..", "letters"),
    ("model.layers.conv2.kind", "pool", "conv, fc"),
    ("model.activation", "swosh", "relu, leaky_relu"),
    ("model.layers.conv2.activation", "swosh", "identity"),
    ("data.name", "cifar", "mnist, fashion_mnist"),
    ("data.train_size", 0, "at least 1"),
    ("data.train_size", -1, "at least 1"),
    ("data.validation_size", -1, "at least 0"),
    ("data.download_timeout", -1.0, "at least 0"),
    ("data.download_timeout", math.nan, "at least 0"),
    ("seed", -1, "from 0"),
    ("seed", 2**32, "from 0"),
    ("threads", 0, "from 1 to"),
    ("threads", 100_000, "from 1 to"),
    ("device", "gpu", "cpu, cuda"),
    ("weights", NOT_THERE, "nor a file"),
    ("weights", "", "nor a file"),
    ("weights", "copy", "model=unit_stride"),
    ("sharing", "tied", "model=unit_stride"),
    ("sharing", "masked", "model=unit_stride"),
    ("sharing", "some", "tied, masked, free"),
    ("sharing", "", "tied, masked, free"),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value", "hint"), BAD_VALUES)
def test_a_bad_value_is_an_error_of_one_line_with_key_value_and_what_is_right(
    plain: dict[str, Any], key: str, value: Any, hint: str
) -> None:
    with pytest.raises(InputError) as caught:
        resolve(OmegaConf.create(changed(plain, key, value)), RunConfig)
    message = str(caught.value)
    assert f"{key}={value}" in message or f"{key}={value!r}" in message
    assert hint in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["model=pooling", "weights=fine_tune"], "weights=fine_tune .* model=pooling has not"),
        (["model=pooling", "weights=copy"], "weights=copy .* needs model=unit_stride"),
        (["model=pooling", "sharing=tied"], "sharing=tied .* needs model=unit_stride"),
        (["arm=tied", "model=strided"], "sharing=tied .* needs model=unit_stride"),
        (["model=unit_stride", "sharing=some"], "sharing=some .*tied, masked, free"),
        (
            ["model=pooling", "model.eliminate_stride=true"],
            "model.max_pooling and model.eliminate_stride: only one",
        ),
    ],
)
def test_settings_that_exclude_each_other_are_an_error_of_one_line(
    composed: Composed, overrides: list[str], told: str
) -> None:
    with pytest.raises(InputError, match=told) as caught:
        composed(*overrides)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("rate", [0, -0.1, math.inf, "fast"])
def test_a_networks_rate_that_is_none_is_named_with_its_network(
    plain: dict[str, Any], rate: Any
) -> None:
    rates = changed(plain, "recipe.learning_rate", {"strided": 0.1, "masked": rate})
    with pytest.raises(InputError, match=rf"recipe\.learning_rate\.masked={rate} must be a number"):
        resolve(OmegaConf.create(rates), RunConfig)
    unknown = changed(plain, "recipe.learning_rate", {"free": 0.1})
    with pytest.raises(InputError, match=r"recipe\.learning_rate\.free is of no network.*masked"):
        resolve(OmegaConf.create(unknown), RunConfig)


def test_a_negative_number_of_steps_is_an_error(plain: dict[str, Any]) -> None:
    steps = changed(changed(plain, "recipe.epochs", None), "recipe.steps", -5)
    with pytest.raises(InputError, match=r"recipe\.steps=-5 must be at least 0"):
        resolve(OmegaConf.create(steps), RunConfig)


@pytest.mark.parametrize("name", ["conv-5", "5conv", "a.b", "", "_a", "a b"])
def test_a_layers_name_must_be_usable_as_one(plain: dict[str, Any], name: str) -> None:
    settings = copy.deepcopy(plain)
    settings["model"]["layers"][name] = {"channels": 3}
    with pytest.raises(InputError, match=re.escape(f"model.layers.{name}: a layer's name")):
        resolve(OmegaConf.create(settings), RunConfig)


@pytest.mark.parametrize("option", ["kernel", "stride", "dilation", "padding", "groups"])
def test_a_fully_connected_layer_has_no_options_of_a_convolution(
    plain: dict[str, Any], option: str
) -> None:
    settings = changed(plain, f"model.layers.fc1.{option}", 3)
    with pytest.raises(InputError, match=rf"model\.layers\.fc1\.{option}=.*3.* has no {option}"):
        resolve(OmegaConf.create(settings), RunConfig)


def test_a_model_needs_layers(plain: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"model\.layers is empty"):
        resolve(OmegaConf.create(changed(plain, "model.layers", {})), RunConfig)


@pytest.mark.parametrize(
    ("key", "known"),
    [
        ("nonsense", "model, data, recipe, outputs, seed"),
        ("model.nonsense", "eliminate_stride, max_pooling"),
        ("data.nonsense", "name, image_size"),
        ("recipe.nonsense", "name, epochs"),
        ("model.layers.conv1.nonsense", "kind, channels"),
    ],
)
def test_an_unknown_key_is_an_error_that_says_where_and_what_is_known(
    plain: dict[str, Any], key: str, known: str
) -> None:
    with pytest.raises(InputError) as caught:
        resolve(OmegaConf.create(changed(plain, key, 1)), RunConfig)
    assert str(caught.value).startswith(f"{key} is unknown; take one of {known}")


SEVERAL = "several are given as seed=range(0,4) or seed=0,1 with -m"
MISTYPED = [
    ("train", "recipe.lr=0.1", "did you mean recipe.learning_rate?"),
    ("train", "recipe.epoch=1", "did you mean recipe.epochs?"),
    ("train", "+recipe.epoch=1", "did you mean recipe.epochs?"),
    ("train", "modle=strided", "did you mean model?"),
    ("train", "modle.activation=elu", "did you mean model?"),
    ("train", "model=stridet", "did you mean model=strided?"),
    ("train", "arm=tyed", "did you mean arm=tied?"),
    ("train", "model.layers.conv2.strid=2", "did you mean model.layers.conv2.stride?"),
    ("train", "+model.layers.conv2.strid=2", "did you mean model.layers.conv2.stride?"),
    ("train", "model.layers.fc1.kernel=2", "+model.layers.fc1.kernel=… adds it"),
    ("train", "model.layers.conv7.kernel=2", "'+model.layers.conv7={kernel: 3, channels: 20}'"),
    ("train", "hydra.launchr=1", "did you mean hydra.launcher?"),
    ("train", "seed=0,1", "seed=0,1: several values make a sweep, which needs -m"),
    *[("train", f"seed={seeds}", SEVERAL) for seeds in ("0..3", "0-3", "[0,1]", "null")],
    ("report", "recipe=cafe", "did you mean recipe=caffe?"),
    ("report", "arm=tied", "this command takes no arm"),
    ("report", "seed=1", "take one of model, data, recipe, outputs, reference"),
    ("figures", "layers=conv1", "did you mean layer?"),
    ("benchmark", "round=3", "did you mean rounds?"),
    ("zoo", "theorm=1", "did you mean theorem?"),
    ("zoo", "model_s=lenet", "did you mean models?"),
]


@pytest.mark.parametrize(("command", "override", "told"), MISTYPED)
def test_a_mistyped_setting_or_option_gets_the_nearest_and_no_advice_to_add_it(
    command: str, override: str, told: str
) -> None:
    schema = {"train": RunConfig}.get(command, ReportConfig)
    with (
        initialize_config_dir(CONF, version_base="1.3"),
        pytest.raises((HydraException, InputError)) as caught,
    ):
        resolve(compose(command, overrides=[override]), schema)
    line = one_line(caught.value)
    assert told in line
    assert "config use" not in line
    assert "\n" not in line


# What --help says

COMMANDS = sorted(path.stem for path in Path(CONF).glob("*.yaml") if "template" in path.read_text())


def help_of(command: str, *overrides: str) -> str:
    """What --help of a command says."""
    with initialize_config_dir(CONF, version_base="1.3"):
        settings = compose(command, list(overrides), return_hydra_config=True)
        return str(settings.hydra.help.template)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_every_setting_with_its_meaning_and_choices_in_80_columns(command: str) -> None:
    with initialize_config_dir(CONF, version_base="1.3"):
        schema = OmegaConf.get_type(compose(command))
    text = help_of(command)
    assert max(map(len, text.splitlines())) <= 80
    words = " ".join(text.split())
    schemas = [("", schema), ("model.layers.LAYER.", LayerConfig)]
    schemas += [(f"{one.name}.", one.type) for one in fields(schema) if is_dataclass(one.type)]
    for place, settings in schemas:
        if settings is LayerConfig and "model.layers" not in text:
            continue
        for one in fields(settings):
            if not is_dataclass(one.type):
                assert re.search(rf"^  {re.escape(place + one.name)}\b", text, re.MULTILINE)
                said = (
                    " | ".join(map(str, one.metadata["choices"])) + ": "
                    if one.metadata["choices"]
                    else ""
                )
                assert one.metadata["meaning"]
                assert f"{said}{one.metadata['meaning']}" in words


@pytest.mark.parametrize("command", COMMANDS)
def test_help_offers_the_groups_that_the_command_takes_and_no_others(command: str) -> None:
    groups, _, _ = help_of(command).partition("\n\nModel:")
    offered = set(re.findall(r"^  (\w+)=", groups.partition("Groups")[2], re.MULTILINE))
    assert ("arm" in offered) == ("experiment" in offered) == (command == "train")
    for group in ("model", "data", "recipe", "arm", "experiment"):
        options = sorted(path.stem for path in (Path(CONF) / group).glob("*.yaml"))
        with initialize_config_dir(CONF, version_base="1.3"):
            if group in offered:
                compose(command, [f"{group}={options[0]}"])
                assert " | ".join(options) in " ".join(groups.split())
            elif group != "model":  # a setting of those that convert any network
                with pytest.raises(HydraException):
                    compose(command, [f"{group}={options[0]}"])


def test_help_has_the_values_as_they_are_and_can_be_typed() -> None:
    text = help_of("train", "recipe.learning_rate=0.125", "data.image_size=[9,8]", "model=pooling")
    for told in ("recipe.learning_rate=0.125 ", "data.image_size=[9,8] ", "model=pooling "):
        assert told in text
    assert "    conv2                         kernel=2 channels=20 stride=2\n" in text
    assert "$" not in help_of("train", "outputs=a$b").replace(
        "$$", ""
    )  # as Hydra's template takes it


def test_every_choice_is_of_one_setting_and_each_is_checked() -> None:
    """A bad value of every setting that has choices is refused with all of them."""
    for schema, command in ((RunConfig, "train"), (ZooConfig, "zoo")):
        with initialize_config_dir(CONF, version_base="1.3"):
            settings = OmegaConf.to_container(compose(command))
        places = [("", schema)]
        places += [(f"{one.name}.", one.type) for one in fields(schema) if is_dataclass(one.type)]
        if schema is RunConfig:
            places.append(("model.layers.conv1.", LayerConfig))
        for place, group in places:
            for one in fields(group):
                if choices := one.metadata.get("choices"):
                    wrong = "nonsense" if isinstance(next(iter(choices)), str) else 7
                    bad = changed(settings, f"{place}{one.name}", wrong)
                    with pytest.raises(InputError) as caught:
                        resolve(OmegaConf.create(bad), schema)
                    expected = f"{place}{one.name}={wrong} is unknown; take one of "
                    assert str(caught.value) == expected + ", ".join(map(str, choices))


def test_a_layer_without_channels_is_an_error(plain: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"model\.layers\.conv5.*channels"):
        resolve(OmegaConf.create(changed(plain, "model.layers.conv5", {"kernel": 3})), RunConfig)


@pytest.mark.parametrize("layer", [None, 3, [5, 20], "conv"])
def test_a_layer_that_is_not_a_mapping_is_an_error(plain: dict[str, Any], layer: Any) -> None:
    with pytest.raises(InputError, match=r"model\.layers\.conv1"):
        resolve(OmegaConf.create(changed(plain, "model.layers.conv1", layer)), RunConfig)


WRONG_TYPES = [
    ("seed", "abc"),
    ("seed", 1.5),
    ("seed", None),
    ("threads", "two"),
    ("recipe.epochs", "many"),
    ("recipe.momentum", "high"),
    ("data.train_size", "all"),
    ("model.eliminate_stride", "perhaps"),
    ("model.max_pooling", "perhaps"),
    ("recipe.evaluations", "often"),
    ("model.layers.conv1.channels", "many"),
    ("model.layers.conv1.bias", "perhaps"),
]


@pytest.mark.parametrize(("key", "value"), WRONG_TYPES)
def test_a_value_of_a_wrong_type_is_an_error_with_key_and_value(
    plain: dict[str, Any], key: str, value: Any
) -> None:
    with pytest.raises(InputError, match=f"{re.escape(key)}: .*'{value}'") as caught:
        resolve(OmegaConf.create(changed(plain, key, value)), RunConfig)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "key",
    [
        "data.download_timeout",
        *(f"recipe.{key}" for key in ("rate_decay", "rate_power", "momentum", "weight_decay")),
        "recipe.bias_rate_factor",
    ],
)
def test_an_infinite_value_which_no_result_could_hold_is_an_error(
    plain: dict[str, Any], key: str
) -> None:
    with pytest.raises(InputError, match=f"{key}=inf"):
        resolve(OmegaConf.create(changed(plain, key, math.inf)), RunConfig)


def test_resolved_settings_resolve_to_themselves(config: RunConfig) -> None:
    assert resolve(OmegaConf.create(asdict(config)), RunConfig) == config
