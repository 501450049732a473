"""A network's operations as a graph, and the size of every feature map in it.

The forward of a copy runs once on proxies, under the modules' own names; each operation also runs on
meta tensors: real shapes, without weights or arithmetic. To the forward, sizes are thus plain numbers
that it may compute with and branch on. The number of images, dtype and device stay open: if the
forward has asked for them, it runs again with others, and a comparison shows what follows them.
"""

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.parametrize import ParametrizationList

from stridenet.copies import copied, same_random_states, unwrapped
from stridenet.errors import StrideEliminationError
from stridenet.graph.changes import refuse_changes
from stridenet.graph.constants import fold_constants
from stridenet.graph.differences import differences
from stridenet.graph.meta import first_line, is_multiple
from stridenet.graph.nodes import BATCH
from stridenet.graph.places import users_line
from stridenet.graph.proxies import Foreign, TensorProxy
from stridenet.graph.tracer import Facts, Refusal, Tracer
from stridenet.sizes import Size

CURE = "convert_layers(model) converts its layers one by one, without tracing"
_OTHER_BATCH = 10_008  # even, and a multiple of 3, 4, 6, 8: unlike BATCH
_ROUND_BATCH = 5_040  # with all small divisors, for what takes images in groups


def trace(model: nn.Module, sizes: Sequence[Size], buffers_by_name: bool = True) -> fx.GraphModule:
    """Return the model's operations in order, with their results on meta tensors in node.meta["value"].

    sizes: of each input, without batch. The model is left untouched: what is returned holds copies of
    its modules, whose parameters and buffers share their numbers with it. In training mode it is not to
    be run, as it would change the model's statistics. Raises StrideEliminationError if
    the model cannot be traced.
    buffers_by_name: arithmetic with buffers is traced, so that these keep their names; else it is done
        once, with their values, on which a forward may then depend.
    """
    model = unwrapped(model)
    _require_ordinary(model)
    with same_random_states():
        return _Trace(model, tuple(sizes), buffers_by_name).traced


@dataclass
class _Pass:
    """Holds one pass: its tracer, and the copy of the model that it has spoiled."""

    tracer: Tracer
    stage: nn.Module


