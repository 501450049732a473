"""Everything in outputs/report/, from the runs of one experiment."""

import json
import textwrap
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from stridenet import figures, findings, tables
from stridenet.calibration import PAPER_PERCENT, SEEDS, calibration
from stridenet.comparison import compare
from stridenet.config import InputError, Report, Zoo, experiment_identity, model_identity
from stridenet.elimination import EliminationPlan, plan_elimination
from stridenet.networks import build_strided
from stridenet.runs import finished_runs, tidy, write, write_json
from stridenet.sharing import degrees_of_freedom
from stridenet.tracing import written

OPERATORS = 4  # of torch, of which the share of the time is told
WIDTH = 80  # of a terminal
OPTIONAL = {
    "accuracy_by_epoch",
    "accuracy_of_seeds",
    "benchmark",
    "copied_weights",
    "training_time",
}
OF_ARMS = (
    "After the last epoch, mean ± standard deviation over n seeds. Difference: of accuracy from the "
    "strided network of the same seed, in points, with its 95 % interval. Training images: the loss on "
    "the first {images:,} of them; gap: how much higher the test loss is. Zeros and copies: distance "
    "from the tied subspace, in percent of the weights' norm: of what stands at structural zeros, and "
    "of copies from their mean."
)
OF_CLAIMS = (
    "Differences between two arms, paired by seed, with the 95 % interval of the mean (Student's): "
    "that the first has more is supported where the interval lies above zero, contradicted where it "
    "lies below. Each of the {n} intervals stands by itself: of twenty without any effect, one leaves "
    "zero by chance. CPU time is of runs side by side; `make bench` measures it better."
)


@dataclass
class Section:
    """A table of the report: all its numbers, and as people read it."""

    name: str  # of its files
    title: str
    caption: str
    about: str  # where the numbers come from
    table: pd.DataFrame
    readable: pd.DataFrame
    unprinted: tuple[str, ...] = ()  # columns that are too wide for a terminal

    def save(self, folder: Path) -> str:
        """Write it as csv, md and tex; returns it as text."""
        caption = f"{self.caption} {self.about}".strip()
        tables.save(self.table, self.readable, folder / self.name, caption)
        printed = self.readable.drop(columns=[*self.unprinted], errors="ignore")
        text = printed.to_string(index=False)
        if (
            max(map(len, text.splitlines())) > WIDTH
        ):  # the rest below, behind the first column again
            rows = printed.set_index(printed.columns[0]).rename_axis(None)
            text = rows.to_string(line_width=WIDTH)
        return f"{textwrap.fill(f'{self.title}: {self.caption}', WIDTH)}\n\n{text}"


def write_report(config: Report) -> list[str]:
    """Write tables, figures and runs.csv into outputs/report; returns what to print."""
    folder = Path(config.outputs) / "report"
    results = finished_runs(config)
    runs = tidy(results)
    height, width = config.data.image_size
    input_size = (1, height, width)
    plan = plan_elimination(build_strided(config.model, input_size), input_size)
    pooling = None
    if (runs.network == "pooling").any():
        pooled = build_strided(config.model, input_size, max_pooling=True)
        pooling = plan_elimination(pooled, input_size)
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / "runs.csv", runs.to_csv(index=False).encode())
    write_json(folder / "about.json", _circumstances(config, runs))

    about = _about(config, runs)
    table1 = tables.table1(runs, plan, config.data.name, pooling)
    sections = [
        _table1(config, table1, plan, about),
        _comparison(config, runs, plan, about),
        _table2(plan, pooling),
        _freedom(plan),
        *_copied(runs, about),
        *_benchmark(config),
    ]
    texts = [section.save(folder) for section in sections]

    drawn = {"feature_maps": figures.feature_maps(plan)}
    if (runs.weights == "scratch").any():
        drawn["accuracy_by_epoch"] = figures.accuracy_by_epoch(results)
        drawn["accuracy_of_seeds"] = figures.accuracy_of_seeds(runs, table1)
        drawn["training_time"] = figures.training_time(runs)
    for name, figure in drawn.items():
        figures.save(figure, folder / name)
    for name in OPTIONAL - drawn.keys() - {section.name for section in sections}:
        for path in folder.glob(f"{name}.*"):
            path.unlink()  # of an earlier report, of other runs
    return [
        *texts,
        textwrap.fill(about, WIDTH),
        f"Tables (csv, md, tex) and figures (png, svg) are in {folder}.",
    ]


