"""Models that are to be quantized later are ordinary networks; those that are quantized are refused."""

import pytest
import torch
from torch import Tensor, nn
from torch.ao.nn.quantized import FloatFunctional

from stridenet import StrideEliminationError, convert_layers, converted_layers, plan_elimination


class ToBeQuantized(nn.Module):
    """Networks have it that are to be quantized: sums by a module, so that they can be observed."""

    def __init__(self) -> None:
        super().__init__()
        self.quant, self.dequant = (
            torch.ao.quantization.QuantStub(),
            torch.ao.quantization.DeQuantStub(),
        )
        self.a, self.b, self.sum = nn.Conv2d(3, 4, 3, 2), nn.Conv2d(3, 4, 3, 2), FloatFunctional()

    def forward(self, x: Tensor) -> Tensor:
        x = self.quant(x)
        return self.dequant(self.sum.add(self.a(x), self.b(x)))


def test_a_network_that_is_to_be_quantized_one_day_is_converted() -> None:
    model, x = ToBeQuantized().eval(), torch.randn(2, 3, 9, 9)
    same = convert_layers(model, example_inputs=x)
    assert [*converted_layers(same)] == ["a", "b"]
    torch.testing.assert_close(same(x), model(x))


@pytest.mark.filterwarnings("ignore::UserWarning")  # of torch, that such tensors are deprecated
def test_one_that_is_quantized_is_refused_by_name() -> None:
    quantized = nn.Sequential(torch.ao.nn.quantized.Conv2d(3, 4, 3, 2))
    for convert in (convert_layers, lambda model: plan_elimination(model, (3, 9, 9))):
        with pytest.raises(StrideEliminationError, match=r"0 \(Conv2d\) is quantized"):
            convert(quantized)
