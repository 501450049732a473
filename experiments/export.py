"""Write a network as an ONNX file: python -m experiments.export [KEY=VALUE …]."""

import hydra
from omegaconf import DictConfig

from experiments.command import CONF, guarded, start
from experiments.settings.checks import resolve
from experiments.settings.schema import Export
from stridenet.files import destination


@hydra.main(version_base="1.3", config_path=CONF, config_name="export")
@guarded
def main(settings: DictConfig) -> None:
    config = resolve(settings, Export)
    from experiments.models import convert, input_size, load_model, random_inputs
    from stridenet.onnx.export import (  # imports torch: not for `--help`
        export_onnx,
        require_packages,
    )

    require_packages()  # says so before the network is converted, as does what follows
    destination(config.path)
    network = load_model(config)
    if config.network == "unit_stride":
        network = convert(network, config)
    by_layers = config.network == "unit_stride" and config.theorem == 1
    # Converted by layers, it takes any size; so may its file, unless the batch is to be fixed.
    inputs = random_inputs(config, 2) if by_layers and not config.batch else None
    print(
        export_onnx(
            network,
            config.path,
            input_size(config) if inputs is None else None,
            example_inputs=inputs,
            rearrange=config.rearrange,
            batch=config.batch,
        )
    )


if __name__ == "__main__":
    start(main)
