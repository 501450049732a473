"""What torch's own tools make of a converted network: export, compile, trace, fx, ONNX."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.export import Dim, export

from stridenet import convert_layers, export_onnx
from stridenet.errors import InputError

pytestmark = pytest.mark.slow


class Net(nn.Module):
    """Every kind of converted layer, and a strided call."""

    def __init__(self):
        super().__init__()
        self.c = nn.Conv2d(3, 8, 7, 2, 3)
        self.bn = nn.BatchNorm2d(8)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.depthwise = nn.Conv2d(8, 8, 3, 2, 1, groups=8)
        self.weight = nn.Parameter(torch.randn(8, 8, 3, 3))
        self.up = nn.ConvTranspose2d(8, 4, 3, 2, 1, 1)
        self.average = nn.AvgPool2d(2)

    def forward(self, x):
        x = self.depthwise(self.pool(F.relu(self.bn(self.c(x)))))
        x = F.conv2d(x, self.weight, stride=2, padding=1)
        return self.average(self.up(x))


@pytest.fixture(scope="module", params=[False, True], ids=["convolutions", "pooling too"])
def networks(request):
    torch.manual_seed(0)
    model = Net().eval()
    return model, convert_layers(model, pooling=request.param)


X = torch.randn(2, 3, 40, 36)
OTHER = torch.randn(3, 3, 61, 57)
RANGE = {"min": 33, "max": 4096}
SIZES = {
    "automatic": {0: Dim.AUTO, 2: Dim.AUTO, 3: Dim.AUTO},
    "named": {0: Dim("b"), 2: Dim("h", **RANGE), 3: Dim("w", **RANGE)},
}


def close(obtained, expected):
    torch.testing.assert_close(obtained, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:While compiling, we found certain side effects:UserWarning")
@pytest.mark.parametrize(("sizes", "strict"), [("automatic", True), ("named", False)])
def test_export_with_free_sizes(networks, sizes, strict):
    model, same = networks
    program = export(same, (X,), dynamic_shapes=(SIZES[sizes],), strict=strict)
    close(program.module()(OTHER), model(OTHER))


def test_compile_without_a_break(networks):
    model, same = networks
    torch.compiler.reset()
    compiled = torch.compile(same, fullgraph=True, backend="aot_eager", dynamic=True)
    for x in (X, OTHER):
        close(compiled(x), model(x))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_trace(networks):
    model, same = networks
    close(torch.jit.trace(same, X)(X), model(X))


def test_converted_layers_are_leaves_of_fx(networks):
    model, same = networks
    traced = torch.fx.symbolic_trace(same)
    close(traced(OTHER), model(OTHER))
    assert {"c", "depthwise", "up"} <= {
        n.target for n in traced.graph.nodes if n.op == "call_module"
    }


def test_an_onnx_file_of_any_batch_and_size(networks, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    model, same = networks
    report = export_onnx(same, tmp_path / "net.onnx", example_inputs=X)
    kinds = {node.operator for node in report.strided}
    assert kinds <= {"MaxPool", "AveragePool"}  # which were not asked to go
    if isinstance(same.pool.stride, int) and same.pool.stride == 1:
        assert not kinds
    session = onnxruntime.InferenceSession(str(tmp_path / "net.onnx"))
    name = session.get_inputs()[0].name
    for x in (X, OTHER, torch.randn(1, 3, 33, 90)):
        (obtained,) = session.run(None, {name: x.numpy()})
        close(torch.from_numpy(obtained), model(x).detach())


def test_a_file_of_fixed_size(networks, tmp_path):
    _, same = networks
    report = export_onnx(same, tmp_path / "net.onnx", (3, 40, 36), batch=1)
    assert report.comparison.batches == (1,)


def test_layers_that_were_left_out_may_stay(tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.Conv2d(4, 4, 3, 2))
    same = convert_layers(model, only=["0"])
    report = export_onnx(same, tmp_path / "net.onnx", example_inputs=X)
    assert [node.operator for node in report.strided] == ["Conv"]


def test_example_inputs_are_tensors(tmp_path):
    same = convert_layers(nn.Conv2d(3, 4, 3, 2))
    for wrong in ({"x": X}, "x", ()):
        with pytest.raises(InputError, match="give a tensor, or a tuple of tensors"):
            export_onnx(same, tmp_path / "net.onnx", example_inputs=wrong)
