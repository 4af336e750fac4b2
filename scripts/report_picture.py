"""Draw docs/report.png: the top of the page of a run of the built-in model, in a headless Chromium.

    smollm3 train --set train.eval_every=10 --output runs/first
    python scripts/report_picture.py runs/first

Needs playwright and Chromium; see `nox -s browser`.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

PICTURE = Path(__file__).parents[1] / "docs" / "report.png"
WIDTH = 1160


def main(run: str) -> None:
    page_of_run = (Path(run) / "report.html").absolute()
    with sync_playwright() as started:
        root = hasattr(os, "geteuid") and os.geteuid() == 0
        executable = shutil.which("chromium") or shutil.which("google-chrome")
        browser = started.chromium.launch(executable_path=executable, args=["--no-sandbox"] if root else [])
        page = browser.new_page(viewport={"width": WIDTH, "height": 900}, color_scheme="light")
        page.goto(page_of_run.as_uri())
        end = page.locator(".chart").nth(2).bounding_box()
        assert end is not None
        clip = {"x": 0, "y": 0, "width": WIDTH, "height": end["y"] + end["height"]}
        page.screenshot(path=PICTURE, full_page=True, clip=clip)
        browser.close()
    print(f"wrote {PICTURE}: {PICTURE.stat().st_size} bytes")


if __name__ == "__main__":
    main(sys.argv[1])
