"""Transformers: each type of model whose code convolves with strides, with few layers."""

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import nn

from experiments.surveying.sources import Example, images, imported

# What configurations call the numbers that make a model large or slow, and what is enough here.
SMALLER = {
    "num_hidden_layers": 2,
    "num_layers": 2,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "num_queries": 5,
}
STRIDED = re.compile(r"nn\.Conv(Transpose)?[123]d\(.*?stride", re.DOTALL)
INPUTS = ("pixel_values", "input_values", "input_features")


class Transformers:
    """Has a family for each type of model: its base model, by its default configuration."""

    package = distribution = "transformers"

    def families(self) -> dict[str, list[str]]:
        """Return the types whose code convolves with strides and takes images or sounds alone."""
        auto = imported("transformers.models.auto.modeling_auto")
        folder = Path(imported("transformers").__file__).parent / "models"
        found = {}
        for kind in auto.MODEL_MAPPING_NAMES:
            source = self._source(folder, kind)
            taken = any(name in source for name in INPUTS) and "input_ids" not in source
            if taken and STRIDED.search(source):
                found[kind] = [kind]
        return found

    def _source(self, folder: Path, kind: str) -> str:
        """Return the code of a type's model; "" where it has no file of its own."""
        name = kind.replace("-", "_")
        path = folder / name / f"modeling_{name}.py"
        return path.read_text() if path.is_file() else ""

    def make(self, name: str) -> nn.Module:
        """Return the base model with few layers, or with all where few do not work."""
        transformers = imported("transformers")
        config = transformers.AutoConfig.for_model(name)
        try:
            network: nn.Module = transformers.AutoModel.from_config(smaller(config))
        except Exception:  # numbers that have to fit others
            network = transformers.AutoModel.from_config(config)
        return network

    def examples(self, name: str, model: nn.Module) -> Iterator[Example]:
        """Yield images of the configured size, or small ones; sounds for models that take them."""
        taken: Any = getattr(model, "main_input_name", "pixel_values")
        config: Any = getattr(model.config, "vision_config", model.config)
        if taken == "input_values":
            yield Example(kwargs={taken: images(4000)})
            yield Example(kwargs={taken: images(1, 4000)})
        if taken == "input_features":
            bins = getattr(config, "num_mel_bins", 80)
            yield Example(kwargs={taken: images(bins, 3000)})
            yield Example(kwargs={taken: images(200, bins)})
        if taken == "pixel_values":
            channels = getattr(config, "num_channels", 3)
            own = getattr(config, "image_size", None)
            sides = own if isinstance(own, (list, tuple)) else (own, own)
            sizes = [(64, 64), (224, 224)] if own is None else [tuple(sides)]
            for size in sizes:
                yield Example(kwargs={taken: images(channels, *size)})
            for size in sizes:
                yield Example(kwargs={taken: images(4, channels, *size, batch=1)})  # a video


def smaller(config: Any) -> Any:
    """Return a copy of a configuration with few layers, in the configurations inside it, too."""
    config = copy.deepcopy(config)
    for one in (config, *(v for v in vars(config).values() if hasattr(v, "to_dict"))):
        for name, number in SMALLER.items():
            if isinstance(getattr(one, name, None), int):
                setattr(one, name, min(number, getattr(one, name)))
    return config
