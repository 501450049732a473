"""Runs models in onnxruntime, and in onnx's reference where onnxruntime refuses them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from stridenet.errors import InputError


def require_onnxruntime() -> Any:
    """Return the package onnxruntime. Raises InputError where it is not installed."""
    try:
        import onnxruntime  # slow to import
    except ImportError as error:
        raise InputError(
            f"the proof needs onnxruntime ({error}): pip install '.[onnx]' in stridenet's folder, or "
            "check=False does without it"
        ) from error
    return onnxruntime


def session(model: Path | bytes, optimised: bool = False, threads: int = 0) -> Any:
    """Return an onnxruntime session on the CPU.

    optimised: whether onnxruntime may change the graph before it runs it.
    threads: how many it may use; 0 for as many as there are cores.
    """
    ort = require_onnxruntime()
    options = ort.SessionOptions()
    options.log_severity_level = 4  # its errors come as exceptions
    options.intra_op_num_threads = threads
    if not optimised:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    given = model if isinstance(model, bytes) else str(model)
    return ort.InferenceSession(given, options, providers=["CPUExecutionProvider"])


class ModelRunner:
    """Runs a small model in onnxruntime, or in onnx's reference if onnxruntime refuses it."""

    def __init__(self, model: Any) -> None:
        self._model = model
        try:
            self._session = session(model.SerializeToString())
        except InputError:
            raise
        except Exception:  # its errors have no common class
            self._session = None

    def __call__(self, feed: Mapping[str, np.ndarray]) -> list[Any]:
        """Return all outputs: arrays, or whatever else an operator gives."""
        if self._session is not None:
            try:
                return list(self._session.run(None, feed))
            except Exception:  # as for dilation with auto_pad=SAME, which onnx defines
                pass
        from onnx.reference import ReferenceEvaluator  # slow to import

        return list(ReferenceEvaluator(self._model).run(None, dict(feed)))


def small_model(
    nodes: Sequence[Any],
    inputs: Mapping[str, int],
    outputs: Sequence[str],
    constants: Sequence[Any],
    opset: int,
    ir_version: int,
) -> Any:
    """Return a model of these NodeProtos, with float32 inputs.

    inputs: how many axes each input has, by its name.

    Before IR version 4 its constants would have to be inputs, too, so that it gets a later one.
    """
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        list(nodes),
        "node",
        [
            helper.make_tensor_value_info(name, kind, [f"{name}_{axis}" for axis in range(rank)])
            for name, rank in inputs.items()
        ],
        [helper.make_tensor_value_info(name, kind, None) for name in outputs],
        initializer=list(constants),
    )
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=max(ir_version, 4))
