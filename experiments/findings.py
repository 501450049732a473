"""Tables and figure of experiment=sharing: python -m experiments.findings [KEY=VALUE …]."""

import hydra
from omegaconf import DictConfig

from experiments.command import CONF, guarded, start
from experiments.settings.checks import resolve
from experiments.settings.schema import ReportConfig


@hydra.main(version_base="1.3", config_path=CONF, config_name="findings")
@guarded
def main(settings: DictConfig) -> None:
    config = resolve(settings, ReportConfig)
    from experiments.studies.sharing import write_findings  # slow: `--help` should not wait for it

    print(*write_findings(config), sep="\n\n")


if __name__ == "__main__":
    start(main)
