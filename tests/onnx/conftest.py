"""Fixtures that the tests of ONNX files share."""

import warnings
from pathlib import Path

import pytest

with warnings.catch_warnings():  # of their own imports
    warnings.simplefilter("ignore")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "net.onnx"
