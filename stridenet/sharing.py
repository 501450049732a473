"""Striding as parameter sharing (section 6 of the paper): which of a twin's weights are one weight.

Behind each number of a twin stands one number of the strided network, or none: a structural zero. The
twin may keep all of that (tied), the zeros alone (masked) or nothing (free, as the paper trains it).
"""

import copy
import operator
from collections.abc import Mapping
from itertools import chain
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from stridenet.by_layer.conversion import fold_layers_back
from stridenet.by_layer.converted import is_converted, network_origins
from stridenet.copies import copied
from stridenet.errors import StrideEliminationError
from stridenet.layers import EachInput, SpaceToDepth
from stridenet.options import SHARING
from stridenet.origins import Origin, mean_of_copies
from stridenet.planner import planned_network
from stridenet.sizes import format_size
from stridenet.twin import UnitStrideNetwork, build

Network = TypeVar("Network", bound=nn.Module)
_INTEGERS = (torch.int64, torch.int32)


# Origins --------------------------------------------------------------------------------------------


def origins(twin: Any) -> dict[str, Origin]:
    """Return the origin of each tensor (parameters, statistics) of `twin.network`, by its name.

    If convert_layers made the network, these are the tensors that it has changed.

    A network whose numbers are 1, 2, 3, … is converted: its twin's numbers say where they are from,
    whatever rules made them.
    """
    if not isinstance(twin, UnitStrideNetwork) and is_converted(twin):
        return network_origins(twin)
    numbered = copy.deepcopy(_strided(twin)).to_empty(device="cpu").double()
    sources, first = [], 1
    for name, tensor in _numbered(numbered):
        numbers = torch.arange(first, first + tensor.numel(), dtype=torch.float64)
        tensor.copy_(numbers.reshape(tensor.shape))
        sources.append((first, name, tensor.shape))
        first += tensor.numel()
    sizes = tuple(given.size for given in twin.plan.inputs)
    found: dict[str, Origin] = {}
    for name, tensor in _numbered(build(planned_network(numbered, sizes, twin.plan.options))):
        last = int(tensor.max())
        start, source, size = next(s for s in reversed(sources) if s[0] <= last)
        entries = torch.where(tensor > 0, tensor - start, -1).long()
        found[name] = Origin(source, size, entries)
        _require_alike(twin, name, entries)
    return found


def _require_alike(twin: UnitStrideNetwork, name: str, entries: Tensor) -> None:
    try:
        size = operator.attrgetter(name)(twin.network).shape
    except AttributeError:
        size = None
    if size != entries.shape:
        has = f"is {format_size(size)}" if size else "is missing"
        raise StrideEliminationError(
            f"{name} {has} in this twin, where eliminate_stride had made {format_size(entries.shape)}: "
            "expected a twin with the layers that it was made with"
        )


def _numbered(network: nn.Module) -> list[tuple[str, Tensor]]:
    """Return parameters, statistics and counts by name.

    These are the tensors of a state_dict that can hold large numbers.
    """
    state = network.state_dict().items()
    return [
        (n, t) for n, t in state if t.numel() and (t.is_floating_point() or t.dtype in _INTEGERS)
    ]


def _strided(twin: Any) -> fx.GraphModule:
    """Return the strided network behind a twin, without weights. Raises StrideEliminationError."""
    if not isinstance(twin, UnitStrideNetwork):
        raise StrideEliminationError(
            f"{type(twin).__name__} is not a twin: expected what convert_layers returns, or a "
            "UnitStrideNetwork, as eliminate_stride returns it (and not its .network alone, which has "
            "lost the rearrangement and the plan)"
        )
    rearrange = getattr(twin, "rearrange", None)  # None, too, if it was deleted
    if not isinstance(rearrange, (SpaceToDepth, EachInput)):
        raise StrideEliminationError(
            f"this twin's rearrangement was replaced by a {type(rearrange).__name__}: expected "
            "the twin as eliminate_stride made it; fold it first, then take it apart"
        )
    if twin.strided is None:
        raise StrideEliminationError(
            "this twin does not know its strided network: expected one that eliminate_stride made"
        )
    for name, module in twin.strided.named_modules():
        if parametrize.is_parametrized(module):
            raise StrideEliminationError(
                f"{name} has parametrized weights in the strided network, and a twin has only "
                "their values: torch.nn.utils.parametrize.remove_parametrizations first"
            )
    return twin.strided


def shared_network(twin: Any) -> nn.Module:
    """Return the network whose tensors `origins` names: a twin's own without its rearrangement."""
    return cast(nn.Module, twin.network) if isinstance(twin, UnitStrideNetwork) else twin


