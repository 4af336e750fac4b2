"""Commands of pages other than smollm3: what this repository decides about them is checked, nothing is run."""

from __future__ import annotations

import itertools
import re
import shlex
import tomllib
from collections.abc import Callable, Collection, Mapping
from functools import cache

from command_lines import check, simple_commands
from packaging.requirements import Requirement
from regions import ROOT, text_of

OTHERS = {
    ".": "the shell reads a file", "source": "the shell reads a file", "cd": "of the shell", "export": "of the shell",
    "echo": "prints", "printf": "prints",
    "git": "of the system", "cp": "of the system", "mkdir": "of the system", "curl": "of the system",
    "hf": "comes with huggingface-hub", "pre-commit": "installed by the line before it",
    "mlx_lm.generate": "comes with mlx-lm, which the tests of the plugin run",
    "llama-cli": "comes with llama.cpp", "ollama": "another program", "docker": "another program",
    "sha256sum": "of the system",
}  # fmt: skip
"""Programs of which nothing is checked, each with the reason."""


@cache
def sessions() -> frozenset[str]:
    """The sessions of noxfile.py."""
    found = re.findall(r"^@nox\.session.*\ndef (\w+)", text_of(ROOT / "noxfile.py"), re.MULTILINE)
    return frozenset(found)


def check_line(line: str, page: str, absent: Collection[str]) -> None:
    """Check each command of a shell line. `page` is the text of the page. Raises what `check` raises."""
    assert line.count("'") % 2 == 0 and line.count('"') % 2 == 0, "a quote is not closed"
    for words in simple_commands(line):
        program = words[0].rpartition("/")[2]
        if program == "smollm3":
            check(_quoted(words), absent)
        elif program in PROGRAMS:
            PROGRAMS[program](words[1:], page, absent)
        else:
            assert program in OTHERS, f"nothing checks {program}: see OTHERS in tests/docs/shell_lines.py"


def _quoted(words: list[str]) -> str:
    return shlex.join(words[: words.index(">")] if ">" in words else words)


def _pip(words: list[str], page: str, absent: Collection[str]) -> None:
    assert words[0] in ("install", "wheel", "download", "uninstall", "show", "freeze"), f"pip {words[0]}"
    rest = words[1:]
    while rest:
        word = rest.pop(0)
        if word in ("-c", "-r", "--index-url", "--find-links", "--wheel-dir"):
            value = rest.pop(0)
            assert word not in ("-c", "-r") or (ROOT / value).exists(), f"{value} does not exist"
        elif word.startswith("./plugins/*"):
            assert any(ROOT.glob(word.removeprefix("./"))), f"{word} matches nothing"
        elif re.match(r"\./(examples/)?plugins/", word) or (ROOT / word.partition("[")[0] / "pyproject.toml").exists():
            _local(word)
        elif word.startswith("."):
            assert word.partition("[")[0].removeprefix("./") in page, f"{word} is not on the page"
        elif not word.startswith("-"):
            Requirement(word)


def _local(word: str) -> None:
    """A folder of this repository that pip installs, with its extras."""
    folder, _, extras = word.partition("[")
    project = ROOT / folder / "pyproject.toml"
    assert project.exists(), f"{folder} is not a distribution of this repository"
    known = tomllib.loads(text_of(project))["project"].get("optional-dependencies", {})
    for extra in filter(None, extras.rstrip("]").split(",")):
        assert extra in known, f"{folder} has no extra {extra!r}"


def _nox(words: list[str], page: str, absent: Collection[str]) -> None:
    for option, name in itertools.pairwise(words):
        if option == "-s":
            assert name in sessions(), f"noxfile.py has no session {name!r}"


def _python(words: list[str], page: str, absent: Collection[str]) -> None:
    if words[0] == "-m":
        _module(words[1:], page, absent)
        return
    script = ROOT / words[0]
    assert script.exists() or words[0] in page, f"{words[0]} does not exist"
    for option in words[1:]:
        if option.startswith("--") and script.exists():
            name = option.partition("=")[0]
            assert f'"{name}"' in text_of(script), f"{words[0]} has no option {name}"


def _module(words: list[str], page: str, absent: Collection[str]) -> None:
    if words[0] == "smollm3_finetune.main":
        check(_quoted(["smollm3", *words[1:]]), absent)
    else:
        assert words[0] in ("venv", "pip", "pytest", "build"), f"python -m {words[0]}"


def _pytest(words: list[str], page: str, absent: Collection[str]) -> None:
    for word in words:
        if not word.startswith("-") and "/" in word:
            assert (ROOT / word.partition("::")[0]).exists(), f"{word} does not exist"


def _starter(words: list[str], page: str, absent: Collection[str]) -> None:
    """torchrun and accelerate: the program that they start."""
    _module(words[words.index("-m") + 1 :], page, absent)


PROGRAMS: Mapping[str, Callable[[list[str], str, Collection[str]], None]] = {
    "pip": _pip,
    "nox": _nox,
    "python": _python,
    "python3": _python,
    "pytest": _pytest,
    "torchrun": _starter,
    "accelerate": _starter,
}
