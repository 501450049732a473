"""Time a conversion and first layers: python -m experiments.conversion_benchmark [KEY=VALUE …]."""

from pathlib import Path

import hydra
from omegaconf import DictConfig

from experiments.command import CONF, guarded, start
from experiments.runs.files import write_json
from experiments.settings.checks import resolve
from experiments.settings.schema import ConversionBench


@hydra.main(version_base="1.3", config_path=CONF, config_name="conversion_benchmark")
@guarded
def main(settings: DictConfig) -> None:
    config = resolve(settings, ConversionBench)
    # These import torch, which `--help` should not wait for.
    from experiments.studies.conversion import benchmark_conversion, conversion_sections

    measured = benchmark_conversion(config)
    outputs = Path(config.outputs)
    (outputs / "report").mkdir(parents=True, exist_ok=True)
    write_json(outputs / "conversion.json", measured)
    saved = [section.save(outputs / "report") for section in conversion_sections(measured)]
    print(*saved, f"All rounds are in {outputs / 'conversion.json'}.", sep="\n\n")


if __name__ == "__main__":
    start(main)
