"""The index of plugins: as the script writes it, searched, and replaced by a newer one."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hand_made_wheels import HOOKS

from smollm3_finetune.components.registry import INDEX_FILE
from smollm3_finetune.errors import ConfigError
from smollm3_finetune.installing.index import embedded_index, parsed, plugin_index

ROOT = Path(__file__).parents[2]
Cli = Callable[..., Any]
PLUGIN_MODULES = {"acme_rows": HOOKS}


FORMATTER = {"kind": "formatter", "name": "acme", "aliases": ["rows-of-acme"], "summary": "parcels"}
ACME = {"name": "acme-rows", "summary": "Rows of Acme.", "plugins": ["acme"], "components": [FORMATTER]}


def index_file(folder: Path, *plugins: Any, **values: Any) -> Path:
    file = folder / "plugins.json"
    file.write_text(json.dumps({"format": 1, "plugins": plugins, **values}), encoding="utf-8")
    return file


def test_the_file_is_what_the_script_writes() -> None:
    """Run `python scripts/plugin_index.py` after a change of a plugin's names or summaries."""
    code = "import sys; sys.path.insert(0, 'scripts'); import plugin_index; sys.stdout.write(plugin_index.text())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False,
                          encoding="utf-8")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == INDEX_FILE.read_text(encoding="utf-8")


def test_every_folder_of_plugins_is_in_the_index() -> None:
    folders = {p.parent.relative_to(ROOT).as_posix() for p in ROOT.glob("plugins/*/pyproject.toml")}
    assert {p.folder for p in embedded_index().plugins if p.published} == folders


@pytest.mark.parametrize("name", ["smollm3-gptq", "SMOLLM3_GPTQ", "gptq", "auto-gptq"])
def test_a_distribution_is_found_by_every_name_that_users_know(name: str) -> None:
    found = embedded_index().find(name)
    assert found is not None and found.name == "smollm3-gptq"


def test_the_distribution_comes_before_a_component_of_that_name() -> None:
    found = embedded_index().find("gguf")  # also an exporter and a loader
    assert found is not None and found.name == "smollm3-gguf"
    assert found.kinds == ("loader", "exporter")


def test_a_name_of_two_distributions_is_refused_with_both(tmp_path: Path) -> None:
    file = index_file(tmp_path, ACME, {**ACME, "name": "other-rows"})
    with pytest.raises(ConfigError, match="offered by acme-rows and other-rows"):
        plugin_index(str(file)).find("rows-of-acme")


def test_a_newer_index_adds_plugins_and_replaces_those_of_the_same_name(tmp_path: Path) -> None:
    index = plugin_index(str(index_file(tmp_path, ACME, {"name": "Smollm3.GPTQ", "summary": "Newer."})))
    found = index.find("smollm3-gptq")
    assert found is not None and found.summary == "Newer."
    assert index.find("hqq") is not None and index.find("acme") is not None


def test_search_needs_every_word_and_puts_names_first(cli: Cli, tmp_path: Path) -> None:
    rows = json.loads(cli("plugins", "search", "gptq", "--json").stdout)
    assert rows[0]["name"] == "smollm3-gptq" and "smollm3-awq" in [r["name"] for r in rows]
    assert rows[0]["kinds"] == ["quantizer"] and rows[0]["install"] == "smollm3 plugins install smollm3-gptq"
    file = str(index_file(tmp_path, ACME))
    shown = cli("plugins", "search", "ACME", "formatter", "--index", file).stdout
    assert shown == (
        "acme-rows  formatter acme  (not installed)\n  Rows of Acme.\n  smollm3 plugins install acme-rows\n"
    )


def test_search_shows_the_installed_version(cli: Cli, fake_distribution: Any, tmp_path: Path) -> None:
    fake_distribution("acme-rows", "1.3", {"acme_hooks": ""}, {"acme": "acme_hooks"})
    shown = cli("plugins", "search", "acme", "--index", str(index_file(tmp_path, ACME))).stdout
    assert "(installed: 1.3)" in shown


def test_search_finds_installed_plugins_that_the_index_does_not_have(cli: Cli, fake_distribution: Any) -> None:
    fake_distribution("smollm3-ternary", "0.1.0", PLUGIN_MODULES, {"threes": "acme_rows"})
    for word in ("ternary", "threes", "acme-rows"):  # the distribution, the plugin and its component
        shown = cli("plugins", "search", word)
        assert shown.stdout == "smollm3-ternary  formatter acme-rows  (installed: 0.1.0)\n", shown.stderr
    (row,) = json.loads(cli("plugins", "search", "ternary", "--json").stdout)
    assert (row["installed"], row["install"], row["plugins"]) == ("0.1.0", None, ["threes"])


def test_a_word_that_nothing_has_is_refused_with_the_nearest_name(cli: Cli) -> None:
    result = cli("plugins", "search", "gptk")
    assert (result.code, result.stdout) == (2, "")
    assert "did you mean 'gptq'?" in result.stderr


@pytest.mark.parametrize(
    ("plugin", "said"),
    [
        ({"name": "--extra-index-url=https://example.org"}, "is not the name of a distribution"),
        ({"name": "a b"}, "is not the name of a distribution"),
        ({"name": 3}, "name must be a line of text"),
        ({"name": "acme", "summary": "a\nb"}, "summary must be a line of text"),
        ({"name": "acme", "summary": "\x1b[31m"}, "summary must be a line of text"),
        ({"name": "acme", "folder": "../../etc"}, "must be below the repository"),
        ({"name": "acme", "published": "yes"}, "published must be true or false"),
        ({"name": "acme", "components": [{"kind": "quantizer", "name": "Not A Name"}]}, "component 1: 'Not A Name'"),
        ({"name": "acme", "components": {}}, "components must be a list"),
        ("acme", "must be an object"),
    ],
)
def test_a_wrong_entry_is_named(plugin: Any, said: str) -> None:
    with pytest.raises(ConfigError, match="the plugin index x: plugin 1") as caught:
        parsed(json.dumps({"format": 1, "plugins": [plugin]}), "x")
    assert said in caught.value.message and caught.value.hint


@pytest.mark.parametrize(
    ("text", "said"),
    [("{", "is not valid JSON"), ("[]", "has no key 'plugins'"), ('{"plugins": []}', "has format None"),
     ('{"plugins": {}, "format": 1}', "must be a list"), ('{"plugins": [], "format": 2}', "has format 2"),
     ("[" * 100_000, "is not valid JSON")],
)  # fmt: skip
def test_a_file_that_is_not_an_index_is_refused(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parsed(text, "x")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("missing.json", "does not exist"),
        ("http://example.org/plugins.json", "must be an https address"),
        ("ftp://example.org/plugins.json", "must be an https address"),
        ("http://127.0.0.1:9/plugins.json", "cannot be reached"),
    ],
)
def test_an_index_that_cannot_be_read_is_one_sentence(cli: Cli, source: str, said: str) -> None:
    result = cli("plugins", "search", "--index", source)
    assert result.code == 2 and said in result.stderr and "hint: " in result.stderr
