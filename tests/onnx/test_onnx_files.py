"""Converted ONNX files compute what the originals compute: to the bit, on integers, at every size."""

import functools
import importlib
import random
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stridenet.errors import StrideEliminationError
from stridenet.onnx.files import convert_file
from tests.onnx_models import (
    convolution,
    free,
    integers,
    operators_of,
    outputs_of,
    pooling,
    saved,
    strides_in,
    strides_of,
)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import onnx
    from onnx import TensorProto, helper, numpy_helper, version_converter
    from onnx.reference import ReferenceEvaluator

SPELLINGS = [
    {"rearrange": rearrange, "kernel": kernel}
    for rearrange in ("reshape", "two-step", "space_to_depth")
    for kernel in ("minimal", "odd")
]
LIGHT = Path(onnx.__file__).parent / "backend/test/data/light"


def assert_equal(original: Any, converted: Path, sizes: list[tuple[int, ...]]) -> None:
    for seed, size in enumerate(sizes):
        feed = {"x": integers(*size, seed=seed)}
        (expected,), (obtained,) = outputs_of(original, feed), outputs_of(converted, feed)
        assert expected.shape == obtained.shape
        assert np.array_equal(expected, obtained)


# Random windows


def drawn_window(draw: random.Random, axes: int, operator: str, opset: int) -> dict[str, Any]:
    """Attributes that onnxruntime takes: kernel_shape, strides, pads or auto_pad, dilations, …"""
    most = 5 if axes < 3 else 3
    kernel = [draw.randint(1, most) for _ in range(axes)]
    strides = [draw.randint(1, most - 1) for _ in range(axes)]
    if max(strides) == 1 or draw.random() < 0.5:
        strides = [draw.randint(2, most - 1) if most > 3 else 2] * axes
    found: dict[str, Any] = {"kernel_shape": kernel, "strides": strides}
    auto = draw.choice(["NOTSET"] * 4 + ["VALID", "SAME_UPPER", "SAME_LOWER"])
    gaps = any(s > k for s, k in zip(strides, kernel, strict=True))
    if auto.startswith("SAME") and (operator != "Conv" and gaps):
        auto = "VALID"
    dilates = not auto.startswith("SAME") and (operator != "AveragePool" or opset >= 19)
    if dilates and draw.random() < 0.5:
        found["dilations"] = [draw.choice([1, 2, 3]) for _ in range(axes)]
    if auto != "NOTSET":
        found["auto_pad"] = auto
    elif draw.random() < 0.8:
        reach = 1 if operator == "Conv" else -1
        found["pads"] = [draw.randint(0, k + reach) for k in kernel * 2]
    if operator != "Conv" and draw.random() < 0.5:
        found["ceil_mode"] = 1
    if operator == "AveragePool" and draw.random() < 0.5:
        found["count_include_pad"] = 1
    return found


@pytest.mark.sample(30)
@pytest.mark.parametrize("seed", range(90))
def test_random_windows_of_every_operator_are_equal(seed: int, tmp_path: Path) -> None:
    draw = random.Random(seed)
    axes, operator = draw.choice([1, 2, 2, 2, 3]), draw.choice(["Conv", "MaxPool", "AveragePool"])
    opset = draw.choice([11, 12, 13, 17, 18, 19, 22, onnx.defs.onnx_opset_version()])
    window = drawn_window(draw, axes, operator, opset)
    dilations = window.get("dilations", [1] * axes)
    reach = [d * (k - 1) + 1 for d, k in zip(dilations, window["kernel_shape"], strict=True)]
    smallest = [n + draw.randint(0, 9) for n in reach]
    fixed = draw.choice([(), (), range(axes), range(1)])
    size = free(axes, 4)
    for axis in fixed:
        size[2 + axis] = smallest[axis]
    if operator == "Conv":
        group = draw.choice([1, 1, 2, 4])
        kernel, strides = window.pop("kernel_shape"), window.pop("strides")
        model = convolution(
            kernel, strides, size, (4, 4), group, draw.random() < 0.5, opset, **window
        )
        if window.get("auto_pad", "").startswith("SAME"):
            gaps = max(s - k for s, k in zip(strides, kernel, strict=True))
            if gaps > 1:
                with pytest.raises(StrideEliminationError, match="pad differently; write its pads"):
                    convert_file(saved(model, tmp_path), tmp_path / "out.onnx")
                return
    else:
        model = pooling(operator, size, opset, **window)
    source = saved(model, tmp_path)
    spelling = draw.choice(SPELLINGS)
    steps = strides_of(source)[0]
    if spelling["rearrange"] == "space_to_depth" and (axes != 2 or len(set(steps)) > 1):
        spelling = {**spelling, "rearrange": "reshape"}
    convert_file(source, tmp_path / "out.onnx", pooling=True, check=False, **spelling)
    assert strides_of(tmp_path / "out.onnx") == []
    sizes = [
        (2, 4, *[n + (0 if axis in fixed else more) for axis, n in enumerate(smallest)])
        for more in ([0] if len(fixed) == axes else range(4))
    ]
    assert_equal(model, tmp_path / "out.onnx", sizes)