def write_calibration(config: Report) -> list[str]:
    """Write the table of experiment=calibrate into outputs/report; returns what to print."""
    table = calibration(config)
    folder = Path(config.outputs) / "report"
    folder.mkdir(parents=True, exist_ok=True)
    caption = (
        f"Test accuracy of the strided network alone, seeds {SEEDS[0]} to {SEEDS[-1]}, for each recipe "
        f"tried, the nearest to the paper's {PAPER_PERCENT} % first; * where that lies in the 95 % "
        "interval of the mean. Recipes are thus chosen by their accuracy on the test images."
    )
    readable = tables.calibration_for_readers(table)
    section = Section("calibration", "Calibration", caption, "", table, readable)
    return [section.save(folder)]


def write_findings(config: Report) -> list[str]:
    """Write tables and figure of experiment=sharing into outputs/report; returns what to print."""
    results = finished_runs(config)
    runs, epochs = findings.by_run(results), findings.by_epoch(results)
    if runs.empty:
        raise InputError(
            f"outputs={config.outputs} has no trained run of an arm of experiment=sharing; first run "
            "`python -m experiments.train experiment=sharing`"
        )
    folder = Path(config.outputs) / "report"
    folder.mkdir(parents=True, exist_ok=True)
    every = tidy(results)
    about = _about(config, every)
    write_json(folder / "sharing_about.json", _circumstances(config, every))
    write(folder / "sharing_runs.csv", runs.to_csv(index=False).encode())
    write(folder / "sharing_epochs.csv", epochs.to_csv(index=False).encode())
    summary, claims = findings.summary(runs), findings.claims(runs)
    images = max(result.get("fit_images", 0) for result in results)
    of_arms, of_claims = OF_ARMS.format(images=images), OF_CLAIMS.format(n=len(claims))
    wide = ("Difference", "Training images", "Gap")
    readable = tables.claims(claims)
    of_all = Section("sharing", "Sharing", of_arms, about, summary, tables.sharing(summary), wide)
    of_each = Section("claims", "Claims", of_claims, about, claims, readable)
    figures.save(figures.sharing(epochs), folder / "sharing")
    of_each.save(folder)  # too wide for a terminal, which gets a paragraph a claim
    return [
        of_all.save(folder),
        textwrap.fill(f"Claims: {of_claims}", WIDTH),
        *_paragraphs(readable),
        textwrap.fill(about, WIDTH),
        f"Tables (csv, md, tex) and the figure (png, svg) are in {folder}.",
    ]


def _paragraphs(claims: pd.DataFrame) -> list[str]:
    """Each claim with the lines that are about it."""
    of_claim = claims.Claim.replace("", None).ffill()
    paragraphs = []
    for claim, rows in claims.groupby(of_claim, sort=False):
        lines = rows[["Start", "Compared", "n", "Difference", "Verdict"]]
        text = lines.to_string(index=False, header=False)
        paragraphs.append(f"{textwrap.fill(f'{claim}: {rows.Quantity.iloc[0]}', WIDTH)}\n{text}")
    return paragraphs


def benchmark_section(measured: dict[str, Any]) -> Section:
    """What experiments.benchmark measured."""
    config, table = measured["config"], tables.benchmark(measured)
    operators = "; ".join(
        f"{tables.PRINTED[network]}: "
        + ", ".join(f"{name} {share:.0%}" for name, share in list(shares.items())[:OPERATORS])
        for network, shares in measured["operators"].items()
    )
    caption = (
        "Milliseconds of a training step, in our loop and in a plain one in the style of PyTorch's "
        f"MNIST example; median (quartiles) of {config['rounds']} rounds of {config['steps']} steps "
        f"each, all in turn, batches of {config['recipe']['batch_size']}. Peak: the rate of "
        f"multiply-adds in a product of matrices of {measured['matrix']} rows and columns. "
        f"Rearrangement: of all {measured['images']:,} images, once before training; the plain loop "
        "does it batch by batch. Where the time "
        f"of a step goes: {operators}."
    )
    about = (
        f"On {measured['device_name']}, {measured['threads']} thread(s), "
        f"torch {measured['versions']['torch']}."
    )
    readable = tables.benchmark_for_readers(table)
    return Section("benchmark", "Benchmark", caption, about, table, readable)


