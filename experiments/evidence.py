"""What the runs of docs/protocol.md say: python -m experiments.evidence [KEY=VALUE …]."""

import hydra
from omegaconf import DictConfig
from tqdm import tqdm

from experiments import sweep
from experiments.command import CONF, guarded, start
from experiments.settings.checks import resolve
from experiments.settings.schema import EvidenceConfig


@hydra.main(version_base="1.3", config_path=CONF, config_name="evidence")
@guarded
def main(settings: DictConfig) -> None:
    config = resolve(settings, EvidenceConfig)
    from experiments.studies.evidence import EXPERIMENTS, write_evidence  # slow to import

    with tqdm(EXPERIMENTS, desc="composing", leave=False, disable=None) as bar:
        wanted = {name: sweep.names_of(name) for name in bar}
    print(*write_evidence(config, wanted), sep="\n\n")


if __name__ == "__main__":
    start(main)