# Sharing --------------------------------------------------------------------------------------------


class Tied(nn.Module):
    """Parametrizes a twin's layer: its tensor is the strided one, repeated."""

    entries: Tensor

    def __init__(self, origin: Origin) -> None:
        super().__init__()
        self.origin = origin
        last = origin.size.numel()  # behind the source stands a zero
        self.register_buffer("entries", origin.entries.flatten() % (last + 1), persistent=False)

    def forward(self, source: Tensor) -> Tensor:
        """Return the twin's tensor."""
        numbers = F.pad(source.flatten(), (0, 1)).index_select(0, self.entries)
        return numbers.view(self.origin.entries.shape)

    def right_inverse(self, tensor: Tensor) -> Tensor:
        """Return the strided tensor."""
        return self.origin.fold(tensor)


class Masked(nn.Module):
    """Parametrizes a twin's layer: its tensor keeps its structural zeros."""

    free: Tensor

    def __init__(self, origin: Origin) -> None:
        super().__init__()
        self.register_buffer("free", origin.entries >= 0, persistent=False)

    def forward(self, tensor: Tensor) -> Tensor:
        """Return the tensor with its structural zeros, which no gradient reaches."""
        return torch.where(self.free, tensor, 0)

    def right_inverse(self, tensor: Tensor) -> Tensor:
        """Return the tensor with its structural zeros."""
        return self(tensor)


def share(twin: Network, sharing: str | Mapping[str, str], project: bool = False) -> Network:
    """Return a copy of the twin whose layers share their parameters in one of three ways (section 6).

    tied: the strided weights and biases are the parameters; the twin's are derived from them.
    masked: the twin's own are, but structural zeros stay zero.
    free: the twin's own are, all of them.

    sharing: one of these for all layers whose weights the twin has changed (copied, put in another
        order, or set among structural zeros); or a mapping from such layers' names, the others being
        free.
    project: take the nearest weights that can be shared in this way. Without it, a twin whose weights
        cannot is refused.

    The layers keep their types, so that whatever trains, evaluates or exports a twin takes this one
    too. `torch.save` its state_dict, not the module. Raises StrideEliminationError.

    >>> from stridenet import eliminate_stride
    >>> twin = eliminate_stride(nn.Conv2d(1, 1, 3, stride=2), (1, 9, 9))
    >>> [sum(p.numel() for p in t.parameters()) for t in (twin, share(twin, "tied"))]
    [17, 10]
    """
    found = origins(twin)
    modes = _modes(sharing, found)
    shared = copied(twin)
    make_plain(shared, (Tied, Masked) if is_converted(twin) else None)
    network = shared_network(shared)
    named = network.named_parameters()
    parameters = {name: p for name, p in named if name in found}
    chosen = {name: modes.get(layer_name(name), "free") for name in parameters}
    tied: dict[str, list[tuple[Origin, Tensor]]] = {}
    for name, parameter in parameters.items():
        if chosen[name] == "tied":
            tied.setdefault(found[name].source, []).append((found[name], parameter))
    strided = {source: mean_of_copies(tensors) for source, tensors in tied.items()}
    homes: dict[str, nn.Parameter] = {}
    for name in sorted(parameters, key=lambda name: not found[name].copied):
        origin, parameter = found[name], parameters[name]
        if chosen[name] == "masked":
            _set(name, parameter, origin.mask(parameter), "masked", project)
        if chosen[name] == "tied":
            _set(name, parameter, origin.expand(strided[origin.source]), "tied", project)
        if chosen[name] != "free":
            layer = network.get_submodule(layer_name(name))
            _parametrize(layer, name, origin, chosen[name], homes)
    return shared


def _modes(sharing: str | Mapping[str, str], found: dict[str, Origin]) -> dict[str, str]:
    """Return the mode of each layer that has something to share."""
    sources = {origin.source for origin in found.values() if not origin.copied}
    layers = dict.fromkeys(layer_name(n) for n, origin in found.items() if origin.source in sources)
    if not isinstance(sharing, Mapping):
        _require_mode(sharing, "")
        return dict.fromkeys(layers, sharing)
    for name, mode in sharing.items():
        _require_mode(mode, f" of {name}")
        if name not in layers:
            raise StrideEliminationError(
                f"{name!r} has nothing to share: expected layers whose weights the twin has changed, "
                f"which are {list(layers)}"
            )
    return dict(sharing)


def _require_mode(mode: Any, of: str) -> None:
    if mode not in SHARING:
        raise StrideEliminationError(f"sharing={mode!r}{of}: it is one of {SHARING}")


