"""How far a twin is from its strided network: degrees of freedom, untied weights, gradients."""

import operator
from math import inf, isfinite, prod
from typing import TYPE_CHECKING, Any

from torch import nn

from stridenet.graph.nodes import CONVOLUTIONS, TRANSPOSED
from stridenet.origins import Origin
from stridenet.plan import EliminationPlan, LayerPlan
from stridenet.sharing import layer_name, origins, plain_name, shared_network
from stridenet.tables import data_frame
from stridenet.taps import TapMap
from stridenet.twin import UnitStrideNetwork

if TYPE_CHECKING:
    import pandas as pd

_CONVOLUTIONS = {kind.__name__ for kind in (*CONVOLUTIONS, *TRANSPOSED)}


def fan_in(twin: nn.Module) -> dict[str, int]:
    """Count the entries of one filter that are no structural zeros, for each changed convolution."""
    return {
        layer_name(name): int((origin.entries[0] >= 0).sum())
        for name, origin in origins(twin).items()
        if name.endswith("weight") and not origin.copied and origin.entries.ndim > 1
    }


def number_of_copies(twin: nn.Module, found: dict[str, Origin] | None = None) -> dict[str, int]:
    """Return how often each parameter of `twin.network` has a strided number, however it is shared.

    found: origins(twin), where they are known.
    """
    found = found or origins(twin)
    named = {name: plain_name(name) for name, _ in shared_network(twin).named_parameters()}
    return {name: found[plain].copies for name, plain in named.items() if plain in found}


def distance_from_tied(
    twin: nn.Module, found: dict[str, Origin] | None = None
) -> dict[str, dict[str, float]]:
    """Return how far each changed tensor of a twin is from the strided networks, in its two parts.

    zeros: the norm of what stands at structural zeros; copies: of the differences of copies from
    their mean. Their squares add up to that of the distance from the nearest tied weights, the norm
    is of the whole tensor; all are Euclidean. Tensors that stand in the twin as they do in the strided
    network are left out; where they are only put in another order, both parts are zero. Statistics of
    BatchNorm count like parameters. Raises StrideEliminationError for anything but a whole twin.

    found: origins(twin), where they are known.
    """
    rows = {}
    found = found or origins(twin)
    for name, origin in found.items():
        if origin.copied:
            continue
        tensor = operator.attrgetter(name)(shared_network(twin)).detach().cpu().double()
        masked = origin.mask(tensor)
        rows[name] = {
            "zeros": float((tensor - masked).norm()),
            "copies": float((masked - origin.expand(origin.fold(masked))).norm()),
            "norm": float(tensor.norm()),
        }
    return rows


def gradient_ratios(twin: nn.Module, found: dict[str, Origin] | None = None) -> dict[str, float]:
    """Return ρ = ‖gradient of the twin's weights‖² / ‖gradient of the strided ones‖² of each filter.

    The gradient on a strided weight is the sum over its copies. By Cauchy and Schwarz ρ is at least
    1 / copies, which is reached where all copies have one gradient and nothing reaches the structural
    zeros; it is larger the more they disagree. Keys are the names of the twin's tensors; tied ones,
    whose copies have no gradients of their own, and those without a finite gradient are left out.

    found: origins(twin), where they are known.
    """
    found = found or origins(twin)
    ratios = {}
    for name, parameter in shared_network(twin).named_parameters():
        origin = found.get(plain_name(name))
        if origin is None or origin.copied or parameter.grad is None:
            continue
        if parameter.shape != origin.entries.shape or parameter.ndim < 2:
            continue
        gradient = parameter.grad.double().flatten()
        entries = origin.entries.flatten().to(gradient.device)
        sums = gradient.new_zeros(origin.size.numel() + 1)  # the last one is of structural zeros
        sums.index_add_(0, entries % len(sums), gradient)
        strided = float(sums[:-1].square().sum())
        ratio = float(gradient.square().sum()) / strided if strided else inf
        if isfinite(ratio):
            ratios[plain_name(name)] = ratio
    return ratios


# Counting -------------------------------------------------------------------------------------------


def degrees_of_freedom(plan: EliminationPlan | UnitStrideNetwork) -> "pd.DataFrame":
    """Count the weights that each convolution's filter has to choose, in each way of sharing.

    tied: the strided filter's; free: the twin's; masked: those of the twin without structural zeros.
    So striding is `zeros` (free − masked) and `equalities` (masked − tied) among the twin's weights.
    A layer that is called again has no new weights: tied is 0, and all its weights are equalities.
    paper: s²·C_ℓ·C_{ℓ+1}·W·H of section 6, with s the factor of the layer's output; it counts the
    masked filter, not the free one, and holds for convolutions only.
    """
    rows, counted = [], set()
    for layer in (plan.plan if isinstance(plan, UnitStrideNetwork) else plan).layers:
        again = layer.module in counted
        counted.add(layer.module)
        if layer.operation in _CONVOLUTIONS and (layer.maps or not again):
            rows.append(_freedom(layer, again))
    columns = ["layer", "tied", "masked", "free", "equalities", "zeros", "paper"]
    return data_frame(rows, columns).astype({"paper": "Int64"})


def _freedom(layer: LayerPlan, again: bool) -> dict[str, Any]:
    strided, free = prod(layer.weight_size), prod(layer.unit_stride_weight_size)
    tied, masked = 0 if again else strided, free - layer.structural_zeros
    convolution = all(isinstance(tap_map, TapMap) for tap_map in layer.maps)
    factors = prod(tap_map.output_factor for tap_map in layer.maps)
    return {
        "layer": layer.name,
        "tied": tied,
        "masked": masked,
        "free": free,
        "equalities": masked - tied,
        "zeros": layer.structural_zeros,
        "paper": factors * strided if convolution else None,
    }
