"""The pages of the documentation, and the parts of a page that tests look at."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from regions import ROOT, text_of

DOCS = ROOT / "docs"
EXAMPLES = ROOT / "examples"
TOP = [ROOT / f for f in ("README.md", "CHANGELOG.md", "plugins/README.md", "examples/plugins/README.md")]
OURS = [*(page for page in TOP if page.exists()), *sorted(DOCS.rglob("*.md"))]
READMES = [page for above in ("plugins", "examples/plugins") for page in sorted((ROOT / above).glob("*/README.md"))]
PAGES = [*OURS, *READMES]
"""Pages whose command lines are parsed."""
EVERY = [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md"]
"""Pages whose blocks are checked."""
REGION = re.compile(
    r"^<!-- (?P<kind>[a-z-]+): (?P<argument>.+?) -->\n(?P<body>.*?)^<!-- end -->$", re.MULTILINE | re.DOTALL
)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCK = re.compile(r"^(?P<indent> *)```(?P<language>[\w+-]*)\n(?P<body>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL)


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@dataclass(frozen=True)
class Block:
    """A fenced block that no region generates."""

    page: Path
    line: int
    language: str
    body: str

    @property
    def first(self) -> str:
        """Its first line, which names it in a table of exceptions."""
        return self.body.strip().partition("\n")[0]

    @property
    def where(self) -> str:
        return f"{name_of(self.page)}:{self.line}"


def blocks(page: Path) -> Iterator[Block]:
    """The blocks of a page outside of regions, which tests compare with the code."""
    text = REGION.sub(lambda region: "\n" * region[0].count("\n"), text_of(page))
    for found in BLOCK.finditer(text):
        body = re.sub(rf"^{found['indent']}", "", found["body"], flags=re.MULTILINE)
        yield Block(page, text.count("\n", 0, found.start()) + 1, found["language"], body)