def _set(name: str, parameter: nn.Parameter, nearest: Tensor, mode: str, project: bool) -> None:
    apart = float((nearest - parameter).detach().abs().max())
    if apart and not project:
        raise StrideEliminationError(
            f"{name} is not {mode}: its nearest such weights differ by up to {apart:.2g}; "
            "project=True takes these"
        )
    parameter.data.copy_(nearest)


def _parametrize(
    layer: nn.Module, name: str, origin: Origin, mode: str, homes: dict[str, nn.Parameter]
) -> None:
    """Give the layer's tensor its sharing; `homes` has the strided parameters met so far.

    A strided layer that is called at several places has several in the twin, but its parameters once.
    """
    holder: Any = layer
    attribute = name.rpartition(".")[2]
    if not origin.copied:
        kind = {"tied": Tied, "masked": Masked}[mode](origin).to(getattr(layer, attribute).device)
        parametrize.register_parametrization(layer, attribute, kind, unsafe=mode == "tied")
        holder, attribute = cast(Any, layer.parametrizations)[attribute], "original"
    if mode == "tied":
        setattr(holder, attribute, homes.setdefault(origin.source, getattr(holder, attribute)))


def layer_name(name: str) -> str:
    """Return the name of the layer that holds a tensor."""
    return name.rpartition(".")[0]


def plain_name(name: str) -> str:
    """Return the name of a parameter without what torch's parametrization puts into it."""
    return name.replace("parametrizations.", "").removesuffix(".original")


def plain_state(twin: nn.Module) -> dict[str, Tensor]:
    """Return the twin's state_dict as if it were free: the numbers that its layers compute with."""
    plain = copy.deepcopy(twin)
    make_plain(plain)
    return plain.state_dict()


def make_plain(network: nn.Module, kinds: tuple[type[nn.Module], ...] | None = None) -> None:
    """Turn parametrized weights, as they are now, into parameters, in place.

    kinds: change only layers with a parametrization of these classes; by default all.

    torch's remove_parametrizations would break the network that this one is a copy of: it changes the
    layers' class, which both have in common.
    """
    for module in list(network.modules()):
        if not parametrize.is_parametrized(module):
            continue
        lists = cast(Any, module.parametrizations)
        if kinds and not any(isinstance(p, kinds) for each in lists.values() for p in each):
            continue
        values = {
            name: nn.Parameter(
                getattr(module, name).detach().clone(),
                any(original.requires_grad for original in lists[name].parameters(recurse=False)),
            )
            for name in lists
        }
        del module.parametrizations
        module.__class__ = type(module).__bases__[0]
        others = dict(module.named_parameters(recurse=False))
        for name in others:  # and back behind the weights: torch's layers have their bias last
            delattr(module, name)
        for name, value in {**values, **others}.items():
            module.register_parameter(name, value)


# Back to the strided network ------------------------------------------------------------------------


def fold_back(twin: Any) -> nn.Module:
    """Return the strided network nearest to a twin, in least squares of the weights.

    It is a torch.fx.GraphModule for a twin of eliminate_stride, and the model as it was for a network
    of convert_layers.

    Each strided number is the mean of its copies in the twin; what stands at structural zeros is
    lost. Folding a twin as eliminate_stride made it gives the original's weights bit for bit. Dtype,
    device, requires_grad and training modes are the twin's; BatchNorm's statistics per phase are folded
    like weights. The state_dict has the original's names:
    `model.load_state_dict(fold_back(twin).state_dict())`.

    Raises StrideEliminationError for anything but a whole twin.
    """
    if not isinstance(twin, UnitStrideNetwork) and is_converted(twin):
        plain = copied(twin)
        make_plain(plain, (Tied, Masked))
        return fold_layers_back(plain)
    strided, found = copy.deepcopy(_strided(twin)), origins(twin)
    tensors: dict[str, list[tuple[Origin, Tensor]]] = {}
    for name, origin in found.items():
        tensor = operator.attrgetter(name)(twin.network)
        tensors.setdefault(origin.source, []).append((origin, tensor))
    device = next((t.device for t in twin.network.state_dict().values()), torch.device("cpu"))
    strided.to_empty(device=device)
    for name, tensor in chain(strided.named_parameters(), strided.named_buffers()):
        if name in tensors:  # not copied into: the twin may have another dtype by now
            tensor.data = mean_of_copies(tensors[name])
            tensor.requires_grad_(any(t.requires_grad for _, t in tensors[name]))
        else:  # what no state_dict holds
            tensor.data = operator.attrgetter(name)(twin.network).detach().clone()
    modes = {name: module.training for name, module in twin.network.named_modules()}
    for name, module in strided.named_modules():
        module.training = modes.get(name, twin.training)
    return strided
