"""From a strided network to its unit-stride twin (Theorem 2): plan, then build."""

from collections.abc import Sequence
from itertools import chain
from typing import Any

from torch import nn

from stridenet.checking.elimination import check_conversion
from stridenet.copies import unwrapped
from stridenet.errors import StrideEliminationError
from stridenet.options import MOST_PARAMETERS, BatchNorm, checked_options
from stridenet.plan import EliminationPlan
from stridenet.planner import planned_network
from stridenet.sizes import checked_sizes
from stridenet.twin import UnitStrideNetwork, twin_of


def eliminate_stride(
    model: nn.Module,
    input_size: Sequence[Any],
    *,
    output_factor: int | Sequence[int] = 1,
    batch_norm: BatchNorm = "shared",
    max_parameters: int | None = MOST_PARAMETERS,
    check: bool = True,
) -> UnitStrideNetwork:
    """Return the equivalent of `model` with unit strides only, its weights copied (Theorem 2).

    The input alone is rearranged, so that all maps have more channels. For Theorem 1, which rearranges
    at each strided layer, for any network and at any size, see convert_layers.

    input_size is (channels, height, width), without batch, or one such size for each input; the twin
    takes images of this size only.

    output_factor: how much larger than needed the factors of all maps are to be, of each axis or of
        all: the network becomes that much narrower in space and wider in channels.
    batch_norm: "shared" trains with statistics over all phases of a channel, as the strided network
        does; "per_phase" gives each phase its own. In evaluation both are equal.
    max_parameters: refuse a twin that has more.
    check: run what was made once, on random images and on copies: each operation of the twin must
        give what the model's gives, up to rounding, and the traced forward what the model's own gives.

    Names, dtype, device, training mode and requires_grad carry over; the model is left untouched.
    Raises StrideEliminationError, naming the layer, for what has no twin. A forward that depends on
    the training mode is converted as it runs in the present one; a layer that is called at several
    places becomes a layer for each, and parametrized weights (weight_norm) are taken as they are now.
    In training mode, dropout draws other numbers than in the model. Equality holds for finite images.

    >>> model = nn.Sequential(nn.Conv2d(3, 32, 5), nn.ReLU(), nn.Conv2d(32, 8, 2, stride=2))
    >>> eliminate_stride(model, (3, 12, 12)).network.get_submodule("0")
    Conv2d(12, 128, kernel_size=(3, 3), stride=(1, 1))
    """
    model = unwrapped(model)
    if any(tensor.is_meta for tensor in chain(model.parameters(), model.buffers())):
        raise StrideEliminationError(
            "the model is on the meta device: load its weights first (plan_elimination needs none)"
        )
    options = checked_options(output_factor, batch_norm)
    planned = planned_network(model, checked_sizes(input_size), options)
    if max_parameters is not None:
        _refuse_too_large(planned.plan, max_parameters)
    twin = twin_of(planned)
    _copy_modes(model, twin)
    if check:
        check_conversion(model, planned, twin)
    return twin


def _copy_modes(model: nn.Module, twin: UnitStrideNetwork) -> None:
    """Give the twin, and the modules that only group its layers, the model's training modes."""
    modes = {name: module.training for name, module in model.named_modules()}
    for name, module in twin.network.named_modules():
        if name in modes and (type(module) is nn.Module or ".parametrizations." in name):
            module.training = modes[name]
    twin.training = twin.rearrange.training = twin.network.training = model.training


def _refuse_too_large(plan: EliminationPlan, most: int) -> None:
    """Refuse a twin before it is built: parameters and, with an output_factor, tables and maps."""
    before, after = plan.parameters
    if after > most:
        raise StrideEliminationError(
            f"the twin has {after:,} parameters, {before:,} before, which is more than "
            f"max_parameters={most:,}; convert_layers(model) needs far fewer, as only "
            "structural zeros are added"
        )
    layer, numbers = plan.largest_table
    if plan.options.output_factor != 1 and numbers > most:
        raise StrideEliminationError(
            f"output_factor={plan.options.output_factor}: a map or a table of {layer!r} would have "
            f"{numbers:,} numbers, which is more than max_parameters={most:,}; give a smaller factor"
        )


def plan_elimination(
    model: nn.Module,
    input_size: Sequence[Any],
    *,
    output_factor: int | Sequence[int] = 1,
    batch_norm: BatchNorm = "shared",
) -> EliminationPlan:
    """Plan the twin of `model` without its weights; see eliminate_stride for the arguments.

    plan_layers does the same for convert_layers. Raises StrideEliminationError where the model has no
    twin here.
    """
    options = checked_options(output_factor, batch_norm)
    return planned_network(unwrapped(model), checked_sizes(input_size), options).plan
