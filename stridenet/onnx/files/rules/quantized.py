"""Quantized convolutions and pooling: their names, and no rule yet, which would take its place here."""

from stridenet.onnx.files.building import Builder
from stridenet.onnx.files.rules.base import QDQ, Converted, Site
from stridenet.onnx.files.weights import Expanded
from stridenet.onnx.files.windows import Window


class Quantized:
    """Refused by name: padding is with the zero point, and so are the structural zeros."""

    def __init__(self, pooling: bool = False) -> None:
        self.pooling = pooling

    def declines(self, site: Site) -> str | None:
        """Always."""
        return QDQ

    def windows(self, site: Site) -> tuple[Window, ...]:
        """Not asked for, as it is declined."""
        return ()

    def convert(self, site: Site, b: Builder, expanded: Expanded) -> Converted:
        """Not asked for, as it is declined."""
        raise NotImplementedError(site.node.op_type)
