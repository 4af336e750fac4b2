"""Links of the Markdown files: those of GitHub become those of the site.

A link to a file that is a page of the site leads to that page. A link to any other file of the repository leads to
that file on GitHub, at the revision that the site was built from.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

CODE = re.compile(r"^(?P<fence>```+|~~~+).*?^(?P=fence)[ \t]*$|(?P<tick>`+)(?!`).+?(?<!`)(?P=tick)(?!`)", re.M | re.S)
TARGET = re.compile(r"(\]\()([^)\s]+)(\))")
ANCHOR = re.compile(r'^<a id="([^"]+)"></a>$', re.M)
EXTERNAL = re.compile(r"[a-z][a-z0-9+.-]*:")


def outside_code(text: str) -> Iterator[tuple[str, bool]]:
    """The text in parts, each with whether it is outside of code."""
    done = 0
    for code in CODE.finditer(text):
        yield text[done : code.start()], True
        yield code[0], False
        done = code.end()
    yield text[done:], True


def rewrite(text: str, new_target: Callable[[str], str]) -> str:
    """The text with `new_target(target)` for the target of each link and picture that is outside of code."""
    # A code span may be the text of a link, so links are found in a copy where code is masked.
    masked = "".join(part if prose else re.sub(r"[^\n]", "\0", part) for part, prose in outside_code(text))
    parts, done = [], 0
    for link in TARGET.finditer(masked):
        parts += [text[done : link.start(2)], new_target(link[2])]
        done = link.end(2)
    return "".join([*parts, text[done:]])


def slug(heading: str) -> str:
    """The anchor of a heading on GitHub."""
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
    return re.sub(r"[^\w\- ]", "", plain.strip().lower()).replace(" ", "-")


def split_target(target: str, page: Path) -> tuple[Path, str]:
    """The file that a relative target of `page` names, and the anchor with its `#`, or an empty text."""
    path, hash_, anchor = target.partition("#")
    return ((page.parent / path).resolve() if path else page), hash_ + anchor
