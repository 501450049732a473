"""Bad input: one line that says what, where and what helps, and nothing is written. External data."""

import errno
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stridenet.errors import InputError, StrideEliminationError
from stridenet.onnx.files import api, convert_file, plan_file, verify_files, writing
from tests.onnx_models import (
    convolution,
    drawn,
    free,
    integers,
    model_of,
    outputs_of,
    pooling,
    saved,
    strides_of,
)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import onnx
    from onnx import TensorProto, external_data_helper, helper, numpy_helper

SIZE = {"x": [1, 3, 12, 12]}


def refused(why: str, source: Path, kind: type[ValueError] = InputError, **options: Any) -> None:
    """The conversion is, in one line, and leaves nothing behind."""
    before = sorted(source.parent.rglob("*"))
    with pytest.raises(kind, match=why) as caught:
        convert_file(source, source.parent / "new" / "out.onnx", **options)
    assert "\n" not in str(caught.value)
    assert sorted(source.parent.rglob("*")) == before


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", r"is no ONNX file, or only part of one \(it has no nodes\)"),
        (b"\x89PNG\r\n\x1a\n" + bytes(50), "is no ONNX file, or only part of one"),
        (b"hello, world", "is no ONNX file, or only part of one"),
    ],
)
def test_no_onnx(content: bytes, why: str, tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(content)
    refused(why, tmp_path / "x.onnx")


def test_a_truncated_file(tmp_path: Path) -> None:
    source = saved(convolution([3, 3], [2, 2], channels=(8, 64)), tmp_path)
    whole = source.read_bytes()
    for length in (10, len(whole) // 2, len(whole) - 1):
        source.write_bytes(whole[:length])
        refused("or only part of one|is not valid ONNX", source)


def test_no_file_a_folder_and_a_missing_one(tmp_path: Path) -> None:
    saved(convolution([3, 3], [2, 2]), tmp_path)
    refused(
        r"stride.onnx does not exist \(did you mean 'strided.onnx'\?\)", tmp_path / "stride.onnx"
    )
    (tmp_path / "folder").mkdir()
    refused("folder is no file", tmp_path / "folder")
    with pytest.raises(InputError, match=r"there is no folder .*nowhere"):
        plan_file(tmp_path / "nowhere" / "x.onnx")


def test_versions_that_onnx_does_not_know(tmp_path: Path) -> None:
    model = convolution([3, 3], [2, 2])
    model.ir_version = 99
    refused("has IR version 99, and onnx .* knows up to .*pip install", saved(model, tmp_path))
    refused("has opset 99, and", saved(convolution([3, 3], [2, 2], opset=99), tmp_path))


def test_a_file_that_onnx_refuses(tmp_path: Path) -> None:
    model = convolution([3, 3], [2, 2])
    model.graph.node[0].attribute.append(helper.make_attribute("nonsense", 1))
    source = saved(model, tmp_path)
    refused("is not valid ONNX: .*nonsense.*; check=False converts it nevertheless", source)
    convert_file(source, tmp_path / "out.onnx", check=False)
    assert strides_of(tmp_path / "out.onnx") == []
    model.graph.node.append(model.graph.node[0])
    refused("is not valid ONNX", saved(model, tmp_path), check=False)


def test_arguments_that_mean_nothing(tmp_path: Path) -> None:
    source = saved(convolution([3, 3], [2, 2]), tmp_path)
    wrong: list[tuple[str, dict[str, Any]]] = [
        (
            r"rearrange='two_step' is unknown \(did you mean 'two-step'\?\)",
            {"rearrange": "two_step"},
        ),
        ("kernel='even' is unknown.*take one of minimal, odd", {"kernel": "even"}),
        (r"only='conv': a list of names", {"only": "conv"}),
        (r"only: 'con' is no node.*did you mean 'conv'.*there are: conv", {"only": ["con"]}),
        (r"sizes: 'X' is no input; there are: x", {"sizes": {"X": [1, 2]}}),
    ]
    for why, options in wrong:
        refused(why, source, **options)


def test_nothing_to_convert(tmp_path: Path) -> None:
    refused(
        "has no Conv with a stride above one: .*; pooling=True takes MaxPool",
        saved(pooling("MaxPool", free(2, 3), kernel_shape=[2, 2], strides=[2, 2]), tmp_path),
        StrideEliminationError,
    )
    source = saved(convolution([3, 3], [1, 1]), tmp_path)
    refused("has no Conv or pooling with", source, StrideEliminationError, pooling=True)


def test_targets_that_cannot_be(tmp_path: Path) -> None:
    source = saved(convolution([3, 3], [2, 2]), tmp_path)
    (tmp_path / "link.onnx").symlink_to(source)
    os.mkfifo(tmp_path / "fifo")
    whole = source.read_bytes()
    targets = {
        source: "would overwrite .*, which is read from; write to another name",
        tmp_path / "link.onnx": "would overwrite",
        tmp_path: "is a folder; name the file",
        tmp_path / "fifo": "is no regular file",
        source / "out.onnx": "cannot be made: part of this path is a file",
    }
    for target, why in targets.items():
        with pytest.raises(InputError, match=why) as caught:
            convert_file(source, target)
        assert "\n" not in str(caught.value)
    assert source.read_bytes() == whole
    assert {path.name for path in tmp_path.iterdir()} == {"strided.onnx", "link.onnx", "fifo"}


def test_no_room_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = saved(convolution([3, 3], [2, 2]), tmp_path)
    (tmp_path / "out.onnx").write_bytes(b"earlier")

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(api, "write_onnx", full)
    with pytest.raises(InputError, match="no room on its disk; free some, or write elsewhere"):
        convert_file(source, tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx").read_bytes() == b"earlier"
    assert {path.name for path in tmp_path.iterdir()} == {"strided.onnx", "out.onnx"}


QUANTIZED = {
    "QLinearConv": ["x", "s", "z", "w", "s", "z", "s", "z"],
    "ConvInteger": ["x", "w"],
}


@pytest.mark.parametrize("operator", QUANTIZED)
def test_quantized_convolutions_are_refused_by_name(operator: str, tmp_path: Path) -> None:
    weights = {
        "w": np.ones((4, 3, 3, 3), np.uint8),
        "s": np.array(0.5, np.float32),
        "z": np.array(3, np.uint8),
    }
    node = helper.make_node(operator, QUANTIZED[operator], ["y"], "quantized", strides=[2, 2])
    names = {name: array for name, array in weights.items() if name in QUANTIZED[operator]}
    model = model_of([node], {"x": free(2, 3)}, weights=names, kind=TensorProto.UINT8)
    why = rf"quantized \({operator}\) is of a quantized network, which is not converted yet"
    refused(why, saved(model, tmp_path), StrideEliminationError)


def test_a_convolution_between_quantize_and_dequantize_is_refused_by_name(tmp_path: Path) -> None:
    for end in ("weights", "map"):
        quantized = "w" if end == "weights" else "x"
        weights = {
            "w": np.ones((4, 3, 3, 3), np.uint8 if end == "weights" else np.float32),
            "s": np.array(0.5, np.float32),
        }
        nodes = [
            helper.make_node("DequantizeLinear", [quantized, "s"], ["d"]),
            helper.make_node(
                "Conv", ["d" if n == quantized else n for n in "xw"], ["y"], "c", strides=[2, 2]
            ),
        ]
        model = model_of(nodes, {"x": free(2, 3)}, weights=weights)
        if end == "map":
            model.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8
        why = r"c \(Conv\) is of a quantized network"
        refused(why, saved(model, tmp_path), StrideEliminationError)


# External data


def apart(model: Any, folder: Path, data: str = "numbers.bin", name: str = "strided.onnx") -> Path:
    """The model with all its tensors in another file."""
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    onnx.save(
        copy,
        str(folder / name),
        save_as_external_data=True,
        location=data,
        size_threshold=0,
        convert_attribute=True,
    )
    return folder / name


def two_convolutions() -> Any:
    weights = {"a": drawn(16, 3, 3, 3), "b": drawn(4, 16, 3, 3, seed=3), "c": drawn(16, seed=4)}
    nodes = [
        helper.make_node("Conv", ["x", "a", "c"], ["1"], "first", strides=[2, 2]),
        helper.make_node("Conv", ["1", "b"], ["y"], "second"),
    ]
    return model_of(nodes, {"x": free(2, 3)}, weights=weights)


def test_external_data_stays_external_under_the_targets_name(tmp_path: Path) -> None:
    model = two_convolutions()
    source = apart(model, tmp_path)
    whole = (tmp_path / "numbers.bin").read_bytes()
    (tmp_path / "to").mkdir()
    report = convert_file(source, tmp_path / "to" / "out.onnx")
    assert report.data == tmp_path / "to" / "out.onnx.data"
    assert {p.name for p in (tmp_path / "to").iterdir()} == {"out.onnx", "out.onnx.data"}
    written = onnx.load(str(tmp_path / "to" / "out.onnx"), load_external_data=False)
    places = {
        entry.value
        for tensor in written.graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    assert places == {"out.onnx.data"}
    (new,) = [t for t in written.graph.initializer if t.name == "a/unit_stride"]
    assert external_data_helper.uses_external_data(new)
    assert (tmp_path / "numbers.bin").read_bytes() == whole
    x = integers(2, 3, 12, 13)
    expected, obtained = (outputs_of(m, {"x": x})[0] for m in (model, tmp_path / "to" / "out.onnx"))
    np.testing.assert_allclose(obtained, expected, atol=1e-4)
    assert verify_files(source, tmp_path / "to" / "out.onnx").passed
    loaded = {t.name: t for t in onnx.load(str(tmp_path / "to/out.onnx")).graph.initializer}
    assert np.array_equal(numpy_helper.to_array(loaded["b"]), drawn(4, 16, 3, 3, seed=3))


def test_what_is_too_large_for_one_file_goes_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "LARGEST_FILE", 4096)  # of 2 GiB
    source = saved(two_convolutions(), tmp_path)
    report = convert_file(source, tmp_path / "out.onnx")
    assert report.data == tmp_path / "out.onnx.data"
    assert (tmp_path / "out.onnx").stat().st_size < 4096
    assert verify_files(source, tmp_path / "out.onnx").passed


def test_a_target_beside_the_data_that_is_read_is_refused(tmp_path: Path) -> None:
    source = apart(two_convolutions(), tmp_path, "out.onnx.data")
    whole = (tmp_path / "out.onnx.data").read_bytes()
    with pytest.raises(
        InputError, match=r"out.onnx would overwrite .*out.onnx.data, which is read"
    ):
        convert_file(source, tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx.data").read_bytes() == whole


def with_location(source: Path, location: str, **entries: str) -> None:
    proto = onnx.load(str(source), load_external_data=False)
    for tensor in proto.graph.initializer:
        found = {entry.key: entry.value for entry in tensor.external_data}
        del tensor.external_data[:]
        for key, value in {**found, "location": location, **entries}.items():
            tensor.external_data.add(key=key, value=value)
    source.write_bytes(proto.SerializeToString())


def test_external_data_that_is_not_there_or_somewhere_else(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    source = apart(two_convolutions(), folder)
    (tmp_path / "secret.bin").write_bytes((folder / "numbers.bin").read_bytes())
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    for location in ("../secret.bin", str(tmp_path / "secret.bin"), "link.bin", "."):
        with_location(source, location)
        refused(
            "refers to .*, outside of the file's folder; put the data beside", source, check=False
        )
    with_location(source, "numbers.bin", offset="999999")
    refused("numbers.bin ends before tensor .* does", source, check=False)
    with_location(source, "missing.bin", offset="0")
    refused("lies in missing.bin, which is missing; copy it", source)
    with_location(source, "numbers.bin", offset="nonsense")
    refused("is not valid ONNX", source, check=False)


# Speed and memory

BIG = """
import sys, time
from pathlib import Path
import onnx, onnx_ir
from stridenet.onnx.files import convert_file

def peak():  # in this process alone: getrusage begins with that of the process that started it
    (line,) = [x for x in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in x]
    return 1024 * int(line.split()[1])

before, start = peak(), time.process_time()
convert_file(*sys.argv[1:], check=False)
print(time.process_time() - start, peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is Linux's to tell")
def test_a_large_file_takes_seconds_and_at_most_three_times_its_size(tmp_path: Path) -> None:
    weights = {str(i): np.ones((512, 512, 3, 3), np.float32) for i in range(5)}  # 9.4 MB each
    nodes = [
        helper.make_node(
            "Conv", [f"x{i}" if i else "x", str(i)], [f"x{i + 1}"], strides=[2 - i % 2] * 2
        )
        for i in range(5)
    ]
    source = saved(model_of(nodes, {"x": free(2, 512)}, ["x5"], weights), tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", BIG, str(source), str(tmp_path / "out.onnx")],
        capture_output=True,
        text=True,
        check=True,
    )
    seconds, taken = map(float, done.stdout.split())
    assert taken < 3 * source.stat().st_size
    assert seconds < 5
