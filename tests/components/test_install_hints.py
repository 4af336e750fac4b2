"""The command in a hint installs the plugin from where core came from: an index, or a clone."""

from __future__ import annotations

import importlib.metadata
import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from smollm3_finetune.components import install_hints
from smollm3_finetune.components.install_hints import install_command
from smollm3_finetune.components.registry import known_components

ROOT = Path(__file__).parents[2]


@pytest.fixture
def installed_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """Core, as if it was in site-packages, with this `direct_url.json`; None if there is no such file."""

    real = importlib.metadata.distribution

    def install(about: Any) -> None:
        monkeypatch.setattr(install_hints, "ABOVE", tmp_path / "site")
        text = about if isinstance(about, str | None) else json.dumps(about)
        core = SimpleNamespace(read_text={"direct_url.json": text}.get)
        monkeypatch.setattr(importlib.metadata, "distribution", lambda n: core if n == "smollm3-finetune" else real(n))

    return install


def clone(folder: Path) -> Path:
    (folder / "plugins" / "smollm3-acme").mkdir(parents=True)
    (folder / "plugins" / "smollm3-acme" / "pyproject.toml").write_text("")
    return folder


ARCHIVE = {"url": "file:///smollm3_finetune-0.1.0-py3-none-any.whl", "archive_info": {}}
NOT_A_FOLDER = [None, "", "{", "[]", {"dir_info": {}}, ARCHIVE, {"url": "https://example.org/x", "dir_info": {}}]


@pytest.mark.parametrize("about", NOT_A_FOLDER)
def test_an_installed_core_names_its_extra(about: Any, installed_from: Callable[[Any], None]) -> None:
    installed_from(about)
    assert install_command("smollm3-acme") == "pip install 'smollm3-finetune[acme]'"


def test_a_core_installed_from_a_clone_names_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, installed_from: Callable[[Any], None]
) -> None:
    there = clone(tmp_path / "my clone")
    installed_from({"url": there.as_uri(), "dir_info": {}})
    monkeypatch.chdir(tmp_path)
    assert install_command("smollm3-acme") == f"pip install '{there}/plugins/smollm3-acme'"
    monkeypatch.chdir(there)
    assert install_command("smollm3-acme") == "pip install ./plugins/smollm3-acme"
    assert install_command("smollm3-other") == "pip install 'smollm3-finetune[other]'"  # not in that clone


def test_a_core_that_runs_from_a_clone_names_its_own_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert install_command("smollm3-peft") == "pip install ./plugins/smollm3-peft"


def test_every_plugin_that_a_hint_names_has_its_extra() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for names in known_components().values():
        for name in names.values():
            assert [r.partition("==")[0] for r in extras[name.removeprefix("smollm3-")]] == [name]


def test_a_hint_shows_the_brackets_of_an_extra(
    cli: Any, isolated: Path, installed_from: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    installed_from(None)
    monkeypatch.setattr("smollm3_finetune.components.registry._is_installed", lambda distribution: False)
    result = cli("train", "--quant", "gptq", "--adapter", "full", "--dry-run", "--no-plugins")
    assert "hint: pip install 'smollm3-finetune[gptq]'" in result.stderr
