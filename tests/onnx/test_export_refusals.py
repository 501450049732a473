"""What is wrong leaves no file: wrong weights, strides, damaged files, wrong arguments."""

import re
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from stridenet import StrideEliminationError, UnitStrideNetwork, export_onnx
from stridenet.errors import InputError
from stridenet.onnx import export
from stridenet.onnx.check import OutputComparison
from stridenet.onnx.export import PACKAGES
from stridenet.onnx.layout import layout_path
from stridenet.onnx.strides import POOLING_OPERATORS, StridedNode, check_graph
from stridenet.onnx.tracing import TRACED_BATCH

with warnings.catch_warnings():  # of their own imports
    warnings.simplefilter("ignore")
    import onnx
    import onnx_ir
    from onnx import TensorProto, helper
from tests.onnx.exported import files_in, one_axis, twin_of

# What is refused


def exports_after(change: Callable[[Any, Path], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `change` meddle with the program before it is saved, or with the file after."""
    save = export._save

    def changed(program: Any, path: Path) -> None:
        change(program, path)
        save(program, path)

    monkeypatch.setattr(export, "_save", changed)


@pytest.fixture
def earlier(file: Path) -> Iterator[Path]:
    """A file from before, which a failed export leaves alone, and leaves nothing beside."""
    file.parent.mkdir()
    file.write_bytes(b"earlier")
    yield file
    assert file.read_bytes() == b"earlier"
    assert files_in(file.parent) == ["net.onnx"]


def test_a_wrong_weight_is_found(earlier: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def change(program: Any, path: Path) -> None:
        value = program.model.graph.initializers["0.weight"]
        weights = value.const_value.numpy().copy()
        weights[weights.nonzero()[0][0]] += 1e-4
        value.const_value = onnx_ir.tensor(weights)

    exports_after(change, monkeypatch)
    twin = twin_of(one_axis, (2, 64))
    with pytest.raises(StrideEliminationError) as caught:
        export_onnx(twin, earlier, rearrange="host", batch=2)
    assert re.fullmatch(
        r"net.onnx is not the network: an output of onnxruntime differs by \S+ from PyTorch's "
        r"\(the largest is \S+\), and \S+ is allowed; tolerance=… allows more",
        str(caught.value),
    )
    other = earlier.with_name("other.onnx")
    found = export_onnx(twin, other, rearrange="host", batch=2, tolerance=0.1).comparison
    assert 1e-6 < found.difference < found.tolerance == 0.1
    for made in (other, layout_path(other)):
        made.unlink()


@pytest.mark.parametrize(("difference", "passed"), [(1.0, True), (1.1, False), (np.nan, False)])
def test_what_passes(difference: float, passed: bool) -> None:
    assert OutputComparison((1,), difference, tolerance=1.0, largest_output=9.0).passed == passed


def test_a_twin_with_a_stride_is_refused(earlier: Path) -> None:
    twin = twin_of(lambda: nn.Sequential(nn.Conv2d(1, 2, 2, 2), nn.Conv2d(2, 2, 2, 2)), (1, 9, 9))
    twin.network.get_submodule("1").stride = (1, 2)
    with pytest.raises(
        StrideEliminationError, match=r"a stride in network\.1 \(Conv, strides 1x2\)"
    ):
        export_onnx(twin, earlier, batch=1)


def test_a_network_that_only_claims_to_be_a_twin_is_refused(earlier: Path) -> None:
    class Calls(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(2, 4, 2, 2))

        def forward(self, phases: Tensor) -> Tensor:
            return F.conv2d(phases, self.weight, stride=2)

    plan = twin_of(lambda: nn.Conv2d(1, 2, 2, 2), (1, 9, 9)).plan
    claimed = UnitStrideNetwork(fx.symbolic_trace(Calls()), plan)
    with pytest.raises(StrideEliminationError, match=r"has a stride in .* \(Conv, strides 2x2\)"):
        export_onnx(claimed, earlier)


def test_a_damaged_file_is_refused(earlier: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = export._save

    def half(program: Any, path: Path) -> None:
        save(program, path)
        path.write_bytes(path.read_bytes()[:3000])

    monkeypatch.setattr(export, "_save", half)
    with pytest.raises(StrideEliminationError, match=r"net\.onnx is not valid ONNX"):
        export_onnx(twin_of(one_axis, (2, 64)), earlier, rearrange="host", batch=1)


def test_a_forward_that_depends_on_values_is_refused_quietly(
    earlier: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    class Decides(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images if images.sum() > 0 else -images

    with pytest.raises(StrideEliminationError, match=r"Decides cannot be exported \(.*decisions"):
        export_onnx(Decides(), earlier, (1, 4, 4), batch=1)
    assert capfd.readouterr() == ("", "")


def test_a_network_of_one_batch_size_needs_to_be_told(earlier: Path) -> None:
    class Pairs(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            assert images.shape[0] == TRACED_BATCH, "only pairs"
            return images * 2

    with pytest.raises(
        StrideEliminationError, match=r"float32 of the sizes 1x1x4x4 \(only pairs\); .* the batch"
    ):
        export_onnx(Pairs(), earlier, (1, 4, 4))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rearrange": "hosts"}, "rearrange=hosts is unknown; take one of graph, host"),
        ({"batch": 0}, "batch=0 must be at least 1"),
        ({"path": "."}, "is a folder; name the file"),
        ({"input_size": (2, 65)}, r"\(2, 65\), but this twin was made for 2x64"),
        ({"network": one_axis()}, "input_size is missing"),
        ({"network": one_axis(), "rearrange": "host"}, "a Sequential takes ordinary images"),
        (
            {"network": one_axis().double(), "input_size": (2, 64)},
            r"0\.weight is float64.*float\(\)",
        ),
        ({"network": nn.Conv1d(1, 1, 1, device="meta")}, "weight is on the meta device"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str, tmp_path: Path) -> None:
    right = {"network": twin_of(one_axis, (2, 64)), "path": tmp_path / "net.onnx"}
    with pytest.raises((InputError, StrideEliminationError), match=message):
        export_onnx(**(right | arguments))
    assert files_in(tmp_path) == []


@pytest.mark.parametrize("package", PACKAGES)
def test_a_missing_package(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=rf"{package}.* pip install '\.\[onnx\]'"):
        export_onnx(one_axis(), tmp_path / "net.onnx", (2, 64))


# Strides of a graph


def strided_graph(**attributes: Any) -> Any:
    """A MaxPool in a branch of an If, and a Conv in a function, both with these attributes."""
    kind = helper.make_tensor_value_info
    x, y = (kind(name, TensorProto.FLOAT, [1, 1, None, None]) for name in "xy")
    pool = helper.make_node("MaxPool", ["x"], ["z"], "pool", kernel_shape=[2, 2], **attributes)
    same = helper.make_node("Identity", ["x"], ["z"])
    z = kind("z", TensorProto.FLOAT, None)
    branches = {
        name: helper.make_graph([node], name, [], [z])
        for name, node in (("then_branch", pool), ("else_branch", same))
    }
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
    convolution = helper.make_node("Conv", ["a", "w"], ["b"], "convolution", **attributes)
    function = helper.make_function("own", "Layer", ["a", "w"], ["b"], [convolution], imports[:1])
    nodes = [
        helper.make_node("If", ["flag"], ["m"], **branches),
        helper.make_node("Layer", ["m", "w"], ["y"], domain="own"),
    ]
    weight = helper.make_tensor("w", TensorProto.FLOAT, [1, 1, 1, 1], [1.0])
    graph = helper.make_graph(
        nodes, "graph", [kind("flag", TensorProto.BOOL, []), x], [y], [weight]
    )
    return helper.make_model(graph, functions=[function], opset_imports=imports, ir_version=9)


def none_may_stay(node: StridedNode) -> bool:
    return False


def test_strides_in_branches_and_functions_are_found(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    onnx.save(strided_graph(strides=[1, 2]), path)
    operators, strided = check_graph(path, lambda node: True)
    assert operators == {"If": 1, "MaxPool": 1, "Identity": 1, "Layer": 1, "Conv": 1}
    assert [str(node) for node in strided] == [
        "pool (MaxPool, strides 1x2)",
        "convolution (Conv, strides 1x2)",
    ]
    with pytest.raises(StrideEliminationError, match=r"in pool .*; convolution "):
        check_graph(path, none_may_stay)
    with pytest.raises(StrideEliminationError, match="in convolution "):
        check_graph(path, lambda node: node.operator in POOLING_OPERATORS)
    with pytest.raises(StrideEliminationError, match="in pool "):
        check_graph(path, lambda node: node.name == "convolution")


@pytest.mark.parametrize("attributes", [{}, {"strides": [1, 1]}])
def test_unit_strides_are_none(attributes: dict[str, Any], tmp_path: Path) -> None:
    onnx.save(strided_graph(**attributes), tmp_path / "net.onnx")
    assert check_graph(tmp_path / "net.onnx", none_may_stay)[1] == ()
