"""The paper's first setting: does the twin with copied weights predict the same?"""

import pandas as pd

from experiments.reporting.section import Section


def copied_weights(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the least agreement and the largest difference over n seeds.

    This is the paper's first setting.
    """
    copies = runs[runs.weights == "copy"]
    rows = [
        {
            "numbers": number,
            "n": len(copies),
            "images": copies[f"copied.{number}.images"].max(),
            "agreeing_least": copies[f"copied.{number}.agreeing"].min(),
            "largest_difference": copies[f"copied.{number}.largest_difference"].max(),
        }
        for number in ("float32", "float64")
        if len(copies)
    ]
    return pd.DataFrame(
        rows, columns=["numbers", "n", "images", "agreeing_least", "largest_difference"]
    ).astype({"images": int, "agreeing_least": int})


def copied_sections(runs: pd.DataFrame, about: str) -> list[Section]:
    copied = copied_weights(runs)
    caption = (
        "Test images on which the unit-stride network with the strided one's weights predicts the "
        "same class, at the least over n seeds, and the largest difference of a score."
    )
    readable = copied.assign(largest_difference=copied.largest_difference.map("{:.1e}".format))
    section = Section("copied_weights", "Copied weights", caption, about, copied, readable)
    return [section] if len(copied) else []
