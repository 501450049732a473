"""Train one network, or evaluate copied weights: python -m experiments.train [KEY=VALUE …] [-m]."""

import hydra
import joblib
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from experiments.command import CONF, guarded, start
from stridenet.config import Config, resolve


@hydra.main(version_base="1.3", config_path=CONF, config_name="train")
@guarded
def main(settings: DictConfig) -> None:
    config = resolve(settings, Config)
    from stridenet.execution import run_once  # imports torch, which `--help` should not wait for

    jobs_at_once = 1
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        jobs_at_once = HydraConfig.get().launcher.get("n_jobs", 1)
        if jobs_at_once < 0:
            jobs_at_once = joblib.cpu_count()
    folder, result, new = run_once(config, jobs_at_once)
    before = "" if new else " (done before)"
    print(f"{folder.name}: test accuracy {result['test_accuracy']:.2%}{before}", flush=True)


if __name__ == "__main__":
    start(main)
