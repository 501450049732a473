"""What a chip takes: ranks, kernels, the host; and files that other tools have been over."""

import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stridenet import host
from stridenet.errors import StrideEliminationError
from stridenet.onnx.files import convert_file, verify_files
from tests.onnx_models import (
    convolution,
    free,
    integers,
    model_of,
    operators_of,
    outputs_of,
    pooling,
    saved,
    strides_of,
)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import onnx
    from onnx import TensorProto, helper

BY = {"pads": [1, 1, 1, 1]}


def written_by(model: Any, folder: Path, **options: Any) -> Any:
    convert_file(saved(model, folder), folder / "out.onnx", pooling=True, **options)
    return onnx.load(str(folder / "out.onnx"))


def highest_rank(written: Any) -> int:
    """Find the ranks of all maps by onnx's own inference; a map without a rank does not pass."""
    inferred = onnx.shape_inference.infer_shapes(written, strict_mode=True, data_prop=True)
    maps = {name for node in written.graph.node for name in node.output}
    ranks = {
        each.name: len(each.type.tensor_type.shape.dim)
        for each in (*inferred.graph.value_info, *inferred.graph.output)
        if each.type.tensor_type.HasField("shape")
    }
    assert maps <= ranks.keys()
    return max(ranks.values())


# How a map is rearranged


@pytest.mark.parametrize("size", [["n", 4, 9, 12], free(2, 4)], ids=["fixed", "free"])
@pytest.mark.parametrize("operator", ["Conv", "MaxPool", "AveragePool"])
def test_two_steps_are_of_rank_five_at_most(operator: str, size: Any, tmp_path: Path) -> None:
    window = {"kernel_shape": [3, 3], "strides": [2, 3], "pads": [1, 1, 1, 1]}
    if operator == "Conv":
        model = convolution(window.pop("kernel_shape"), size=size, channels=(4, 4), **window)
    else:
        model = pooling(operator, size, **window)
    assert highest_rank(written_by(model, tmp_path, rearrange="two-step")) <= 5
    assert highest_rank(written_by(model, tmp_path)) == 6


@pytest.mark.slow
@pytest.mark.parametrize("operator", ["Conv", "MaxPool"])
def test_three_axes_in_steps_of_rank_five(operator: str, tmp_path: Path) -> None:
    window = {"kernel_shape": [3, 2, 3], "strides": [2, 3, 2], "pads": [1, 0, 1, 1, 1, 0]}
    if operator == "Conv":
        kernel = window.pop("kernel_shape")
        model = convolution(kernel, size=free(3, 4), channels=(4, 4), group=2, **window)
    else:
        model = pooling(operator, free(3, 4), **window)
    assert highest_rank(written_by(model, tmp_path, rearrange="two-step")) == 5
    x = integers(2, 4, 9, 8, 7)
    expected, obtained = (outputs_of(m, {"x": x})[0] for m in (model, tmp_path / "out.onnx"))
    assert np.array_equal(expected, obtained)


def test_space_to_depth_is_onnxs_operator_and_nothing_beside_it(tmp_path: Path) -> None:
    model = convolution([4, 4], [4, 4], ["n", 3, 16, 16])
    written = written_by(model, tmp_path, rearrange="space_to_depth")
    assert [node.op_type for node in written.graph.node] == ["SpaceToDepth", "Conv"]
    assert not strides_of(tmp_path / "out.onnx")


@pytest.mark.parametrize(
    ("kernel", "strides"), [([3, 3], [2, 1]), ([3], [2]), ([2, 2, 2], [2, 2, 2])]
)
def test_space_to_depth_refuses_what_it_cannot_and_another_spelling_helps(
    kernel: list[int], strides: list[int], tmp_path: Path
) -> None:
    model = convolution(kernel, strides)
    source = saved(model, tmp_path)
    with pytest.raises(
        StrideEliminationError, match=r"conv \(Conv\) has strides .*'two-step' does"
    ):
        convert_file(source, tmp_path / "out.onnx", rearrange="space_to_depth")
    assert convert_file(source, tmp_path / "out.onnx", rearrange="two-step").proofs


# Kernels


def kernel_of(written: Any) -> tuple[list[int], list[int]]:
    (node,) = [node for node in written.graph.node if node.op_type == "Conv"]
    given = {a.name: list(a.ints) for a in node.attribute}
    weight = next(t for t in written.graph.initializer if t.name == node.input[1])
    assert list(weight.dims[2:]) == given["kernel_shape"]
    return given["kernel_shape"], given["pads"]


