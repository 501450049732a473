"""The paper's figures show what can be computed; the command writes them."""

import copy
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import matplotlib.image
import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from torch import nn

from experiments.paper import theory
from experiments.paper.figures import contrast, figure_1, figure_2, figure_3, figure_4, ink_on
from experiments.paper.page import write_figures
from experiments.paper.sharing_map import sharing_map
from experiments.reporting.figures import save_figure
from experiments.settings.checks import resolve
from experiments.settings.schema import FiguresConfig
from stridenet import eliminate_stride, plan_elimination
from stridenet.zoo import lenet
from tests.conftest import settings_of
from tests.paper.drawn import CASES, colours, network, printed, words

ROOT = Path(__file__).resolve().parents[2]


NAMES = ("figure_1", "figure_2", "figure_3", "figure_4", "sharing_map")


FILTER, SIGNAL = np.arange(1, 5), np.arange(1, 9)


# Figure 1


def test_figure_1_the_strided_matrix_has_the_filter_in_every_second_place() -> None:
    figure = figure_1()
    assert printed(figure, "strided matrix").tolist() == [
        [1, 2, 3, 4, 0, 0, 0, 0],
        [0, 0, 1, 2, 3, 4, 0, 0],
        [0, 0, 0, 0, 1, 2, 3, 4],
    ]
    assert printed(figure, "strided signal").ravel().tolist() == SIGNAL.tolist()
    expected = np.correlate(SIGNAL, FILTER)[::2]
    assert printed(figure, "strided result").ravel().tolist() == expected.tolist() == [30, 50, 70]


def test_figure_1_sorting_leaves_columns_with_their_entries_of_the_signal() -> None:
    figure = figure_1()
    signal = printed(figure, "sorted signal").ravel()
    assert signal.tolist() == [1, 3, 5, 7, 2, 4, 6, 8]
    strided = printed(figure, "strided matrix")
    assert np.array_equal(printed(figure, "sorted matrix"), strided[:, signal - 1])
    assert printed(figure, "sorted result").ravel().tolist() == [30, 50, 70]


@pytest.mark.parametrize(
    ("half", "first", "sums"), [("odd", 0, [10, 18, 26]), ("even", 1, [20, 32, 44])]
)
def test_figure_1_each_half_is_a_convolution_of_stride_one(
    half: str, first: int, sums: list[int]
) -> None:
    figure = figure_1()
    taps, signal = FILTER[first::2], SIGNAL[first::2]
    matrix = printed(figure, f"{half} matrix")
    assert printed(figure, f"{half} signal").ravel().tolist() == signal.tolist()
    for row, shifted in enumerate(matrix):
        assert shifted[row : row + 2].tolist() == taps.tolist()
        assert np.count_nonzero(shifted) == 2
    result = printed(figure, f"{half} result").ravel()
    assert result.tolist() == np.correlate(signal, taps).tolist() == sums
    assert f"{taps.tolist()}  ∗  {signal.tolist()}" in words(figure)


def test_figure_1_the_halves_add_up() -> None:
    figure = figure_1()
    halves = printed(figure, "odd result") + printed(figure, "even result")
    assert np.array_equal(halves, printed(figure, "strided result"))
    assert np.array_equal(halves, printed(figure, "sum"))


def test_figure_1_a_tap_has_one_colour_wherever_it_stands_and_zero_is_white() -> None:
    figure = figure_1()
    seen: dict[int, set[tuple]] = {}
    for name in ("strided matrix", "sorted matrix", "odd matrix", "even matrix"):
        cells = zip(
            printed(figure, name).ravel(), colours(figure, name).reshape(-1, 3), strict=True
        )
        for tap, colour in cells:
            seen.setdefault(int(tap), set()).add(tuple(colour))
    assert sorted(seen) == [0, 1, 2, 3, 4]
    assert seen[0] == {(1, 1, 1)}
    assert all(len(found) == 1 for found in seen.values())
    assert len(set.union(*seen.values())) == 5


# Figure 2


def slices(figure: Figure) -> np.ndarray:
    """The tensor that is drawn, (3, 3, 5, 5)."""
    return np.array([[printed(figure, f"H({i},{j},:,:)") for j in (1, 2, 3)] for i in (1, 2, 3)])


