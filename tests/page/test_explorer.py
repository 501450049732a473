"""The explorer of the report's page computes what the library does, in a real browser."""

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stridenet import plan_elimination
from stridenet.phases import expand_filter
from stridenet.taps import TapMap
from stridenet.zoo import lenet
from tests.page.explorer_page import standalone
from tests.page.explorer_settings import Settings, map_sizes, random, systematic

PRESETS = ("toy", "lenet12", "lenet23", "lenet34", "resnet", "vit")
AT_ONCE = 400  # settings in one call of the browser
COMPUTE = """settings => JSON.stringify(JSON.parse(settings).map(each => {
  const found = Explorer.compute(each);
  if (found.errors) return found;
  const layers = found.layers.map(({axes, weight, filter, masked}) => ({
    axis: axes[1], masked, weight: weight.data, filter: filter.flat().flatMap(map => map.data)}));
  const {errors, sizes, maps, strided, twin, different} = found;
  return {errors, sizes, layers, different, image: maps[0].data, strided: strided.data,
    twin: twin.data};
}))"""


@pytest.fixture
def page(browser: Any, request: pytest.FixtureRequest) -> Iterator[Any]:
    """The explorer alone, which must say nothing on the console and ask the network for nothing."""
    context = browser.new_context(**getattr(request, "param", {}))
    page = context.new_page()
    told: list[str] = []
    page.on("console", lambda message: told.append(message.text))
    page.on("pageerror", lambda error: told.append(str(error)))
    page.on("request", lambda asked: told.append(asked.url))
    page.set_content(standalone())
    yield page
    context.close()
    assert [each for each in told if not each.startswith("data:")] == []


def test_the_browser_is_the_one_that_opens_the_whole_page(page: Any, browser: Any) -> None:
    """A second one would need its own rule for where it is, and Playwright starts no second one."""
    assert page.context.browser == browser


def assert_same_axis(axis: dict[str, Any], taps: TapMap) -> None:
    assert axis["taps"] == taps.taps.tolist()
    assert axis["F"] == taps.input_factor
    assert axis["twinKernel"] == taps.twin_kernel
    assert axis["twinPadding"] == list(taps.twin_padding)
    assert axis["outputSize"] == taps.output_size
    assert axis["readsPhantoms"] == taps.reads_phantoms


def strided_outputs(settings: Settings, image: list[int], weights: list[Tensor]) -> Tensor:
    """The two layers' outputs as torch computes them."""
    maps = torch.tensor(image).double().reshape(1, 1, *[settings.size] * settings.axes)
    convolution = F.conv2d if settings.axes == 2 else F.conv1d
    for (_, stride, dilation, padding), weight in zip(settings[3:], weights, strict=True):
        maps = convolution(maps, weight, None, stride, padding, dilation)
    return maps


def assert_agrees(found: dict[str, Any], settings: Settings) -> None:
    """What the browser computed for valid settings is what the library and torch compute."""
    maps = settings.tap_maps()
    weights = []
    for layer, taps in zip(found["layers"], maps, strict=True):
        assert_same_axis(layer["axis"], taps)
        size = (1, 1, *[taps.kernel] * settings.axes)
        weights.append(torch.tensor(layer["weight"]).double().reshape(size))
        expanded = expand_filter(weights[-1], [taps] * settings.axes)
        assert layer["filter"] == expanded.ravel().tolist()
    assert [layer["masked"] for layer in found["layers"]] == [False, maps[1].reads_phantoms]
    assert map_sizes(settings).items() <= found["sizes"].items()
    outputs = strided_outputs(settings, found["image"], weights).ravel().tolist()
    assert found["strided"] == outputs
    assert found["twin"] == outputs
    assert found["different"] == 0


def computed_in(page: Any, drawn: list[Settings]) -> list[dict[str, Any]]:
    """What the explorer computes; text passes faster between browser and test than objects."""
    return json.loads(page.evaluate(COMPUTE, json.dumps([each.as_json() for each in drawn])))


