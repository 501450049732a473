"""Time a training step for the report: python -m experiments.benchmark [KEY=VALUE …]."""

import os

import hydra
from omegaconf import DictConfig

from experiments.command import CONF, guarded, start
from experiments.runs.files import write_json
from experiments.settings.checks import resolve
from experiments.settings.schema import BenchmarkConfig
from stridenet.files import make_folder


@hydra.main(version_base="1.3", config_path=CONF, config_name="benchmark")
@guarded
def main(settings: DictConfig) -> None:
    config = resolve(settings, BenchmarkConfig)
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler tells of its own stages
    # This imports torch, which `--help` should not wait for.
    from experiments.studies.training_step import benchmark, benchmark_section

    measured = benchmark(config)
    outputs = make_folder(config.outputs)
    write_json(outputs / "benchmark.json", measured)
    print(benchmark_section(measured).save(make_folder(outputs / "report")))
    print(f"\nAll rounds are in {outputs / 'benchmark.json'}.")


if __name__ == "__main__":
    start(main)
