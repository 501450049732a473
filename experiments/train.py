"""Train one network, or evaluate copied weights: python -m experiments.train [KEY=VALUE …] [-m]."""

import hydra
from omegaconf import DictConfig

from experiments import sweep
from experiments.command import CONF, guarded, start
from experiments.settings.checks import resolve
from experiments.settings.schema import RunConfig


@hydra.main(version_base="1.3", config_path=CONF, config_name="train")
@guarded
def main(settings: DictConfig) -> None:
    config = resolve(settings, RunConfig)
    from experiments.runs.run import run_once  # imports torch, which `--help` should not wait for

    outcome = run_once(config, sweep.jobs_at_once, bar=not sweep.watched, sweep=sweep.token)
    if not sweep.watched:  # else the process that started the sweep says so
        before = "" if outcome.new else " (done before)"
        print(f"{sweep.line(outcome.folder, outcome.result)}{before}", flush=True)


if __name__ == "__main__":
    start(main, sweep.missing)
