"""The page in a browser: quiet, with the numbers of its csv files, in every form that readers use."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.page.pages import REFERENCE

pytestmark = pytest.mark.slow

MOST_BYTES = 3_000_000
Open = Callable[..., Any]
SCROLLED = "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"
SIDEWAYS = """() => [...document.querySelectorAll("main *")].filter((one) => {
  const box = one.getBoundingClientRect();
  return box.width && box.right > innerWidth + 1 && !one.closest(".scroll, pre, svg, .sr-only");
}).map((one) => one.outerHTML.slice(0, 120))"""


def cells(page: Any, table: str, column: int) -> list[str]:
    """The texts of a column of the rows that are shown."""
    rows = page.locator(f"{table} tbody tr:not([hidden])")
    return rows.evaluate_all(f"rows => rows.map(row => row.cells[{column}].innerText.trim())")


def csv_of(page_file: Path, name: str) -> pd.DataFrame:
    return pd.read_csv(page_file.parent / name)


def test_it_is_one_small_file_that_asks_for_nothing(open_page: Open, page_file: Path) -> None:
    page = open_page()
    assert page_file.stat().st_size < MOST_BYTES
    assert page.title() == "stridenet: what the runs say"  # what a run said did not become HTML
    assert page.locator("img[src=x]").count() == 0
    assert "onerror" in page.locator("#made").inner_text()
    page.locator(".chart svg").nth(1).wait_for()  # both charts are drawn; open_page hears the rest
    addresses = page.eval_on_selector_all(
        "link, img, script", "all => all.map(o => o.src || o.href)"
    )
    assert all(address.startswith("data:") for address in addresses if address)


def test_every_table_has_the_numbers_of_its_csv(open_page: Open, page_file: Path) -> None:
    page = open_page()
    for link in page.eval_on_selector_all("a.csv", "all => all.map(a => a.getAttribute('href'))"):
        assert (page_file.parent / link).is_file(), link

    runs = csv_of(page_file, "page/runs.csv")
    assert len(runs) == 110  # ten of this report, a hundred of Table 1
    assert cells(page, "#runs-table", 0) == [*runs.run]
    assert cells(page, "#runs-table", 4) == [f"{value:.2f}" for value in runs.accuracy_percent]
    assert [float(text) for text in cells(page, "#runs-table", 2)] == [*runs.seed]

    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    pairs = csv_of(page_file, "page/pairs.csv")
    assert cells(page, "#table-pairs table", 2) == [f"{value:+.2f}" for value in pairs.points]
    differences = csv_of(page_file, "page/differences.csv")
    assert cells(page, "#table-differences table", 3) == [
        f"{value:+.3f}" for value in differences["mean"]
    ]
    assert differences.n.tolist() == [50, 5]
    assert differences.margin.tolist() == [0.06, 0.06]  # both are of the paper's networks
    published = pd.read_csv(REFERENCE / "differences.csv").iloc[0]  # of five pairs there is none
    found = differences[["new_low", "new_high"]].to_numpy()
    assert [*found[0]] == [published.new_low, published.new_high]
    assert np.isnan(found[1]).all()
    interval = f"{published.new_low:+.3f} to {published.new_high:+.3f}"
    assert cells(page, "#table-differences table", 9) == [interval, ""]
    zoo = csv_of(page_file, "page/zoo.csv")
    assert cells(page, "#table-zoo table", 0) == [*zoo.model]
    assert [
        float(text.split()[0]) for text in cells(page, "#table-zoo table", 11)
    ] == pytest.approx([*zoo.ratio_median], abs=0.06)
    epochs = csv_of(page_file, "page/epochs.csv")
    means = epochs.groupby(["source", "network", "epoch"], sort=False).validation_percent.mean()
    assert cells(page, "#table-epochs table", 6) == [f"{value:.2f}" for value in means]


def test_the_verdicts_are_those_of_the_published_runs(open_page: Open, page_file: Path) -> None:
    page = open_page()
    claims = csv_of(page_file, "page/verdicts.csv").set_index("claim")
    first = page.locator(".verdicts tbody").nth(0).inner_text()
    row = claims.loc["C1"]
    for told in (f"{row['mean']:+.3f} points", row.verdict, f"{row.n} pairs", f"±{row.margin}",
                 "experiment=table1", "The machine was busy"):  # fmt: skip
        assert told in first
    assert [*claims.index] == [
        text[:2] for text in page.locator(".verdicts th[scope=row]").all_inner_texts()
    ]
    fourth = page.locator(".verdicts tbody").nth(3).inner_text()
    assert "no verdict yet" in fourth
    assert "experiment=train_size are not chosen yet: make evidence" in fourth


def test_a_column_is_sorted_by_its_button_with_mouse_and_keyboard(open_page: Open) -> None:
    page = open_page()
    head = page.locator("#runs-table thead th").nth(4)
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    rising = [float(text) for text in cells(page, "#runs-table", 4)]
    assert rising == sorted(rising)
    assert len({*rising}) > 20
    head.get_by_role("button").press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    assert [float(text) for text in cells(page, "#runs-table", 4)] == rising[::-1]
    zoo = page.locator("#table-zoo thead th").nth(4)  # 132.87 → 132.87 is more than 28.59 → 28.59
    zoo.get_by_role("button").click()
    numbers = [
        float(text.split(" →")[0].replace(",", "")) for text in cells(page, "#table-zoo table", 4)
    ]
    assert numbers == sorted(numbers)
    assert page.locator("#runs-table thead th").nth(6).get_by_role("button").count() == 0


def test_the_runs_are_filtered(open_page: Open) -> None:
    page = open_page()
    page.get_by_label("Network", exact=True).select_option("unit_stride")
    assert page.locator("#runs-count").inner_text() == "55 of 110 runs"
    assert {*cells(page, "#runs-table", 1)} == {"● Unity Stride"}
    page.locator("#runs-source").select_option("yours")
    page.get_by_label("Name, seed or commit contains").fill("3003")
    assert len(cells(page, "#runs-table", 0)) == 1
    assert page.locator("#runs-count").inner_text() == "1 of 110 runs"


def test_the_runs_are_searched_by_name_seed_and_commit_alone(
    open_page: Open, page_file: Path
) -> None:
    page = open_page()
    runs = csv_of(page_file, "page/runs.csv")
    search = page.get_by_label("Name, seed or commit contains")
    commit = runs.git_commit[runs.source == "table1"].iloc[0]
    assert len(commit) >= 40
    for wanted in (commit, commit.upper()):
        search.fill(wanted)
        assert cells(page, "#runs-table", 0) == [*runs.run[runs.git_commit == commit]]
    assert not runs.run.str.contains("copy").any()
    for elsewhere in ("copy", "python", "table1"):  # of buttons, commands and sources
        search.fill(elsewhere)
        assert cells(page, "#runs-table", 0) == []


def test_the_curves_are_filtered_and_have_tooltips(open_page: Open) -> None:
    page = open_page()
    count, chart = page.locator("#curves-count"), page.locator("#chart-curves")
    lines = chart.locator("svg [data-mark=line] path")
    assert count.inner_text().startswith("100 of 100 runs")
    assert lines.count() == 102  # a line for each run, and two means
    chart.get_by_label("Non-Unity Stride").uncheck()
    assert count.inner_text().startswith("50 of 100 runs")
    assert lines.count() == 51
    page.locator("#curves-source").select_option("yours")
    page.locator("#curves-seed").select_option("3001")
    assert count.inner_text().startswith("2 of 10 runs")
    chart.locator("svg [data-mark=dot] path").nth(0).hover(force=True)
    assert "seed 3001" in chart.locator("svg [aria-label=tip]").text_content()
    page.locator("#pairs-source").select_option("yours")
    assert "5 pairs" in page.locator("#chart-pairs svg").get_attribute("aria-label")


def test_a_command_is_copied(open_page: Open, page_file: Path) -> None:
    page = open_page(permissions=["clipboard-read", "clipboard-write"])
    commands = csv_of(page_file, "page/runs.csv").command
    page.locator("#runs-table .command button").nth(2).click()
    page.locator("#announcer", has_text="Copied").wait_for(state="attached")
    assert page.locator("#announcer").inner_text() == f"Copied: {commands[2]}"
    assert page.evaluate("navigator.clipboard.readText()") == commands[2]


def test_a_command_is_copied_where_there_is_no_clipboard_for_scripts(
    open_page: Open, page_file: Path
) -> None:
    page = open_page(setup="Object.defineProperty(navigator, 'clipboard', {value: undefined});")
    page.locator("#runs-table .command button").nth(1).click()
    page.locator("#announcer", has_text="Copied").wait_for(state="attached")
    page.locator("#runs-text").focus()
    page.keyboard.press("Control+V")
    assert page.locator("#runs-text").input_value() == csv_of(page_file, "page/runs.csv").command[1]


@pytest.mark.parametrize("width", [360, 768])
def test_a_narrow_screen_needs_no_sideways_scroll(open_page: Open, width: int) -> None:
    page = open_page(viewport={"width": width, "height": 740})
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    assert page.evaluate(SCROLLED) == [width, width]
    assert page.evaluate(SIDEWAYS) == []
    regions = page.locator(".scroll")
    reached = regions.evaluate_all("all => all.map(r => r.tabIndex === 0 && Boolean(r.ariaLabel))")
    assert reached == [True] * regions.count()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(open_page: Open, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    page = open_page(color_scheme=scheme)
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    found = axe.Axe().run(page).response["violations"]
    told = {rule["id"]: [node["html"][:200] for node in rule["nodes"][:3]] for rule in found}
    assert told == {}
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == {"light": "rgb(255, 255, 255)", "dark": "rgb(21, 24, 28)"}[scheme]


def test_headings_are_in_order_and_pictures_are_described(open_page: Open) -> None:
    page = open_page()
    levels = page.eval_on_selector_all(
        "h1, h2, h3, h4", "all => all.map(h => Number(h.tagName[1]))"
    )
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    for alternative in page.eval_on_selector_all("img", "all => all.map(image => image.alt)"):
        assert len(alternative) > 40
    ids = page.eval_on_selector_all("[id]", "all => all.map(one => one.id)")
    assert len(ids) == len({*ids})
    wanted = page.eval_on_selector_all("nav a", "all => all.map(a => a.hash.slice(1))")
    assert {*wanted} <= {*ids}


def test_focus_is_seen_and_nothing_moves_where_that_is_asked(open_page: Open) -> None:
    page = open_page(reduced_motion="reduce")
    page.keyboard.press("Tab")
    focused = "getComputedStyle(document.activeElement)"
    assert page.evaluate(f"{focused}.outlineStyle") == "solid"
    assert page.evaluate("document.activeElement.className") == "skip"
    assert page.evaluate("getComputedStyle(document.documentElement).scrollBehavior") == "auto"


COVERED = """() => {
  const focused = document.activeElement, box = focused.getBoundingClientRect();
  const places = [box.top + 1, (box.top + box.bottom) / 2, box.bottom - 1];
  const over = (y) => document.elementFromPoint((box.left + box.right) / 2, y);
  return places.map(over).filter((one) => one !== focused).map((one) => one?.textContent);
}"""


def test_focus_is_not_hidden_under_the_head_of_the_table(open_page: Open) -> None:
    page = open_page(reduced_motion="reduce")
    buttons = page.locator("#runs-table .command button")
    buttons.nth(40).focus()
    for row in reversed(range(40)):
        page.keyboard.press("Shift+Tab")
        assert buttons.nth(row).evaluate("button => button === document.activeElement")
        assert page.evaluate(COVERED) == []
    rows = page.locator(".tall")
    rows.evaluate("rows => { rows.scrollTop = 900; }")
    page.locator("#runs-table thead button").nth(3).focus()
    assert rows.evaluate("rows => rows.scrollTop") == 900


def test_without_scripts_figures_stand_in_the_charts_place(open_page: Open) -> None:
    page = open_page(java_script_enabled=False)
    figures = page.locator("figure.static img")
    assert figures.count() == 4  # pairs and curves, of the published runs and of these
    assert all(figures.nth(place).is_visible() for place in range(4))
    assert "data:image/svg+xml" in figures.nth(0).get_attribute("src")
    assert not page.locator(".chart").nth(0).is_visible()
    assert not page.locator("#runs-filters").is_visible()
    assert page.locator("#runs-table code").nth(0).is_visible()
    assert page.locator("thead button").count() == 0


def test_print_has_figures_whole_tables_and_commands(open_page: Open) -> None:
    page = open_page()
    page.locator(".chart svg").nth(1).wait_for()
    assert not page.locator("figure.static img").nth(0).is_visible()
    page.emulate_media(media="print", color_scheme="dark")
    assert page.locator("figure.static img").nth(0).is_visible()
    for hidden in (".chart", "nav", ".command button", "#runs-filters"):
        assert not page.locator(hidden).nth(0).is_visible(), hidden
    assert page.evaluate("getComputedStyle(document.querySelector('.tall')).maxHeight") == "none"
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.pdf(format="A4").startswith(b"%PDF")