def test_figure_2_every_slice_is_the_filter_shifted() -> None:
    figure = figure_2()
    filter_, tensor = printed(figure, "H"), slices(figure)
    assert filter_.shape == (3, 3)
    assert len(set(filter_.ravel()) - {0}) == 9
    for i, j in np.ndindex(3, 3):
        assert np.array_equal(tensor[i, j, i : i + 3, j : j + 3], filter_)
        assert np.count_nonzero(tensor[i, j]) == 9


def test_figure_2_the_tensor_times_an_image_is_the_convolution() -> None:
    figure = figure_2()
    image = np.random.default_rng(0).integers(-9, 10, (5, 5))
    result = np.einsum("ijkl,kl->ij", slices(figure), image)
    assert np.array_equal(result, theory.correlate(printed(figure, "H"), image))


def test_figure_2_a_weight_has_one_colour_and_the_bar_has_it_too() -> None:
    figure = figure_2()
    (axes,) = figure.axes
    (bar,) = axes.child_axes
    assert bar.get_xlabel() == "weight"
    assert bar.get_xlim() == (1, 9)
    for name in ("H", "H(1,1,:,:)", "H(3,2,:,:)"):
        for weight, colour in zip(
            printed(figure, name).ravel(), colours(figure, name).reshape(-1, 3), strict=True
        ):
            scale = matplotlib.colormaps["viridis"]((weight - 1) / 8)[:3]
            assert tuple(colour) == ((1, 1, 1) if weight == 0 else pytest.approx(scale))


# Figure 3


def test_figure_3_the_four_samplings_take_every_entry_once() -> None:
    figure = figure_3()
    matrix = printed(figure, "X")
    assert matrix.tolist() == [[10 * i + j for j in range(1, 7)] for i in range(1, 7)]
    samples = {(m, n): printed(figure, f"T({m},{n})") for m in (1, 2) for n in (1, 2)}
    for (m, n), sample in samples.items():
        assert np.array_equal(sample, theory.T(m, n, 2, matrix))
    taken = np.concatenate([sample.ravel() for sample in samples.values()])
    assert sorted(taken) == sorted(matrix.ravel())


def test_figure_3_an_entry_has_the_colour_of_the_sampling_that_takes_it() -> None:
    figure = figure_3()
    entries = dict(
        zip(
            printed(figure, "X").ravel(),
            map(tuple, colours(figure, "X").reshape(-1, 3)),
            strict=True,
        )
    )
    found = []
    for m, n in np.ndindex(2, 2):
        name = f"T({m + 1},{n + 1})"
        (colour,) = {tuple(colour) for colour in colours(figure, name).reshape(-1, 3)}
        assert all(entries[entry] == colour for entry in printed(figure, name).ravel())
        found.append(colour)
    assert len(set(found)) == 4


def test_contrast_is_that_of_wcag_and_a_number_has_at_least_4_5() -> None:
    assert contrast("black", "white") == pytest.approx(21)
    assert contrast("#777777", "white") == pytest.approx(
        4.48, abs=0.005
    )  # known to fail by a little
    for grey in np.linspace(0, 1, 101):
        assert contrast(ink_on(str(grey)), str(grey)) >= 4.5
    for figure in (figure_1(), figure_2(), figure_3()):
        (axes,) = figure.axes
        for name in {text.get_label() for text in axes.texts if text.get_text().isdigit()}:
            texts = [text for text in axes.texts if text.get_label() == name]
            texts.sort(key=lambda text: text.get_position()[::-1])
            behind = colours(figure, name).reshape(-1, 3)
            for text, colour in zip(texts, behind, strict=True):
                assert contrast(text.get_color(), colour) >= 4.5, (name, text.get_text())


# Figure 4


