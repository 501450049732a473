"""How long a page of many runs takes to write and to show: python -m tests.page.benchmark [RUNS]."""

import os
import sys
import tempfile
import time
from pathlib import Path

from playwright.sync_api import sync_playwright

from experiments.page.build import write_page
from tests.page.pages import chromium, config_for, finished_run, published_wanted

SHOWN = "performance.getEntriesByType('navigation')[0].loadEventEnd"


def main(runs: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        config = config_for(Path(folder))
        for seed in range(runs // 2):
            for network in ("strided", "unit_stride"):
                finished_run(config, network, seed)
        began, worked = time.perf_counter(), time.process_time()
        page = write_page(config, [], published_wanted)
        took, worked = time.perf_counter() - began, time.process_time() - worked
        size = page.stat().st_size / 1e6
        print(f"{runs} runs: written in {took:.1f} s ({worked:.1f} CPU s), {size:.2f} MB")
        with sync_playwright() as playwright:
            path = chromium(playwright.chromium.executable_path)
            options = ["--no-sandbox"] if os.geteuid() == 0 else []
            browser = playwright.chromium.launch(executable_path=path, args=options)
            for _ in range(3):
                window = browser.new_page(viewport={"width": 1200, "height": 900})
                window.goto(page.as_uri())
                window.locator(".chart svg").nth(1).wait_for()
                while not window.evaluate(f"{SHOWN} > 0"):  # wait_for_function needs eval
                    window.wait_for_timeout(50)
                loaded = window.evaluate(SHOWN)
                began = time.perf_counter()
                window.locator("#runs-table thead button").nth(4).click()
                sorted_in = time.perf_counter() - began
                window.locator("#curves-source").select_option("yours")
                print(f"loaded in {loaded:.0f} ms, sorted in {1000 * sorted_in:.0f} ms")
                window.close()
            browser.close()


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else 600)