def conversion_sections(measured: dict[str, Any]) -> list[Section]:
    """What experiments.conversion_benchmark measured."""
    config, size = measured["config"], written(measured["size"])
    rounds = f"median (quartiles) of {config['rounds']} rounds in turn"
    about = (
        f"On {measured['device_name']}, {measured['threads']} thread(s), "
        f"torch {measured['versions']['torch']}."
    )
    conversions = (
        f"Milliseconds of a conversion of {measured['conversion']['model']} for images {size}, on the "
        f"processor, {rounds}: each strided convolution by itself (scope=layer), beside torch.fx's "
        "fusion of convolutions with BatchNorm. Ratio: of both in a round."
    )
    stems = (
        f"Milliseconds of a forward pass of first layers and of their unit-stride twins, {rounds} of "
        f"{config['steps']} passes each, batches of {config['batch_size']} images {size}, float32. "
        "Ratio: twin over strided; below 1, elimination pays."
    )
    timed, passes = tables.conversions(measured), tables.stems(measured)
    readable = tables.conversions_for_readers(timed), tables.stems_for_readers(passes)
    wide = ("Layer", "Multiply-adds")
    return [
        Section("conversion", "Conversion", conversions, about, timed, readable[0]),
        Section("stems", "Stems", stems, about, passes, readable[1], wide),
    ]


def write_zoo(config: Zoo, rows: list[dict[str, Any]]) -> list[str]:
    """Write the survey's table and all its rounds into outputs/report; returns what to print."""
    folder = Path(config.outputs) / "report"
    folder.mkdir(parents=True, exist_ok=True)
    measured = pd.json_normalize(rows)
    commits = " / ".join(str(commit)[:8] for commit in measured.git_commit.unique())
    about = f"Measured {_machine(measured)}, commit {commits}."
    table = tables.zoo(rows)
    caption = (
        "Each network beside its unit-stride twin: multiply-adds and milliseconds of the forward "
        f"pass of one input, median (quartiles) of {config.rounds} rounds in turn, in float32. Error: "
        "the largest of any layer in float64, as a share of the largest value of its map, and as a "
        "share of the rounding bound at its position: up to 1, the layer is equal up to rounding."
    )
    name = "own_model" if config.of_user else "zoo"  # which keeps the zoo's table
    write_json(folder / f"{name}.json", rows)
    readable = tables.zoo_for_readers(table)
    section = Section(
        name, "The zoo", caption, about, table, readable, ("Input", "Scope", "Reason")
    )
    reasons = [f"{row['model']}: {row['reason']}" for row in rows if "reason" in row]
    return [section.save(folder), *reasons, textwrap.fill(about, WIDTH)]


def _table1(config: Report, table: pd.DataFrame, plan: EliminationPlan, about: str) -> Section:
    caption = (
        "Test accuracy and training time, mean ± standard deviation over n seeds, beside the paper's "
        "one run. Seconds are those of the training steps."
    )
    reference = _reference(config, plan)
    if reference is not None:
        measured, machine = reference
        table = table.merge(measured, how="left")
        counts = table.reference_n[table.reference_n > 0].astype(int).unique()
        n = " and ".join(map(str, counts))
        caption += f" The reference is this experiment's published result, n = {n}, {machine}."
    readable = tables.for_readers(table)
    return Section("table1", "Table 1", caption, about, table, readable, ("Input", "Layers"))


def _comparison(config: Report, runs: pd.DataFrame, plan: EliminationPlan, about: str) -> Section:
    papers = tables.is_the_papers(plan, config.data.name)
    comparison = compare(runs, tables.PAPER_DIFFERENCE if papers else None)
    under = f"recipe {config.recipe.name} on {config.data.name}"
    return Section(
        "comparison",
        "Unity Stride − Non-Unity Stride",
        comparison.sentence(under),
        about,
        tables.comparison(comparison),
        tables.comparison_for_readers(comparison),
    )


def _table2(plan: EliminationPlan, pooling: EliminationPlan | None) -> Section:
    table = tables.table2(plan, pooling)
    caption = "Feature maps, channels x height x width."
    return Section("table2", "Table 2", caption, "", table, table)


