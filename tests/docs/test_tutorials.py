"""Runs the tutorials exactly as written: every file to write, every command, every line of output.

A page is followed from top to bottom in an empty directory and a new environment:

    <!-- write PATH -->               the next block is written to PATH
    a console block                   bash runs each `$ ` line; the lines after it are its expected output
    <!-- only shown, because … -->    the next block is ignored

The test fails for any other kind of block. It also fails if a command fails but its output has no `error:` or
`FAILED`, or if it succeeds with one of them. Parts of a line that depend on the machine are compared by `RULES`;
everything else must be equal. `SMOLLM3_UPDATE_DOCS=1 pytest tests/docs/test_tutorials.py` updates the output.

The environment is a new venv without a copy of torch: its site-packages contain links to smollm3-finetune, pytest and
their dependencies, and no plugin. pip builds and installs the packages of the tutorial there; only the build backend
comes from outside.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import subprocess
import tomllib
import venv
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
UPDATE = os.environ.get("SMOLLM3_UPDATE_DOCS", "") not in ("", "0")
SCRIPTS = ("smollm3", "pytest", "pip")
BLOCK = re.compile(
    r"^(?P<notes>(?:<!-- [^\n]* -->\n)*)```(?P<language>\w*)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL
)
WRITE = re.compile(r"<!-- write (\S+) -->")
SHOWN = re.compile(r"<!-- only shown, because .+ -->")

LOSS = re.compile(r"\b\d+\.\d{3,4}\b")
"""Tolerance of a loss, which is printed with three or four digits; arithmetic differs between processors."""
LOSS_MAY_DIFFER = 0.05
RULES = (
    (re.compile(r"\b\d+(?:\.\d+)? s\b|\b(?:\d+:)?\d+:\d\d(?= left$)"), "a time"),
    (re.compile(r"\bin \d+\.\d\ds(?: \(\d:\d\d:\d\d\))?$"), "pytest's time"),
    (re.compile(r"\b\d+ tokens/s\b"), "a speed"),
    (re.compile(r"\b\d+\.\d\d GB\b"), "memory"),
    (re.compile(r"^after {10}\S.*"), "what the trained model answers"),
    (re.compile(r"\bsmollm3-finetune(?: |>=)\d+\.\d+\.\d+\S*"), "the version of this project"),
)
"""Parts of a line whose value may differ."""


# ------------------------------------------------------------------------------------------------ reading a page


@dataclass(frozen=True)
class File:
    path: str
    text: str


@dataclass(frozen=True)
class Command:
    line: str
    printed: str
    start: int
    """The position of the output on the page."""
    end: int


def steps(page: str) -> Iterator[File | Command]:
    """The steps of a reader, in order. Raises ValueError for a block of unknown kind."""
    blocks = list(BLOCK.finditer(page))
    if 2 * len(blocks) != len(re.findall("^```", page, re.MULTILINE)):
        raise ValueError("a block does not begin or end where a line does")
    for block in blocks:
        write = WRITE.search(block["notes"])
        if write:
            yield File(write[1], block["body"])
        elif SHOWN.search(block["notes"]):
            continue
        elif block["language"] == "console" and block["body"].startswith("$ "):
            yield from commands(block["body"], block.start("body"))
        else:
            raise ValueError(f"a block is neither written, run nor marked as only shown:\n{block['body'][:200]}")


def commands(body: str, offset: int) -> Iterator[Command]:
    lines = list(re.finditer(r"^\$ (.*)\n", body, re.MULTILINE))
    for line, after in zip_longest(lines, lines[1:]):
        end = after.start() if after else len(body)
        yield Command(line[1], body[line.end() : end], offset + line.end(), offset + end)


# ---------------------------------------------------------------------------------------------------- comparing


def settled(line: str) -> str:
    """A line in which values that depend on the machine are replaced by names."""
    for pattern, name in RULES:
        line = pattern.sub(f"<{name}>", line)
    return LOSS.sub("<a loss>", line)


def alike(printed: str, real: str) -> bool:
    """Whether two lines are equal under `RULES`."""
    losses = zip_longest(LOSS.findall(printed), LOSS.findall(real), fillvalue="nan")
    return settled(printed) == settled(real) and all(abs(float(a) - float(b)) <= LOSS_MAY_DIFFER for a, b in losses)


def difference(printed: str, real: str) -> str | None:
    """The first line of a page that differs from the output."""
    for mine, its in zip_longest(printed.splitlines(), real.splitlines()):
        if mine is None or its is None or not alike(mine, its):
            return f"the page says  {mine}\nand it printed {its}"
    return None


# ------------------------------------------------------------------------------------------------- running


def needed(*names: str) -> list[importlib.metadata.Distribution]:
    """The installed distributions of these names and all their requirements, without extras."""
    found: dict[str, importlib.metadata.Distribution] = {}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    todo = [
        *names,
        *(Requirement(r).name for r in project["dependencies"]),
    ]  # the metadata of an editable install may be older
    while todo:
        name = canonicalize_name(todo.pop())
        if name in found:
            continue
        try:
            found[name] = importlib.metadata.distribution(name)
        except (
            importlib.metadata.PackageNotFoundError
        ):  # hatchling, and requirements whose markers are for another machine
            continue
        requirements = [Requirement(r) for r in found[name].requires or ()]
        todo += [r.name for r in requirements if r.marker is None or r.marker.evaluate({"extra": ""})]
    return list(found.values())


class Environment:
    """A new venv with this project and its dependencies, without a plugin, and an empty directory to work in."""

    def __init__(self, folder: Path) -> None:
        self.work = folder / "tutorial"
        self.work.mkdir()
        self.bin = folder / "venv" / "bin"
        venv.EnvBuilder(with_pip=False).create(folder / "venv")
        (site,) = (folder / "venv" / "lib").glob("python*/site-packages")
        scripts = {s.name: s for s in self.link(site) if s.name in SCRIPTS}
        for name in SCRIPTS:
            target = scripts[name]
            start = self.bin / f"start_{name}.py"
            start.write_text(f"import sys\nfrom {target.module} import {target.attr} as main\n"
                             f"sys.argv[0] = {name!r}\nsys.exit(main())\n")  # fmt: skip
            (self.bin / name).write_text(f"#!/bin/sh\nexec '{self.bin}/python' '{start}' \"$@\"\n")
            (self.bin / name).chmod(0o755)
        ours = {k: v for k, v in os.environ.items() if not k.startswith(("SMOLLM3_", "PYTEST_", "PYTHON", "COV_"))}
        self.variables = {
            **ours, "PATH": f"{self.bin}{os.pathsep}{os.environ['PATH']}", "VIRTUAL_ENV": str(folder / "venv"),
            "COLUMNS": "100", "SMOLLM3_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_ROOT_USER_ACTION": "ignore",
        }  # fmt: skip

    def link(self, site: Path) -> list[importlib.metadata.EntryPoint]:
        """Create the links of the environment; returns its scripts folder."""
        scripts: list[importlib.metadata.EntryPoint] = []
        for distribution in needed("smollm3-finetune", "pytest", "pip", "hatchling"):
            tops = {Path(f).parts[0] for f in distribution.files or () if not f.is_absolute() and ".." not in f.parts}
            for top in sorted(tops):
                target = Path(str(distribution.locate_file(top)))
                if target.exists() and not (site / top).exists():
                    (site / top).symlink_to(target)
            scripts += distribution.entry_points.select(group="console_scripts")
        return scripts

    def run(self, line: str) -> tuple[int, str]:
        """The exit code and the output of a command in a terminal with 100 columns."""
        done = subprocess.run(
            ["bash", "-c", line], cwd=self.work, env=self.variables, timeout=300, check=False, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        text = done.stdout.replace(f"{self.work}/", "")
        return done.returncode, "".join(f"{line.rstrip()}\n" for line in text.rstrip().splitlines())


def follow(page: Path, environment: Environment, *, update: bool = False) -> None:
    """Follow a page and compare the output; fails at the first difference."""
    text, new = page.read_text(encoding="utf-8"), ""
    done = 0
    for step in steps(text):
        if isinstance(step, File):
            path = environment.work / step.path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(step.text, encoding="utf-8")
            continue
        code, real = environment.run(step.line)
        if "No matching distribution found for hatchling" in real:
            pytest.skip("pip finds no build backend: there is no package index here, and hatchling is not installed")
        wrong = difference(step.printed, real)
        if wrong and not update:
            pytest.fail(f"{page.name}: $ {step.line}\n{wrong}\n\nall that it printed:\n{real}", pytrace=False)
        told = any(line.startswith(("error:", "FAILED", "✗")) for line in real.splitlines())
        if told != (code != 0):
            pytest.fail(f"{page.name}: $ {step.line}\nends with exit code {code}:\n{real}", pytrace=False)
        new += text[done : step.start] + (real if wrong else step.printed)
        done = step.end
    if update:
        page.write_text(new + text[done:], encoding="utf-8")


@pytest.mark.parametrize("name", ["tutorial-adapter.md", pytest.param("tutorial-quantizer.md", marks=pytest.mark.long)])
def test_a_tutorial_works_exactly_as_written(name: str, tmp_path: Path) -> None:
    follow(DOCS / name, Environment(tmp_path), update=UPDATE)


# ------------------------------------------------------------------------------------- tests of this test


class Machine:
    """A stub of an environment in which nothing is built."""

    def __init__(self, folder: Path) -> None:
        self.work, self.variables = folder, dict(os.environ)

    run = Environment.run


GOOD = """\
<!-- write greet.sh -->
```bash
echo "held-out loss  4.3383 before"; echo "took 7.6 s"
```