def test_its_arithmetic_is_the_librarys(page: Any) -> None:
    drawn = [*systematic(), *random(2600)]
    computed = [
        found
        for start in range(0, len(drawn), AT_ONCE)
        for found in computed_in(page, drawn[start : start + AT_ONCE])
    ]
    outcomes: Counter[str] = Counter()
    for settings, found in zip(drawn, computed, strict=True):
        wrong = settings.wrong_field()
        outcomes[wrong or "valid"] += 1
        if wrong is None:
            assert_agrees(found, settings)
            outcomes["masked"] += found["layers"][1]["masked"]
        else:
            assert list(found["errors"]) == [wrong]
    assert outcomes["valid"] >= 2000
    for wanted in ("kernel1", "kernel2", "stride1", "masked"):
        assert outcomes[wanted] >= 10, f"no settings that try {wanted}: {outcomes}"


def sizes_shown(page: Any, network: str) -> list[str]:
    return page.locator(f".sizes .{network} td span").all_inner_texts()


def sizes_planned(network: nn.Module, size: tuple[int, ...]) -> dict[str, list[str]]:
    plan = plan_elimination(network, size)
    layers = [layer for layer in plan.layers if layer.maps or len(layer.weight_size or ()) > 2]
    maps = [plan.input, *(layer.output for layer in layers)]
    return {
        "strided": ["×".join(map(str, each.size)) for each in maps],
        "twin": ["×".join(map(str, each.unit_stride_size)) for each in maps],
    }


STEM = nn.Sequential(nn.Conv2d(3, 64, 7, 2, 3), nn.MaxPool2d(3, 2, 1))
PATCHES = nn.Sequential(nn.Conv2d(3, 768, 16, 16), nn.Conv2d(768, 768, 1))
TOY = nn.Sequential(nn.Conv1d(1, 1, 4, 2), nn.Conv1d(1, 1, 1))
PLANS = {  # of presets: network, input, and the maps of it that are shown
    "toy": (TOY, (1, 8), 0),
    "lenet12": (lenet(), (1, 28, 28), 0),
    "lenet23": (lenet(), (1, 28, 28), 1),
    "lenet34": (lenet(), (1, 28, 28), 2),
    "resnet": (STEM, (3, 32, 32), 0),
    "vit": (PATCHES, (3, 48, 48), 0),
}


@pytest.mark.parametrize("preset", PRESETS)
def test_the_presets_have_the_plans_sizes(page: Any, preset: str) -> None:
    network, size, first = PLANS[preset]
    page.click(f"[data-preset={preset}]")
    for name, planned in sizes_planned(network, size).items():
        assert sizes_shown(page, name) == planned[first : first + 3]
    assert page.inner_text(".verdict").endswith("equal.")
    assert page.locator("[aria-pressed=true]").get_attribute("data-preset") == preset


def test_lenets_presets_are_table_2(page: Any) -> None:
    chain = []
    for preset in ("lenet12", "lenet23", "lenet34"):
        page.click(f"[data-preset={preset}]")
        chain.append(sizes_shown(page, "twin"))
    assert chain == [
        ["16×7×7", "320×6×6", "80×6×6"],
        ["320×6×6", "80×6×6", "200×4×4"],
        ["80×6×6", "200×4×4", "50×4×4"],
    ]


def numbers(page: Any, picture: str) -> list[str]:
    return page.locator(f".{picture} text").all_text_contents()


def test_the_toy_is_figure_1(page: Any) -> None:
    page.click("[data-preset=toy]")
    assert numbers(page, "strided-filter") == ["1", "2", "3", "4"]
    assert numbers(page, "map-apart") == ["1", "3", "5", "7", "2", "4", "6", "8"]
    assert numbers(page, "twin-filter") == ["1", "3", "2", "4"]
    assert numbers(page, "strided-output") == numbers(page, "twin-output") == ["30", "50", "70"]
    assert numbers(page, "map-whole") == ["1", "2"] * 4  # phases, counted from 1 as in Figure 3


def test_phases_are_those_of_figure_3(page: Any) -> None:
    page.click("[data-preset=lenet34]")
    page.get_by_label("Size").fill("6")
    page.locator("[data-field=kernel1]").fill("3")
    rows = np.array(numbers(page, "map-whole")).reshape(6, 6)
    assert rows[:2, :4].tolist() == [["1,1", "1,2", "1,1", "1,2"], ["2,1", "2,2", "2,1", "2,2"]]
    fill = "all => all.map(e => getComputedStyle(e).fill)"
    fills = page.eval_on_selector_all(".map-whole rect", fill)
    together = set(zip(rows.ravel().tolist(), fills, strict=True))
    assert len(together) == len(set(fills)) == 4  # a colour for each phase


