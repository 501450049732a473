"""Which run it is: a hash of all that decides its numbers, and of nothing else."""

import hashlib
import json
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from experiments.settings.schema import STARTING_WEIGHTS, ExperimentConfig, ModelConfig, RunConfig

# Counts the versions of the training loop, so that results of two are never in one table. 1: batches
# of what was left of an epoch too, curves on the test images. 2: docs/protocol.md.
LOOP = 2


def experiment_identity(experiment: ExperimentConfig) -> str:
    """Return a hash that is equal for all runs that may stand in one table.

    They have the same network, data and recipe.
    """
    data, recipe = asdict(experiment.data), asdict(experiment.recipe)
    del data["download_timeout"], recipe["note"], recipe["fan_in"], recipe["rate_scaling"]
    return content_hash([LOOP, *_model(experiment.model), data, recipe])


def model_identity(experiment: ExperimentConfig) -> str:
    """Return a hash that is equal wherever the strided network and the size of the images are."""
    return content_hash([*_model(experiment.model), experiment.data.image_size])


def _model(model: ModelConfig) -> list[Any]:
    content = asdict(model)
    del content["eliminate_stride"], content["max_pooling"]
    return [list(content.pop("layers").items()), content]  # the layers' order counts


def variant(config: RunConfig) -> str:
    """Return, in words, how the network is treated otherwise than in the paper; "" if it is not."""
    parts = {
        config.sharing: config.sharing != "free",
        "fan_in=filter": config.recipe.fan_in == "filter",
        f"by_{config.recipe.rate_scaling}": config.recipe.rate_scaling != "none",
    }
    return " ".join(part for part, applies in parts.items() if applies)


def run_name(config: RunConfig) -> str:
    """Return the name of a run's folder, as unit_stride-tied-scratch-sgd-s3-3f4611ee.

    The last part is the identity: a hash of what decides the numbers. Device, threads, folders and
    the way in which settings were written are not in it; of a file of weights, the content is.
    """
    weights, content = config.weights, ""
    if weights not in STARTING_WEIGHTS:
        with Path(weights).open("rb") as file:
            weights, content = "file", hashlib.file_digest(file, "sha256").hexdigest()
    name, treated = config.model.name, variant(config)
    decides = [experiment_identity(config), name, weights, content, config.seed]
    identity = content_hash([*decides, *filter(None, [treated])])
    words = re.split("[ =]", treated)
    parts = [name, *words, weights, config.recipe.name, f"s{config.seed}", identity]
    return "-".join(filter(None, parts))


def strided_source(config: RunConfig) -> RunConfig:
    """Return the run whose weights `weights=copy` and `fine_tune` start from."""
    model = replace(config.model, eliminate_stride=False)
    recipe = replace(config.recipe, rate_scaling="none", fan_in="nonzero")
    return replace(config, model=model, recipe=recipe, weights="scratch", sharing="free")


def content_hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]
