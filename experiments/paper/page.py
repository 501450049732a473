"""The paper's figures as files, for experiments.figures."""

from pathlib import Path

from experiments.paper.figures import figure_1, figure_2, figure_3, figure_4
from experiments.paper.sharing_map import sharing_map
from experiments.reporting.figures import save_figure
from experiments.runs.networks import build_strided
from experiments.settings.schema import FiguresConfig
from stridenet.elimination import plan_elimination
from stridenet.files import make_folder


def write_figures(config: FiguresConfig) -> str:
    """Write all figures into outputs/figures, as .png and .svg; returns what to print."""
    size = config.data.input_size
    plan = plan_elimination(build_strided(config.model, size), size)
    drawn = {
        "sharing_map": sharing_map(plan, config.layer),
        "figure_1": figure_1(),
        "figure_2": figure_2(),
        "figure_3": figure_3(),
        "figure_4": figure_4(),
    }
    folder = Path(config.outputs) / "figures"
    make_folder(folder)
    for name, figure in drawn.items():
        save_figure(figure, folder / name)
    return f"Figures 1 to 4 and the sharing map of {config.layer} (png, svg) are in {folder}."