TABLE = {  # kernel, stride, padding -> minimal; odd, and its own padding
    (3, 2, 1): (2, 3, 1),
    (7, 2, 3): (4, 5, 2),
    (5, 2, 2): (3, 3, 1),
    (6, 2, 2): (3, 3, 1),
    (7, 4, 3): (2, 3, 1),
    (4, 4, 0): (1, 1, 0),
}


@pytest.mark.parametrize("case", TABLE, ids=str)
def test_odd_kernels_pad_by_themselves(case: tuple[int, int, int], tmp_path: Path) -> None:
    kernel, stride, padding = case
    minimal, odd, own = TABLE[case]
    model = convolution([kernel] * 2, [stride] * 2, ["n", 3, 24, 24], pads=[padding] * 4)
    assert kernel_of(written_by(model, tmp_path))[0] == [minimal] * 2
    written = written_by(model, tmp_path, kernel="odd")
    assert kernel_of(written) == ([odd] * 2, [own] * 4)
    kinds = [node.op_type for node in written.graph.node]
    assert kinds == ["Reshape", "Transpose", "Reshape", "Conv"]  # no Pad, and nothing is cropped


def test_eleven_by_four_needs_one_row_and_one_column_cropped(tmp_path: Path) -> None:
    model = convolution([11, 11], [4, 4], ["n", 3, 224, 224], pads=[2] * 4)
    written = written_by(model, tmp_path, kernel="odd")
    assert kernel_of(written) == ([5, 5], [2] * 4)
    assert operators_of(tmp_path / "out.onnx") == [
        "Reshape",
        "Transpose",
        "Reshape",
        "Conv",
        "Slice",
    ]


def test_no_pooling_window_of_an_even_size_is_left_with_odd_kernels(tmp_path: Path) -> None:
    model = pooling("MaxPool", free(2, 3), kernel_shape=[3, 3], strides=[2, 2])
    written = written_by(model, tmp_path, kernel="odd")
    kernels = [
        size
        for node in written.graph.node
        if node.op_type == "MaxPool"
        for a in node.attribute
        if a.name == "kernel_shape"
        for size in a.ints
    ]
    assert all(size % 2 for size in kernels)
    even = written_by(model, tmp_path)
    assert "MaxPool" in [node.op_type for node in even.graph.node]


# The host


def hosted(model: Any, folder: Path, **options: Any) -> tuple[Any, dict[str, Any]]:
    report = convert_file(saved(model, folder), folder / "out.onnx", rearrange="host", **options)
    assert report.layout == folder / "out.layout.json"
    return onnx.load(str(folder / "out.onnx")), host.read_layout(folder / "out.layout.json")


@pytest.mark.parametrize("kernel", ["minimal", "odd"])
@pytest.mark.parametrize("window", [(3, 2, 1), (11, 4, 2), (1, 2, 0), (5, 3, 0), (2, 2, 0)])
def test_the_host_rearranges_what_a_convolution_reads(
    window: tuple[int, int, int], kernel: str, tmp_path: Path
) -> None:
    size, stride, padding = window
    model = convolution(
        [size] * 2, [stride] * 2, ["n", 3, 23, 21], pads=[padding, 0, padding, padding]
    )
    written, layout = hosted(model, tmp_path, kernel=kernel)
    assert not {"Reshape", "Pad", "Transpose"} & {node.op_type for node in written.graph.node}
    (entry,) = layout["inputs"]
    (noted,) = [each.value for each in written.metadata_props]
    assert json.loads(noted) == layout
    sizes = [dim.dim_value for dim in written.graph.input[0].type.tensor_type.shape.dim]
    assert sizes[1:] == entry["phase_form_size"]
    assert written.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "n"
    x = integers(2, 3, 23, 21)
    expected = outputs_of(model, {"x": x})[0]
    obtained = outputs_of(tmp_path / "out.onnx", {"x": host.rearrange(layout, x)})[0]
    assert np.array_equal(expected, obtained)
    assert verify_files(tmp_path / "strided.onnx", tmp_path / "out.onnx").passed


