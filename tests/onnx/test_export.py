"""What an export writes computes what the network computes; a host rearranges as torch does."""

import itertools
import json
import re
import subprocess
import sys
import warnings
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from stridenet import convert_layers, eliminate_stride, export_onnx, host
from stridenet.layers import PhantomMask
from stridenet.onnx import export
from stridenet.onnx.exportable import describe_layout
from stridenet.phases import space_to_depth
from stridenet.zoo import lenet

with warnings.catch_warnings():  # of their own imports
    warnings.simplefilter("ignore")
    import onnx
    import onnxruntime
from tests.onnx.exported import drawn, files_in, one_axis, twin_of

ROOT = Path(__file__).resolve().parents[2]


SIZE = (2, 21, 18)


def ragged() -> nn.Sequential:
    """Sizes that no factor divides; the twin pads, masks, crops and has groups."""
    return nn.Sequential(
        OrderedDict(
            a=nn.Conv2d(2, 4, 5, stride=2, padding=2),
            a_act=nn.Sigmoid(),
            b=nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2),
            b_act=nn.ReLU(inplace=True),
            c=nn.Conv2d(6, 4, 2, stride=(1, 2), bias=False),
            c_act=nn.GELU(),
        )
    )


def three_axes() -> nn.Sequential:
    return nn.Sequential(nn.Conv3d(1, 2, 2, 2, 1), nn.Softplus(), nn.Conv3d(2, 1, 2, 2, 1))


