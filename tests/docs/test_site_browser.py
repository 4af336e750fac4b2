"""The built site in a real headless Chromium: `nox -s site_browser` builds it and runs this; skipped elsewhere."""

from __future__ import annotations

import contextlib
import functools
import http.server
import os
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from regions import ROOT

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: nox -s site_browser")
HTML = ROOT / "build" / "site" / "html"
if not (HTML / "index.html").exists():
    pytest.skip("the site is not built: nox -s site_browser", allow_module_level=True)

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
VIEWS = [(width, scheme) for width in (1280, 390) for scheme in ("light", "dark")]
PICTURED = ("index", "start", "use", "quickstart", "data", "cli", "configuration", "compatibility", "architecture",
            "api/descriptors", "writing-a-quantizer", "project/changelog", "plugin/smollm3-gguf")  # fmt: skip
SCROLLS = """() => {
  const wide = [];
  for (const one of document.querySelectorAll(".bd-article *")) {
    const box = one.getBoundingClientRect();
    let parent = one.parentElement, scrolls = false;
    while (parent && !parent.matches(".bd-article")) {
      scrolls = scrolls || ["auto", "scroll", "hidden"].includes(getComputedStyle(parent).overflowX);
      parent = parent.parentElement;
    }
    if (box.width && box.right > innerWidth + 1 && !scrolls &&
        !["auto", "scroll"].includes(getComputedStyle(one).overflowX)) {
      wide.push(one.tagName + " " + one.className + ": " + one.textContent.slice(0, 60));
    }
  }
  return {page: document.documentElement.scrollWidth - innerWidth, wide};
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A Chromium of the system, or the one that playwright installed."""
    found = next(filter(None, map(shutil.which, CHROMIUM)), None)
    root = hasattr(os, "geteuid") and os.geteuid() == 0  # Chromium's sandbox does not start as root
    with playwright.sync_playwright() as started:
        made = started.chromium.launch(executable_path=found, args=["--no-sandbox"] if root else [])
        yield made
        made.close()


@pytest.fixture(scope="module")
def served() -> Iterator[str]:
    """The address of the site on a server of this machine."""
    handler = functools.partial(QuietHandler, directory=str(HTML))
    with Server(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 128  # a search fetches the excerpts of all pages at once


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@contextlib.contextmanager
def opened(
    browser: Any, place: str, width: int = 1280, scheme: str = "light", root: str = "", allowed: tuple[str, ...] = ()
) -> Iterator[Any]:
    """A page of the site, by default from its folder; fails if it raises, or requests anything outside of the site.

    Errors and messages of the console that contain a text of `allowed` may be there.
    """
    wrong: list[str] = []

    def note(text: str) -> None:
        if not any(part in text for part in allowed):
            wrong.append(text)

    root = root or HTML.as_uri()
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.on("pageerror", lambda error: note(f"error: {error}"))
    page.on("console", lambda message: note(message.text) if message.type == "error" else None)
    inside = (root, "data:")
    page.on("request", lambda request: None if request.url.startswith(inside) else note(request.url))
    page.goto(f"{root}/{place}.html")
    yield page
    page.close()
    assert wrong == []


def every_page() -> list[str]:
    return sorted(p.relative_to(HTML).with_suffix("").as_posix() for p in HTML.rglob("*.html"))


@pytest.mark.parametrize("width", [1280, 390])
def test_no_page_scrolls_sideways_and_wide_blocks_scroll_in_themselves(browser: Any, width: int) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900})
    wide = {}
    for place in every_page():
        page.goto((HTML / f"{place}.html").as_uri(), wait_until="domcontentloaded")
        found = page.evaluate(SCROLLS)
        if found["page"] > 0 or found["wide"]:
            wide[place] = found
    page.close()
    assert wide == {}


