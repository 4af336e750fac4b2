"""`plugins index` reads wheels and folders, and what it writes is what `--index` and SMOLLM3_PLUGIN_INDEX read."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hand_made_wheels import CORE, HOOKS, PLUGIN, POINTS, write_wheel

from smollm3_finetune.components.registry import known_components
from smollm3_finetune.errors import ConfigError
from smollm3_finetune.installing.index import plugin_index

Cli = Callable[..., Any]
PROJECT = """
[project]
name = "acme-rows"
version = "1.0"
description = "Rows of Acme."
urls = {Homepage = "https://example.org/acme"}
[project.entry-points.smollm3_finetune]
acme = "acme_rows"
"""
HEADERS = "Summary: Rows of Acme.\nProject-URL: Homepage, https://example.org/acme\n"
ENTRY = {
    "name": "acme-rows", "summary": "Rows of Acme.", "plugins": ["acme"],
    "components": [{"kind": "formatter", "name": "acme-rows", "aliases": [], "summary": "rows of Acme"}],
    "folder": None, "published": False, "homepage": "https://example.org/acme",
}  # fmt: skip


def project(folder: Path, source: str = HOOKS, inside: str = "") -> Path:
    package = folder / inside / "acme_rows"
    package.mkdir(parents=True)
    (folder / "pyproject.toml").write_text(PROJECT, encoding="utf-8")
    (package / "__init__.py").write_text(source, encoding="utf-8")
    (package / "rows.py").write_text("import torch_that_nobody_has\n", encoding="utf-8")
    return folder


@pytest.mark.parametrize("inside", ["", "src"])
def test_a_wheel_and_the_folder_of_a_plugin_give_the_same_entry(cli: Cli, tmp_path: Path, inside: str) -> None:
    """The module of the implementation cannot be imported here, and is not; nothing is left behind."""
    folder = project(tmp_path / "acme", inside=inside)
    wheel = write_wheel(tmp_path / "dist", "acme-rows", "1.0", PLUGIN, [CORE], POINTS, HEADERS)
    path = list(sys.path)
    for source in (folder, wheel):
        done = cli("plugins", "index", str(source))
        assert json.loads(done.stdout) == {"format": 1, "plugins": [ENTRY]}, done.stderr
    assert sys.path == path and "acme_rows" not in sys.modules and not list(folder.rglob("__pycache__"))


def test_a_folder_of_wheels_gives_the_newest_of_each_plugin(cli: Cli, tmp_path: Path, isolated: Path) -> None:
    write_wheel(tmp_path / "dist", "acme-base", "2.0", {"acme_base.py": ""})
    for version, name in (("1.0", "old-rows"), ("10.0", "new-rows"), ("9.0", "rows")):
        hooks = {"acme_rows/__init__.py": HOOKS.replace("acme-rows", name)}
        write_wheel(tmp_path / "dist", "acme-rows", version, hooks, [CORE], POINTS)
    done = cli("plugins", "index", str(tmp_path / "dist"), "--output", "plugins.json", "--published")
    assert (done.code, done.stdout) == (0, "wrote plugins.json: 1 plugin\n"), done.stderr
    (plugin,) = json.loads((isolated / "plugins.json").read_text())["plugins"]
    assert plugin["components"][0]["name"] == "new-rows" and plugin["published"]
    assert cli("plugins", "index", str(tmp_path / "dist"), "--output", "plugins.json").code == 0  # replaces its own


def test_the_variable_keeps_an_index_for_all_commands(
    cli: Cli, tmp_path: Path, isolated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli("plugins", "index", str(project(tmp_path / "acme")), "--output", "plugins.json").code == 0
    monkeypatch.setenv("SMOLLM3_PLUGIN_INDEX", "plugins.json")
    shown = cli("plugins", "search", "acme").stdout
    assert "(not installed)" in shown and "smollm3 plugins install acme-rows --find-links DIR" in shown
    assert known_components()["formatter"]["acme-rows"] == "acme-rows"  # for hints, such as that of `train`
    found = plugin_index().find("acme")
    assert found is not None and found.name == "acme-rows"


def test_messages_name_where_the_index_came_from(cli: Cli, isolated: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMOLLM3_PLUGIN_INDEX", "missing.json")
    assert "SMOLLM3_PLUGIN_INDEX missing.json: the file does not exist" in cli("plugins", "search").stderr
    (isolated / "plugins.json").write_text("{")
    assert "plugins.json (--index) is not valid JSON" in cli("plugins", "search", "--index", "plugins.json").stderr
    monkeypatch.setenv("SMOLLM3_PLUGIN_INDEX", "plugins.json")
    with pytest.raises(ConfigError, match=r"plugins.json \(SMOLLM3_PLUGIN_INDEX\) is not valid JSON"):
        plugin_index()
    assert "gptq" in known_components()["quantizer"]  # a damaged file only costs its own hints


@pytest.mark.parametrize(
    ("source", "code", "said"),
    [
        ("missing", 2, "does not exist"),
        (".", 2, "has neither wheels of plugins nor folders of plugins"),
        ("notes.txt", 2, "is not a wheel"),
        ("acme-base-2.0-py3-none-any.whl", 2, "is not a wheel"),
        ("dist/acme_base-2.0-py3-none-any.whl", 2, "is not a plugin"),
        ("broken", 7, "No module named 'torch_that_nobody_has'"),
        ("twice", 2, "acme-rows was named twice"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(cli: Cli, isolated: Path, source: str, code: int, said: str) -> None:
    (isolated / "notes.txt").touch()
    (isolated / "acme-base-2.0-py3-none-any.whl").touch()
    write_wheel(isolated / "dist", "acme-base", "2.0", {"acme_base.py": ""})
    project(isolated / "folders" / "broken", "import torch_that_nobody_has")
    for name in ("one", "two"):
        project(isolated / "folders" / "both" / name)
    place = {"broken": "folders/broken", "twice": "folders/both"}.get(source, source)
    done = cli("plugins", "index", place)
    assert (done.code, done.stdout, said in done.stderr) == (code, "", True), done.stderr
    assert "hint: " in done.stderr and "Traceback" not in done.stderr


def test_a_file_that_is_not_an_index_is_not_replaced(cli: Cli, tmp_path: Path, isolated: Path) -> None:
    (isolated / "notes.json").write_text("[1]")
    done = cli("plugins", "index", str(project(tmp_path / "acme")), "--output", "notes.json")
    assert done.code == 2 and "exists and is not an index of plugins" in done.stderr
    assert (isolated / "notes.json").read_text() == "[1]"
