"""The hints that pages show name options that exist; those of mistakes that a test can make work when typed."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from smollm3_finetune.testing.commands import smollm3
from smollm3_finetune.testing.hints import typed, unknown_options

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "plugins").glob("*/README.md")))
FENCE = re.compile(r"^```(?:console|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILES = {"FILE.jsonl": "examples/rows.jsonl"}
"""Words in capitals that a user replaces."""
NOT_HERE = ("rtn4", "bottleneck", "acme:", "/home/me/", "pip install", "acme_old")
"""Plugins of tutorials, files and packages that this test does not have; the options of these hints are checked."""
USAGE = 2


def shown() -> Iterator[tuple[str, list[str], str, str]]:
    """Each hint on a page: the page, the arguments of its command (empty if not shown), its error, the hint."""
    for page in PAGES:
        for block in FENCE.findall(page.read_text(encoding="utf-8")):
            arguments: list[str] = []
            message = ""
            for line in block.replace("\\\n", " ").splitlines():
                if line.startswith("$ smollm3 "):
                    arguments = shlex.split(line)[2:]
                elif line.startswith("error: "):
                    message = line
                elif line.strip().startswith("hint: "):
                    yield page.relative_to(ROOT).as_posix(), arguments, message, line.partition("hint: ")[2]


HINTS = [pytest.param(*h, id=f"{h[0]}: {h[3]}") for h in shown()]


def test_hints_are_found_on_pages() -> None:
    assert {"docs/errors.md", "docs/quickstart.md", "docs/plugins.md"} <= {h[0] for h in shown()}


@pytest.mark.parametrize(("page", "arguments", "message", "hint"), HINTS)
def test_the_options_in_a_hint_on_a_page_exist(page: str, arguments: list[str], message: str, hint: str) -> None:
    assert list(unknown_options(arguments or ["train"], hint)) == []


@pytest.mark.plugins
def test_the_hints_on_pages_work_when_they_are_typed(isolated: Path) -> None:
    """A page may show several errors of one command, so typing one hint may leave the others."""
    shutil.copytree(ROOT / "examples", isolated / "examples")
    typed_here = 0
    for page, arguments, message, hint in shown():
        if not arguments or any(name in " ".join((*arguments, hint)) for name in NOT_HERE):
            continue
        for command in typed(arguments, message, hint):
            check = [FILES.get(word, word) for word in command]
            again = smollm3(*check, *(["--dry-run"] if check[0] == "train" else []))
            said = f"{page}: smollm3 {shlex.join(check)}\n{again.stderr}"
            assert message not in again.stderr, said
            left = [m for p, a, m, _ in shown() if (p, a) == (page, arguments) and m in again.stderr]
            assert left or again.code != USAGE, said
            typed_here += 1
    assert typed_here >= 6