@pytest.mark.parametrize(("width", "scheme"), VIEWS)
@pytest.mark.parametrize("place", PICTURED)
def test_pages_are_readable_in_both_colors(browser: Any, place: str, width: int, scheme: str) -> None:
    with opened(browser, place, width, scheme) as page:
        page.wait_for_timeout(100)
        colors = "e => [getComputedStyle(e).color, getComputedStyle(e).backgroundColor]"
        text, _ = page.eval_on_selector(".bd-article p", colors)
        _, ground = page.eval_on_selector("body", colors)
        assert contrast(text, ground) >= 7
        if folder := os.environ.get("SMOLLM3_SCREENSHOTS"):
            page.screenshot(path=Path(folder) / f"{place.replace('/', '-')}-{width}-{scheme}.png")


def contrast(one: str, other: str) -> float:
    """The contrast of two colors `rgb(…)`, by the definition of the W3C."""

    def light(color: str) -> float:
        parts = [float(p) / 255 for p in color.partition("(")[2].rstrip(")").split(",")[:3]]
        linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    brighter, darker = sorted((light(one), light(other)), reverse=True)
    return (brighter + 0.05) / (darker + 0.05)


def found_by(page: Any, words: str) -> list[str]:
    """The pages that a search by keys finds."""
    page.keyboard.press("Control+k")
    page.wait_for_selector("#pst-search-dialog input:focus")
    page.keyboard.type(words)
    page.keyboard.press("Enter")
    page.wait_for_selector("#search-results li a")
    page.wait_for_timeout(1500)  # results appear one after another, and each then fetches its excerpt
    page.wait_for_load_state("networkidle")
    links = page.eval_on_selector_all("#search-results li a", "all => all.map(a => a.getAttribute('href'))")
    return [re.split("[?#]", link)[0].removeprefix("./") for link in links]


@pytest.mark.parametrize(("words", "finds"), [("ship_as", "shipping.html"), ("QuantizerSpec", "api/descriptors.html")])
def test_search_works_by_keys(browser: Any, served: str, words: str, finds: str) -> None:
    with opened(browser, "quickstart", root=served) as page:
        found = found_by(page, words)
    assert finds in found


def test_search_works_from_a_folder(browser: Any) -> None:
    """Only the excerpts are missing: a browser does not let a page read files."""
    with opened(browser, "quickstart", allowed=("fetch", "net::ERR_FAILED")) as page:
        found = found_by(page, "ship_as")
    assert "shipping.html" in found


def test_the_first_keys_of_tab_lead_through_the_page_and_are_visible(browser: Any) -> None:
    with opened(browser, "quickstart") as page:
        seen = []
        for _ in range(8):
            page.keyboard.press("Tab")
            seen.append(
                page.evaluate(
                    """() => { const e = document.activeElement, s = getComputedStyle(e), b = e.getBoundingClientRect();
                    return {text: (e.textContent || e.ariaLabel || "").trim().slice(0, 30),
                            shown: s.outlineStyle !== "none" || s.boxShadow !== "none", inside: b.width > 0}; }"""
                )
            )
        assert seen[0]["text"] == "Skip to main content"
        assert all(one["shown"] and one["inside"] for one in seen), seen


def test_a_phone_opens_the_navigation(browser: Any) -> None:
    with opened(browser, "quickstart", width=390) as page:
        page.click("button.primary-toggle")
        page.wait_for_selector("#pst-primary-sidebar-modal[open] >> text=Write a plugin")


def test_a_button_copies_the_commands_of_a_console_block(browser: Any) -> None:
    with opened(browser, "quickstart") as page:
        page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        page.hover("div.highlight-console >> nth=0")
        page.click("div.highlight-console .copy-block >> nth=0")
        page.wait_for_selector("text=Copied")
        copied = page.evaluate("navigator.clipboard.readText()")
    assert (
        copied.startswith("git clone https://github.com/smollm3-finetune/smollm3-finetune\ncd ") and "$ " not in copied
    )


def test_the_choice_of_colors_is_kept(browser: Any) -> None:
    with opened(browser, "index") as page:
        page.click("button.theme-switch-button >> visible=true")
        page.click("[data-mode=dark] >> visible=true") if page.query_selector("[data-mode=dark]") else None
        chosen = page.evaluate("document.documentElement.dataset.mode")
        page.reload()
        assert page.evaluate("document.documentElement.dataset.mode") == chosen != "auto"
