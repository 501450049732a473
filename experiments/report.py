"""Tables, figures and a page of what has been run: python -m experiments.report [KEY=VALUE …]."""

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from experiments import sweep
from experiments.command import CONF, guarded, start
from experiments.settings.checks import resolve
from experiments.settings.schema import ReportConfig


@hydra.main(version_base="1.3", config_path=CONF, config_name="report")
@guarded
def main(settings: DictConfig) -> None:
    config = resolve(settings, ReportConfig)
    # These are slow: `--help` should not wait for them.
    from experiments.page.build import write_page
    from experiments.runs.results import NoRunsError
    from experiments.studies.report import write_report

    overrides = [*HydraConfig.get().overrides.task]
    try:
        print(*write_report(config), sep="\n\n")
    except NoRunsError:
        page = write_page(config, overrides, sweep.overrides_of)
        print(f"A page of what is published, without any runs of yours: {page}")
        raise
    print(f"\nThe report as a page: {write_page(config, overrides, sweep.overrides_of)}")


if __name__ == "__main__":
    start(main)
