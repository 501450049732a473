"""Checks that an ONNX file gives what the network gives that it was made of."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from stridenet.errors import NotEqualError, StrideEliminationError
from stridenet.onnx.strides import reason
from stridenet.sizes import format_size

Images = tuple[Tensor, ...]  # one batch for each input
Outputs = list[np.ndarray]  # an array for each output of a network

ROUNDING_MARGIN = 16  # times PyTorch's own error, which `compare` explains
EPS = float(np.finfo(np.float32).eps)
SMALLEST = float(np.finfo(np.float32).tiny)  # numbers below it may be flushed to zero


@dataclass(frozen=True)
class OutputComparison:
    """Says how the output of a file that came nearest to its tolerance differs from PyTorch's."""

    batches: tuple[int, ...]  # how many images each has
    difference: float  # the largest
    tolerance: float
    largest_output: float

    @property
    def passed(self) -> bool:
        """Tell whether the difference is within the tolerance, which NaN never is."""
        return self.difference <= self.tolerance


def compare(
    path: Path,
    network: nn.Module,
    batches: list[Images],
    feeds: list[dict[str, np.ndarray]],
    tolerance: float | None = None,
) -> OutputComparison:
    """Run the file in onnxruntime on `feeds`, and the network in PyTorch on the same `batches`.

    What rounding does to a network depends on the length of its sums, on its depth, and on how far its
    layers cancel and amplify. All of that is in PyTorch's own error e, the largest difference between
    an output in float32 and in float64. onnxruntime does the same sums in another order, and exp and
    erf by other approximations, so that its error is of the size of e, of which one sample is known.
    Allowed are 16·(e + eps·m), m the largest output; ten torchvision networks came to 0.6 to 1.1 times
    the parenthesis. A wrong weight shows where it moves an output by more.

    Raises StrideEliminationError where an output differs by more, or onnxruntime refuses the file.
    """
    outputs = partial(_onnxruntime_outputs, path, feeds)
    return compare_outputs(path.name, "onnxruntime", outputs, network, batches, tolerance)


def compare_outputs(
    name: str,
    by: str,
    outputs: Callable[[], list[Outputs]],
    network: nn.Module,
    batches: list[Images],
    tolerance: float | None = None,
) -> OutputComparison:
    """Compare what a file gives for each batch with what the network gives in PyTorch.

    name: of the file; by: what runs it, for messages.
    outputs: runs it on the batches.

    Raises StrideEliminationError where an output differs, as `compare` does.
    """
    expected = pytorch_outputs(network, torch.float32, batches)
    if tolerance is None:
        tolerances = _rounding_tolerances(network, batches, expected)
    else:
        tolerances = [[tolerance] * len(each) for each in expected]
    obtained = outputs()
    counts = tuple(len(images[0]) for images in batches)
    found = []
    all_outputs = zip(chain(*obtained), chain(*expected), chain(*tolerances), strict=True)
    for theirs, ours, allowed in all_outputs:
        _require_same_size(name, by, theirs, ours)
        difference, largest = _largest_magnitude(theirs - ours), _largest_magnitude(ours)
        found.append(OutputComparison(counts, difference, allowed, largest))
    worst = max(found, key=lambda each: (not each.passed, each.difference - each.tolerance))
    if not worst.passed:
        raise NotEqualError(
            f"{name} is not the network: an output of {by} differs by "
            f"{worst.difference:.2g} from PyTorch's (the largest is {worst.largest_output:.2g}), and "
            f"{worst.tolerance:.2g} is allowed; tolerance=… allows more"
        )
    return worst


def _require_same_size(name: str, by: str, theirs: np.ndarray, ours: np.ndarray) -> None:
    if theirs.shape != ours.shape:
        raise NotEqualError(
            f"{name} is not the network at every size: {by} gives {format_size(theirs.shape)}, "
            f"PyTorch {format_size(ours.shape)}, as where a forward rounds sizes up (ONNX divides "
            "towards zero); input_size=… instead of example_inputs fixes the sizes"
        )


def _largest_magnitude(values: np.ndarray) -> float:
    return float(np.abs(values).max(initial=0))


def _rounding_tolerances(
    network: nn.Module, batches: list[Images], single: list[Outputs]
) -> list[list[float]]:
    """Return how far rounding may move each output of each batch."""
    try:
        double = pytorch_outputs(network, torch.float64, batches)
    except StrideEliminationError as error:
        raise StrideEliminationError(
            f"{error}; float64 tells how exact it is in float32: tolerance=… does without it"
        ) from error
    return [
        [
            ROUNDING_MARGIN * (_largest_magnitude(s - d) + EPS * _largest_magnitude(d) + SMALLEST)
            for s, d in zip(*outputs, strict=True)
        ]
        for outputs in zip(single, double, strict=True)
    ]


def pytorch_outputs(network: nn.Module, dtype: torch.dtype, batches: list[Images]) -> list[Outputs]:
    """Return PyTorch's outputs for each batch, computed in `dtype`, as float64."""
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
    """Return all tensors of the network's output, in the order in which torch exports them.

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


def _onnxruntime_outputs(path: Path, feeds: list[dict[str, np.ndarray]]) -> list[Outputs]:
    """Return onnxruntime's outputs for each feed, as float64."""
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
