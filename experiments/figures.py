"""The paper's Figures 1 to 4 and a sharing map: python -m experiments.figures [KEY=VALUE …]."""

import hydra
from omegaconf import DictConfig

from experiments.command import CONF, guarded, start
from experiments.settings.checks import resolve
from experiments.settings.schema import FiguresConfig


@hydra.main(version_base="1.3", config_path=CONF, config_name="figures")
@guarded
def main(settings: DictConfig) -> None:
    config = resolve(settings, FiguresConfig)
    from experiments.paper.page import write_figures  # slow to import: `--help` should not wait

    print(write_figures(config))


if __name__ == "__main__":
    start(main)
