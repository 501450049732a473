"""The table of the runs of experiment=calibrate: python -m experiments.calibration [KEY=VALUE …]."""

import hydra
from omegaconf import DictConfig

from experiments.command import CONF, guarded, start
from experiments.settings.checks import resolve
from experiments.settings.schema import Calibration


@hydra.main(version_base="1.3", config_path=CONF, config_name="calibration")
@guarded
def main(settings: DictConfig) -> None:
    config = resolve(settings, Calibration)
    from experiments.studies.calibration import write_calibration  # slow to import

    print(*write_calibration(config), sep="\n\n")


if __name__ == "__main__":
    start(main)
