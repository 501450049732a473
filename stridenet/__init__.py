"""Strided convolutional networks as equivalent networks with unit strides only (Kong & Lucey 2017)."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    __version__: str
    from stridenet.by_layer.conversion import convert_layers, convert_state_dict
    from stridenet.by_layer.converted import converted_layers
    from stridenet.by_layer.plan import LayersPlan, plan_layers
    from stridenet.elimination import eliminate_stride, plan_elimination
    from stridenet.errors import StrideEliminationError
    from stridenet.onnx.export import ExportReport, export_onnx
    from stridenet.phases import depth_to_space, space_to_depth
    from stridenet.plan import EliminationPlan
    from stridenet.sharing import fold_back, share
    from stridenet.sharing_measures import degrees_of_freedom, distance_from_tied
    from stridenet.twin import UnitStrideNetwork
    from stridenet.verification import VerificationReport, verify

__all__ = [
    "EliminationPlan",
    "ExportReport",
    "LayersPlan",
    "StrideEliminationError",
    "UnitStrideNetwork",
    "VerificationReport",
    "convert_layers",
    "convert_state_dict",
    "converted_layers",
    "degrees_of_freedom",
    "depth_to_space",
    "distance_from_tied",
    "eliminate_stride",
    "export_onnx",
    "fold_back",
    "plan_elimination",
    "plan_layers",
    "share",
    "space_to_depth",
    "verify",
]
_HOME = {
    "convert_layers": "by_layer.conversion",
    "convert_state_dict": "by_layer.conversion",
    "converted_layers": "by_layer.converted",
    "LayersPlan": "by_layer.plan",
    "plan_layers": "by_layer.plan",
    "eliminate_stride": "elimination",
    "plan_elimination": "elimination",
    "EliminationPlan": "plan",
    "ExportReport": "onnx.export",
    "export_onnx": "onnx.export",
    "StrideEliminationError": "errors",
    "UnitStrideNetwork": "twin",
    "degrees_of_freedom": "sharing_measures",
    "distance_from_tied": "sharing_measures",
    "fold_back": "sharing",
    "share": "sharing",
    "depth_to_space": "phases",
    "space_to_depth": "phases",
    "VerificationReport": "verification",
    "verify": "verification",
}


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    # Importing torch takes two seconds, which `--help` and a mistyped option should not.
    if name == "__version__":
        return _version()
    if name not in _HOME:
        raise AttributeError(f"module 'stridenet' has no attribute {name!r}")
    return getattr(importlib.import_module(f"stridenet.{_HOME[name]}"), name)


def _version() -> str:
    from importlib import metadata  # not needed to convert, and slow to import

    try:
        return metadata.version("stridenet")
    except metadata.PackageNotFoundError:  # read from a folder that is not installed
        return "0+unknown"