```console
$ bash greet.sh
held-out loss  4.3383 before
took 7.6 s
$ echo error: on purpose; exit 3
error: on purpose
```

<!-- only shown, because it would never end -->
```console
$ sleep infinity
```
"""


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("took 7.6 s", "took 1234 s"),
        ("4.3383 before\ntook", "4.3500 before\ntook"),
    ],
)
def test_times_and_small_differences_of_losses_pass(tmp_path: Path, right: str, wrong: str) -> None:
    page = tmp_path / "page.md"
    before, shown, after = GOOD.rpartition("$ bash greet.sh")
    page.write_text(before + shown + after.replace(right, wrong))
    follow(page, Machine(tmp_path))


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("took 7.6 s\n$", "taken 7.6 s\n$"),  # another word
        ("took 7.6 s\n$", "$"),  # a printed line that is not on the page
        ("took 7.6 s\n$", "took 7.6 s\nmore\n$"),  # a line on the page that is not printed
        ("4.3383 before\ntook", "4.4383 before\ntook"),  # another loss
        ("exit 3", "exit 0"),  # shows an error but succeeds
        ("echo error: on purpose", "echo on purpose"),  # fails but shows no error
        ("<!-- write greet.sh -->", "<!-- write great.sh -->"),  # the file does not exist
        ("<!-- only shown, because it would never end -->\n```console\n$ sleep", "```console\n$ exit 1; sleep"),
    ],
)
def test_a_wrong_page_fails(tmp_path: Path, right: str, wrong: str) -> None:
    page = tmp_path / "page.md"
    assert right in GOOD
    page.write_text(GOOD.replace(right, wrong))
    with pytest.raises(pytest.fail.Exception, match=r"page\.md"):
        follow(page, Machine(tmp_path))


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("<!-- write greet.sh -->\n", ""),
        ("```console\n$ bash", "```text\n$ bash"),
        ("```\n\n<!-- only", "\n<!-- only"),
    ],
)
def test_a_block_of_unknown_kind_is_an_error(tmp_path: Path, right: str, wrong: str) -> None:
    page = tmp_path / "page.md"
    assert right in GOOD
    page.write_text(GOOD.replace(right, wrong))
    with pytest.raises(ValueError, match="block"):
        follow(page, Machine(tmp_path))


def test_updating_replaces_only_the_output(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        GOOD.replace("took 7.6 s\n$", "taken 7.6 s\n$").replace("$ bash greet.sh\nheld-out", "$ bash greet.sh\nheld")
    )
    follow(page, Machine(tmp_path), update=True)
    assert page.read_text() == GOOD


# ------------------------------------------------------------------------------------------- troubleshooting.md


CODE = ("UnsupportedOp",)
"""Quotes on the page that are not messages."""


def messages() -> list[str]:
    """Quotes in the first column of the tables, without commands."""
    cells = re.findall(r"^\| (`[^|]+?) \|", (DOCS / "troubleshooting.md").read_text(encoding="utf-8"), re.MULTILINE)
    quoted = [text for cell in cells for text in re.findall(r"`([^`]+)`", cell)]
    return [text for text in quoted if not text.startswith("smollm3 ") and text not in CODE]


@pytest.mark.parametrize("message", messages())
def test_the_messages_of_troubleshooting_exist(message: str) -> None:
    files = (ROOT / "smollm3_finetune").rglob("*.py")
    sources = [re.sub(r'"\s*\n\s*f?"', "", f.read_text(encoding="utf-8")) for f in files]
    parts = [part.strip() for part in re.split("…|0.001", message) if len(part.strip()) > 3]
    assert parts
    assert any(all(part in source for part in parts) for source in sources), message
