"""Results whose numbers were chosen, for tests of tables and figures."""

from collections.abc import Callable

import pandas as pd

from stridenet.plan import EliminationPlan

LENET = (1, 28, 28)


Planned = Callable[..., EliminationPlan]


def runs(*rows: tuple[str, str, int, float, float | None]) -> pd.DataFrame:
    """Return results of runs; the processor took nine tenths of their seconds."""
    columns = ["network", "weights", "seed", "test_accuracy", "training_wall_seconds"]
    table = pd.DataFrame(rows, columns=columns).astype({"training_wall_seconds": float})
    return table.assign(training_cpu_seconds=0.9 * table.training_wall_seconds, device="cpu")


RUNS = runs(
    ("strided", "scratch", 0, 0.98, 10.0),
    ("strided", "scratch", 1, 0.99, 12.0),
    ("strided", "scratch", 2, 0.97, 17.0),
    ("unit_stride", "copy", 0, 0.5, None),
    ("unit_stride", "scratch", 0, 0.975, 20.0),
)


def treated(*rows: tuple[str, str, str, int, float]) -> pd.DataFrame:
    """Runs of network, variant, weights, seed and test accuracy."""
    columns = ["network", "variant", "weights", "seed", "test_accuracy"]
    return pd.DataFrame(rows, columns=columns).assign(
        training_wall_seconds=10.0, training_cpu_seconds=9.0
    )


TREATED = treated(
    ("unit_stride", "tied", "scratch", 0, 0.6),
    ("unit_stride", "tied", "scratch", 1, 0.8),
    ("unit_stride", "masked by_copies", "fine_tune", 0, 0.9),
    ("unit_stride", "tied", "fine_tune", 0, 0.7),
    ("pooling", "", "scratch", 0, 0.95),
)