def rows_of_figure_4() -> tuple[list[list[str]], list[list[str]]]:
    """The words of each of its rows, and the kinds of its connections, from left to right."""
    (axes,) = figure_4().axes
    starts = [t.get_position()[1] for t in axes.texts if re.match(r"\([abc]\)", t.get_text())]
    caption = max(text.get_position()[1] for text in axes.texts)
    texts: list[list[str]] = [[], [], []]
    connections: list[list[str]] = [[], [], []]
    for text in sorted(axes.texts, key=lambda text: text.get_position()[0]):
        height = text.xy[1] if isinstance(text, Annotation) else text.get_position()[1]
        if starts[0] <= height < caption:
            row = int(np.searchsorted(starts, height, side="right")) - 1
            if isinstance(text, Annotation):
                connections[row].append(text.get_label())
            else:
                texts[row].append(text.get_text())
    return texts, connections


def test_figure_4_has_the_papers_filters_and_all_sizes_of_a_real_twin() -> None:
    strided = nn.Sequential(nn.Conv2d(3, 32, 5), nn.ReLU(), nn.Conv2d(32, 64, 5, stride=2))
    twin = eliminate_stride(strided, (3, 32, 32))
    images = torch.zeros(1, 3, 32, 32)

    def sizes(network: nn.Module, images: torch.Tensor) -> dict[str, str]:
        """Return the sizes of the maps and, channels in first, of the filters."""
        first, second = network.get_submodule("0"), network.get_submodule("2")
        maps = {"X": images, "Y": first(images), "Z": second(first(images))}
        written = {name: "×".join(map(str, value.shape[1:])) for name, value in maps.items()}
        for number, layer in enumerate((first, second), 1):
            filter_ = layer.weight.transpose(0, 1)
            written[f"Conv-{number}"] = "×".join(map(str, filter_.shape))
        return written

    old, new = sizes(strided, images), sizes(twin.network, twin.rearrange(images))
    assert (old["Conv-1"], new["Conv-1"]) == ("3×32×5×5", "12×128×3×3")  # the paper's
    assert old["Z"] == new["Z"]
    texts, _ = rows_of_figure_4()
    for row, changed in zip(texts, ("", "Y Conv-2", "X Y Conv-1 Conv-2"), strict=True):
        for name in old:
            prime, size = ("′", new[name]) if name in changed.split() else ("", old[name])
            if name.startswith("Conv"):
                assert {f"{name}{prime}", size} <= set(row)
            else:
                assert f"{name}{prime}  {size}" in row
    assert [row.count("stride 2") for row in texts] == [1, 0, 0]
    assert [row.count("stride 1") for row in texts] == [1, 2, 2]


def test_figure_4_only_conv_1_to_y_prime_is_broken() -> None:
    texts, connections = rows_of_figure_4()
    assert connections == [
        ["connection", "connection"],
        ["broken connection", "connection"],
        ["connection", "connection"],
    ]
    assert "gives 32×28×28,\nnot 128×14×14" in texts[1]
    assert not any("not" in text.split() for text in texts[0][1:] + texts[2][1:])
    (axes,) = figure_4().axes
    (cross,) = axes.lines
    (broken,) = [text for text in axes.texts if text.get_label() == "broken connection"]
    (x,), (y,) = cross.get_data()
    assert y == broken.xy[1] == broken.get_position()[1]
    assert broken.get_position()[0] < x < broken.xy[0]
    assert broken.arrow_patch.get_linestyle() == "--"


def test_figure_4_says_that_its_sheets_are_not_to_be_counted_in_a_legible_colour() -> None:
    (axes,) = figure_4().axes
    caption = max((text.get_text() for text in axes.texts), key=len)
    assert "sheets are drawn schematically, and are not to be counted" in " ".join(caption.split())
    assert all(contrast(text.get_color(), "white") >= 4.5 for text in axes.texts)


# On the page


def large() -> Figure:
    """A map with so many phases that none can be labelled."""
    layers = (nn.Conv2d(1, 4, 5), nn.Conv2d(4, 4, 2, stride=4), nn.Conv2d(4, 4, 2, stride=2))
    return sharing_map(plan_elimination(network(*layers), (1, 60, 60)), "0")


PAGES: dict[str, Callable[[], Figure]] = {
    "figure_1": figure_1,
    "figure_2": figure_2,
    "figure_3": figure_3,
    "figure_4": figure_4,
    "large": large,
    **{
        name: lambda case=case: sharing_map(plan_elimination(case[0](), case[1]), case[2])
        for name, case in CASES.items()
    },
}


