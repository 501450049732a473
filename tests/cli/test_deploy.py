"""docs/deploy.md does what it says: its commands and programs are run, its numbers computed."""

import re
import shlex
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from stridenet import export_onnx
from stridenet.onnx.files import plan_file
from tests.command import Cli
from tests.onnx_models import convolution, onnx, outputs_of, saved, strides_of

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = (ROOT / "docs/deploy.md").read_text()
OTHERS = "\n".join((ROOT / name).read_text() for name in ("README.md", "docs/convert.md"))
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def export_net(folder: Path) -> None:
    """What a user has: the net.onnx of the document, with names for its layers."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 7, stride=2, padding=3), nn.ReLU(), nn.MaxPool2d(3, 2, 1),
              nn.Conv2d(8, 4, 3, padding=1)]  # fmt: skip
    export_onnx(nn.Sequential(*layers), folder / "net.onnx", (3, 64, 64), batch=1)
    model = onnx.load(str(folder / "net.onnx"))
    old = model.graph.input[0].name
    model.graph.input[0].name = "x"
    for number, node in enumerate(n for n in model.graph.node if n.op_type == "Conv"):
        node.name = f"conv{number + 1}"
    for node in model.graph.node:
        node.input[:] = ["x" if name == old else name for name in node.input]
    onnx.save(model, str(folder / "net.onnx"))


@pytest.mark.slow
def test_every_command_and_program_of_the_document_runs(cli: Cli, tmp_path: Path) -> None:
    export_net(tmp_path)
    names: dict[str, object] = {}
    commands, said = 0, None
    for kind, text in BLOCK.findall(DEPLOY):
        if kind == "sh":
            for line in text.splitlines():
                program, *typed = shlex.split(line, comments=True)
                assert program == "stridenet"
                said = cli(*typed)
                assert (said.code, said.err) == (0, ""), line
                commands += 1
        elif kind == "text":
            assert said is not None
            assert said.out == text
        elif text.startswith("# my_file.py"):
            (tmp_path / "my_file.py").write_text(text)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                exec(text, names)
    assert commands > 12
    assert strides_of(tmp_path / "all.onnx") == []
    assert strides_of(tmp_path / "unit.onnx") == [[2, 2]]
    x = {"x": np.random.default_rng(9).standard_normal((1, 3, 64, 64)).astype(np.float32)}
    float_, first, second = (
        outputs_of(tmp_path / f"{name}.onnx", x)[0] for name in ("net", "net.int8", "unit.int8")
    )
    step = abs(first - float_).max()
    assert step > 1e-4  # quantization shows
    assert abs(first - second).max() < step / 100


@pytest.mark.slow
def test_the_commands_of_readme_and_convert_run(cli: Cli, tmp_path: Path) -> None:
    """Run them one after the other, in a folder with the files that they name."""
    export_net(tmp_path)
    (tmp_path / "my_file.py").write_text(
        "from torch import nn\n\ndef my_function(num_classes=10):\n"
        "    return nn.Sequential(nn.Conv2d(3, num_classes, 3, 2), nn.ReLU())\n"
    )
    torch.save(nn.Sequential(nn.Conv2d(3, 10, 3, 2)).state_dict(), tmp_path / "my.pt")
    commands = re.findall(
        r"^(stridenet (?:plan|convert|verify) .*?)(?: +#.*)?$", OTHERS, re.MULTILINE
    )
    assert len(commands) > 5
    for line in commands:
        if "torchvision" in line:  # in a test of its own
            continue
        said = cli(*shlex.split(line)[1:])
        assert (said.code, said.err) == (0, ""), line


def test_a_network_of_torchvision_is_planned(cli: Cli) -> None:
    said = cli("plan", "torchvision.models:resnet18", "--input-size", "3,224,224", "--pooling")
    assert (said.code, said.err) == (0, "")
    assert "multiply-adds   310.69 M -> 539.49 M (1.74 times), of these layers" in said.out
    assert "\nlayer4.0.downsample.0  " in said.out


ROWS = re.findall(r"^\| (\d)/(\d)/(\d) \| (\d+) \| (\d)×\d \| (\d+) \| (\d)×\d \| (\d+) \|$", DEPLOY,
                  re.MULTILINE)  # fmt: skip


@pytest.mark.parametrize("row", ROWS, ids="/".join)
def test_the_costs_of_a_kernel_are_those_that_are_counted(
    row: tuple[str, ...], tmp_path: Path
) -> None:
    kernel, stride, padding, strided, *converted = map(int, row)
    assert strided == kernel**2
    model = convolution([kernel] * 2, [stride] * 2, [1, 1, 224, 224], (1, 1), bias=False,
                        pads=[padding] * 4)  # fmt: skip
    file = saved(model, tmp_path)
    for how in ("minimal", "odd"):
        (layer,) = plan_file(file, kernel=how).layers
        _, (_, *places) = layer.maps[0]
        size, cost = converted[:2] if how == "minimal" else converted[2:]
        assert layer.unit_stride_filter[2:] == (size, size)
        assert layer.multiply_adds == (
            strided * places[0] * places[1],
            cost * places[0] * places[1],
        )


def test_all_rows_are_read() -> None:
    assert len(ROWS) == 6


def test_the_cost_as_a_whole_is_the_documents(cli: Cli) -> None:
    said = cli("plan", "stridenet.zoo:resnet20", "--input-size", "3,32,32", "--theorem", "2")
    before, after = re.findall(r"resnet20's ([\d.]+ M) multiply-adds become ([\d.]+ M)", DEPLOY)[0]
    assert f"multiply-adds   {before} -> {after} (7.38 times)" in said.out
