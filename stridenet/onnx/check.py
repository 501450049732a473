"""Is an ONNX file what it claims to be: valid, of unit strides only, and equal to the network?"""

import ast
import copy
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stridenet.errors import StrideEliminationError
from stridenet.sizes import Size, format_size

Images = tuple[Tensor, ...]  # one batch for each input
Arrays = list[np.ndarray]  # one for each output

# Operators with an attribute `strides`; whatever else ONNX has moves by one position or by none.
POOLING_OPERATORS = frozenset({"MaxPool", "AveragePool", "LpPool", "MaxUnpool"})
STRIDED_OPERATORS = POOLING_OPERATORS | frozenset({
    "Conv", "ConvInteger", "QLinearConv", "DeformConv", "ConvTranspose",
})  # fmt: skip
ROUNDING_MARGIN = 16
EPS = float(np.finfo(np.float32).eps)
SMALLEST = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class StridedNode:
    """A convolution or pooling of an ONNX graph with a stride above 1."""

    name: str  # the path of the module that it comes from, or the node's name
    operator: str  # "Conv", "MaxPool", …
    strides: Size

    def __str__(self) -> str:
        return f"{self.name} ({self.operator}, strides {format_size(self.strides)})"


@dataclass(frozen=True)
class Comparison:
    """onnxruntime beside PyTorch, of the output that came nearest to its tolerance."""

    batches: tuple[int, ...]  # images in each
    difference: float  # largest
    tolerance: float
    largest_output: float

    @property
    def passed(self) -> bool:
        """Whether the difference is one of rounding; not where an output is not a number."""
        return self.difference <= self.tolerance


def check_graph(
    path: Path, may_stay: Callable[[StridedNode], bool]
) -> tuple[dict[str, int], tuple[StridedNode, ...]]:
    """Let onnx check the file, and look for strides above 1, in functions and subgraphs too.

    may_stay: of a node with a stride, whether the network has it on purpose. Returns how many nodes of
    each operator there are, and those with a stride. Raises StrideEliminationError.
    """
    import onnx

    try:
        onnx.checker.check_model(str(path), full_check=True)
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # of protobuf if the file is damaged, of the checker if it is wrong
        raise StrideEliminationError(f"{path.name} is not valid ONNX ({reason(error)})") from error
    nodes = [node for graph in (model.graph, *model.functions) for node in _nodes(graph)]
    strided = tuple(_strided(node) for node in nodes if max(_strides(node), default=1) > 1)
    refused = [str(node) for node in strided if not may_stay(node)]
    if refused:
        raise StrideEliminationError(
            f"{path.name} is of a unit-stride network, but has a stride in {'; '.join(refused)}: a "
            "layer was replaced after the conversion, or a forward calls a strided function"
        )
    return dict(Counter(node.op_type for node in nodes).most_common()), strided


