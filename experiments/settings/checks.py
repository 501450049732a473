"""From what was typed to checked settings: types and choices here, the rest by each dataclass."""

from typing import Any, Protocol, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from experiments.settings.fields import NO_VALUE, check_choices, check_numbers, check_path
from experiments.settings.guide import advice
from experiments.settings.schema import LayerConfig, ModelConfig, NetworkConfig
from stridenet.errors import InputError

PATHS = ("outputs", "published", "reference", "file")  # settings that name a file or a folder


class Checked(Protocol):
    """Describes the settings of a command, which check themselves."""

    def check(self) -> None:
        """Write everything in one way only.

        Raises InputError where settings do not hold together.
        """


Settings = TypeVar("Settings", bound=Checked)


def resolve(settings: DictConfig, schema: type[Settings]) -> Settings:
    """Return settings as a checked dataclass, with everything written in one way only.

    Sizes are then [h, w], and convolutions come before fully connected layers. Raises InputError.
    """
    config = _typed(schema, OmegaConf.to_container(settings), "")
    check_choices(config)
    for key in PATHS:
        if getattr(config, key, None) is not None:
            check_path(key, getattr(config, key))
    if isinstance(config, NetworkConfig):
        _type_layers(config.model)
    config.check()
    check_numbers(config)
    return config


def _type_layers(model: ModelConfig) -> None:
    """Turn the layers, which Hydra keeps as dictionaries, into LayerConfigs."""
    for name, content in model.layers.items():
        key = f"model.layers.{name}"
        if not isinstance(content, dict):
            raise InputError(f"{key}={content} must be a layer, as in {{kernel: 3, channels: 20}}")
        model.layers[name] = _typed(LayerConfig, content, key)


def _typed(schema: type[Any], content: Any, place: str) -> Any:
    """Return a dataclass from plain content. Raises InputError for unknown keys and wrong types."""
    try:
        typed = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), content))
    except MissingMandatoryValue as error:
        key = ".".join(filter(None, [place, error.full_key]))
        raise InputError(NO_VALUE.format(key)) from error
    except (OmegaConfBaseException, TypeError, ValueError) as error:
        key = ".".join(filter(None, [place, getattr(error, "full_key", None)]))
        advised = advice(error, place)
        raise InputError(advised or f"{key}: {str(error).splitlines()[0]}") from error
    assert isinstance(typed, schema)
    return typed
