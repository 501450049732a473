"""Which operator has which rule. Everything else is left as it is."""

import onnx_ir as ir

from stridenet.onnx.files.reading import DEFAULT_DOMAINS
from stridenet.onnx.files.rules.base import Rule
from stridenet.onnx.files.rules.convolution import Convolution
from stridenet.onnx.files.rules.pooling import AveragePooling, MaxPooling
from stridenet.onnx.files.rules.quantized import Quantized

_TABLE: dict[tuple[str, str], Rule] = {
    ("", "Conv"): Convolution(),
    ("", "MaxPool"): MaxPooling(),
    ("", "AveragePool"): AveragePooling(),
    ("", "QLinearConv"): Quantized(),
    ("", "ConvInteger"): Quantized(),
    ("com.microsoft", "QLinearConv"): Quantized(),
    ("com.microsoft", "QLinearAveragePool"): Quantized(pooling=True),
}


def rule_for(node: ir.Node) -> Rule | None:
    """The operator's rule; None where it has none."""
    domain = "" if node.domain in DEFAULT_DOMAINS else node.domain
    return _TABLE.get((domain, node.op_type))
