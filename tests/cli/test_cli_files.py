"""stridenet plan, convert and verify with ONNX files: what they write, and how they end."""

import csv
import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from stridenet.onnx.files import plan_file
from tests.command import Cli, files_in
from tests.onnx_models import (
    convolution,
    helper,
    integers,
    model_of,
    operators_of,
    outputs_of,
    saved,
    strides_of,
)

ROOT = Path(__file__).resolve().parents[2]


def network(size: int = 16) -> onnx.ModelProto:
    """Twelve strided convolutions of one map, named c0 to c11, the last the dearest; and a pooling."""
    nodes, weights = [], {}
    for number in range(12):
        weights[f"w{number}"] = integers(number + 1, 3, 3, 3, seed=number)
        nodes.append(
            helper.make_node("Conv", ["x", f"w{number}"], [f"y{number}"], f"c{number}",
                             strides=[2, 2], pads=[1, 1, 1, 1])
        )  # fmt: skip
    nodes.append(
        helper.make_node("MaxPool", ["x"], ["p"], "pool", kernel_shape=[2, 2], strides=[2, 2])
    )
    outputs = [*(f"y{number}" for number in range(12)), "p"]
    return model_of(nodes, {"x": [1, 3, size, size]}, outputs, weights)


@pytest.fixture
def strided(tmp_path: Path) -> Path:
    return saved(convolution([3, 3], [2, 2], pads=[1, 1, 1, 1]), tmp_path)


def spoiled(path: Path) -> Path:
    """The file with one number of its filter changed by a little."""
    model = onnx.load(str(path))
    tensor = next(t for t in model.graph.initializer if t.name.startswith("weight"))
    weight = numpy_helper.to_array(tensor).copy()
    weight.flat[np.flatnonzero(weight)[0]] *= 1.01
    tensor.CopyFrom(numpy_helper.from_array(weight, tensor.name))
    return saved(model, path.parent, "spoiled.onnx")


# Plan


def test_a_plan_shows_the_dearest_ten_and_all_if_asked(cli: Cli, tmp_path: Path) -> None:
    file = saved(network(), tmp_path)
    said, every = cli("plan", file), cli("plan", file, "--all", "--pooling")
    assert (said.code, said.err) == (0, "")
    order = [line.split()[0] for line in said.out.splitlines() if line.startswith("c")]
    assert order == [f"c{number}" for number in range(11, 1, -1)]
    assert "and 2 cheaper layers: --all shows every one" in said.out
    names = [line.split()[0] for line in every.out.splitlines() if line.startswith(("c", "pool"))]
    assert names == [*(f"c{number}" for number in range(11, -1, -1)), "pool"]
    assert "cheaper" not in every.out
    assert max(map(len, every.out.splitlines())) <= 80


def test_a_plan_has_the_numbers_of_both(cli: Cli, strided: Path) -> None:
    """Counted here: 4 filters of 3x3x3 at 32x32 places become 4 of 12x2x2."""
    onnx.save(convolution([3, 3], [2, 2], [1, 3, 64, 64], pads=[1, 1, 1, 1]), str(strided))
    lines = cli("plan", strided).out.splitlines()
    before, after = 4 * 27, 4 * 48
    assert lines[1].split() == ["conv", "3x64x64", "4x3x3x3", str(before), f"{before * 1024:,}"]
    assert lines[2].split() == [
        "->", "Conv", "4x32x32", "4x12x2x2", str(after), str(after - before), f"{after * 1024:,}",
    ]  # fmt: skip
    assert f"{before + 4} -> {after + 4} (1.75 times), {after - before} zeros" in lines[5]
    assert f"{before * 1024:,} -> {after * 1024:,} (1.78 times)" in lines[6]


def test_without_sizes_a_plan_has_no_costs_and_weights_decide(cli: Cli, tmp_path: Path) -> None:
    model = network()
    for dim in model.graph.input[0].type.tensor_type.shape.dim[2:]:
        dim.Clear()
    said = cli("plan", saved(model, tmp_path))
    assert "multiply-adds   not known, as no size of the input is" in said.out
    assert said.out.splitlines()[1].split() == ["c11", "12x3x3x3", "324"]


def test_csv_has_every_layer_with_exact_numbers(cli: Cli, tmp_path: Path) -> None:
    file = saved(network(), tmp_path)
    said = cli("plan", file, "--csv")
    rows = list(csv.DictReader(io.StringIO(said.out)))
    assert (said.code, said.err, len(rows)) == (0, "", 12)
    records = {record["layer"]: record for record in plan_file(file).records()}
    assert [row["layer"] for row in rows] == [f"c{number}" for number in range(11, -1, -1)]
    for row in rows:
        assert row == {key: str(value) for key, value in records[row["layer"]].items()}
    table = cli("plan", file, "--csv", "layers.csv")
    assert (tmp_path / "layers.csv").read_text() == said.out
    assert table.out.startswith(cli("plan", file).out)
    assert table.out.endswith("\nlayers.csv: 12 layers\n")
    assert files_in(tmp_path) == ["layers.csv", "strided.onnx"]


def test_a_long_name_stands_on_a_line_of_its_own(cli: Cli, tmp_path: Path) -> None:
    model = convolution([3, 3], [2, 2], [1, 3, 64, 64])
    model.graph.node[0].name = "/".join(["a_long_name"] * 7)
    lines = cli("plan", saved(model, tmp_path)).out.splitlines()
    assert lines[1] == model.graph.node[0].name
    assert max(map(len, lines)) <= max(80, len(lines[1]))


