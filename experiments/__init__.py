"""What you run from the repository root, one command a file: python -m experiments.NAME."""

import importlib.util
import sys

# The commands need these packages of the extra, named as they are imported.
NEEDED = (
    "hydra",
    "hydra_plugins",
    "omegaconf",
    "joblib",
    "torchvision",
    "pandas",
    "matplotlib",
    "scipy",
    "statsmodels",
    "filelock",
    "jinja2",
    "markupsafe",
    "tabulate",
)

_missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
if _missing:
    _more = f" and {len(_missing) - 1} more" if _missing[1:] else ""
    sys.exit(f"error: {_missing[0]}{_more} not installed: pip install '.[experiments]'")
