"""The page in a real headless Chromium: `nox -s browser` installs what this needs; skipped elsewhere."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from smollm3_finetune.report.write import write_report
from smollm3_finetune.runs.rundir import RunDir

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: nox -s browser")

MakeRun = Callable[..., RunDir]
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
VIEWS = [(width, scheme) for width in (1280, 400) for scheme in ("light", "dark")]
CANNOT_TELL = {"rows": 73, "terms": 880, "before": 1.885, "after": 1.88, "difference": -0.005, "low": -0.02,
               "high": 0.01, "verdict": "cannot tell", "smallest_difference": 0.021, "rows_for_half": 292}  # fmt: skip


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A Chromium of the system, or the one that playwright installed."""
    found = next(filter(None, map(shutil.which, CHROMIUM)), None)
    root = hasattr(os, "geteuid") and os.geteuid() == 0  # Chromium's sandbox does not start as root
    with playwright.sync_playwright() as started:
        try:
            made = started.chromium.launch(executable_path=found, args=["--no-sandbox"] if root else [])
        except playwright.Error as e:
            pytest.skip(f"Chromium does not start: {str(e).splitlines()[0]}; apt-get install chromium")
        yield made
        made.close()


@contextlib.contextmanager
def opened(browser: Any, address: str, width: int = 1280, scheme: str = "light", **options: Any) -> Iterator[Any]:
    """The page at an address; fails if it writes to the console, raises, opens a dialog or requests anything else."""
    seen: list[str] = []
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme, **options)
    page.on("console", lambda message: seen.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: seen.append(f"error: {error}"))
    page.on("dialog", lambda dialog: (seen.append("dialog"), dialog.dismiss()))
    page.on("request", lambda request: seen.append(request.url) if request.url not in (address, "data:,") else None)
    page.goto(address)
    yield page
    page.wait_for_timeout(50)
    page.close()
    assert seen == []


def screenshot(page: Any, name: str) -> None:
    """Keep a picture of the whole page in the folder SMOLLM3_SCREENSHOTS, if that is set."""
    if folder := os.environ.get("SMOLLM3_SCREENSHOTS"):
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


def explode(run: RunDir) -> None:
    """Let the loss of a run rise from step 25 on, until the run fails at step 44."""
    rows = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    for row in rows:
        for name in {"loss", "held_out_loss", "grad_norm"} & set(row):
            row[name] *= 1.09 ** max(row["step"] - 24, 0)
    run.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows if row["step"] <= 44))
    loss = next(row["loss"] for row in rows if row["step"] == 44 and "loss" in row)
    message = f"the loss exploded from 1.885 to {loss:.4g} by step 44"
    run.error.write_text(
        json.dumps({"message": message, "hint": "lower the learning rate, such as --learning-rate 5e-5"})
    )


@pytest.mark.parametrize(("width", "scheme"), VIEWS)
def test_pages_open_without_errors_and_fit_their_width(
    browser: Any, make_run: MakeRun, width: int, scheme: str
) -> None:
    whole, failed = make_run(), make_run("failed", without=("report.json", "trained.json"))
    explode(failed)
    after = {"held_out_loss": 1.88, "perplexity": 6.554, "sample": "A leaf is green."}
    unclear = make_run("unclear", steps=40, comparison=CANNOT_TELL, after=after)
    for name, runs in {"finished": [whole], "failed": [failed], "several": [whole, failed, unclear]}.items():
        file = write_report(runs).absolute()
        with opened(browser, file.as_uri(), width, scheme) as page:
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            lines = page.locator(".commands code").evaluate_all("all => all.map(it => it.clientHeight)")
            assert max(lines, default=0) < 45, "a command is not wrapped"
            if name == "several":
                table = page.locator(".scroll").first
                assert table.evaluate("it => it.scrollWidth <= it.clientWidth"), "the table of runs"
            heights = page.locator(".plot path.curve").evaluate_all(
                "all => all.map(it => it.getBoundingClientRect().height)"
            )
            assert max(heights) > 100
            background = page.evaluate("getComputedStyle(document.body).backgroundColor")
            assert (sum(map(int, background.strip("rgb()").split(","))) > 380) == (scheme == "light")
            screenshot(page, f"{name}-{width}-{scheme}")


