"""A page with nothing but the explorer, and the browser that opens it."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

FILES = Path(__file__).resolve().parents[2] / "experiments" / "page"
NAMES = ("chromium", "chromium-browser", "google-chrome")


def standalone() -> str:
    """The explorer's three files in one page, as the report has them."""
    script, style, body = (
        (FILES / f"explorer.{kind}").read_text(encoding="utf-8") for kind in ("js", "css", "html")
    )
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Explorer</title>'
        '<meta name="viewport" content="width=device-width"><link rel="icon" href="data:,">'
        "<style>body { margin: 16px; font-family: system-ui, sans-serif; background: #fff } "
        f"@media (prefers-color-scheme: dark) {{ body {{ background: #161615 }} }} {style}</style>"
        f"{body}<script>{script}</script>"
        '<script>Explorer.mount(document.getElementById("explorer"))</script></html>'
    )


def chromium() -> str:
    """The path of a Chromium, or the test is skipped."""
    named = os.environ.get("CHROMIUM")
    found = [named] if named else [path for name in NAMES if (path := shutil.which(name))]
    if not found:
        pytest.skip(f"there is no Chromium: no {' or '.join(NAMES)} on PATH, nor CHROMIUM set")
    return found[0]


@contextmanager
def browser() -> Iterator[Any]:
    """A headless Chromium, or the test is skipped where there is none or no Playwright."""
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    path = chromium()
    with playwright.sync_playwright() as running:
        started = running.chromium.launch(executable_path=path, args=["--no-sandbox"])
        try:
            yield started
        finally:
            started.close()
