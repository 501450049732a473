"""Is a network's unit-stride twin equal to it? python -m experiments.verify [KEY=VALUE …]."""

import hydra
from omegaconf import DictConfig

from experiments.command import CONF, failed, guarded, start
from experiments.settings.checks import resolve
from experiments.settings.schema import Conversion


@hydra.main(version_base="1.3", config_path=CONF, config_name="verify")
@guarded
def main(settings: DictConfig) -> None:
    config = resolve(settings, Conversion)
    from experiments.models import convert, load_model
    from stridenet import verify  # imports torch, which `--help` should not wait for

    model = load_model(config)
    twin = convert(model, config, check=False)
    print(twin.plan, end="\n\n", flush=True)
    report = verify(model, twin)
    print(report)
    if not report.passed:
        failed.append(config.model["_target_"])


if __name__ == "__main__":
    start(main)
