"""stridenet plan, convert and verify with PyTorch models: which they are, and what is written."""

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from stridenet import converted_layers, eliminate_stride, host
from stridenet.by_layer.check import strides_left
from stridenet.cli.models import Request, load, random_inputs, read_model
from stridenet.zoo import lenet
from tests.command import Cli, files_in
from tests.onnx_models import operators_of, strides_of

MODELS = """\
from torch import nn
import torch.nn.functional as F

def small(width=4, stride=2):
    return nn.Sequential(nn.Conv2d(3, width, 3, stride=stride), nn.ReLU(), nn.Conv2d(width, 2, 2))

def pooled():
    return nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1))

class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, stride=2), nn.Conv2d(1, 4, 3, stride=2)

    def forward(self, x, y):
        return F.max_pool2d(self.a(x) + self.b(y), 2)

class Made:
    @staticmethod
    def deep():
        return small(3)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder with a file of models, which is the current one."""
    (tmp_path / "my_models.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "my_models", raising=False)
    return tmp_path


def mine(name: str = "small", **options: object) -> list[str]:
    typed = [f"--{key.replace('_', '-')}={value}" for key, value in options.items()]
    return [f"my_models.py:{name}", "--input-size", "3,9,9", *typed]


def loaded(typed: str, **arguments: object) -> nn.Module:
    return load(read_model(typed), arguments, None, 0)


# Networks


@pytest.mark.parametrize("typed", ["my_models.py:small", "./my_models.py:small", "my_models:small"])
def test_a_file_of_any_folder_or_a_module_of_this_one(typed: str, folder: Path, cli: Cli) -> None:
    said = cli("verify", typed, "--args", '{"width": 5}', "--input-size", "3x9x9")
    assert (said.code, said.err) == (0, "")
    (folder / "below").mkdir()
    os.chdir(folder / "below")
    sys.modules.pop("my_models", None)
    assert cli("plan", "../my_models.py:Made.deep").code == 0


def test_a_file_with_the_name_of_a_module_is_the_file(folder: Path, cli: Cli) -> None:
    (folder / "json.py").write_text(MODELS)
    assert cli("plan", "json.py:small").code == 0
    assert not hasattr(sys.modules["json"], "small")


def test_a_file_may_import_from_its_folder(folder: Path, cli: Cli) -> None:
    (folder / "below").mkdir()
    (folder / "below" / "blocks_of_mine.py").write_text(MODELS)
    (folder / "below" / "net.py").write_text("from blocks_of_mine import small as net\n")
    before = list(sys.path)
    assert cli("plan", "below/net.py:net").code == 0
    assert sys.path == before


def test_the_seed_decides_weights_and_inputs(folder: Path) -> None:
    named = read_model("my_models.py:small")
    first, again, other = (load(named, {}, None, seed)[0].weight for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not load(named, {}, None, 0).training
    one, same = (random_inputs([(3, 8, 9), (5,)], 4, seed=2) for _ in range(2))
    assert [x.shape for x in one] == [(4, 3, 8, 9), (4, 5)]
    assert all(map(torch.equal, one, same))


def test_weights_of_a_file_are_taken(folder: Path, cli: Cli) -> None:
    source = loaded("my_models.py:small")
    with torch.no_grad():
        source[0].weight.fill_(0.25)
    torch.save(source.state_dict(), "mine.pt")
    said = cli("convert", *mine(weights="mine.pt"), "-o", "unit.pt")
    assert said.code == 0
    assert set(torch.load("unit.pt", weights_only=True)["0.weight"].unique().tolist()) == {0, 0.25}


def test_what_a_users_code_prints_is_not_on_the_standard_output(folder: Path, cli: Cli) -> None:
    (folder / "loud.py").write_text(
        f"{MODELS}\nimport os, sys\nprint('imported')\n"
        "class Loud(nn.Conv2d):\n    def forward(self, x):\n"
        "        print('called'); sys.stderr.write('and told\\n')\n"
        "        return super().forward(x)\n"
        "def net():\n    os.write(1, b'written\\n')\n"
        "    return nn.Sequential(Loud(3, 4, 3), nn.Conv2d(4, 2, 3, 2))\n"
    )
    said = cli("plan", "loud.py:net", "--input-size", "3,9,9", "--csv")
    assert (said.code, said.out.splitlines()[0][:15]) == (0, "layer,operation")
    assert said.err.splitlines() == ["imported", "written", "called", "and told"]


# Plan


def test_a_plan_of_either_theorem(folder: Path, cli: Cli) -> None:
    first = cli("plan", *mine(), "--pooling").out
    assert "2x4x4x4" not in first
    assert "4x12x2x2" in first
    second = cli("plan", *mine(theorem=2)).out
    assert "4x12x2x2" in second
    assert "strided layers  1 of 2 with filters" in second
    whole = cli("plan", "stridenet.zoo:lenet", "--theorem=2", "--input-size=1,28,28").out
    assert "320x16x2x2" in whole
    assert "multiply-adds   2.68 M -> 4.53 M (1.69 times), of one image" in whole
    assert max(map(len, (first + second + whole).splitlines())) <= 80
    wider = cli("plan", *mine(theorem=2, output_factor="2,2"))
    assert "16x48x2x2" in wider.out


def test_without_a_size_a_plan_knows_no_costs(folder: Path, cli: Cli) -> None:
    said = cli("plan", "my_models.py:small")
    assert (said.code, "not known" in said.out) == (0, True)


# Convert


def images_of(*size: int) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(3))


def run_onnx(path: Path, *arrays: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path))
    names = [given.name for given in session.get_inputs()]
    return session.run(None, dict(zip(names, arrays, strict=True)))[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "operators"),
    [
        ([], {"Reshape"}),
        (["--rearrange=space_to_depth"], {"SpaceToDepth"}),
        (["--kernel=odd"], set()),
    ],
)
def test_into_an_onnx_file_of_any_size(
    options: list[str], operators: set[str], folder: Path, cli: Cli
) -> None:
    said = cli("convert", *mine(), "-o", "unit.onnx", *options)
    assert (said.code, said.err) == (0, "")
    assert "unit.onnx" in files_in(folder)
    assert not [name for name in files_in(folder) if name.startswith(".")]
    assert strides_of(folder / "unit.onnx") == []
    assert operators <= {*operators_of(folder / "unit.onnx")}
    x = images_of(3, 3, 14, 17)
    expected = loaded("my_models.py:small")(x).detach().numpy()
    np.testing.assert_allclose(run_onnx(folder / "unit.onnx", x.numpy()), expected, atol=1e-5)