class _Trace:
    """Runs the passes through one model's forward."""

    def __init__(self, model: nn.Module, sizes: tuple[Size, ...], buffers_by_name: bool) -> None:
        self.model, self.sizes, self.buffers_by_name = model, sizes, buffers_by_name
        self.facts = _facts(model)
        self.root = self._root()
        first = _Pass(self._tracer(self.root, self.facts), self._stage(self.root))
        try:
            first.tracer.run(first.stage)
            _require_plain_output(first.tracer.output)
        except StrideEliminationError as error:
            raise self._with_module(error) from error
        except Exception as error:  # tracing runs the user's forward, which may raise anything
            raise self._explained(error) from error
        refuse_changes(first.tracer, first.stage, self._again)
        if "images" in first.tracer.asked:
            self._compare_batches(first.tracer)
        if first.tracer.asked & {"dtype", "device"}:
            self._open_facts(first.tracer)
        _open_batch(first.tracer.graph)
        fold_constants(first.tracer.graph, self.root)
        self.traced = fx.GraphModule(self.root, first.tracer.graph)

    def _tracer(self, root: nn.Module, facts: Facts) -> Tracer:
        tracer = Tracer(root, self.sizes, facts)
        tracer.proxy_buffer_attributes = self.buffers_by_name
        return tracer

    # Copies

    def _root(self, change: Callable[[nn.Module], nn.Module] | None = None) -> nn.Module:
        model = copied(self.model, share_tensors=True)
        model = model if change is None else change(model)
        for module in model.modules():
            if isinstance(module, ParametrizationList):
                module.eval()  # spectral_norm would iterate each time that its weight is read
        if change is None:
            _share_buffers(model, self.model)
        whole = Tracer(model, (), self.facts).is_leaf_module(model, "")
        return nn.Sequential(model) if whole else model

    def _stage(self, root: nn.Module) -> nn.Module:
        stage = copied(root, share_tensors=True)
        modes = dict(self.model.named_modules())
        for name, module in stage.named_modules():
            if isinstance(module, ParametrizationList) and name in modes:
                module.train(modes[name].training)
        return stage

    def _pass(self, facts: Facts, change: Callable[[nn.Module], nn.Module] | None = None) -> Tracer:
        """Run another pass, with other facts."""
        root = self._root(change)
        tracer = self._tracer(root, facts)
        tracer.run(self._stage(root))
        return tracer

    def _again(self, spoiled: nn.Module) -> Tracer:
        """Run a second pass through a copy that has already been through one."""
        tracer = self._tracer(self._root(), self.facts)
        tracer.run(spoiled)
        return tracer

    # What follows the number of images, dtype and device

    def _compare_batches(self, first: Tracer) -> None:
        """Refuse what changes with the number of images in another way than in proportion."""
        for batch in (_OTHER_BATCH, 1):
            try:
                other = self._pass(replace(self.facts, batch=batch))
            except Exception as error:
                if batch == 1:
                    continue  # as BatchNorm in training mode, which the model cannot do either
                raise self._explained(error) from error
            for node, mine, its in differences(first, other):
                numbers = [n for n in (mine, its) if type(n) in (int, float)]
                if len(numbers) == 2 and abs(mine * batch - its * BATCH) < 1e-9 * abs(its * BATCH):
                    continue
                raise StrideEliminationError(
                    f"{self._name} does other things for {batch:,} images than for {BATCH:,}"
                    f"{node.meta.get('where', '') if node else ''}, and a twin is for any number; "
                    f"{CURE}"
                )

    def _open_facts(self, first: Tracer) -> None:
        """Replace literals that followed the input's dtype or device by nodes that read them."""
        dtype = torch.float64 if self.facts.dtype != torch.float64 else torch.float32
        other = Facts(BATCH, dtype, torch.device("meta"))
        try:
            second = self._pass(other, lambda copy: copy.to(dtype))
            found_differences = list(differences(first, second))
        except Exception:  # it runs in the present dtype or on the present device only
            return
        if any(mine is its is None for _, mine, its in found_differences):
            return
        following = {
            (self.facts.dtype, other.dtype): "dtype",
            (self.facts.device, other.device): "device",
        }
        found: dict[fx.Node, set] = {}
        for node, mine, its in found_differences:
            if node is not None and (mine, its) in following:
                found.setdefault(node, set()).add(mine)
        opened = {mine: name for (mine, _), name in following.items()}
        _replace_literals(
            first.graph,
            lambda node, leaf: opened[leaf] if leaf in found.get(node, ()) else None,
            lambda graph, source, name: graph.call_function(getattr, (source, name)),
        )

    # Errors

    @property
    def _name(self) -> str:
        return type(self.model).__name__

    def _with_module(self, error: StrideEliminationError) -> StrideEliminationError:
        if not isinstance(error, Refusal):
            return error
        where = getattr(error, "stridenet_module", self._name)
        return StrideEliminationError(
            f"{where} cannot be traced by torch.fx: its forward {error}; {CURE}"
        )

    def _explained(self, error: Exception) -> StrideEliminationError:
        """Return the error to raise in place of one of the forward, or of an operation.

        It says what the cause is.
        """
        where = getattr(error, "stridenet_module", self._name)
        failed = getattr(error, "stridenet_operation", None)
        line = users_line(error.__traceback__)
        if isinstance(error, Foreign):
            return StrideEliminationError(
                f"{where} reads what an earlier forward left{line}; {CURE}"
            )
        if failed is None:
            sizes = ", ".join(f"torch.zeros{(1, *size)}" for size in self.sizes)
            return StrideEliminationError(
                f"{where} cannot be traced by torch.fx: its forward raises {type(error).__name__}: "
                f"{first_line(error)}{line}; if model({sizes}) works, {CURE}"
            )
        if self._works_in_groups():
            return StrideEliminationError(
                f"{failed}, for {BATCH:,} images: the forward divides the images of a batch into "
                f"groups, and a twin is for any number of them; {CURE}"
            )
        if self._is_about_numbers(error):
            return StrideEliminationError(
                f"{failed}; the model's numbers are {_kinds(self.model)}: give it "
                "others (model.float() for half precision, weights in floating point for integers)"
            )
        return StrideEliminationError(f"{failed}; give the input_size that the network takes")

    def _works_in_groups(self) -> bool:
        try:
            self._pass(replace(self.facts, batch=_ROUND_BATCH))
        except Exception:
            return False
        return True

    def _is_about_numbers(self, error: Exception) -> bool:
        words = ("dtype", "not implemented for", "same type", "be the same", "scalar type")
        return any(word in str(error) for word in words)


