"""Train one network, or evaluate copied weights: python -m experiments.train [KEY=VALUE …] [-m]."""

import sys
import traceback

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from experiments.command import CONF, is_foreseen, one_line, start
from stridenet.config import resolve

failed: list[str] = []  # runs of this sweep


@hydra.main(version_base="1.3", config_path=CONF, config_name="train")
def main(settings: DictConfig) -> None:
    if HydraConfig.get().mode == RunMode.RUN:
        run(settings)
        return
    overrides = " ".join(HydraConfig.get().overrides.task)
    try:
        run(settings)
    except Exception as error:  # one failed run must not end the sweep
        if not is_foreseen(error):
            traceback.print_exc()
        print(f"error: {overrides}: {one_line(error)}", file=sys.stderr)
        failed.append(overrides)


def run(settings: DictConfig) -> None:
    config = resolve(settings)
    from stridenet.execution import run_once  # imports torch, which `--help` should not wait for

    folder, result, new = run_once(config)
    before = "" if new else " (done before)"
    print(f"{folder.name}: test accuracy {result['test_accuracy']:.2%}{before}", flush=True)


if __name__ == "__main__":
    start(main)
    if failed:
        sys.exit(f"error: {len(failed)} of the sweep's runs failed: {'; '.join(failed)}")
