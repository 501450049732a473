"""Train one network, or evaluate copied weights: python -m experiments.train [KEY=VALUE …] [-m]."""

import hydra
from omegaconf import DictConfig

from experiments.command import CONF, guarded, start
from stridenet.config import Config, resolve


@hydra.main(version_base="1.3", config_path=CONF, config_name="train")
@guarded
def main(settings: DictConfig) -> None:
    config = resolve(settings, Config)
    from stridenet.execution import run_once  # imports torch, which `--help` should not wait for

    folder, result, new = run_once(config)
    before = "" if new else " (done before)"
    print(f"{folder.name}: test accuracy {result['test_accuracy']:.2%}{before}", flush=True)


if __name__ == "__main__":
    start(main)
