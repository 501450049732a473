"""Lets torchvision be imported beside a CPU-only torch.

torchvision's default build for Linux expects torch with CUDA: elsewhere its compiled operators are
missing, and its import stops where it refers to them. Nothing here uses them, so declaring them is
enough. Where the builds match, nothing is changed. The commands call `watch` where they load data or a
network; the library's functions never do, as the process of whoever calls them is not theirs.
"""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

MISSING = "operator torchvision::{} does not exist"
OPERATORS = ("nms", "qnms")
_kept_alive: list[object] = []  # a torch.library.Library takes its operators along when it goes


class _Finder(MetaPathFinder):
    """Stands before the ordinary finders, for the import of torchvision itself only."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = PathFinder.find_spec(fullname, path) if fullname == "torchvision" else None
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_again(module: ModuleType) -> None:
            try:
                execute(module)
            except RuntimeError as error:
                if str(error) not in map(MISSING.format, OPERATORS):
                    raise
                _declare_operators()
                for name in [name for name in sys.modules if name.startswith("torchvision.")]:
                    del sys.modules[name]  # half imported
                execute(module)

        spec.loader.exec_module = execute_again  # type: ignore[method-assign]
        return spec


def _declare_operators() -> None:
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in OPERATORS:
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _kept_alive.append(library)


def watch() -> None:
    """Let imports of torchvision succeed from now on, also beside a CPU-only torch."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