def _nodes(graph: Any) -> Iterator[Any]:
    """All nodes of a graph or function, and of the branches and loops in it."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for subgraph in (attribute.g, *attribute.graphs):
                yield from _nodes(subgraph)


def _strides(node: Any) -> Size:
    if node.op_type not in STRIDED_OPERATORS:
        return ()
    return next((tuple(a.ints) for a in node.attribute if a.name == "strides"), ())


def _strided(node: Any) -> StridedNode:
    return StridedNode(_module_of(node) or node.name, node.op_type, _strides(node))


def _module_of(node: Any) -> str:
    """The path of the module that torch made the node from; "" if nothing tells it."""
    weights = [name for name in node.input if name.endswith(".weight")]
    if weights:  # before the scope: a convolution with folded BatchNorm has the BatchNorm's
        return str(weights[0].removesuffix(".weight"))
    notes = {entry.key: entry.value for entry in node.metadata_props}
    scopes = ast.literal_eval(notes.get("pkg.torch.onnx.name_scopes", "['', '']"))
    return str(scopes[-2])  # the last is the operator's own


def compare(
    path: Path,
    network: nn.Module,
    batches: list[Images],
    feeds: list[dict[str, np.ndarray]],
    tolerance: float | None = None,
) -> Comparison:
    """Run the file in onnxruntime on `feeds`, and the network in PyTorch on the same `batches`.

    What rounding does to a network depends on the length of its sums, on its depth, and on how far its
    layers cancel and amplify. All of that is in PyTorch's own error e, the largest difference between
    an output in float32 and in float64. onnxruntime does the same sums in another order, and exp and
    erf by other approximations, so that its error is of the size of e, of which one sample is known.
    Allowed are 16·(e + eps·m), m the largest output; ten torchvision networks came to 0.6 to 1.1 times
    the parenthesis. A wrong weight shows where it moves an output by more.

    Raises StrideEliminationError where an output differs by more, or onnxruntime refuses the file.
    """
    expected = _pytorch_outputs(network, torch.float32, batches)
    if tolerance is None:
        tolerances = _rounding_tolerances(network, batches, expected)
    else:
        tolerances = [[tolerance] * len(outputs) for outputs in expected]
    obtained = _onnxruntime_outputs(path, feeds)
    for theirs, ours in zip(chain(*obtained), chain(*expected), strict=True):
        if theirs.shape != ours.shape:
            raise StrideEliminationError(
                f"{path.name} is not the network at every size: onnxruntime gives "
                f"{format_size(theirs.shape)}, PyTorch {format_size(ours.shape)}, as where a forward "
                "rounds sizes up (ONNX divides towards zero); input_size=… instead of example_inputs "
                "fixes the sizes"
            )
    counts = tuple(len(images[0]) for images in batches)
    found = [
        Comparison(counts, _largest(theirs - ours), allowed, _largest(ours))
        for each in zip(obtained, expected, tolerances, strict=True)
        for theirs, ours, allowed in zip(*each, strict=True)
    ]
    worst = max(found, key=lambda each: (not each.passed, each.difference - each.tolerance))
    if not worst.passed:
        raise StrideEliminationError(
            f"{path.name} is not the network: an output of onnxruntime differs by "
            f"{worst.difference:.2g} from PyTorch's (the largest is {worst.largest_output:.2g}), and "
            f"{worst.tolerance:.2g} is allowed; tolerance=… allows more"
        )
    return worst


def _largest(values: np.ndarray) -> float:
    return float(np.abs(values).max(initial=0))


def _rounding_tolerances(
    network: nn.Module, batches: list[Images], single: list[Arrays]
) -> list[list[float]]:
    """What rounding may do to each output of each batch."""
    try:
        double = _pytorch_outputs(network, torch.float64, batches)
    except StrideEliminationError as error:
        raise StrideEliminationError(
            f"{error}; float64 tells how exact it is in float32: tolerance=… makes up for it"
        ) from error
    return [
        [
            ROUNDING_MARGIN * (_largest(s - d) + EPS * _largest(d) + SMALLEST)
            for s, d in zip(*outputs, strict=True)
        ]
        for outputs in zip(single, double, strict=True)
    ]


def _pytorch_outputs(network: nn.Module, dtype: torch.dtype, batches: list[Images]) -> list[Arrays]:
    """PyTorch's outputs for each batch, computed in `dtype`, as float64."""
    if dtype != torch.float32:
        network = copy.deepcopy(network).to(dtype)
    return [
        [
            output.to(torch.float64).numpy()
            for output in outputs_of(network, tuple(tensor.to(dtype) for tensor in images))
        ]
        for images in batches
    ]


@torch.no_grad()
def outputs_of(network: nn.Module, images: Images) -> list[Tensor]:
    """All tensors of the network's output, in the order in which torch exports them.

    Raises StrideEliminationError if the network does not run on these images.
    """
    try:
        outputs = network(*(tensor.clone() for tensor in images))  # it may work in place on them
    except Exception as error:  # whatever the user's forward raises
        raise StrideEliminationError(
            f"{type(network).__name__} does not run on {images[0].dtype} of the sizes "
            f"{' and '.join(format_size(tensor.shape) for tensor in images)} ({reason(error)}); "
            "give the input_size and, if only some do, the batch that it takes"
        ) from error
    return [leaf for leaf in torch.utils._pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]


def _onnxruntime_outputs(path: Path, feeds: list[dict[str, np.ndarray]]) -> list[Arrays]:
    """onnxruntime's outputs for each feed, as float64."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # its errors come as exceptions
    options.intra_op_num_threads = torch.get_num_threads()
    providers = ["CPUExecutionProvider"]
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=providers)
        results = [session.run(None, feed) for feed in feeds]
    except Exception as error:  # its errors have no common class
        raise StrideEliminationError(
            f"onnxruntime does not run {path.name} ({reason(error)})"
        ) from error
    return [[output.astype(np.float64) for output in outputs] for outputs in results]


def reason(error: BaseException) -> str:
    """The first line of the error that lies below all others."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip() or type(error).__name__).splitlines()[0]