# How it is read: with mouse, keyboard and screen reader; in light, dark, narrow and in print.

LIT = """picture => [...document.querySelectorAll(`.${picture} .lit`)]
  .map(({dataset}) => [+dataset.row, +dataset.col])"""
# Of each preset the layers' kernels, strides, paddings, input sizes and output factors.
TAPS = {
    ("toy", 1): TapMap(4, 2, 1, (0, 0), 8, 1),
    ("lenet12", 1): TapMap(5, 1, 1, (0, 0), 28, 4),
    ("lenet12", 2): TapMap(2, 2, 1, (0, 0), 24, 2),
    ("lenet34", 1): TapMap(5, 1, 1, (0, 0), 12, 2),
    ("resnet", 1): TapMap(7, 2, 1, (3, 3), 32, 2),
    ("vit", 1): TapMap(16, 16, 1, (0, 0), 48, 1),
}


def opened(page: Any, preset: str, layer: int) -> None:
    page.click(f"[data-preset={preset}]")
    page.get_by_label(f"Take layer {layer} apart").check()


def places(taps: TapMap, k: int, l: int, flat: bool) -> list[list[int]]:  # noqa: E741
    """Rows and columns of the twin's picture where the weight stands."""
    if flat:
        table = taps.taps.reshape(-1, taps.twin_kernel)
        return [[r, c] for r, row in enumerate(table) for c, tap in enumerate(row) if tap == l]
    line = taps.taps.ravel().tolist()
    return [[r, c] for r, a in enumerate(line) if a == k for c, b in enumerate(line) if b == l]


@pytest.mark.parametrize(("preset", "layer"), TAPS)
def test_the_copies_of_a_weight_are_lit_together(page: Any, preset: str, layer: int) -> None:
    taps, flat = TAPS[preset, layer], preset == "toy"
    opened(page, preset, layer)
    for k, l in ((0, 1), (taps.kernel - 1, taps.kernel - 1)):  # noqa: E741
        k = 0 if flat else k
        cell = page.locator(f'.strided-filter [data-row="{k}"][data-col="{l}"]')
        expected = places(taps, k, l, flat)
        for light in (cell.hover, cell.focus):
            light()
            assert page.evaluate(LIT, "twin-filter") == expected
            assert page.evaluate(LIT, "strided-filter") == [[k, l]]
            assert len(page.evaluate(LIT, "cut-filter")) == 1
            name = f"{l + 1}" if flat else f"({k + 1},{l + 1})"
            said = page.inner_text("[data-show=live]")
            assert said.startswith(f"Weight {name} = ")
            assert f"stands at {len(expected)} place" in said
            page.mouse.move(0, 0)
            cell.blur()
            assert page.locator(".lit").count() == 0
            assert page.inner_text("[data-show=live]") == ""


def test_a_place_of_the_twins_filter_lights_its_weight(page: Any) -> None:
    opened(page, "lenet34", 1)
    place = page.locator('.twin-filter [data-row="7"][data-col="1"]')
    place.hover()
    weight = int(place.get_attribute("data-weight"))
    assert page.evaluate(LIT, "strided-filter") == [list(divmod(weight, 5))]
    assert "here from input phase (1,1) to output phase (2,1)" in page.inner_text(
        "[data-show=live]"
    )
    page.locator('.twin-filter [data-weight="-1"]').first.hover()
    assert page.locator(".lit").count() == 0
    assert page.inner_text("[data-show=live]").startswith("Here is a structural zero, from input")


def test_filters_are_walked_through_with_the_keyboard(page: Any) -> None:
    opened(page, "resnet", 1)
    page.get_by_label("Take layer 1 apart").focus()
    page.keyboard.press("Tab")
    at = "(({dataset}) => [+dataset.row, +dataset.col])(document.activeElement)"
    walked = []
    for key in ("ArrowUp", "ArrowRight", "ArrowDown", "End", "ArrowRight", "Home", "Control+End"):
        page.keyboard.press(key)
        walked.append(page.evaluate(at))
        assert page.evaluate(LIT, "strided-filter") == [walked[-1]]
    assert walked == [[0, 0], [0, 1], [1, 1], [1, 6], [1, 6], [1, 0], [6, 6]]
    for picture in ("cut-filter", "twin-filter"):
        page.keyboard.press("Tab")
        assert page.evaluate(f"document.activeElement.closest('.{picture}') !== null")
    assert page.locator('.twin-filter [tabindex="0"]').count() == 1
    page.keyboard.press("Control+Home")
    assert "structural zero" in page.inner_text("[data-show=live]")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.closest('[role=grid]') === null")


