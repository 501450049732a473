"""Convert networks of other people's packages: python -m experiments.survey [KEY=VALUE …]."""

import hydra
from omegaconf import DictConfig

from experiments.command import CONF, failed, guarded, start
from experiments.settings.checks import resolve
from experiments.settings.conversions import SurveyConfig


@hydra.main(version_base="1.3", config_path=CONF, config_name="survey")
@guarded
def main(settings: DictConfig) -> None:
    config = resolve(settings, SurveyConfig)
    # Slow to import: `--help` should not wait for it.
    from experiments.studies.survey import faulty, survey_packages, write_survey

    found = survey_packages(config)
    print(*write_survey(config, found.rows, found.missing), sep="\n\n")
    failed.extend(f"{row['source']} {row['model']}" for row in found.rows if faulty(row))


if __name__ == "__main__":
    start(main)