class Residual(nn.Module):
    """A shortcut, maps side by side, pooling, and an operation that phantoms must not reach."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(2, 4, 3, 2, bias=False), nn.BatchNorm2d(4), nn.ReLU())
        self.conv1, self.bn1 = nn.Conv2d(4, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 6, 3, padding=1)
        self.shortcut = nn.Conv2d(4, 6, 1, stride=2)
        self.largest, self.mean = nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(2, 1)
        self.last = nn.Conv2d(10, 3, 2, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.stem(images)
        both = self.conv2(F.relu(self.bn1(self.conv1(maps)))) + self.shortcut(maps)
        both = both / (1 + both.abs())
        return self.last(self.mean(torch.cat([both, self.largest(maps)], 1)))


def residual() -> nn.Module:
    """Give it statistics that tell channels apart."""
    network = Residual()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = torch.randn(module.num_features)
            module.running_var = 0.5 + torch.rand(module.num_features)
    return network


def images_of(size: tuple[int, ...], count: int, seed: int = 7) -> Tensor:
    return torch.randn(count, *size, generator=torch.Generator().manual_seed(seed))


def session_of(path: Path) -> Any:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def state(module: nn.Module) -> list:
    """Bytes of every tensor and training flag of every module."""
    tensors = itertools.chain(module.named_parameters(), module.named_buffers())
    return [
        [(name, id(t), t.detach().numpy().tobytes()) for name, t in tensors],
        [(name, id(m), m.training) for name, m in module.named_modules()],
    ]


# What is written


@pytest.mark.sample(2)
@pytest.mark.parametrize(
    ("make", "size", "rearranged_by", "batch"),
    [
        pytest.param(lenet, (1, 28, 28), "graph", None, id="LeNet"),
        pytest.param(lenet, (1, 28, 28), "host", 2, id="LeNet, host, batch of 2"),
        pytest.param(ragged, SIZE, "graph", 1, id="ragged, one image"),
        pytest.param(ragged, SIZE, "host", None, id="ragged, host"),
        pytest.param(one_axis, (2, 64), "host", None, id="1-D, host"),
        pytest.param(three_axes, (1, 4, 5, 6), "graph", None, id="3-D"),
    ],
)
def test_a_twins_file_computes_what_the_strided_network_computes(
    make: Callable[[], nn.Module],
    size: tuple[int, ...],
    rearranged_by: str,
    batch: int | None,
    file: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    model = drawn(make).eval()
    twin = eliminate_stride(model, size)
    report = export_onnx(twin, file, rearrange=rearranged_by, batch=batch)
    assert capfd.readouterr() == ("", "")
    assert report.strided == ()
    assert "strides above 1: none" in str(report)
    assert report.comparison.passed
    assert report.comparison.batches == ((batch,) if batch else (1, 3))

    session = session_of(file)
    (taken,) = session.get_inputs()
    layout = host.read_layout(report.layout) if report.layout else None
    assert taken.shape[0] == (batch or "batch")
    assert tuple(taken.shape[1:]) == (twin.plan.input.unit_stride_size if layout else size)
    for count in (batch,) if batch else (1, 4):
        x = images_of(size, count)
        fed = host.rearrange(layout, x.numpy()) if layout else x.numpy()
        (obtained,) = session.run(["output"], {taken.name: fed})
        np.testing.assert_allclose(obtained, model(x).detach().numpy(), rtol=1e-4, atol=1e-6)

    strides = [
        attribute.ints
        for node in onnx.load(file).graph.node
        for attribute in node.attribute
        if attribute.name == "strides"
    ]
    assert strides
    assert all(stride == 1 for each in strides for stride in each)
    # Not SpaceToDepth, whose channels lie in another order.
    assert {"SpaceToDepth", "DepthToSpace"}.isdisjoint(report.operators)
    assert ("Transpose" in report.operators) == (rearranged_by == "graph")


def assert_computes_the_same(file: Path, model: nn.Module, size: tuple[int, ...]) -> None:
    """That the file of a whole twin gives what the model gives, and that it has no stride."""
    session, images = session_of(file), images_of(size, 4)
    (obtained,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    np.testing.assert_allclose(obtained, model(images).detach().numpy(), rtol=1e-4, atol=1e-5)
    found = [a.ints for n in onnx.load(file).graph.node for a in n.attribute if a.name == "strides"]
    assert {stride for each in found for stride in each} == {1}


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"batch_norm": "shared"},
        {"batch_norm": "per_phase", "output_factor": 2},
    ],
    ids=["shared", "per_phase"],
)
def test_branches_and_ragged_maps_are_exported(settings: dict[str, Any], file: Path) -> None:
    model = drawn(residual).eval()
    size = (2, 23, 18)
    twin = eliminate_stride(model, size, **settings)
    assert twin.plan.strided_layers == 4
    masks = sum(isinstance(module, PhantomMask) for module in twin.modules())
    assert masks > 1
    report = export_onnx(twin, file)
    assert report.strided == ()
    assert_computes_the_same(file, model, size)


@pytest.mark.slow
def test_a_stride_that_was_to_stay_is_told(file: Path) -> None:
    model = drawn(residual).eval()
    for settings, kept in (
        ({}, ["largest"]),
        ({"only": ["conv1", "shortcut", "largest"]}, ["stem.0"]),
    ):
        same = convert_layers(model, **settings)
        report = export_onnx(same, file, example_inputs=images_of(SIZE, 2))
        assert [node.name for node in report.strided] == kept


@pytest.mark.slow
def test_several_inputs_have_their_names_and_each_its_phase_form(file: Path) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide, self.narrow = nn.Conv2d(2, 3, 3, (2, 4)), nn.Conv2d(1, 3, 3, (2, 1))

        def forward(self, left: Tensor, input: Tensor) -> tuple[Tensor, Tensor]:
            maps = self.wide(left) + self.narrow(input)
            return maps, maps.mean((2, 3))

    model, sizes = drawn(Two).eval(), [(2, 9, 19), (1, 9, 7)]
    twin = eliminate_stride(model, sizes)
    inputs = [images_of(size, 2) for size in sizes]
    for rearranged_by in ("graph", "host"):
        report = export_onnx(twin, file, sizes, rearrange=rearranged_by)
        fed = [x.numpy() for x in inputs]
        if report.layout:
            fed = host.rearrange(host.read_layout(report.layout), *fed)
        outputs = session_of(file).run(None, dict(zip(["left", "input"], fed, strict=True)))
        for obtained, expected in zip(outputs, model(*inputs), strict=True):
            np.testing.assert_allclose(obtained, expected.detach().numpy(), rtol=1e-4, atol=1e-5)


def test_a_strided_networks_file_keeps_its_strides_and_says_so(file: Path) -> None:
    class Two(nn.Module):
        """Two inputs, worked on in place, and two outputs."""

        def __init__(self) -> None:
            super().__init__()
            self.features = nn.Sequential(
                nn.Conv2d(2, 3, 3, 2, bias=False), nn.BatchNorm2d(3), nn.MaxPool2d((1, 2))
            )

        def forward(self, left: Tensor, right: Tensor) -> dict[str, Tensor]:
            left.relu_()
            maps = self.features(left)
            return {"maps": maps, "scores": maps.mean((2, 3)) + right.mean((2, 3))}

    model = drawn(Two).eval()
    report = export_onnx(model, file, [SIZE, (3, 5, 6)])
    assert [(n.name, n.operator, n.strides) for n in report.strided] == [
        ("features.0", "Conv", (2, 2)),
        ("features.2", "MaxPool", (1, 2)),
    ]
    assert "features.0 (Conv, strides 2x2)" in str(report)
    left, right = images_of(SIZE, 2), images_of((3, 5, 6), 2)
    outputs = session_of(file).run(
        ["output_0", "output_1"], {"left": left.numpy(), "right": right.numpy()}
    )
    for obtained, expected in zip(outputs, model(left, right).values(), strict=True):
        np.testing.assert_allclose(obtained, expected.detach().numpy(), rtol=1e-4, atol=1e-6)
    assert {p.key: p.value for p in onnx.load(file).metadata_props} == {
        "stridenet.network": "strided"
    }


def test_the_network_is_left_as_it_is_and_the_file_names_no_folder(file: Path) -> None:
    twin = twin_of(lambda: nn.Sequential(nn.Conv2d(1, 2, 2, 2), nn.Dropout(0.5)), (1, 6, 6))
    twin.train()
    twin.network.get_submodule("1").eval()
    before, drawn_before = state(twin), torch.get_rng_state()
    report = export_onnx(twin, file, rearrange="host")
    assert state(twin) == before
    assert torch.equal(torch.get_rng_state(), drawn_before)
    assert report.operators == {"Conv": 1}
    content = file.read_bytes()
    for private in (str(ROOT), "elimination.py", sys.prefix, str(file.parent)):
        assert private.encode() not in content


@pytest.mark.slow
def test_large_weights_lie_in_a_file_beside(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    twin = twin_of(lenet, (1, 28, 28))
    with monkeypatch.context() as patch:
        patch.setattr(export, "SINGLE_FILE_LIMIT", 1000)
        export_onnx(twin, file, rearrange="host", batch=1)
    assert files_in(file.parent) == ["net.layout.json", "net.onnx", "net.onnx.data"]
    assert file.stat().st_size < 100_000 < (file.parent / "net.onnx.data").stat().st_size
    session_of(file)
    # The next export replaces all of the former, and leaves nothing that is not its own.
    export_onnx(twin, file, rearrange="graph", batch=1)
    assert files_in(file.parent) == ["net.onnx"]
    assert file.stat().st_size > 1_000_000


# The host's rearrangement


@st.composite
def rearrangements(draw: Any) -> dict[str, Any]:
    """A layout with one input of one to three axes."""
    axes = draw(st.integers(1, 3))
    zeros = st.tuples(st.integers(0, 3), st.integers(0, 3))

    def for_each_axis(what: st.SearchStrategy) -> list:
        return draw(st.lists(what, min_size=axes, max_size=axes))

    size = [draw(st.integers(1, 3)), *for_each_axis(st.integers(1, 7))]
    factor, padding = for_each_axis(st.integers(1, 4)), for_each_axis(zeros)
    return {"inputs": [{"name": "x", "image_size": size, "factor": factor, "padding": padding}]}


@given(rearrangements(), st.sampled_from([torch.float32, torch.float64, torch.uint8]))
def test_numpy_rearranges_as_torch_does(layout: dict[str, Any], dtype: torch.dtype) -> None:
    (entry,) = layout["inputs"]
    images = (100 * images_of(tuple(entry["image_size"]), 2)).to(dtype)
    around = [extent for pair in reversed(entry["padding"]) for extent in pair]
    expected = space_to_depth(F.pad(images, around), entry["factor"]).numpy()
    obtained = host.rearrange(layout, images.numpy())
    assert obtained.dtype == expected.dtype
    assert obtained.flags.c_contiguous
    assert np.array_equal(obtained, expected)


@pytest.mark.parametrize(
    ("make", "size"), [(ragged, SIZE), (one_axis, (2, 64)), (three_axes, (1, 4, 5, 6))]
)
def test_a_layout_says_what_its_twin_does(
    make: Callable[[], nn.Module], size: tuple[int, ...]
) -> None:
    twin = twin_of(make, size)
    layout = describe_layout(twin.plan)
    (entry,) = layout["inputs"]
    images = images_of(size, 2)
    expected = twin.rearrange(images).numpy()
    assert np.array_equal(host.rearrange(json.loads(json.dumps(layout)), images.numpy()), expected)
    assert entry["phase_form_size"] == list(expected.shape[1:])
    assert any(map(any, entry["padding"]))

    # The pattern and the words, by hand.
    zeros = [
        (before, after + -(before + n + after) % f)
        for n, (before, after), f in zip(size[1:], entry["padding"], entry["factor"], strict=True)
    ]
    padded = np.pad(images.numpy(), [(0, 0), (0, 0), *zeros])
    factors = {f"f{axis}": f for axis, f in enumerate(entry["factor"])}
    assert np.array_equal(rearrange(padded, entry["einops"], **factors), expected)
    to, source = re.findall(r"value (\[.*?\])(?= of| is)", entry["steps"][2])
    blocks = {f"i{axis}": range(n) for axis, n in enumerate(expected.shape[2:])}
    phases = {f"p{axis}": range(f) for axis, f in enumerate(entry["factor"])}
    ranges = {"n": range(2), "c": range(size[0]), **blocks, **phases}
    for values in itertools.product(*ranges.values()):
        where = dict(zip(ranges, values, strict=True)) | factors
        assert expected[tuple(eval(to, where))] == padded[tuple(eval(source, where))]


def test_several_inputs_are_rearranged_each_by_its_own_layout() -> None:
    entries = [
        {"name": name, "image_size": [1, n], "factor": [f], "padding": [[0, 0]]}
        for name, n, f in (("left", 4, 2), ("right", 3, 3))
    ]
    left, right = np.arange(4.0).reshape(1, 1, 4), np.arange(3.0).reshape(1, 1, 3)
    obtained = host.rearrange({"inputs": entries}, left, right)
    assert [each.tolist() for each in obtained] == [[[[0, 2], [1, 3]]], [[[0], [1], [2]]]]
    with pytest.raises(ValueError, match=r"1 arrays were given, but .* inputs are: left, right"):
        host.rearrange({"inputs": entries}, left)
    with pytest.raises(ValueError, match=r"right has the size \[1, 1, 4\].*\[1, 3\]"):
        host.rearrange({"inputs": entries}, left, left)


@pytest.mark.slow
def test_a_host_needs_two_files_and_numpy(file: Path, tmp_path: Path) -> None:
    twin = twin_of(ragged, SIZE)
    report = export_onnx(twin, file, rearrange="host", batch=1)
    assert report.layout == file.with_name("net.layout.json")
    properties = {p.key: p.value for p in onnx.load(file).metadata_props}
    assert properties.pop("stridenet.network") == "unit_stride"
    assert json.loads(properties["stridenet.layout"]) == host.read_layout(report.layout)

    device = tmp_path / "device"
    device.mkdir()
    for needed in (Path(host.__file__), report.layout):
        (device / needed.name).write_bytes(needed.read_bytes())
    images = images_of(SIZE, 3)
    np.save(device / "images.npy", images.numpy())
    program = """
import sys, numpy as np, host
np.save("phases.npy", host.rearrange(host.read_layout("net.layout.json"), np.load("images.npy")))
print({"torch", "einops", "stridenet"} & set(sys.modules))
"""
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=device, env={}, capture_output=True, text=True
    )
    assert (run.stdout, run.stderr) == ("set()\n", "")
    assert np.array_equal(np.load(device / "phases.npy"), twin.rearrange(images).numpy())