def test_every_control_has_a_name_and_headings_are_in_order(page: Any) -> None:
    controls = page.locator("#explorer :is(input, select, button)")
    assert controls.count() == 22
    name = "all => all.map(e => e.labels?.[0]?.textContent || e.textContent)"
    assert all(found.strip() for found in controls.evaluate_all(name))
    assert page.locator("#explorer :is(h1, h2, h3, h4)").count() == 1
    assert page.locator("#explorer h2").count() == 1
    pictures = page.locator("#explorer .picture [role=grid], #explorer .picture [role=img]")
    assert pictures.count() == page.locator("#explorer figure").count() == 7
    assert all(pictures.evaluate_all("all => all.map(e => e.getAttribute('aria-label'))"))


WRONG = [
    ("size", "", "The size of the input must be a whole number from 1 to 64."),
    ("stride1", "0", "The stride must be a whole number from 1 to 16."),
    ("stride2", "1.5", "The stride must be a whole number from 1 to 16."),
    ("padding2", "", "The padding must be a whole number from 0 to 16."),
    ("padding1", "-1", "The padding must be a whole number from 0 to 16."),
    ("channels2", "9999", "The number of channels must be a whole number from 1 to 2,048."),
    ("dilation1", "8", "The kernel reaches over 33 positions, but the padded map has 28."),
    ("size", "5", "The kernel reaches over 2 positions, but the padded map has 1."),
    ("stride2", "8", "The twin’s filter would have 262,144 places, and this page draws 9,216"),
]


@pytest.mark.parametrize(("field", "value", "sentence"), WRONG)
def test_errors_stand_beside_the_field(page: Any, field: str, value: str, sentence: str) -> None:
    page.click("[data-preset=lenet12]")
    before = page.input_value(f"[data-field={field}]")
    page.fill(f"[data-field={field}]", value)
    wrong = page.locator("[aria-invalid=true]")
    assert wrong.count() == 1
    told = page.locator(f"#{wrong.get_attribute('aria-describedby')}")
    assert told.inner_text().startswith(sentence)
    assert told.evaluate("e => e.parentElement.querySelector('[aria-invalid=true]') !== null")
    text = page.inner_text("#explorer")
    assert "NaN" not in text
    assert "undefined" not in text
    assert "still show the last settings" in text
    page.fill(f"[data-field={field}]", before)
    assert wrong.count() == 0
    assert page.locator("#explorer.stale").count() == 0


CHANGES = """() => {
  window.changed = [];
  const note = (records) => changed.push(...records.map(({target}) => target.textContent));
  for (const region of document.querySelectorAll("#explorer [role=status]"))
    new MutationObserver(note).observe(region, {childList: true, characterData: true, subtree: true});
}"""


def test_errors_and_outcomes_are_announced_once(page: Any) -> None:
    """Live regions have them, which were there before, and which no key without effect changes."""
    page.click("[data-preset=lenet12]")
    error = page.get_by_role("status").and_(page.locator("#explorer-error-1"))
    note, verdict = (
        page.get_by_role("status").and_(page.locator(f"[data-show={name}]"))
        for name in ("note", "verdict")
    )
    assert [error.count(), note.count(), verdict.count()] == [1, 1, 1]
    assert error.text_content() == ""
    page.evaluate(CHANGES)
    stride = page.locator("[data-field=stride1]")
    for value in ("0", "00", "99"):  # each is the same error
        stride.fill(value)
    wrong = "The stride must be a whole number from 1 to 16."
    shown = "The pictures below still show the last settings that fit."
    assert error.text_content() == wrong
    assert note.text_content() == shown
    assert sorted(page.evaluate("changed.splice(0)")) == [shown, wrong]

    for value in ("2", "02", "2.0"):
        stride.fill(value)
    own = "These settings are your own. One channel of each map is drawn and computed."
    assert error.text_content() == ""
    assert note.text_content() == own
    equal = verdict.text_content()
    assert equal.endswith("integers are equal.")
    assert sorted(page.evaluate("changed.splice(0)")) == sorted(["", own, equal])