def _freedom(plan: EliminationPlan) -> Section:
    table = degrees_of_freedom(plan)
    caption = (
        "Weights of each convolution that training can choose: of the strided filter (tied), of the "
        "twin's without its structural zeros (masked), and all (free). Striding is these equalities "
        "and zeros; the paper's formula for the twin's filter counts the masked one."
    )
    readable = tables.degrees_of_freedom(table)
    return Section("degrees_of_freedom", "Degrees of freedom", caption, "", table, readable)


def _copied(runs: pd.DataFrame, about: str) -> list[Section]:
    copied = tables.copied_weights(runs)
    caption = (
        "Test images on which the unit-stride network with the strided one's weights predicts the "
        "same class, at the least over n seeds, and the largest difference of a score."
    )
    readable = copied.assign(largest_difference=copied.largest_difference.map("{:.1e}".format))
    section = Section("copied_weights", "Copied weights", caption, about, copied, readable)
    return [section] if len(copied) else []


def _benchmark(config: Report) -> list[Section]:
    """What was measured of this network, if anything."""
    path = Path(config.outputs) / "benchmark.json"
    if not path.exists():
        return []
    try:
        measured = json.loads(path.read_text())
        same = measured["model"] == model_identity(config)
        return [benchmark_section(measured)] if same else []
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} is damaged ({error}); delete it, or `make bench` again"
        ) from error


def _reference(config: Report, plan: EliminationPlan) -> tuple[pd.DataFrame, str] | None:
    """The published means of this experiment by network, if there are any, and where they are from."""
    path = Path(config.reference or "", "runs.csv")
    if config.reference is None or not path.exists():
        return None
    try:
        published = pd.read_csv(path, dtype={"experiment": str})
        published = published[published.experiment == experiment_identity(config)]
        if published.empty:
            return None
        table = tables.table1(published, plan, config.data.name)
        machine = _machine(published)
    except (ValueError, KeyError, AttributeError) as error:
        raise InputError(f"{path} is damaged ({error}); restore it, or reference=null") from error
    measured = table[["n", *(name for name in table if name.endswith(("_mean", "_std")))]]
    return measured.add_prefix("reference_").assign(network=table.network), machine


def _circumstances(config: Report, runs: pd.DataFrame) -> dict[str, Any]:
    """Everything needed to judge the numbers or to have them again; lists where runs differ."""
    columns = ["device_name", "threads", "jobs_at_once", "git_commit"]
    columns += [name for name in runs if name.startswith("versions.")]
    return {
        "experiment": experiment_identity(config),
        "runs": len(runs),
        "seeds": sorted(map(int, runs.seed.unique())),
        "dates": [runs.date.min(), runs.date.max()],
        **{
            name: [*runs[name].astype(object).where(runs[name].notna(), None).unique()]
            for name in columns
        },
        "model": asdict(config.model),
        "data": asdict(config.data),
        "recipe": asdict(config.recipe),
    }


def _about(config: Report, runs: pd.DataFrame) -> str:
    """Where the numbers come from."""
    data, recipe = config.data, config.recipe
    note = f" {recipe.note}" if recipe.note else ""
    length = f"{recipe.steps} steps" if recipe.epochs is None else f"{recipe.epochs} epochs"
    images = "" if data.train_size is None else f" (first {data.train_size} training images)"
    text = (
        f"Experiment {experiment_identity(config)}: data {data.name}{images}, "
        f"activation {config.model.activation}, recipe {recipe.name} ({length}, batches of "
        f"{recipe.batch_size}, rate {recipe.learning_rate:g}, momentum {recipe.momentum:g}). "
        f"Run {_machine(runs)}.{note}"
    )
    commits = {part for commit in runs.git_commit for part in str(commit).split(" then ")}
    if len(commits) == 1:
        return text
    return f"{text} Warning: the runs are of {len(commits)} versions of the code."


def _machine(runs: pd.DataFrame) -> str:
    """Where the runs were done, with all values of what differs between them."""

    def all_of(column: str) -> str:
        return " / ".join(map(str, runs[column].unique()))

    return (
        f"on {all_of('device_name')}, {all_of('threads')} thread(s), "
        f"{all_of('jobs_at_once')} job(s) at once, torch {all_of('versions.torch')}"
    )
