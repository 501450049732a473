"""Says which operator has which rule. Operators without a rule are left as they are."""

import onnx_ir as ir

from stridenet.onnx.files.building import Builder
from stridenet.onnx.files.filters import NewFilters
from stridenet.onnx.files.reading import DEFAULT_DOMAINS
from stridenet.onnx.files.rules.base import QUANTIZED, NodeRule, Replacement, Site
from stridenet.onnx.files.rules.convolution import Convolution
from stridenet.onnx.files.rules.pooling import AveragePooling, MaxPooling
from stridenet.onnx.files.windows import Window


class Quantized:
    """Declines quantized convolutions and pooling by name; a rule for them would take its place.

    They pad with the zero point, which their structural zeros would have to be, too.
    """

    def __init__(self, pooling: bool = False) -> None:
        self.pooling = pooling

    def declines(self, site: Site) -> str | None:
        """Decline every node."""
        return QUANTIZED

    def windows(self, site: Site) -> tuple[Window, ...]:
        """Return nothing: a node that is declined has no use for windows."""
        return ()

    def convert(self, site: Site, b: Builder, new_filters: NewFilters) -> Replacement:
        """Raise NotImplementedError: a node that is declined is not converted."""
        raise NotImplementedError(site.node.op_type)


_TABLE: dict[tuple[str, str], NodeRule] = {
    ("", "Conv"): Convolution(),
    ("", "MaxPool"): MaxPooling(),
    ("", "AveragePool"): AveragePooling(),
    ("", "QLinearConv"): Quantized(),
    ("", "ConvInteger"): Quantized(),
    ("com.microsoft", "QLinearConv"): Quantized(),
    ("com.microsoft", "QLinearAveragePool"): Quantized(pooling=True),
}


def rule_for(node: ir.Node) -> NodeRule | None:
    """Return the rule of a node's operator; None if it has none."""
    domain = "" if node.domain in DEFAULT_DOMAINS else node.domain
    return _TABLE.get((domain, node.op_type))