NARROW = [{"viewport": {"width": width, "height": 800}} for width in (360, 320)]


@pytest.mark.parametrize("page", NARROW, indirect=True, ids=["360 px", "320 px"])
def test_a_phone_needs_no_sideways_scroll(page: Any) -> None:
    scrolls = "document.documentElement.scrollWidth > innerWidth"
    for preset in PRESETS:
        page.click(f"[data-preset={preset}]")
        page.locator(".twin-filter .weight").first.focus()
        assert not page.evaluate(scrolls)
    page.fill("[data-field=kernel2]", "16")
    assert not page.evaluate(scrolls)


@pytest.mark.parametrize("width", [1200, 1000, 600, 360])
def test_nothing_moves_under_the_pointer(page: Any, width: int) -> None:
    """What is said of a weight has its room before it is said: else the weight would slip away."""
    page.set_viewport_size({"width": width, "height": 900})
    opened(page, "resnet", 1)
    page.fill("[data-field=kernel1]", "16")
    top = "document.querySelector('.twin-filter').getBoundingClientRect().top + scrollY"
    before = page.evaluate(top)
    for place in (".weight", ".zero"):
        page.locator(f".twin-filter {place}").last.hover()
        assert page.inner_text("[data-show=live]")
        assert page.evaluate(top) == before


CONTRASTS = """() => {
  const context = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const paper = getComputedStyle(document.body).backgroundColor;
  const luminance = (colour) => {
    context.fillStyle = paper; context.fillRect(0, 0, 1, 1);
    context.fillStyle = colour; context.fillRect(0, 0, 1, 1);
    const parts = [...context.getImageData(0, 0, 1, 1).data].slice(0, 3).map((part) => part / 255)
      .map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
  };
  const contrast = (one, other) => {
    const [low, high] = [one, other].map(luminance).sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  };
  const style = (element) => getComputedStyle(element);
  const inCells = [...document.querySelectorAll("#explorer text")].map((text) =>
    contrast(style(text).fill, style(text.previousElementSibling).fill));
  const words = "#explorer :is(p, label, legend, figcaption, b, caption, th, td)";
  const onPaper = [...document.querySelectorAll(words)]
    .map((element) => contrast(style(element).color, paper));
  return [Math.min(...inCells), Math.min(...onPaper), inCells.length];
}"""
SCHEMES = [{"color_scheme": "light"}, {"color_scheme": "dark"}]


@pytest.mark.parametrize("page", SCHEMES, indirect=True, ids=["light", "dark"])
def test_numbers_and_words_have_contrast(page: Any) -> None:
    for preset in PRESETS:
        opened(page, preset, 1)
        page.locator(".strided-filter .weight").first.focus()
        in_cells, on_paper, texts = page.evaluate(CONTRASTS)
        assert texts or preset == "vit"
        assert in_cells is None or in_cells >= 4.5
        assert on_paper >= 4.5


@pytest.mark.parametrize("page", [{"reduced_motion": "reduce"}], indirect=True, ids=["reduced"])
def test_nothing_moves_for_who_wants_no_motion(page: Any) -> None:
    durations = "all => [...new Set(all.map(e => getComputedStyle(e).transitionDuration))]"
    assert page.eval_on_selector_all("#explorer *", durations) == ["0s"]


def test_print_has_the_preset_and_nothing_lit(page: Any) -> None:
    opened(page, "lenet34", 1)
    page.locator(".strided-filter .weight").first.focus()
    assert page.locator(".lit").count() > 0
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    page.emulate_media(media="print")
    assert page.locator(".lit").count() == 0
    assert not page.is_visible(".presets")
    assert page.is_visible(".twin-filter svg")
    assert page.inner_text("[data-show=note]").startswith("LeNet’s last two convolutions")


def test_without_scripts_a_sentence_stands_there(browser: Any) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.set_content(standalone())
    assert "needs JavaScript" in page.inner_text("noscript")
    assert not page.is_visible(".presets")
    context.close()
