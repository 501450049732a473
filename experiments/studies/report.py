"""Everything in outputs/report/, from the runs of one experiment."""

import textwrap
from pathlib import Path

from experiments.reporting.figures import save_figure
from experiments.reporting.provenance import about_runs, circumstances_of
from experiments.reporting.section import WIDTH, remove_earlier
from experiments.runs.files import write_json
from experiments.runs.networks import build_strided
from experiments.runs.results import finished_runs, tidy
from experiments.settings.schema import ReportConfig
from experiments.studies.comparison import comparison_section
from experiments.studies.copied_weights import copied_sections
from experiments.studies.sharing import freedom_section
from experiments.studies.table1 import (
    accuracy_by_epoch,
    accuracy_of_seeds,
    table1,
    table1_section,
    training_time,
)
from experiments.studies.table2 import feature_maps, table2_section
from experiments.studies.training_step import benchmark_sections
from stridenet.elimination import plan_elimination
from stridenet.files import make_folder, write
from stridenet.plan import EliminationPlan

OPTIONAL = {
    "accuracy_by_epoch",
    "accuracy_of_seeds",
    "benchmark",
    "copied_weights",
    "training_time",
}


def write_report(config: ReportConfig) -> list[str]:
    """Write tables, figures and runs.csv into outputs/report; returns what to print."""
    folder = Path(config.outputs) / "report"
    results = finished_runs(config)
    runs = tidy(results)
    input_size = config.data.input_size
    plan = plan_elimination(build_strided(config.model, input_size), input_size)
    pooling = _pooling_plan(config) if (runs.network == "pooling").any() else None
    make_folder(folder)
    table = runs.drop(columns="test_bits", errors="ignore")
    write(folder / "runs.csv", table.to_csv(index=False).encode())
    write_json(folder / "about.json", circumstances_of(config, runs))

    about = about_runs(config, runs)
    accuracy = table1(runs, plan, config.data.name, pooling)
    sections = [
        table1_section(config, runs, accuracy, plan, about),
        comparison_section(config, runs, plan, about),
        table2_section(plan, pooling),
        freedom_section(plan),
        *copied_sections(runs, about),
        *benchmark_sections(config),
    ]
    texts = [section.save(folder) for section in sections]

    drawn = {"feature_maps": feature_maps(plan)}
    if (runs.weights == "scratch").any():
        drawn["accuracy_by_epoch"] = accuracy_by_epoch(results)
        drawn["accuracy_of_seeds"] = accuracy_of_seeds(runs, accuracy)
        drawn["training_time"] = training_time(runs, accuracy)
    for name, figure in drawn.items():
        save_figure(figure, folder / name)
    remove_earlier(folder, OPTIONAL - drawn.keys() - {section.name for section in sections})
    return [
        *texts,
        textwrap.fill(about, WIDTH),
        f"Tables (csv, md, tex) and figures (png, svg) are in {folder}.",
    ]


def _pooling_plan(config: ReportConfig) -> EliminationPlan:
    """Return the plan of the network with pooling layers that the strided one stands for."""
    pooled = build_strided(config.model, config.data.input_size, max_pooling=True)
    return plan_elimination(pooled, config.data.input_size)
