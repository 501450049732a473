"""The PyTorch export has the choices of a file's conversion."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stridenet import convert_layers, export_onnx
from stridenet.errors import InputError
from tests.onnx_models import operators_of, outputs_of, strides_of

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import onnx


def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
        ).eval()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rearrange", "kernel"), [("two-step", "odd"), ("space_to_depth", "minimal")]
)
def test_a_strided_network_is_exported_in_the_spelling_that_is_asked_for(
    rearrange: str, kernel: Any, tmp_path: Path
) -> None:
    model, x = network(), torch.randn(2, 3, 20, 18)
    path = tmp_path / "net.onnx"
    report = export_onnx(
        model, path, example_inputs=x, rearrange=rearrange, kernel=kernel, pooling=True
    )
    assert (report.path, report.strided, strides_of(path)) == (path, (), [])
    assert ("SpaceToDepth" in operators_of(path)) == (rearrange == "space_to_depth")
    assert report.operators["Conv"] == 1
    name = onnx.load(str(path)).graph.input[0].name
    for images in (x, torch.randn(1, 3, 31, 24)):
        expected: Tensor = model(images)
        obtained = outputs_of(path, {name: images.numpy()})[0]
        np.testing.assert_allclose(obtained, expected.detach().numpy(), atol=1e-5)


def test_what_is_converted_already_and_choices_without_a_conversion_are_refused(
    tmp_path: Path,
) -> None:
    path = tmp_path / "net.onnx"
    with pytest.raises(
        InputError, match="has been converted: give the network that it was made of"
    ):
        export_onnx(convert_layers(network()), path, (3, 20, 18), rearrange="two-step")
    with pytest.raises(InputError, match="kernel=odd, pooling=False are of a file's conversion"):
        export_onnx(network(), path, (3, 20, 18), kernel="odd")
    assert not list(tmp_path.iterdir())