@pytest.mark.slow
def test_a_batch_fixes_all_sizes_and_pooling_goes_too(folder: Path, cli: Cli) -> None:
    typed = mine("pooled")
    assert cli("convert", *typed, "-o", "kept.onnx").code == 0
    assert strides_of(folder / "kept.onnx") == [[2, 2]]
    assert cli("convert", *typed, "--pooling", "--batch=2", "-o", "unit.onnx").code == 0
    assert strides_of(folder / "unit.onnx") == []
    dims = onnx.load("unit.onnx").graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_value for dim in dims] == [2, 3, 9, 9]


@pytest.mark.slow
def test_the_twin_of_a_trained_network_for_a_host_that_rearranges(tmp_path: Path, cli: Cli) -> None:
    """LeNet with weights, as a user exports it for a device."""
    torch.manual_seed(5)
    model = lenet().eval()
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    said = cli("convert", "stridenet.zoo:lenet", "--weights", "weights.pt", "--theorem=2",
               "--input-size=1,28,28", "--rearrange=host", "--batch=1", "-o", "lenet.onnx")  # fmt: skip
    assert (said.code, said.err) == (0, "")
    assert files_in(tmp_path) == ["lenet.layout.json", "lenet.onnx", "weights.pt"]
    images = images_of(1, 1, 28, 28)
    layout = host.read_layout("lenet.layout.json")
    scores = run_onnx(tmp_path / "lenet.onnx", host.rearrange(layout, images.numpy()))
    np.testing.assert_allclose(scores, model(images).detach().numpy(), rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.sample(1)
@pytest.mark.parametrize("theorem", [1, 2])
def test_into_a_program_of_torch_export(theorem: int, folder: Path, cli: Cli) -> None:
    said = cli("convert", *mine(theorem=theorem), "-o", "unit.pt2")
    assert (said.code, said.err) == (0, "")
    program = torch.export.load("unit.pt2")
    convolutions = [n for n in program.graph.nodes if "conv2d" in str(n.target)]
    assert [n for n in convolutions if 2 in (n.args[3] if n.args[3:] else ())] == []
    x = images_of(4, 3, 9, 9) if theorem == 2 else images_of(4, 3, 12, 15)
    torch.testing.assert_close(program.module()(x), loaded("my_models.py:small")(x))
    assert "1x3x9x9, 3x3x9x9" in said.out
    assert ("3x3x12x12" in said.out) == (theorem == 1)
    assert cli("convert", *mine(theorem=theorem, batch=2), "-o", "two.pt2").code == 0
    with pytest.raises((RuntimeError, AssertionError)):
        torch.export.load("two.pt2").module()(x)


@pytest.mark.parametrize(
    ("typed", "options"),
    [
        ("my_models.py:small", ["--args", '{"width": 6}']),
        ("my_models:Made.deep", []),
        ("my_models.py:pooled", ["--pooling", "--only=0", "--only=1"]),
        ("stridenet.zoo:lenet", ["--theorem=2", "--input-size=1,28,28", "--output-factor=2"]),
        ("below/with-a-dash.py:small", []),
    ],
)
def test_into_a_state_dict_with_the_lines_that_load_it(
    typed: str, options: list[str], folder: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lines are run as they are printed."""
    (folder / "below").mkdir()
    (folder / "below" / "with-a-dash.py").write_text(MODELS)
    said = cli("convert", typed, *options, "-o", "unit.pt")
    assert (said.code, said.err) == (0, "")
    told, _, lines = said.out.partition("\n\n")
    assert "equal to the bit" in told
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    sys.modules.pop("my_models", None)
    names: dict[str, Any] = {}
    exec(lines, names)
    state = torch.load("unit.pt", weights_only=True)
    made = names["network"].state_dict()
    assert [*state] == [*made]
    assert all(map(torch.equal, state.values(), made.values()))
    assert strides_left(names["network"]) == []


# Verify


def test_a_model_is_compared_with_what_is_made_of_it(folder: Path, cli: Cli) -> None:
    said = cli("verify", *mine("pooled"))
    assert (said.code, said.err) == (0, "")
    lines = said.out.splitlines()
    assert lines[-2] == "strides above 1: 1"
    assert lines[-1].startswith("equal up to rounding")
    assert "strides above 1: none" in cli("verify", *mine("pooled"), "--pooling").out
    assert cli("verify", *mine(theorem=2)).code == 0
    two = cli("verify", "my_models.py:Two", "--input-size", "3,9,9", "--input-size", "1,9,9")
    assert (two.code, "max_pool2d (my_models.py, line " in two.out) == (0, True)


def test_a_model_needs_no_size_layer_by_layer(folder: Path, cli: Cli) -> None:
    said = cli("verify", "my_models.py:small")
    assert (said.code, "equal up to rounding" in said.out) == (0, True)


@pytest.mark.parametrize("theorem", [1, 2])
def test_a_model_that_differs_is_1(
    theorem: int, folder: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Request.converted

    def wrong(self: Request, model: nn.Module, check: bool | None = None) -> nn.Module:
        twin = made(self, model, check)
        with torch.no_grad():
            next(twin.parameters()).mul_(1.001)
        return twin

    monkeypatch.setattr(Request, "converted", wrong)
    said = cli("verify", *mine(theorem=theorem))
    assert (said.code, said.err) == (1, "")
    assert "\nNOT equal, from " in said.out
    assert " NO\n" in said.out
    if theorem == 1:
        made_onnx = cli("convert", *mine(), "-o", "unit.pt2")
        assert (made_onnx.code, (folder / "unit.pt2").exists()) == (1, False)


def test_ten_layers_are_shown_or_all(folder: Path, cli: Cli) -> None:
    typed = ["verify", "stridenet.zoo:lenet", "--theorem=2", "--input-size=1,28,28"]
    short, long = cli(*typed).out, cli(*typed, "--all").out
    assert "less of the bound on rounding: --all shows every one" in short
    layers = len(eliminate_stride(lenet(), (1, 28, 28)).plan.layers)
    assert len([line for line in short.splitlines() if line.endswith(" yes")]) == 10
    assert len([line for line in long.splitlines() if line.endswith(" yes")]) >= layers


def test_strides_that_are_left() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.AdaptiveAvgPool2d(3), nn.AdaptiveAvgPool2d(1))
    assert strides_left(model) == ["0", "1"]
    assert strides_left(model, torch.randn(1, 3, 9, 9)) == ["0", "1"]
    assert not converted_layers(model)
