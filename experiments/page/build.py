"""Writes outputs/report/index.html: one file with all it needs in it."""

import base64
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from omegaconf import OmegaConf

from experiments.page.colours import PAPERS, name_of, properties
from experiments.page.content import FOLDER, Content, Given, collect
from experiments.page.runs import OWN
from experiments.page.wanted import Runs, wanted_runs
from experiments.reporting.formats import blank_or, printed
from experiments.reporting.style import order_of
from experiments.runs.machine import short_commit
from experiments.runs.results import all_results
from experiments.settings.identity import LOOP, experiment_identity
from experiments.settings.schema import ReportConfig
from stridenet.files import make_folder, read, write

HERE = Path(__file__).resolve().parent
LARGEST = 400_000  # bytes of an SVG in the page; a larger one stands there as PNG
TYPES = {".svg": "image/svg+xml", ".png": "image/png"}


CONTENTS = {
    "verdicts": "Verdicts",
    "tables": "Tables 1 and 2",
    "differences": "Pair by pair",
    "curves": "Curves by epoch",
    "runs": "Runs",
    "copied": "Copied weights",
    "freedom": "Degrees of freedom",
    "explorer": "Explorer",
    "zoo": "Zoo and survey",
    "cost": "Cost",
    "figures": "Figures 1 to 4",
    "made": "How it was made",
}
FIGURES = {  # of the paper: a caption, and what a reader who does not see it has to know
    "figure_1": (
        "A convolution of stride 2 is the sum of two convolutions of stride 1.",
        "The matrix of a one-dimensional convolution of stride 2, its columns sorted into odd and even "
        "ones, and the two matrices of stride 1 that it then consists of, with equal results.",
    ),
    "figure_2": (
        "A convolution as a tensor: the filter at every place of the image.",
        "Nine slices of 5 by 5 numbers, zero but for a 3 by 3 filter, which stands one place further "
        "right or down from slice to slice.",
    ),
    "figure_3": (
        "Sampling a matrix by two, in four ways.",
        "A 6 by 6 matrix with its entries in four colours, and the four 3 by 3 matrices that have the "
        "entries of one colour each.",
    ),
    "figure_4": (
        "A stride cannot go alone: the layer before it must change too.",
        "Three rows of maps and filters: the original with a stride of 2; its last layer alone without "
        "a stride, which does not fit the map before it; and both layers changed, which fit.",
    ),
}


def write_page(
    config: ReportConfig,
    overrides: Sequence[str] = (),
    compose: Callable[[str], Runs | None] | None = None,
) -> Path:
    """Write the page of a report, and return its path.

    overrides: the settings of the report's command line. compose: gives an experiment's runs by name,
    each with the settings in which they differ; without it, no verdict is spoken.
    """
    folder = Path(config.outputs) / "report"
    make_folder(folder / FOLDER)
    wanted: Mapping[str, Runs | None] = {}
    if compose and config.reference and Path(config.reference).is_dir():
        wanted = wanted_runs(folder / FOLDER / "wanted.json", compose)
    identity = experiment_identity(config)
    results: list[Mapping[str, Any]] = [
        result for result in all_results(config)
        if result["experiment"] == identity and result.get("loop", 1) == LOOP
    ]  # fmt: skip
    content = collect(Given(config, results, wanted, overrides))
    path = folder / "index.html"
    write(path, render(content, config, overrides).encode())
    return path


def render(content: Content, config: ReportConfig, overrides: Sequence[str]) -> str:
    """Return the page as HTML."""
    networks = sorted({run["network"] for run in content.runs}, key=order_of)
    data = {
        "charts": content.charts,
        "networks": [
            {"key": name, "name": printed(name), "colour": f"var({name_of(name)})"}
            for name in networks
        ],
    }
    return _environment().get_template("index.html.j2").render(
        content=content,
        config=config,
        command=shlex.join(["python", "-m", "experiments.report", *overrides]),
        settings=OmegaConf.to_yaml(
            {part: asdict(getattr(config, part)) for part in ("data", "recipe", "model")}
        ),
        data=data,
        networks=networks,
        own=OWN,
        themes={theme: properties(theme) | {"--paper": PAPERS[theme]} for theme in PAPERS},
        css=[_inlined("page.css"), _inlined("explorer.css")],
        libraries=[_inlined("vendor/d3.min.js"), _inlined("vendor/plot.umd.min.js")],
        scripts=[_inlined("explorer.js"), _inlined("page.js")],
        licences=[_inlined("vendor/d3.LICENSE"), _inlined("vendor/plot.LICENSE")],
        explorer=_inlined("explorer.html"),
        contents=[*CONTENTS.items()],
        alts=FIGURES,
        image=_image,
    )  # fmt: skip


def _environment() -> Environment:
    """Return jinja2's environment, which escapes whatever it is given."""
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {
        "ticks": _with_code,
        "colour": name_of,
        "short": lambda commit: " then ".join(map(short_commit, str(commit).split(" then "))),
        "seconds": blank_or("{:.1f}"),
        "shortest": blank_or("{:g}"),
    }
    return environment


def _inlined(name: str) -> Markup:
    """Return a file of this folder as it is.

    Raises ValueError where it would end the element that it stands in.
    """
    path = HERE / name
    text = read(path).decode()
    if path.suffix in (".js", ".css") and re.search(r"</(script|style)|<!--", text, re.IGNORECASE):
        raise ValueError(f"{path} would end the element that it stands in")
    return Markup(text)


def _with_code(text: str) -> Markup:
    """Return escaped text, in which `what stands between backticks` is code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _image(path: Path) -> str:
    """Return a figure as the address of an image: its SVG, or PNG where that is too large."""
    if path.suffix == ".svg" and path.stat().st_size > LARGEST:
        path = path.with_suffix(".png")
    return f"data:{TYPES[path.suffix]};base64,{base64.b64encode(read(path)).decode()}"
