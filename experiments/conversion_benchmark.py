"""Time a conversion and first layers: python -m experiments.conversion_benchmark [KEY=VALUE …]."""

from pathlib import Path

import hydra
from omegaconf import DictConfig

from experiments.command import CONF, guarded, start
from stridenet.config import ConversionBench, resolve
from stridenet.runs import write_json


@hydra.main(version_base="1.3", config_path=CONF, config_name="conversion_benchmark")
@guarded
def main(settings: DictConfig) -> None:
    config = resolve(settings, ConversionBench)
    # These import torch, which `--help` should not wait for.
    from stridenet.conversion_benchmark import benchmark_conversion
    from stridenet.report import conversion_sections

    measured = benchmark_conversion(config)
    outputs = Path(config.outputs)
    (outputs / "report").mkdir(parents=True, exist_ok=True)
    write_json(outputs / "conversion.json", measured)
    saved = [section.save(outputs / "report") for section in conversion_sections(measured)]
    print(*saved, f"All rounds are in {outputs / 'conversion.json'}.", sep="\n\n")


if __name__ == "__main__":
    start(main)
