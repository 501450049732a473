"""Converts ONNX files by Theorem 1: strided operators become padding, rearrangement and unit strides.

Nothing here imports torch. `convert_file` writes a file, `plan_file` says what it would cost,
`verify_files` compares two files, `benchmark_files` times them.
"""

import importlib
from typing import TYPE_CHECKING, Any

from stridenet.errors import InputError, NotEqualError

if TYPE_CHECKING:
    from stridenet.onnx.files.api import benchmark_files, convert_file, plan_file, verify_files
    from stridenet.onnx.files.options import Kernel, Rearrange
    from stridenet.onnx.files.reports import ConversionReport, FilesReport, FileTimes

__all__ = [
    "ConversionReport",
    "FileTimes",
    "FilesReport",
    "Kernel",
    "NotEqualError",
    "Rearrange",
    "benchmark_files",
    "convert_file",
    "plan_file",
    "verify_files",
]
_HOME = {
    "ConversionReport": "reports",
    "FileTimes": "reports",
    "FilesReport": "reports",
    "Kernel": "options",
    "Rearrange": "options",
    "benchmark_files": "api",
    "convert_file": "api",
    "plan_file": "api",
    "verify_files": "api",
}


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    # onnx takes half a second to import, which `--help` and a mistyped option should not.
    if name not in _HOME:
        raise AttributeError(f"module 'stridenet.onnx.files' has no attribute {name!r}")
    try:
        home = importlib.import_module(f"stridenet.onnx.files.{_HOME[name]}")
    except ModuleNotFoundError as error:
        raise InputError(
            f"ONNX files need onnx and onnx-ir ({error}): pip install '.[onnx]' in stridenet's folder"
        ) from error
    return getattr(home, name)
