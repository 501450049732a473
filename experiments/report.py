"""Tables and figures of what has been run: python -m experiments.report [KEY=VALUE …]."""

import hydra
from omegaconf import DictConfig

from experiments.command import CONF, guarded, start
from experiments.settings.checks import resolve
from experiments.settings.schema import ReportConfig


@hydra.main(version_base="1.3", config_path=CONF, config_name="report")
@guarded
def main(settings: DictConfig) -> None:
    config = resolve(settings, ReportConfig)
    from experiments.studies.report import write_report  # slow: `--help` should not wait for it

    print(*write_report(config), sep="\n\n")


if __name__ == "__main__":
    start(main)
