"""The navigation of the site, read from docs/index.md, so that GitHub and the site show one order.

A `##` heading of the index is a section of the site, and a `###` heading a group in it. Its pages are the Markdown
files that it links, in this order.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

LINK = re.compile(r"\]\(([^)\s#]+\.md)(?:#[^)\s]*)?\)")


@dataclass
class Group:
    """A section or a group of the index."""

    title: str
    inside: str = ""
    """The place of the section that a group is in, with a slash."""
    text: str = ""
    """Its Markdown below the heading, without that of its groups."""
    pages: list[Path] = field(default_factory=list)
    """The files that it links, resolved, without repeated ones."""
    groups: list[Group] = field(default_factory=list)

    @property
    def place(self) -> str:
        """The place of its page on the site, without suffix."""
        return self.inside + "-".join(re.findall(r"[a-z0-9]+", self.title.lower()))


def read_navigation(index: Path) -> list[Group]:
    """The sections of the index. Raises ValueError if a page is listed twice or before the first section."""
    sections: list[Group] = []
    current: Group | None = None
    seen: dict[Path, str] = {}
    for line in index.read_text(encoding="utf-8").splitlines(keepends=True):
        heading = re.match(r"(##+) (.+)", line)
        if heading and len(heading[1]) == 2:
            current = Group(heading[2].strip())
            sections.append(current)
        elif heading and current is not None:
            current = Group(heading[2].strip(), f"{sections[-1].place}/")
            sections[-1].groups.append(current)
        elif current is not None:
            current.text += line
            for target in LINK.findall(line):
                page = (index.parent / target).resolve()
                if page in seen:
                    raise ValueError(f"{index.name} lists {target} under {seen[page]} and {current.title}")
                seen[page] = current.title
                current.pages.append(page)
    return sections
