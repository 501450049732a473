"""The browser, and the page that the tests look at."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.page.pages import chromium, page_of_five_pairs


@pytest.fixture(scope="session")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return page_of_five_pairs(tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as playwright:
        path = chromium(playwright.chromium.executable_path)
        if path is None:
            pytest.skip(
                "no Chromium is found: install chromium, or run playwright install chromium"
            )
        options = ["--no-sandbox"] if os.geteuid() == 0 else []
        with playwright.chromium.launch(executable_path=path, args=options) as launched:
            yield launched


@pytest.fixture
def open_page(browser: Any, page_file: Path) -> Iterator[Callable[..., Any]]:
    """Open the page in a window of its own; at the end it has to have been quiet."""
    contexts, heard = [], []

    def opened(path: Path = page_file, setup: str | None = None, **options: Any) -> Any:
        size = {"viewport": {"width": 1200, "height": 900}}
        context = browser.new_context(**{**size, **options})
        contexts.append(context)
        window = context.new_page()
        window.set_default_timeout(20_000)
        if setup:
            window.add_init_script(setup)
        window.on("console", lambda message: heard.append(message.text))
        window.on("pageerror", lambda error: heard.append(str(error)))
        window.on("request", lambda request: heard.append(request.url)
                  if not request.url.startswith(("file:", "data:")) else None)  # fmt: skip
        window.goto(path.as_uri())
        return window

    yield opened
    for context in contexts:
        context.close()
    assert heard == []
