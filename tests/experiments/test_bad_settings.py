"""Bad settings: one line with the key, the value and what is right. Help."""

import copy
import math
import re
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf

from experiments.command import CONF, one_line
from experiments.settings.checks import resolve
from experiments.settings.conversions import ZooConfig
from experiments.settings.guide import without_section
from experiments.settings.schema import LayerConfig, ReportConfig, RunConfig
from stridenet.errors import InputError
from tests.experiments.settings import Composed, changed

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


@pytest.mark.sample(200)
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
    ("train", "hydra/launcher=dsk", "did you mean hydra/launcher=dask?"),
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


@pytest.mark.sample(8)
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


def test_help_on_what_is_no_part_of_the_settings_names_the_parts() -> None:
    assert without_section(["--help", "recip"]) == ["--help"]
    with pytest.raises(Exception, match="--help recip: there is model, data, recipe"):
        help_of("train")
    without_section(["--help"])


def help_of(command: str, *overrides: str) -> str:
    """What --help of a command says."""
    with initialize_config_dir(CONF, version_base="1.3"):
        settings = compose(command, list(overrides), return_hydra_config=True)
        return str(settings.hydra.help.template)


@pytest.mark.sample(3)
@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_every_setting_with_its_meaning_and_choices_in_80_columns(command: str) -> None:
    with initialize_config_dir(CONF, version_base="1.3"):
        schema = OmegaConf.get_type(compose(command))
    parts = [one.name for one in fields(schema) if is_dataclass(one.type)]
    texts = [help_of(command)]
    assert len(texts[0].splitlines()) <= 75  # a screen and a half
    for part in parts:
        assert without_section(["--help", part, "seed=1"]) == ["--help", "seed=1"]
        texts.append(help_of(command))
    assert without_section(["--help", "seed=1"]) == ["--help", "seed=1"]  # nothing is asked now
    text = "\n".join(texts)
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


@pytest.mark.sample(3)
@pytest.mark.parametrize("command", COMMANDS)
def test_help_offers_the_groups_that_the_command_takes_and_no_others(command: str) -> None:
    groups, _, _ = help_of(command).partition("\n\nModel (")
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
    given = ("train", "recipe.learning_rate=0.125", "data.image_size=[9,8]", "model=pooling")
    text = help_of(*given).replace("\n", " ")
    for told in ("recipe.learning_rate=0.125 ", "data.image_size=[9,8] ", "model=pooling "):
        assert told in text
    without_section(["--help", "model"])
    assert "    conv2                         kernel=2 channels=20 stride=2\n" in help_of(*given)
    without_section(["--help"])
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