def test_only_the_convolution_at_the_input_is_left_to_the_host(tmp_path: Path) -> None:
    second = helper.make_node("Conv", ["y", "weight"], ["z"], strides=[2, 2])
    model = convolution([3, 3], [2, 2], ["n", 3, 16, 16], channels=(3, 3), bias=False)
    model.graph.node.append(second)
    model.graph.output[0].name = "z"
    written, _ = hosted(model, tmp_path)
    kinds = [node.op_type for node in written.graph.node]
    assert kinds.count("Reshape") == 2
    assert kinds.index("Conv") < kinds.index("Reshape")


@pytest.mark.slow
def test_sizes_can_be_fixed_for_the_host_as_the_error_says(tmp_path: Path) -> None:
    source = saved(convolution([3, 3], [2, 2]), tmp_path)
    with pytest.raises(StrideEliminationError) as caught:
        convert_file(source, tmp_path / "out.onnx", rearrange="host")
    _, _, command = str(caught.value).partition("python ")
    for old, new in (("in.onnx", str(source)), ("out.onnx", str(tmp_path / "fixed.onnx"))):
        command = command.replace(old, new)
    subprocess.run([sys.executable, *command.split()], check=True, capture_output=True)
    convert_file(tmp_path / "fixed.onnx", tmp_path / "out.onnx", rearrange="host")
    assert (tmp_path / "out.layout.json").exists()


def test_the_host_is_refused_where_there_is_nothing_for_it(tmp_path: Path) -> None:
    cases = {
        "input x has sizes that are free, .*make_dynamic_shape_fixed": convolution([3, 3], [2, 2]),
    }
    fixed = convolution([3, 3], [2, 2], ["n", 3, 16, 16])
    fixed.graph.node.append(helper.make_node("Relu", ["x"], ["z"]))
    fixed.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [None] * 4))
    cases["input x is read by others than conv, too"] = fixed
    behind = convolution([3, 3], [2, 2], ["n", 3, 16, 16])
    behind.graph.node[0].input[0] = "r"
    behind.graph.node.insert(0, helper.make_node("Relu", ["x"], ["r"]))
    cases["no strided Conv of strided.onnx reads an input of it"] = behind
    for why, model in cases.items():
        with pytest.raises(StrideEliminationError, match=why):
            convert_file(saved(model, tmp_path), tmp_path / "out.onnx", rearrange="host")
        assert not list(tmp_path.glob("out*"))


# Other tools


def network() -> Any:
    """Make a model of several strided nodes, one of which stands behind a Pad."""
    weights = {"a": integers(8, 3, 3, 3), "b": integers(8, 8, 3, 3, seed=3), "c": integers(8)}
    by = {"strides": [2, 2], "pads": [1, 1, 1, 1]}
    pool = {"strides": [2, 2], "kernel_shape": [2, 2]}
    nodes = [
        helper.make_node("Constant", [], ["pads"], value_ints=[0, 0, 1, 2, 0, 0, 1, 2]),
        helper.make_node("Pad", ["x", "pads"], ["wide"], "pad"),
        helper.make_node("Conv", ["wide", "a", "c"], ["1"], "first", **by),
        helper.make_node("Relu", ["1"], ["2"], "relu"),
        helper.make_node("MaxPool", ["2"], ["3"], "pool", **pool),
        helper.make_node("Conv", ["3", "b"], ["y"], "second", **by),
    ]
    return model_of(nodes, {"x": ["n", 3, 40, 36]}, weights=weights, opset=18)


def slimmed(path: Path) -> Any:
    return pytest.importorskip("onnxslim").slim(str(path))


def optimised(path: Path) -> Any:
    from onnxscript import optimizer

    return optimizer.optimize(onnx.load(str(path)))


@pytest.mark.parametrize("tool", [optimised, slimmed], ids=["onnxscript", "onnxslim"])
@pytest.mark.parametrize("kernel", ["minimal", "odd"])
@pytest.mark.parametrize("rearrange", ["reshape", "two-step", "space_to_depth"])
def test_files_compute_the_same_after_other_tools(
    rearrange: Any, kernel: Any, tool: Any, tmp_path: Path
) -> None:
    model = network()
    written_by(model, tmp_path, rearrange=rearrange, kernel=kernel)
    other = saved(tool(tmp_path / "out.onnx"), tmp_path, "other.onnx")
    assert strides_of(other) == []
    x = integers(2, 3, 40, 36)
    assert np.array_equal(outputs_of(model, {"x": x})[0], outputs_of(other, {"x": x})[0])
    assert verify_files(tmp_path / "strided.onnx", other).passed