def _share_buffers(copy: nn.Module, model: nn.Module) -> None:
    """Have the copy's buffers be the numbers of the model's: it is read, and never run."""
    shared: dict[int, Tensor] = {}
    for (_, mine), (_, its) in zip(copy.named_modules(), model.named_modules(), strict=True):
        for name, buffer in its._buffers.items():
            if buffer is not None:
                mine._buffers[name] = shared.setdefault(id(buffer), buffer.detach())


def _kinds(model: nn.Module) -> str:
    """Return the types of a model's numbers, by name."""
    return ", ".join(sorted({str(p.dtype).removeprefix("torch.") for p in model.parameters()}))


def _facts(model: nn.Module) -> Facts:
    """Return what the inputs are traced with: type and device of the model's first numbers."""
    state = [*model.parameters(), *model.buffers()]
    numbers = [t for t in state if t.is_floating_point() or t.is_complex()]
    first = next(iter(numbers or state), torch.empty(0))
    dtype = first.dtype if numbers or not state else torch.get_default_dtype()
    return Facts(BATCH, dtype, torch.device("cpu") if first.is_meta else first.device)


def _open_batch(graph: fx.Graph) -> None:
    """Compute numbers that come from the number of images from the first input's size."""

    def expression(graph: fx.Graph, source: fx.Node, number: Any) -> fx.Node:
        size = graph.call_method("size", (source, 0))
        size.meta["value"] = BATCH
        return (
            size if number == BATCH else graph.call_function(operator.mul, (size, number // BATCH))
        )

    _replace_literals(
        graph,
        lambda node, leaf: int(leaf) if is_multiple(leaf, BATCH) else None,
        expression,
    )


def _replace_literals(
    graph: fx.Graph,
    wanted: Callable[[fx.Node, Any], Any],
    expression: Callable[[fx.Graph, fx.Node, Any], fx.Node],
) -> None:
    """Replace literals by nodes: one, behind the inputs, for each answer of `wanted` but None."""
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    made: dict[Any, fx.Node] = {}

    def replaced(node: fx.Node, leaf: Any) -> Any:
        key = None if isinstance(leaf, fx.Node) else wanted(node, leaf)
        if key is None or not inputs:
            return leaf
        if key not in made:
            with graph.inserting_before(inputs[-1].next):
                made[key] = expression(graph, inputs[0], key)
            made[key].meta.setdefault("value", leaf)
            made[key].meta.setdefault("strides", [])
        return made[key]

    for node in list(graph.nodes):
        if node.op != "placeholder":
            both = fx.node.map_aggregate((node.args, node.kwargs), lambda x: replaced(node, x))  # noqa: B023
            node.args, node.kwargs = both


def _require_plain_output(output: Any) -> None:
    """Refuse what a graph cannot return as the same type."""
    if type(output) is TensorProxy or isinstance(output, (Tensor, int, float, str, type(None))):
        return
    if type(output) in (tuple, list) or hasattr(output, "_fields"):
        for part in output:
            _require_plain_output(part)
    elif type(output) is dict and all(isinstance(key, str) for key in output):
        for part in output.values():
            _require_plain_output(part)
    else:
        raise Refusal(
            f"returns a {type(output).__name__}, which a graph cannot hold (tensors in tuples, lists, "
            "dicts with names, and NamedTuples it can)"
        )


def _require_ordinary(model: nn.Module) -> None:
    """Refuse what tracing would lose without a word."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    owners: dict[nn.Parameter, str] = {}
    for name, module in model.named_modules():
        label = f"{name or 'the model'} ({type(module).__name__})"
        own = chain(module.parameters(recurse=False), module.buffers(recurse=False))
        if any(isinstance(t, (nn.UninitializedParameter, nn.UninitializedBuffer)) for t in own):
            raise StrideEliminationError(
                f"{label} is lazy and has no weights yet: run the model once, on an input of any batch"
            )
        if any(getattr(module, kind) for kind in hooks):
            raise StrideEliminationError(
                f"{label} has hooks, which a twin could not keep: remove them (prune.remove for those "
                "of pruning, remove_weight_norm for the old weight_norm)"
            )
        if "forward" in vars(module):
            raise StrideEliminationError(
                f"the forward of {label} was replaced on this one object, which a twin could not "
                f"keep: derive a class that has it as its forward, or {CURE}"
            )
        for parameter in module.parameters(recurse=False):
            if owners.setdefault(parameter, label) != label:
                raise StrideEliminationError(
                    f"{owners[parameter]} and {label} share a weight, which their twins could not; "
                    f"{CURE}"
                )
