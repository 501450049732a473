"""The proof sees what is wrong, and nothing is written then; files side by side; plan and times."""

import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stridenet.errors import InputError
from stridenet.onnx.files import (
    NotEqualError,
    api,
    benchmark_files,
    convert_file,
    filters,
    plan_file,
    verify_files,
)
from stridenet.onnx.files.filters import FilterExpansion
from tests.onnx_models import convolution, drawn, free, model_of, saved

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import onnx
    from onnx import helper, numpy_helper

Spoil = Callable[[Any], None]


def network(**size: Any) -> Any:
    weights = {"a": drawn(8, 3, 3, 3), "b": drawn(8, 4, 3, 3, seed=3), "c": drawn(8, seed=4)}
    by = {"strides": [2, 2], "pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("Conv", ["x", "a", "c"], ["1"], "first", **by),
        helper.make_node("Relu", ["1"], ["2"], "relu"),
        helper.make_node("MaxPool", ["2"], ["3"], "pool", kernel_shape=[3, 3], strides=[2, 2]),
        helper.make_node("Conv", ["3", "b"], ["y"], "second", group=2, **by),
    ]
    return model_of(nodes, {"x": size.get("x", free(2, 3))}, weights=weights)


# Planted faults


def node_of(proto: Any, kind: str) -> Any:
    return next(node for node in proto.graph.node if node.op_type == kind)


def filter_of(proto: Any) -> Any:
    name = node_of(proto, "Conv").input[1]
    return next(tensor for tensor in proto.graph.initializer if tensor.name == name)


def change_filter(change: Callable[[np.ndarray], Any]) -> Spoil:
    def spoil(proto: Any) -> None:
        tensor = filter_of(proto)
        array = numpy_helper.to_array(tensor).copy()
        change(array)
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))

    return spoil


def set_at(index: tuple[int, ...], value: float) -> Spoil:
    return change_filter(lambda array: array.__setitem__(index, value))


def one_last_place(array: np.ndarray) -> None:
    where = tuple(np.argwhere(array)[0])
    array[where] = np.nextafter(array[where], np.inf)


def structural_zero(array: np.ndarray) -> None:
    array[tuple(np.argwhere(array == 0)[0])] = 1e-30


def swapped_phases(proto: Any) -> None:
    (order,) = [a for a in node_of(proto, "Transpose").attribute if a.name == "perm"]
    order.ints[:] = [0, 1, 5, 3, 2, 4]


def constant(value: float) -> Spoil:
    """Pad with another number."""

    def spoil(proto: Any) -> None:
        name = node_of(proto, "Pad").input[2]
        tensor = next(t for t in proto.graph.initializer if t.name == name)
        tensor.CopyFrom(numpy_helper.from_array(np.float32(value), name))

    return spoil


def another_attribute(kind: str, name: str, ints: list[int]) -> Spoil:
    def spoil(proto: Any) -> None:
        node = node_of(proto, kind)
        for attribute in [a for a in node.attribute if a.name == name]:
            node.attribute.remove(attribute)
        node.attribute.append(helper.make_attribute(name, ints))

    return spoil


def rounding_of_division(proto: Any) -> None:
    """Sizes divided by what is off by one: right for even sizes alone."""
    name = node_of(proto, "Add").input[1]
    tensor = next(t for t in proto.graph.initializer if t.name == name)
    array = numpy_helper.to_array(tensor) - 1
    tensor.CopyFrom(numpy_helper.from_array(array, name))


def another_bias(proto: Any) -> None:
    """The constant of a converted node that is not converted itself."""
    tensor = next(t for t in proto.graph.initializer if t.name == "c")
    array = numpy_helper.to_array(tensor).copy()
    one_last_place(array)
    tensor.CopyFrom(numpy_helper.from_array(array, "c"))


def another_node(proto: Any) -> None:
    node_of(proto, "Relu").op_type = "Sigmoid"