@pytest.mark.slow
def test_every_size_has_its_own_padding_where_it_is_computed_in_the_graph(tmp_path: Path) -> None:
    for auto in ("SAME_UPPER", "SAME_LOWER", "VALID"):
        for kernel, stride in ((3, 2), (2, 2), (1, 2), (5, 3), (2, 3)):
            model = convolution([kernel] * 2, [stride] * 2, auto_pad=auto)
            for spelling in SPELLINGS[:2]:
                convert_file(saved(model, tmp_path), tmp_path / "o.onnx", check=False, **spelling)
                sizes = [(1, 3, n, n + 1) for n in range(5, 12)]
                assert_equal(model, tmp_path / "o.onnx", sizes)


def test_nothing_is_padded_by_less_than_nothing(tmp_path: Path) -> None:
    """Which onnxruntime takes for a crop, and onnx's reference and many chips do not."""
    model = convolution([2, 2], [3, 3], bias=False)
    convert_file(saved(model, tmp_path), tmp_path / "out.onnx")
    written = onnx.load(str(tmp_path / "out.onnx"))
    assert {"Pad", "Slice"} <= {node.op_type for node in written.graph.node}
    (pads,) = [node.input[1] for node in written.graph.node if node.op_type == "Pad"]
    written.graph.output.append(helper.make_tensor_value_info(pads, TensorProto.INT64, [8]))
    found = []
    for size in range(5, 11):
        expected, extents = outputs_of(written, {"x": integers(1, 3, size, size)})
        reference = ReferenceEvaluator(written).run(None, {"x": integers(1, 3, size, size)})[0]
        assert np.array_equal(expected, reference)
        found.append(int(extents[-1]))
        assert min(extents) >= 0
    assert max(found) == 1


def test_a_fixed_size_is_padded_by_numbers_and_a_free_one_by_nodes(tmp_path: Path) -> None:
    fixed = convolution([3, 3], [2, 2], ["n", 3, 8, 8], pads=[1] * 4)
    convert_file(saved(fixed, tmp_path), tmp_path / "out.onnx")
    assert operators_of(tmp_path / "out.onnx") == ["Pad", "Reshape", "Transpose", "Reshape", "Conv"]
    half = convolution([3, 3], [2, 2], ["n", 3, 8, "w"], pads=[1] * 4)
    convert_file(saved(half, tmp_path), tmp_path / "out.onnx")
    assert operators_of(tmp_path / "out.onnx").count("Gather") == 1  # of the width alone


def test_sizes_that_the_file_claims_between_its_inputs_and_the_node_are_not_believed(
    tmp_path: Path,
) -> None:
    model = convolution([3, 3], [2, 2])
    relu = helper.make_node("Relu", ["x"], ["middle"])
    model.graph.node[0].input[0] = "middle"
    model.graph.node.insert(0, relu)
    stale = helper.make_tensor_value_info("middle", TensorProto.FLOAT, [1, 3, 8, 8])
    model.graph.value_info.append(stale)
    convert_file(saved(model, tmp_path), tmp_path / "out.onnx")
    written = onnx.load(str(tmp_path / "out.onnx"))
    assert list(written.graph.value_info) == [stale]  # it is the user's, and stays
    del model.graph.value_info[:]
    del written.graph.value_info[:]
    onnx.save(written, str(tmp_path / "out.onnx"))
    assert_equal(model, tmp_path / "out.onnx", [(2, 3, 9, 10), (1, 3, 6, 5)])


def test_dilation_with_auto_pad_which_onnxruntime_does_not_run_is_as_onnx_defines(
    tmp_path: Path,
) -> None:
    model = convolution([3, 3], [2, 2], auto_pad="SAME_UPPER", dilations=[2, 2])
    report = convert_file(saved(model, tmp_path), tmp_path / "out.onnx")
    assert report.proofs
    for size in ((1, 3, 8, 9), (2, 3, 11, 12)):
        feed = {"x": integers(*size)}
        (expected,) = ReferenceEvaluator(model).run(None, feed)
        assert np.array_equal(outputs_of(tmp_path / "out.onnx", feed)[0], expected)


