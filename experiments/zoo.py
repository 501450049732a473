"""Convert, verify and time networks: python -m experiments.zoo [KEY=VALUE …]."""

import hydra
from omegaconf import DictConfig

from experiments.command import CONF, failed, guarded, start
from experiments.settings.checks import resolve
from experiments.settings.conversions import ZooConfig


@hydra.main(version_base="1.3", config_path=CONF, config_name="zoo")
@guarded
def main(settings: DictConfig) -> None:
    config = resolve(settings, ZooConfig)
    # Slow to import: `--help` should not wait for it.
    from experiments.studies.zoo import measure_zoo, write_zoo

    rows = measure_zoo(config)
    print(*write_zoo(config, rows), sep="\n\n")
    failed.extend(row["model"] for row in rows if row.get("passed") is False)


if __name__ == "__main__":
    start(main)
