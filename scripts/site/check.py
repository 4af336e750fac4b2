"""Checks the links of a built site: every page, file and anchor exists. Of links to other sites, only the form."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

HOST = re.compile(r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]*[a-z0-9])?)+")


class Page(HTMLParser):
    """The anchors and the links of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.ids |= {str(values[name]) for name in ("id", "name") if values.get(name)}
        for name in ("href", "src"):
            if values.get(name) is not None and not (tag == "link" and values.get("rel") == "canonical"):
                self.links.append(str(values[name]))


def malformed(address: str) -> str | None:
    """What is wrong with the form of an address of another site."""
    parts = urlsplit(address)
    if parts.scheme == "mailto":
        return None
    if parts.scheme != "https":
        return "is not https"
    if parts.username or not HOST.fullmatch(parts.netloc.lower()):
        return "has no valid host"
    if re.search(r"[\s<>\"{}|\\^`]|[.,;:]$", address):
        return "has characters that do not belong to an address"
    return None


def problems(folder: Path) -> Iterator[str]:
    """One line for each broken link of the site in `folder`."""
    pages = {path.resolve(): Page(path) for path in sorted(folder.rglob("*.html")) if "_static" not in path.parts}
    for path, page in pages.items():
        name = path.relative_to(folder.resolve()).as_posix()
        for link in sorted(set(page.links)):
            if urlsplit(link).scheme:
                if not link.startswith("data:") and (wrong := malformed(link)):
                    yield f"{name}: {link} {wrong}"
                continue
            target, _, anchor = link.partition("#")
            target = unquote(target.partition("?")[0])
            file = (path.parent / target).resolve() if target else path
            if not file.is_file() or not file.is_relative_to(folder.resolve()):
                yield f"{name}: {link} does not exist"
            elif anchor and file in pages and unquote(anchor) not in pages[file].ids:
                yield f"{name}: {link} has no such anchor"