# Types


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16])
@pytest.mark.parametrize("operator", ["Conv", "MaxPool", "AveragePool"])
def test_other_types_stay_what_they_are(kind: int, operator: str, tmp_path: Path) -> None:
    if operator == "Conv":
        model = convolution([3, 3], [2, 2], opset=22, pads=[1] * 4)
    else:
        model = pooling(
            operator, free(2, 3), 22, strides=[2, 2], kernel_shape=[3, 3], pads=[1, 1, 0, 1]
        )
    single = onnx.ModelProto.FromString(model.SerializeToString())
    for each in (*model.graph.input, *model.graph.output):
        each.type.tensor_type.elem_type = kind
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor).astype(helper.tensor_dtype_to_np_dtype(kind))
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    report = convert_file(saved(model, tmp_path), tmp_path / "out.onnx", pooling=True)
    assert [proof.operator for proof in report.proofs] == [operator]
    written = onnx.load(str(tmp_path / "out.onnx"))
    onnx.checker.check_model(written, full_check=True)  # types and all
    floats = {t.data_type for t in written.graph.initializer} - {TensorProto.INT64}
    assert floats == {kind}
    # The nodes are run in float32, as onnxruntime has no such kernels everywhere.
    for tensor in written.graph.initializer:
        if tensor.data_type == kind:
            array = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    for each in (*written.graph.input, *written.graph.output):
        each.type.tensor_type.elem_type = TensorProto.FLOAT
    feed = {"x": integers(2, 3, 9, 8)}
    assert np.array_equal(outputs_of(written, feed)[0], outputs_of(single, feed)[0])


def test_maps_with_infinities_are_pooled_as_they_were(tmp_path: Path) -> None:
    for operator in ("MaxPool", "AveragePool"):
        model = pooling(operator, free(2, 2), strides=[2, 2], kernel_shape=[3, 3])
        convert_file(saved(model, tmp_path), tmp_path / "out.onnx", pooling=True)
        x = integers(1, 2, 9, 9)
        x[0, 0, 3, 3], x[0, 1, 8, 8] = np.inf, -np.inf
        expected, obtained = (outputs_of(f, {"x": x})[0] for f in (model, tmp_path / "out.onnx"))
        assert np.array_equal(expected, obtained)


# Files of others


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(LIGHT.glob("*.onnx")), ids=lambda path: path.stem)
def test_the_light_models_of_onnx_convert(path: Path, tmp_path: Path) -> None:
    model = version_converter.convert_version(onnx.load(str(path)), 13)
    source = saved(model, tmp_path)
    report = convert_file(source, tmp_path / "out.onnx", pooling=True, rearrange="two-step")
    assert report.kept == ()
    assert len(report.converted) == len(report.proofs) == len(strides_of(source))
    assert report.comparison
    assert not report.comparison.is_large
    before, after = onnx.load(str(source)), onnx.load(str(tmp_path / "out.onnx"))
    assert list(before.graph.output) == list(after.graph.output)
    kept = [n.SerializeToString() for n in after.graph.node]
    gone = [n for n in before.graph.node if n.SerializeToString() not in kept]
    assert {node.op_type for node in gone} <= {"Conv", "MaxPool", "AveragePool", "ConstantOfShape"}


@functools.cache
def suite() -> list[Any]:
    """The node tests of onnx's backend suite for these operators that have a stride above one."""
    from onnx.backend.test.case import node

    for module in ("conv", "maxpool", "averagepool"):
        importlib.import_module(f"onnx.backend.test.case.node.{module}")  # makes its tests
    return [
        case
        for case in node._NodeTestCases
        if strides_in(case.model.graph.node) and not case.name.endswith("_expanded")
    ]


@pytest.mark.slow  # making the suite's tests takes seconds, which collecting should not
def test_the_node_tests_of_onnx_give_the_suites_own_outputs(tmp_path: Path) -> None:
    kinds = {case.model.graph.node[0].op_type for case in suite()}
    assert kinds == {"Conv", "MaxPool", "AveragePool"}
    assert len(suite()) >= 20
    for case in suite():
        folder = tmp_path / case.name
        folder.mkdir()
        check_case(case, folder)


def check_case(case: Any, folder: Path) -> None:
    model = onnx.ModelProto.FromString(case.model.SerializeToString())
    ((inputs, outputs),) = case.data_sets
    names = [each.name for each in model.graph.input]
    for name, array in zip(names[1:], inputs[1:], strict=True):  # weights come as inputs there
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    del model.graph.input[1:]
    source, target = saved(model, folder), folder / "out.onnx"
    for part, why in {"argmax": "gives Indices", "uint8": "only floating point"}.items():
        if part in case.name:
            with pytest.raises(StrideEliminationError, match=why):
                convert_file(source, target, pooling=True)
            return
    convert_file(source, target, pooling=True)
    assert strides_of(target) == [], case.name
    obtained = outputs_of(target, {names[0]: inputs[0]})[0]
    np.testing.assert_allclose(  # the suite's own tolerances
        obtained, outputs[0], rtol=case.rtol, atol=case.atol, err_msg=case.name
    )