@pytest.mark.parametrize("page", PAGES.values(), ids=list(PAGES))
def test_no_text_is_cut_off_or_meets_another(page: Callable[[], Figure]) -> None:
    figure = page()
    renderer = FigureCanvasAgg(figure).get_renderer()
    width, height = figure.get_size_inches() * figure.dpi
    (axes,) = figure.axes
    texts = [text for text in axes.texts if text.get_text()]
    x0, y0, x1, y1 = np.array([t.get_window_extent(renderer).extents for t in texts]).T
    assert (x0 > 0).all()
    assert (y0 > 0).all()
    assert (x1 < width).all()
    assert (y1 < height).all()
    meets = (x0[:, None] < x1) & (x0 < x1[:, None]) & (y0[:, None] < y1) & (y0 < y1[:, None])
    pairs = [(texts[a].get_text(), texts[b].get_text()) for a, b in np.argwhere(meets) if a < b]
    assert not pairs


# The command


def command(*overrides: str, outputs: Path) -> subprocess.CompletedProcess[str]:
    """python -m experiments.figures, as a user would run it."""
    environment = {k: v for k, v in os.environ.items() if k != "STRIDENET_TRACEBACK"}
    return subprocess.run(
        [sys.executable, "-m", "experiments.figures", *overrides, f"outputs={outputs}"],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280,
    )  # fmt: skip


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.slow
def test_the_command_writes_every_figure_and_again_the_same_bytes(tmp_path: Path) -> None:
    done = command(outputs=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    folder = tmp_path / "figures"
    assert (
        done.stdout == f"Figures 1 to 4 and the sharing map of conv1 (png, svg) are in {folder}.\n"
    )
    first = contents(folder)
    assert first.keys() == {f"{name}.{suffix}" for name in NAMES for suffix in ("png", "svg")}
    for name in NAMES:
        assert matplotlib.image.imread(folder / f"{name}.png")[..., :3].std() > 0.01
        root = ElementTree.parse(folder / f"{name}.svg").getroot()
        assert root.tag == "{http://www.w3.org/2000/svg}svg"

    settings = settings_of("figures", ("layer=conv3", "data.image_size=[32,32]"))
    other = resolve(copy.deepcopy(settings), FiguresConfig)
    write_figures(replace(other, outputs=str(tmp_path)))
    changed = {name for name, content in contents(folder).items() if content != first[name]}
    assert changed == {"sharing_map.png", "sharing_map.svg"}

    save_figure(
        sharing_map(plan_elimination(lenet(), (1, 28, 28)), "conv1"), folder / "sharing_map"
    )
    assert contents(folder) == first


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("layer=conv9", "layer=conv9 is no convolution; take one of conv1, conv2, conv3, conv4"),
        ("layer=fc1", "layer=fc1 is no convolution; take one of conv1, conv2, conv3, conv4"),
        ("data.image_size=[2,2]", "model.layers.conv1: its window of 5x5"),
        ("model.layers.conv1.stride=0", "model.layers.conv1.stride=0"),
        ("nonsense=1", "nonsense"),
    ],
)
def test_a_mistake_is_one_line_and_draws_nothing(tmp_path: Path, override: str, told: str) -> None:
    done = command(override, outputs=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert told in line
    assert not (tmp_path / "figures").exists()


WATCHED = """\
import atexit, runpy, sys
atexit.register(lambda: print("torch" in sys.modules, file=sys.stderr))
sys.argv = ["figures", *sys.argv[1:]]
runpy.run_module("experiments.figures", run_name="__main__")
"""


@pytest.mark.slow
@pytest.mark.parametrize("argument", ["--help", "layer=conv9"])
def test_help_and_an_unknown_layer_do_not_wait_for_torch(argument: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, argument],
        cwd=ROOT, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.stderr.splitlines()[-1] == "False"
    assert done.returncode == (argument != "--help")
    if argument == "--help":
        for told in (
            "  layer=conv1 ",
            "strided | unit_stride",
            "python -m experiments.figures",
        ):
            assert told in done.stdout