# Convert


@pytest.mark.parametrize(
    ("options", "operators"),
    [
        ([], {"Reshape", "Transpose"}),
        (["--rearrange", "space_to_depth"], {"SpaceToDepth"}),
        (["--rearrange", "two-step", "--kernel", "odd"], {"Reshape", "Transpose"}),
    ],
)
def test_a_file_is_converted_as_the_options_say(
    options: list[str], operators: set[str], cli: Cli, strided: Path, tmp_path: Path
) -> None:
    said = cli("convert", strided, "-o", "unit.onnx", *options)
    assert (said.code, said.err) == (0, "")
    assert files_in(tmp_path) == ["strided.onnx", "unit.onnx"]
    assert said.out.startswith("unit.onnx: ")
    assert "strides above 1: none" in said.out
    assert max(map(len, said.out.splitlines())) <= 80
    unit = tmp_path / "unit.onnx"
    assert strides_of(unit) == []
    assert operators <= {*operators_of(unit)}
    x = integers(2, 3, 19, 22)
    np.testing.assert_array_equal(outputs_of(unit, {"x": x})[0], outputs_of(strided, {"x": x})[0])


def test_names_and_pooling_are_chosen(cli: Cli, tmp_path: Path) -> None:
    file = saved(network(), tmp_path)
    assert cli("convert", file, "-o", "a.onnx", "--only", "c3", "--only", "pool").code == 0
    assert len(strides_of(tmp_path / "a.onnx")) == 11
    assert cli("convert", file, "-o", "b.onnx").code == 0
    assert strides_of(tmp_path / "b.onnx") == [[2, 2]]
    said = cli("convert", file, "-o", "c.onnx", "--pooling", "--no-check")
    assert "each converted node" not in said.out
    assert strides_of(tmp_path / "c.onnx") == []


def test_the_host_may_rearrange(cli: Cli, tmp_path: Path) -> None:
    model = convolution([4, 4], [4, 4], [1, 3, 16, 16])
    said = cli("convert", saved(model, tmp_path), "-o", "unit.onnx", "--rearrange", "host")
    assert "unit.layout.json: how the host rearranges the images" in said.out
    assert files_in(tmp_path) == ["strided.onnx", "unit.layout.json", "unit.onnx"]


@pytest.mark.slow
def test_files_are_converted_and_compared_without_torch(strided: Path, tmp_path: Path) -> None:
    """Run it in a process in which no import of torch can succeed."""
    program = (
        "import sys\n"
        "sys.modules['torch'] = None\n"
        "from stridenet.cli.app import run\n"
        "for typed in (['plan', 'strided.onnx'], ['convert', 'strided.onnx', '-o', 'unit.onnx'],\n"
        "              ['verify', 'strided.onnx', 'unit.onnx', '--benchmark', '--rounds', '1']):\n"
        "    code = run(typed)\n"
        "    assert code == 0, typed\n"
        "assert not [name for name in sys.modules if name.startswith('torch.')]\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=100,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "unit.onnx").exists()


def test_a_proof_that_fails_is_exit_code_1_and_no_file(
    cli: Cli, strided: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stridenet.onnx.files import api

    write = api.write_onnx

    def write_wrongly(conversion: object, path: Path, data: str) -> None:
        write(conversion, path, data)
        spoiled(path).replace(path)

    monkeypatch.setattr(api, "write_onnx", write_wrongly)
    said = cli("convert", strided, "-o", "unit.onnx")
    assert said.code == 1
    assert said.line.startswith("error: conv")
    assert files_in(tmp_path) == ["strided.onnx"]


# Verify


def test_equal_files_are_0_and_others_1(cli: Cli, strided: Path, tmp_path: Path) -> None:
    cli("convert", strided, "-o", "unit.onnx")
    said = cli("verify", strided, "unit.onnx")
    assert (said.code, said.err) == (0, "")
    assert said.out.splitlines()[-2:] == ["strides above 1: none", "equal"]
    spoiled(tmp_path / "unit.onnx")
    said = cli("verify", strided, "spoiled.onnx")
    assert (said.code, said.err) == (1, "")
    assert said.out.splitlines()[-1] == "NOT equal"
    same = cli("verify", strided, strided)
    assert (same.code, "conv (Conv, strides 2x2)" in same.out) == (0, True)


def test_times_are_medians_with_quartiles_and_their_ratio(cli: Cli, strided: Path) -> None:
    cli("convert", strided, "-o", "unit.onnx")
    said = cli("verify", strided, "unit.onnx", "--benchmark", "--rounds", 3, "--threads", 1,
               "--sizes", "x=2,3,20,24")  # fmt: skip
    assert said.code == 0
    line = " ".join(said.out.split("\nonnxruntime, ")[1].split())
    assert line.startswith("x 2x3x20x24, 1 threads, median of 3 (quartiles): ")
    assert line.endswith(" times)")
    assert line.count("–") == 2


def test_quartiles_are_those_of_the_rounds() -> None:
    from stridenet.onnx.files.reports import FileTimes

    times = FileTimes((3.0, 1.0, 2.0, 5.0, 4.0), (10.0, 10.0, 10.0, 10.0, 20.0), "x 1", 1)
    assert "3 (2–4) ms -> 10 (10–10) ms (3.33 times)" in str(times)
    assert "7 (7–7) ms -> 14 (14–14) ms" in str(FileTimes((7.0,), (14.0,), "x 1", 1))
