"""Small ONNX models for the tests of stridenet.onnx.files, and oracles that do not use it."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

with warnings.catch_warnings():  # of their own imports
    warnings.simplefilter("ignore")
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper


def drawn(*size: int, seed: int = 0, dtype: Any = np.float32) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(size).astype(dtype)


def integers(*size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-4, 5, size).astype(np.float32)


def free(axes: int, channels: int) -> list[int | str]:
    return ["n", channels, *[f"size_{axis}" for axis in range(axes)]]


def model_of(
    nodes: Sequence[Any],
    inputs: Mapping[str, Sequence[int | str]],
    outputs: Sequence[str] = ("y",),
    weights: Mapping[str, np.ndarray] | None = None,
    *,
    opset: int = 17,
    ir_version: int = 8,
    kind: int = TensorProto.FLOAT,
    **more: Any,
) -> Any:
    """A model; `more` goes to make_model (functions, …)."""
    rank = len(next(iter(inputs.values())))
    graph = helper.make_graph(
        list(nodes),
        "graph",
        [helper.make_tensor_value_info(name, kind, size) for name, size in inputs.items()],
        [helper.make_tensor_value_info(name, kind, [None] * rank) for name in outputs],
        initializer=[numpy_helper.from_array(a, name) for name, a in (weights or {}).items()],
    )
    opsets = [helper.make_opsetid("", opset), *more.pop("opsets", [])]
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir_version, **more)


def convolution(
    kernel: Sequence[int],
    strides: Sequence[int],
    size: Sequence[int | str] | None = None,
    channels: tuple[int, int] = (3, 4),
    group: int = 1,
    bias: bool = True,
    opset: int = 17,
    integral: bool = True,
    **attributes: Any,
) -> Any:
    """A model of one Conv, its weights small integers."""
    inside, outside = channels
    make = integers if integral else drawn
    weights = {"weight": make(outside, inside // group, *kernel)}
    if bias:
        weights["bias"] = make(outside, seed=1)
    node = helper.make_node(
        "Conv", ["x", *weights], ["y"], "conv", strides=strides, group=group, **attributes
    )
    return model_of([node], {"x": size or free(len(kernel), inside)}, weights=weights, opset=opset)


def pooling(operator: str, size: Sequence[int | str], opset: int = 17, **attributes: Any) -> Any:
    """A model of one pooling."""
    node = helper.make_node(operator, ["x"], ["y"], "pool", **attributes)
    return model_of([node], {"x": size}, opset=opset)


def saved(model: Any, folder: Path, name: str = "strided.onnx") -> Path:
    onnx.save(model, str(folder / name))
    return folder / name


def outputs_of(model: Path | Any, feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """onnxruntime's, without its optimisations."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    given = str(model) if isinstance(model, Path) else model.SerializeToString()
    session = onnxruntime.InferenceSession(given, options, providers=["CPUExecutionProvider"])
    return list(session.run(None, dict(feed)))


def operators_of(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(str(path)).graph.node]


def strides_in(nodes: Any) -> list[list[int]]:
    """The strides above one of nodes, and of those in their subgraphs; by hand."""
    strides = []
    for node in nodes:
        for attribute in node.attribute:
            if attribute.name == "strides" and max(attribute.ints) > 1:
                strides.append(list(attribute.ints))
            for graph in (attribute.g, *attribute.graphs):
                strides += strides_in(graph.node)
    return strides


def strides_of(path: Path) -> list[list[int]]:
    """The strides above one of a file, in functions, too."""
    model = onnx.load(str(path), load_external_data=False)
    return [s for part in (model.graph, *model.functions) for s in strides_in(part.node)]
