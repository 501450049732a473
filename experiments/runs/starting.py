"""The network with which a run starts: its weights, and how training treats it if it is a twin."""

from pathlib import Path
from typing import NamedTuple

from torch import Tensor, nn

from experiments.runs import files
from experiments.runs.data import generator
from experiments.runs.folder import run_folder
from experiments.runs.networks import (
    build_network,
    build_strided,
    draw_network,
    require_scores,
    twin_of,
)
from experiments.runs.results import read_result
from experiments.runs.training import TwinTraining
from experiments.settings.identity import LOOP, strided_source
from experiments.settings.schema import RunConfig
from stridenet.errors import InputError, StrideEliminationError
from stridenet.origins import Origin
from stridenet.sharing import origins, plain_name, plain_state, share
from stridenet.sharing_measures import distance_from_tied, gradient_ratios, number_of_copies
from stridenet.twin import UnitStrideNetwork


class Start(NamedTuple):
    """Holds the network of a run with its starting weights."""

    network: nn.Module
    source: nn.Module | None  # the strided network whose weights a twin has copied


def starting_network(config: RunConfig) -> Start:
    """Return the network of this run with its starting weights.

    Raises InputError where the run or the file that has the weights is missing or does not fit, and
    where the network has fewer scores than the data set has classes.
    """
    if config.weights in ("copy", "fine_tune"):
        start = _with_copied_weights(config)
    elif config.weights == "scratch":
        draw = generator(config.seed, "weights")
        network = draw_network(
            config.model, config.data.input_size, config.recipe, config.sharing, draw
        )
        start = Start(network, None)
    else:
        start = Start(_with_weights_of_a_file(config), None)
    require_scores(start.network, config.data)
    return start


def _with_copied_weights(config: RunConfig) -> Start:
    """Start from the weights of the strided run of the same seed, which has to be finished."""
    source = run_folder(strided_source(config))
    trained = read_result(source, LOOP)
    if trained is None:
        raise InputError(
            f"weights={config.weights} needs {source / 'weights.pt'} of a finished run; do the "
            "same run with model=strided weights=scratch first"
        )
    if trained["diverged"]:
        raise InputError(
            f"weights={config.weights}: {source.name} diverged, and nothing can start from its "
            f"weights; take a smaller recipe.learning_rate than {trained['learning_rate']:g}"
        )
    strided = build_strided(config.model, config.data.input_size)
    files.load_weights(source / "weights.pt", strided)
    if not config.model.eliminate_stride:
        return Start(strided, None)
    return Start(share(twin_of(strided, config.data.input_size), config.sharing), strided)


def _with_weights_of_a_file(config: RunConfig) -> nn.Module:
    network = build_network(config.model, config.data.input_size)
    files.load_weights(Path(config.weights), network)
    if not isinstance(network, UnitStrideNetwork):
        return network
    try:
        return share(network, config.sharing)
    except StrideEliminationError as error:
        raise InputError(
            f"sharing={config.sharing} starts from weights that are {config.sharing} already, as "
            f"such a run saves them, and those in {config.weights} are not; take sharing=free"
        ) from error


def twin_training(twin: UnitStrideNetwork, config: RunConfig) -> TwinTraining:
    """Return how a twin is trained and observed, as the settings say."""
    found = origins(twin)
    # The copies of a tied weight are one parameter, and have no gradients of their own.
    probed = config.rho_every and config.sharing != "tied"
    return TwinTraining(
        scales=rate_scales(twin, found, config.recipe.rate_scaling, config.sharing),
        observe=lambda: {"distance": distance_from_tied(twin, found)},
        probe=(lambda: gradient_ratios(twin, found)) if probed else None,
        probe_every=config.rho_every,
    )


def rate_scales(
    twin: UnitStrideNetwork, found: dict[str, Origin], scaling: str, sharing: str
) -> dict[str, float]:
    """Return, by name, the number by which recipe.rate_scaling multiplies each parameter's rate.

    copies: it is the number of copies that the twin has of a strided weight, so that the mean of the
    copies takes the strided network's step. effective: it is that number times the strided fan-in over
    the twin's, since an output moves by the rate times the number of its inputs (docs/protocol.md, the
    step account). Structural zeros that stay zero (masked) do not count as inputs. Biases have no
    fan-in.
    """
    scales: dict[str, float] = dict(number_of_copies(twin, found)) if scaling != "none" else {}
    if scaling == "effective":
        for name, _ in twin.network.named_parameters():
            origin = found.get(plain_name(name))
            if origin is not None and len(origin.size) > 1 and not origin.copied:
                scales[name] /= fan_in_ratio(origin, sharing)
    return scales


def fan_in_ratio(origin: Origin, sharing: str) -> float:
    """Return the number of inputs of a twin's filter over that of the strided filter.

    Structural zeros that stay zero (masked) do not count as inputs.
    """
    inputs = origin.entries[0]
    many = int((inputs >= 0).sum()) if sharing == "masked" else inputs.numel()
    return many / origin.size[1:].numel()


def weights_to_keep(network: nn.Module) -> dict[str, Tensor]:
    """Return what weights.pt holds: a twin has the same names there, however it is shared."""
    if isinstance(network, UnitStrideNetwork):
        return plain_state(network)
    return network.state_dict()
