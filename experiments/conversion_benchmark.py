"""Time a conversion and first layers: python -m experiments.conversion_benchmark [KEY=VALUE …]."""

import hydra
from omegaconf import DictConfig

from experiments.command import CONF, guarded, start
from experiments.runs.files import write_json
from experiments.settings.checks import resolve
from experiments.settings.conversions import ConversionBenchmarkConfig
from stridenet.files import make_folder


@hydra.main(version_base="1.3", config_path=CONF, config_name="conversion_benchmark")
@guarded
def main(settings: DictConfig) -> None:
    config = resolve(settings, ConversionBenchmarkConfig)
    # These import torch, which `--help` should not wait for.
    from experiments.studies.conversion import benchmark_conversion, conversion_sections

    measured = benchmark_conversion(config)
    outputs = make_folder(config.outputs)
    write_json(outputs / "conversion.json", measured)
    report = make_folder(outputs / "report")
    saved = [section.save(report) for section in conversion_sections(measured)]
    print(*saved, f"All rounds are in {outputs / 'conversion.json'}.", sep="\n\n")


if __name__ == "__main__":
    start(main)