FAULTS: dict[str, tuple[Spoil, str]] = {
    "a weight off by one last place": (change_filter(one_last_place), "folded back"),
    "a structural zero that is none": (change_filter(structural_zero), "folded back"),
    "phases swapped": (swapped_phases, "gives other numbers"),
    "another padding": (constant(1.0), "gives other numbers"),
    "a stride left": (another_attribute("Conv", "strides", [2, 1]), "a stride is left"),
    "padding in the convolution": (
        another_attribute("Conv", "pads", [1, 0, 0, 0]),
        "other numbers",
    ),
    "another window": (another_attribute("MaxPool", "kernel_shape", [1, 2]), "does not run"),
    "sizes rounded down": (rounding_of_division, "gives other numbers|does not run"),
    "a bias off by one last place": (another_bias, "c: its numbers are not the original's"),
    "a node that was to stay": (another_node, "2: the node that makes it is not the original's"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_seen_and_nothing_is_written(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil, why = FAULTS[fault]
    write = api.write_onnx

    def spoiled(conversion: Any, path: Path, data: str) -> None:
        write(conversion, path, data)
        proto = onnx.load(str(path))
        spoil(proto)
        onnx.save(proto, str(path))

    monkeypatch.setattr(api, "write_onnx", spoiled)
    source = saved(network(), tmp_path)
    with pytest.raises(NotEqualError, match=why):
        convert_file(source, tmp_path / "out.onnx", pooling=True)
    assert {path.name for path in tmp_path.iterdir()} == {"strided.onnx"}


def test_a_wrong_expansion_is_seen_by_the_node_even_if_it_folds_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expand, fold = FilterExpansion.expand, FilterExpansion.fold

    def flipped(self: FilterExpansion, weight: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(expand(self, weight)[:, ::-1])

    monkeypatch.setattr(filters.FilterExpansion, "expand", flipped)
    monkeypatch.setattr(
        filters.FilterExpansion, "fold", lambda self, wide: fold(self, wide[:, ::-1])
    )
    with pytest.raises(NotEqualError, match="gives other numbers"):
        convert_file(saved(network(), tmp_path), tmp_path / "out.onnx")


def test_the_proof_has_each_node_at_two_sizes_and_in_each_phase(tmp_path: Path) -> None:
    report = convert_file(saved(network(), tmp_path), tmp_path / "out.onnx", pooling=True)
    assert [proof.name for proof in report.proofs] == ["first", "pool", "second"]
    assert [proof.impulses for proof in report.proofs] == [4, 4, 4]
    for proof in report.proofs:
        one, other = proof.sizes
        assert [a % 2 for a in one] != [a % 2 for a in other]
    comparison = report.comparison
    assert comparison
    assert comparison.sizes == ("x 1x3x64x64", "x 2x3x96x96")
    assert not comparison.is_large
    assert all(0 < each.difference < 1e-4 for each in comparison.outputs)
    text = str(report)
    assert "strides above 1: none" in text
    assert "equal to the bit, on integers and an impulse in each phase: 2 Conv, 1 MaxPool" in text


def test_what_the_whole_file_does_is_reported_and_not_judged(tmp_path: Path) -> None:
    """Where rounding changes everything, no verdict comes of the outputs; nodes are proven."""
    model = convolution([3, 3], [2, 2], integral=False)
    model.graph.node[0].output[0] = "1"
    model.graph.node.append(helper.make_node("Sin", ["2"], ["y"]))
    model.graph.node.insert(1, helper.make_node("Mul", ["1", "huge"], ["2"]))
    model.graph.initializer.append(numpy_helper.from_array(np.float32(1e9), "huge"))
    report = convert_file(saved(model, tmp_path), tmp_path / "out.onnx")
    assert report.proofs
    assert report.comparison
    assert report.comparison.outputs[0].largest > 0.5


def test_where_a_difference_is_large_the_nodes_say_where_it_begins(tmp_path: Path) -> None:
    source = saved(network(), tmp_path)
    convert_file(source, tmp_path / "out.onnx", pooling=True)
    proto = onnx.load(str(tmp_path / "out.onnx"))
    relu = node_of(proto, "Relu")
    relu.op_type = "Abs"
    report = verify_files(source, saved(proto, tmp_path, "wrong.onnx"))
    assert not report.passed
    assert report.unmatched == ("relu",)
    assert report.comparison.nodes[0].name == "2"
    assert "2: difference" in str(report)


# Two files


@pytest.mark.parametrize("rearrange", ["reshape", "two-step", "space_to_depth"])
@pytest.mark.parametrize("kernel", ["minimal", "odd"])
def test_a_converted_file_is_verified_exactly(rearrange: Any, kernel: Any, tmp_path: Path) -> None:
    source = saved(network(), tmp_path)
    options = {"rearrange": rearrange, "kernel": kernel, "pooling": True, "check": False}
    convert_file(source, tmp_path / "out.onnx", **options)
    report = verify_files(source, tmp_path / "out.onnx")
    assert report.passed
    assert not report.unmatched
    assert [proof.name for proof in report.proofs] == ["first", "pool", "second"]
    assert str(report).endswith("strides above 1: none\nequal")


def scaled(array: np.ndarray) -> None:
    array *= np.float32(1 + 1e-3)


def another_bias(proto: Any) -> None:
    (bias,) = [tensor for tensor in proto.graph.initializer if tensor.name == "c"]
    bias.CopyFrom(numpy_helper.from_array(drawn(8, seed=9), "c"))


WRONG: dict[str, Spoil] = {
    "another weight": change_filter(scaled),
    "phases swapped": swapped_phases,
    "another padding": constant(0.5),
    "another bias": another_bias,
    "a wrong dilation": another_attribute("Conv", "dilations", [1, 2]),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_file_that_is_not_equal_is_told(what: str, tmp_path: Path) -> None:
    source = saved(network(), tmp_path)
    convert_file(source, tmp_path / "out.onnx", pooling=True)
    proto = onnx.load(str(tmp_path / "out.onnx"))
    WRONG[what](proto)
    report = verify_files(source, saved(proto, tmp_path, "wrong.onnx"))
    assert not report.passed
    assert str(report).endswith("NOT equal")


def test_another_weight_of_a_node_that_was_not_converted_is_told_by_its_name(
    tmp_path: Path,
) -> None:
    source = saved(network(), tmp_path)
    convert_file(source, tmp_path / "out.onnx", only=["first"])
    proto = onnx.load(str(tmp_path / "out.onnx"))
    (tensor,) = [tensor for tensor in proto.graph.initializer if tensor.name == "b"]
    array = numpy_helper.to_array(tensor).copy()
    one_last_place(array)
    tensor.CopyFrom(numpy_helper.from_array(array, "b"))
    report = verify_files(source, saved(proto, tmp_path, "wrong.onnx"))
    assert not report.passed
    assert report.unequal == ("second reads another b",)


def test_a_file_is_equal_to_itself_and_has_its_strides(tmp_path: Path) -> None:
    source = saved(network(), tmp_path)
    report = verify_files(source, source)
    assert report.passed
    assert not report.proofs
    assert [node.name for node in report.strided] == ["first", "pool", "second"]


# Plan and times


def test_the_plan_is_what_is_written(tmp_path: Path) -> None:
    source = saved(network(x=["n", 3, 32, 32]), tmp_path)
    plan = plan_file(source, pooling=True)
    assert list(tmp_path.iterdir()) == [source]
    first, pool, second = plan.layers
    assert (first.layer, first.operation) == ("first", "Conv")
    assert (first.strided_filter, first.unit_stride_filter) == ((8, 3, 3, 3), (8, 12, 2, 2))
    assert first.structural_zeros == 8 * 12 * 4 - 8 * 3 * 9
    assert first.maps == (((3, 32, 32), (8, 16, 16)),)
    assert first.multiply_adds == (8 * 27 * 256, 8 * 48 * 256)
    assert pool.maps == (((8, 16, 16), (8, 7, 7)),)
    assert (second.strided_filter, second.unit_stride_filter) == ((8, 4, 3, 3), (8, 16, 2, 2))
    convert_file(source, tmp_path / "out.onnx", pooling=True)
    for path, count in zip((source, tmp_path / "out.onnx"), plan.parameters, strict=True):
        sizes = [t.dims for t in onnx.load(str(path)).graph.initializer if t.data_type == 1]
        assert sum(int(np.prod(size)) for size in sizes if len(size)) == count
    assert "8x3x3x3 -> 8x12x2x2" in str(plan)


def test_the_plan_of_free_sizes_has_no_maps(tmp_path: Path) -> None:
    plan = plan_file(saved(network(), tmp_path))
    assert [each.maps for each in plan.layers] == [(), ()]
    assert "multiply-adds" not in str(plan)


def test_times_of_both_files(tmp_path: Path) -> None:
    source = saved(network(), tmp_path)
    convert_file(source, tmp_path / "out.onnx")
    times = benchmark_files(source, tmp_path / "out.onnx", sizes={"x": [1, 3, 20, 20]}, rounds=3)
    assert len(times.original) == len(times.converted) == 3
    assert min(times.original + times.converted) > 0
    assert "x 1x3x20x20, 1 threads, median of 3" in str(times)
    with pytest.raises(InputError, match="sizes: 'X' is no input"):
        benchmark_files(source, tmp_path / "out.onnx", sizes={"X": [1]})
    with pytest.raises(InputError, match="rounds=0"):
        benchmark_files(source, tmp_path / "out.onnx", rounds=0)


NO_TORCH = """
import sys
from stridenet.onnx.files import benchmark_files, convert_file, plan_file, verify_files

source, target = sys.argv[1:]
plan_file(source)
print(convert_file(source, target))
assert verify_files(source, target).passed
benchmark_files(source, target, rounds=1)
print("torch" in sys.modules)
"""


@pytest.mark.slow
def test_no_torch_is_imported(tmp_path: Path) -> None:
    source = saved(network(), tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", NO_TORCH, str(source), str(tmp_path / "out.onnx")],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("\nFalse\n")