def test_hostile_text_does_nothing(browser: Any, make_run: MakeRun) -> None:
    attack = (
        "<script>alert(1)</script></style></script><img src=http://example.org/x.png onerror=alert(2)>"
        "<svg onload=alert(3)>\"' onfocus=alert(4) autofocus \u202eevil"
    )
    answer = {"held_out_loss": 1.0, "sample": attack}
    run = make_run(before=answer, after=answer, prompt=[{"role": attack, "content": attack}])
    run.warnings.write_text(json.dumps({"warning": attack}))
    run.metrics.write_text(json.dumps({"step": 1, "loss": 1.0, attack: 2.0, "__proto__": 1.0}) + "\n")
    with opened(browser, write_report([run]).as_uri()) as page:
        page.locator(".plot").last.focus()
        assert page.locator("img").count() == 0


def test_values_are_shown_at_the_pointer_by_keys_and_by_touch(browser: Any, make_run: MakeRun) -> None:
    run = make_run()
    rows = {r["step"]: r for r in map(json.loads, run.metrics.read_text().splitlines()) if "loss" in r}
    shows = playwright.expect
    with opened(browser, write_report([run]).as_uri(), has_touch=True) as page:
        chart, readout = page.locator(".plot").first, page.locator(".readout").first
        chart.scroll_into_view_if_needed()
        box = chart.locator("svg").first.bounding_box()
        page.mouse.move(box["x"] + box["width"] * 30.2 / 60, box["y"] + 50)
        shows(readout).to_contain_text(f"step 30 · training loss {rows[30]['loss']:.4g}")
        shows(page.locator(".readout").nth(3)).to_contain_text("step 30")  # all charts show the same step
        page.mouse.move(1, 1)
        shows(readout).to_have_text("")
        chart.focus()
        page.keyboard.press("ArrowLeft")
        page.keyboard.press("ArrowLeft")
        shows(readout).to_contain_text("step 28")
        page.keyboard.press("Home")
        shows(readout).to_contain_text("step 0 ")  # the held-out loss before training
        shows(chart).to_have_attribute("aria-valuetext", re.compile("^step 0, training loss"))
        page.keyboard.press("Escape")
        shows(readout).to_have_text("")
        page.touchscreen.tap(box["x"] + box["width"] * 10 / 60, box["y"] + 60)
        shows(readout).to_contain_text("step 10 ")


def test_the_switch_changes_the_colors_and_stores_nothing(browser: Any, make_run: MakeRun) -> None:
    with opened(browser, write_report([make_run()]).as_uri(), scheme="dark") as page:
        colors = []
        for _ in range(3):
            colors.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
            page.locator("#theme").click()
        assert colors[0] == colors[2] != colors[1]
        assert page.evaluate("localStorage.length + sessionStorage.length + document.cookie.length") == 0


def test_curves_are_drawn_without_scripts(browser: Any, make_run: MakeRun) -> None:
    with opened(browser, write_report([make_run()]).as_uri(), java_script_enabled=False) as page:
        assert page.locator(".plot path.curve").first.bounding_box()["width"] > 300
        assert not page.locator("#theme").is_visible() and not page.locator(".hint").is_visible()


def test_a_served_page_asks_its_server_for_nothing_else(browser: Any, make_run: MakeRun) -> None:
    file, asked = write_report([make_run()]), []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(file.parent))

        def log_message(self, *args: Any) -> None:
            asked.append(self.path)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with opened(browser, f"http://127.0.0.1:{server.server_port}/{file.name}") as page:
            page.wait_for_timeout(300)
    finally:
        server.shutdown()
        server.server_close()
    assert asked == [f"/{file.name}"]
