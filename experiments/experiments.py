"""Lets every command run as a script too, in whatever environment: python experiments/train.py.

Python then looks for modules in this folder first, so that `import experiments` finds this file. It
puts the repository's root in the folder's place, so that nothing here hides a library, and the package
in its own.
"""

import importlib
import sys
from pathlib import Path

if __name__ == "experiments":
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    del sys.modules[__name__]
    importlib.import_module(__name__)
