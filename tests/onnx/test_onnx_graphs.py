"""Weights from wherever they come, subgraphs and functions, names, and what is untouched."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stridenet.errors import InputError, StrideEliminationError
from stridenet.onnx.files import convert_file, verify_files
from tests.onnx_models import free, integers, model_of, outputs_of, saved, strides_of

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import onnx
    from onnx import TensorProto, helper, numpy_helper, version_converter

WEIGHT, OTHER = integers(4, 3, 3, 3), integers(4, 3, 3, 3, seed=2)
BY = {"strides": [2, 2], "pads": [1, 1, 1, 1]}


def conv(weight: str = "weight", x: str = "x", y: str = "y", **attributes: Any) -> Any:
    return helper.make_node("Conv", [x, weight], [y], **{**BY, **attributes})


def tensor(array: np.ndarray, name: str = "") -> Any:
    return numpy_helper.from_array(array, name)


def converted(model: Any, folder: Path, **options: Any) -> Any:
    """The written model, which is equal to the original at two sizes, and has no stride."""
    convert_file(saved(model, folder), folder / "out.onnx", **options)
    assert_equal(model, folder / "out.onnx")
    assert strides_of(folder / "out.onnx") == []
    return onnx.load(str(folder / "out.onnx"))


def assert_equal(model: Any, path: Path, more: dict[str, Any] | None = None) -> None:
    for size in ((2, 3, 9, 10), (1, 3, 8, 13)):
        feed = {"x": integers(*size), **(more or {})}
        both = zip(outputs_of(model, feed), outputs_of(path, feed), strict=True)
        assert all(np.array_equal(one, other) for one, other in both)


def names_of(written: Any) -> list[str]:
    return [tensor.name for tensor in written.graph.initializer]


# Where weights come from


def test_a_weight_of_a_constant_becomes_another_and_the_constant_goes(tmp_path: Path) -> None:
    constant = helper.make_node("Constant", [], ["weight"], value=tensor(WEIGHT))
    written = converted(model_of([constant, conv()], {"x": free(2, 3)}), tmp_path)
    assert "Constant" not in [node.op_type for node in written.graph.node]


def test_a_sparse_constant_is_refused_and_a_dense_one_helps(tmp_path: Path) -> None:
    sparse = onnx.SparseTensorProto(dims=[4, 3, 3, 3])
    sparse.values.CopyFrom(tensor(np.ones(2, np.float32)))
    sparse.indices.CopyFrom(tensor(np.array([1, 5])))
    dense = np.zeros((4, 3, 3, 3), np.float32)
    dense.flat[[1, 5]] = 1
    constants = [{"sparse_value": sparse}, {"value": tensor(dense)}]
    models = [
        model_of([helper.make_node("Constant", [], ["weight"], **c), conv()], {"x": free(2, 3)})
        for c in constants
    ]
    with pytest.raises(InputError, match=r"has a Constant with sparse_value, .*: write a value"):
        convert_file(saved(models[0], tmp_path), tmp_path / "out.onnx")
    converted(models[1], tmp_path)


def test_a_weight_of_a_constant_of_shape(tmp_path: Path) -> None:
    shape = {"shape": np.array([4, 3, 3, 3])}
    for fill in ({}, {"value": tensor(np.array([2], np.float32))}):
        node = helper.make_node("ConstantOfShape", ["shape"], ["weight"], **fill)
        written = converted(model_of([node, conv()], {"x": free(2, 3)}, weights=shape), tmp_path)
        assert "shape" not in names_of(written)
        assert "ConstantOfShape" not in [node.op_type for node in written.graph.node]


def test_a_weight_behind_identities(tmp_path: Path) -> None:
    chain = [helper.make_node("Identity", [a], [b]) for a, b in (("first", "b"), ("b", "weight"))]
    model = model_of([*chain, conv()], {"x": free(2, 3)}, weights={"first": WEIGHT})
    written = converted(model, tmp_path)
    assert "Identity" not in [node.op_type for node in written.graph.node]
    assert "first" not in names_of(written)


def test_shared_weights_are_shared_again_where_the_strides_are_equal(tmp_path: Path) -> None:
    nodes = [conv(y="a"), conv(y="b", pads=[0, 0, 0, 0]), conv(y="c", strides=[3, 1])]
    model = model_of(nodes, {"x": free(2, 3)}, ["a", "b", "c"], {"weight": WEIGHT})
    written = converted(model, tmp_path)
    read = [node.input[1] for node in written.graph.node if node.op_type == "Conv"]
    assert read[0] == read[1] != read[2]
    assert "weight" not in names_of(written)


@pytest.mark.parametrize("user", ["another node", "an output", "a subgraph"])
def test_a_weight_that_is_still_used_stays(user: str, tmp_path: Path) -> None:
    if user == "an output":
        model = model_of([conv()], {"x": free(2, 3)}, ["y", "weight"], {"weight": WEIGHT})
    elif user == "another node":
        nodes = [conv(), helper.make_node("Relu", ["weight"], ["z"])]
        model = model_of(nodes, {"x": free(2, 3)}, ["y", "z"], {"weight": WEIGHT})
    else:
        branch = helper.make_graph(
            [helper.make_node("Relu", ["weight"], ["r"])],
            "branch",
            [],
            [helper.make_tensor_value_info("r", TensorProto.FLOAT, [4, 3, 3, 3])],
        )
        choice = helper.make_node("If", ["yes"], ["z"], then_branch=branch, else_branch=branch)
        weights = {"weight": WEIGHT, "yes": np.array(True)}
        model = model_of([conv(), choice], {"x": free(2, 3)}, ["y", "z"], weights)
    written = converted(model, tmp_path)
    (kept,) = [t for t in written.graph.initializer if t.name == "weight"]
    assert kept == next(t for t in model.graph.initializer if t.name == "weight")


@pytest.mark.parametrize("ir_version", [3, 8])
def test_weights_that_are_inputs_with_a_default(ir_version: int, tmp_path: Path) -> None:
    inputs = {"x": free(2, 3), "weight": [4, 3, 3, 3]}
    model = model_of([conv()], inputs, weights={"weight": WEIGHT}, opset=11, ir_version=ir_version)
    written = converted(model, tmp_path)
    assert [each.name for each in written.graph.input] == ["x"]
    assert written.ir_version == ir_version
    if ir_version == 3:  # whose initializers would all have to be inputs
        assert not written.graph.initializer


def test_weights_that_are_computed_are_refused_by_name_and_folding_them_helps(
    tmp_path: Path,
) -> None:
    from onnxscript import optimizer

    scaled = helper.make_node("Mul", ["first", "two"], ["weight"])
    weights = {"first": WEIGHT, "two": np.float32(2)}
    node = conv()
    node.name = "stem"
    model = model_of([scaled, node], {"x": free(2, 3)}, weights=weights)
    why = r"stem \(Conv\) computes its weights when it runs, by Mul \(weight\); .*optimizer as o"
    with pytest.raises(StrideEliminationError, match=why):
        convert_file(saved(model, tmp_path), tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()
    converted(optimizer.optimize(model), tmp_path)
    given = model_of([conv()], {"x": free(2, 3), "weight": ["o", 3, 3, 3]})
    with pytest.raises(StrideEliminationError, match="reads weights that are an input, weight"):
        convert_file(saved(given, tmp_path), tmp_path / "none.onnx")


# Subgraphs and functions


def branches(then: Sequence[Any], otherwise: Sequence[Any], outputs: Sequence[str]) -> Any:
    graphs = {
        name: helper.make_graph(
            list(nodes),
            name,
            [],
            [helper.make_tensor_value_info(o, TensorProto.FLOAT, None) for o in outputs],
        )
        for name, nodes in (("then_branch", then), ("else_branch", otherwise))
    }
    for graph in graphs.values():
        for output in graph.output:
            for _ in range(4):
                output.type.tensor_type.shape.dim.add()
    return helper.make_node("If", ["yes"], ["y"], **graphs)


@pytest.mark.parametrize("yes", [True, False])
def test_the_branches_of_an_if(yes: bool, tmp_path: Path) -> None:
    own = helper.make_node("Constant", [], ["own"], value=tensor(OTHER))
    choice = branches([conv(y="z")], [own, conv("own", y="z")], ["z"])
    model = model_of([choice], {"x": free(2, 3)}, weights={"weight": WEIGHT, "yes": np.array(yes)})
    written = converted(model, tmp_path)
    inner = [a.g for a in written.graph.node[-1].attribute]
    assert all("Reshape" in [node.op_type for node in graph.node] for graph in inner)
    outer = {name for node in written.graph.node for name in node.output} | set(names_of(written))
    for graph in inner:  # nothing hides a name of the graph around it
        fresh = {name for node in graph.node for name in node.output}
        assert not fresh & outer


def loop(kind: str) -> Any:
    """A Loop or Scan of two turns, whose body halves the size of what it carries."""
    same = integers(3, 3, 3, 3)
    carried = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [None] * 4) for n in ("a", "b")]
    nodes = [conv("weight", "a", "b")]
    if kind == "Loop":
        head = [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
        ]
        nodes.append(helper.make_node("Identity", ["go"], ["on"]))
        on = helper.make_tensor_value_info("on", TensorProto.BOOL, [])
        body = helper.make_graph(nodes, "body", [*head, carried[0]], [on, carried[1]])
        node = helper.make_node("Loop", ["twice", "yes", "x"], ["y"], body=body)
        weights = {"twice": np.array(2), "yes": np.array(True), "weight": same}
        return model_of([node], {"x": free(2, 3)}, weights=weights)
    turn = helper.make_tensor_value_info("turn", TensorProto.FLOAT, [])
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, [])
    nodes.append(helper.make_node("Identity", ["turn"], ["out"]))
    nodes[0] = conv("weight", "a", "b", strides=[2, 1])
    nodes[0].output[0] = "half"
    nodes.insert(1, helper.make_node("Concat", ["half", "half"], ["twice"], axis=2))
    nodes.insert(2, helper.make_node("Identity", ["twice"], ["b"]))
    body = helper.make_graph(nodes, "body", [carried[0], turn], [carried[1], out])
    node = helper.make_node("Scan", ["x", "turns"], ["y", "z"], body=body, num_scan_inputs=1)
    weights = {"turns": np.zeros(2, np.float32), "weight": same}
    return model_of([node], {"x": ["n", 3, 8, "w"]}, weights=weights)


def test_sizes_that_a_loops_body_claims_are_not_believed(tmp_path: Path) -> None:
    model = loop("Loop")
    (body,) = [a.g for a in model.graph.node[0].attribute]
    for dim, size in zip(body.input[2].type.tensor_type.shape.dim[2:], (8, 12), strict=True):
        dim.dim_value = size  # as it is in the first turn
    convert_file(saved(model, tmp_path), tmp_path / "out.onnx")
    written = onnx.load(str(tmp_path / "out.onnx"))
    for each in (model, written):
        (body,) = [a.g for a in each.graph.node[-1].attribute]
        for dim in body.input[2].type.tensor_type.shape.dim[2:]:
            dim.Clear()  # onnxruntime believes it
    feed = {"x": integers(1, 3, 8, 12)}
    assert np.array_equal(outputs_of(model, feed)[0], outputs_of(written, feed)[0])


@pytest.mark.parametrize("kind", ["Loop", "Scan"])
def test_the_body_of_a_loop_meets_another_size_each_turn(kind: str, tmp_path: Path) -> None:
    model = loop(kind)
    convert_file(saved(model, tmp_path), tmp_path / "out.onnx")
    assert strides_of(tmp_path / "out.onnx") == []
    for size in ((2, 3, 8, 12), (1, 3, 8, 13)):
        feed = {"x": integers(*size)}
        both = zip(outputs_of(model, feed), outputs_of(tmp_path / "out.onnx", feed), strict=True)
        assert all(np.array_equal(one, other) for one, other in both)


def with_function(weight_inside: bool, opset: int = 17) -> Any:
    nodes = [conv("w", "a", "b")]
    if weight_inside:
        nodes.insert(0, helper.make_node("Constant", [], ["w"], value=tensor(WEIGHT)))
    inputs = ["a"] if weight_inside else ["a", "w"]
    opsets = [helper.make_opsetid("", opset)]
    function = helper.make_function("mine", "Halve", inputs, ["b"], nodes, opsets)
    call = helper.make_node(
        "Halve", ["x"] if weight_inside else ["x", "weight"], ["y"], domain="mine"
    )
    weights = None if weight_inside else {"weight": WEIGHT}
    more = {"functions": [function], "opsets": [helper.make_opsetid("mine", 1)]}
    return model_of([call], {"x": free(2, 3)}, weights=weights, opset=17, **more)


def test_a_local_function_keeps_its_constants_as_nodes(tmp_path: Path) -> None:
    written = converted(with_function(weight_inside=True), tmp_path)
    (function,) = written.functions
    kinds = [node.op_type for node in function.node]
    assert kinds.count("Conv") == 1
    assert "Constant" in kinds
    assert not written.graph.initializer


def test_weights_that_a_functions_caller_gives_need_inlining_which_helps(tmp_path: Path) -> None:
    import onnx.inliner

    model = with_function(weight_inside=False)
    why = r"reads weights that are an input, w; inline functions first: .*inline_local_functions"
    with pytest.raises(StrideEliminationError, match=why):
        convert_file(saved(model, tmp_path), tmp_path / "out.onnx")
    converted(onnx.inliner.inline_local_functions(model), tmp_path)


# Names, and what is untouched


def test_new_names_are_new_in_the_whole_file(tmp_path: Path) -> None:
    taken = ["conv/unit_stride/Pad", "conv/unit_stride/Reshape", "weight/unit_stride"]
    node = conv(y="middle")
    node.name = "conv"
    relus = [helper.make_node("Relu", ["middle"], [name], name) for name in taken]
    model = model_of([node, *relus], {"x": free(2, 3)}, ["middle", *taken], {"weight": WEIGHT})
    written = converted(model, tmp_path)
    made = [name for node in written.graph.node for name in node.output] + names_of(written)
    assert len(made) == len(set(made))
    nodes = [node.name for node in written.graph.node]
    assert len(nodes) == len(set(nodes))


def annotated() -> Any:
    """A model with everything that a conversion might lose."""
    first = conv(y="a")
    first.name, first.doc_string = "conv", "halves"
    first.metadata_props.add(key="origin", value="stem")
    relu = helper.make_node("Relu", ["a"], ["b"], "", "some text")
    custom = helper.make_node("Identity", ["b"], ["y"], "same")
    custom.metadata_props.add(key="k", value="v")
    model = model_of([first, relu, custom], {"x": free(2, 3)}, weights={"weight": WEIGHT})
    model.producer_name, model.producer_version, model.doc_string = "me", "1", "a text"
    model.model_version, model.domain = 7, "org.me"
    model.metadata_props.add(key="author", value="me")
    model.opset_import.add(domain="org.me", version=3)
    graph = model.graph
    graph.doc_string = "the graph"
    graph.value_info.append(
        helper.make_tensor_value_info("b", TensorProto.FLOAT, ["n", 4, None, None])
    )
    graph.value_info.append(
        helper.make_tensor_value_info("weight", TensorProto.FLOAT, [4, 3, 3, 3])
    )
    graph.quantization_annotation.add(tensor_name="b")
    sparse = graph.sparse_initializer.add(dims=[4])
    sparse.values.CopyFrom(tensor(np.ones(1, np.float32), "unused"))
    sparse.indices.CopyFrom(tensor(np.zeros(1, np.int64)))
    return model


def test_what_is_untouched_is_byte_equal(tmp_path: Path) -> None:
    model = annotated()
    convert_file(saved(model, tmp_path), tmp_path / "out.onnx", check=False)
    written = onnx.load(str(tmp_path / "out.onnx"))
    new = next(node for node in written.graph.node if node.op_type == "Conv")
    old = model.graph.node[0]
    assert (new.name, new.doc_string, list(new.metadata_props)) == (
        "conv",
        "halves",
        list(old.metadata_props),
    )
    assert list(new.output) == ["a"]
    assert list(written.graph.node[-2:]) == list(model.graph.node[-2:])
    for proto in (model, written):
        del proto.graph.node[:]
        del proto.graph.initializer[:]
    del model.graph.value_info[1]  # of the strided filter, which is no more
    assert written.SerializeToString(deterministic=True) == model.SerializeToString(
        deterministic=True
    )


def test_only_takes_names_of_nodes_and_of_outputs(tmp_path: Path) -> None:
    nodes = [conv(y=name) for name in "abcd"]
    nodes[1].name = nodes[2].name = "twins"
    model = model_of(nodes, {"x": free(2, 3)}, list("abcd"), {"weight": WEIGHT})
    report = convert_file(saved(model, tmp_path), tmp_path / "out.onnx", only=["twins", "d"])
    assert report.converted == ("twins", "twins", "d")
    assert strides_of(tmp_path / "out.onnx") == [[2, 2]]
    assert [str(node) for node in report.kept] == ["a (Conv, strides 2x2)"]
    written = onnx.load(str(tmp_path / "out.onnx"))
    assert "weight" in names_of(written)
    for node in (*model.graph.node, *written.graph.node):  # onnxruntime wants names once
        node.name = ""
    assert_equal(model, saved(written, tmp_path, "nameless.onnx"))


def test_what_is_left_is_named_as_only_takes_it(tmp_path: Path) -> None:
    """Files of PyTorch say of which module a node is, too; that is another name."""
    nodes = [conv(y=name) for name in "ab"]
    for node in nodes:
        node.name = f"node_{node.output[0]}"
        node.metadata_props.add(key="pkg.torch.onnx.name_scopes", value="['', 'body.0', 'conv2d']")
    model = model_of(nodes, {"x": free(2, 3)}, list("ab"), {"weight": WEIGHT})
    source, target = saved(model, tmp_path), tmp_path / "out.onnx"
    (left,) = convert_file(source, target, only=["node_a"]).kept
    assert left.name == verify_files(source, target).strided[0].name == "node_b"
    assert convert_file(source, target, only=["node_a", left.name]).kept == ()


def test_pooling_goes_where_it_is_asked_for(tmp_path: Path) -> None:
    pool = helper.make_node("MaxPool", ["a"], ["y"], "pool", kernel_shape=[2, 2], strides=[2, 2])
    model = model_of([conv(y="a"), pool], {"x": free(2, 3)}, weights={"weight": WEIGHT})
    source, target = saved(model, tmp_path), tmp_path / "out.onnx"
    assert [n.operator for n in convert_file(source, target).kept] == ["MaxPool"]
    assert convert_file(source, target, pooling=True).kept == ()
    assert convert_file(source, target, only=["pool"]).converted == ("pool",)


def test_indices_that_nobody_reads_do_not_matter(tmp_path: Path) -> None:
    pool = helper.make_node(
        "MaxPool", ["x"], ["y", "i"], "pool", kernel_shape=[2, 2], strides=[2, 2], storage_order=1
    )
    model = model_of([pool], {"x": free(2, 3)})
    converted(model, tmp_path, pooling=True)
    model.graph.output.append(helper.make_tensor_value_info("i", TensorProto.INT64, [None] * 4))
    with pytest.raises(StrideEliminationError, match=r"pool \(MaxPool\) gives Indices \(i\)"):
        convert_file(saved(model, tmp_path), tmp_path / "none.onnx", pooling=True)


@pytest.mark.parametrize("opset", [11, 12, 13, 18, onnx.defs.onnx_opset_version()])
def test_the_opset_stays(opset: int, tmp_path: Path) -> None:
    pool = helper.make_node("MaxPool", ["a"], ["y"], kernel_shape=[3, 3], strides=[2, 2])
    nodes = [conv(y="a"), pool]
    model = model_of(nodes, {"x": free(2, 3)}, weights={"weight": WEIGHT}, opset=opset)
    written = converted(model, tmp_path, pooling=True)
    assert list(written.opset_import) == list(model.opset_import)


def test_older_opsets_are_refused_with_a_command_that_helps(tmp_path: Path) -> None:
    model = model_of([conv()], {"x": free(2, 3)}, weights={"weight": WEIGHT}, opset=9)
    with pytest.raises(InputError, match=r"has opset 9, and 11 is the oldest .*convert_version"):
        convert_file(saved(model, tmp_path), tmp_path / "out.onnx")
    converted(version_converter.convert_version(model, 13), tmp_path)
