"""Paths that cannot be accessed: one sentence, exit code 2, nothing written."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from smollm3_finetune.components.discovery import PluginSelection, discover
from smollm3_finetune.errors import ConfigError
from smollm3_finetune.paths import user_path

NOBODY = "~nosuchuser/x"
LONG = "x" * 300
NUL = '"a\\0b"'
COMMANDS = {
    "model": ("train", "--adapter", "full", "--model={}", "--dry-run"),
    "data": ("train", "--adapter", "full", "--data={}", "--dry-run"),
    "preview": ("data", "preview", "--data={}"),
    "output": ("train", "--adapter", "full", "--output={}", "--dry-run"),
    "config": ("train", "--config={}"),
    "resume": ("train", "--resume={}"),
    "plugin": ("train", "-p", "{}.py"),
    "template": ("train", "--adapter", "full", "--set", "data.template={}", "--dry-run"),
    "validate": ("config", "validate", "--adapter", "full", "--output={}"),
    "run": ("generate", "{}", "--prompt", "a"),
    "adapter": ("generate", "tiny", "--adapter-path={}", "--prompt", "a"),
    "plugin of generate": ("generate", "tiny", "-p", "{}.py", "--prompt", "a"),
}


@pytest.mark.parametrize(("path", "words"), [(NOBODY, "the user '~nosuchuser' has no home directory"),
                                             (LONG, "cannot be accessed: File name too long")])  # fmt: skip
@pytest.mark.parametrize("command", COMMANDS)
def test_a_path_that_cannot_be_accessed(
    cli: Callable[..., Any], isolated: Path, command: str, path: str, words: str
) -> None:
    if command.startswith("plugin") and path == LONG:
        path = f"./{LONG}"
    result = cli(*(part.format(path) for part in COMMANDS[command]))
    assert (result.code, result.stdout) == (2, ""), result.stderr
    (message, hint) = result.stderr.splitlines()
    assert message.startswith("error: ")
    assert words in message
    assert len(message) < 200
    assert hint.startswith("  hint: ")
    assert list(isolated.iterdir()) == []


@pytest.mark.parametrize("key", ["model", "output", "data.path", "data.template"])
def test_a_nul_byte_in_yaml(cli: Callable[..., Any], key: str) -> None:
    section, _, name = key.partition(".")
    Path("run.yaml").write_text(f"{section}:\n  {name}: {NUL}\n" if name else f"{key}: {NUL}\n")
    result = cli("train", "--config", "run.yaml", "--adapter", "full", "--dry-run")
    assert (result.code, result.stdout) == (2, ""), result.stderr
    assert "is not a valid path: it contains a NUL character" in result.stderr
    assert "unexpected" not in result.stderr


@pytest.fixture
def closed(tmp_path: Path) -> Iterator[Path]:
    """A directory of mode 000, and beside it a file mine.py that may not be read, seen by a user whom that concerns."""
    directory = tmp_path / "closed"
    directory.mkdir()
    (tmp_path / "mine.py").touch(mode=0o200)
    for parent in tmp_path.parents:
        if parent.name.startswith(("pytest-", "popen-")):
            parent.chmod(0o755)
    tmp_path.chmod(0o755)
    directory.chmod(0)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    yield directory
    if root:
        os.seteuid(0)
    directory.chmod(0o755)


def test_a_directory_without_permission_and_its_files(closed: Path) -> None:
    for path in (closed, closed / "inside"):
        with pytest.raises(ConfigError) as caught:
            user_path(path, "--output")
        assert caught.value.message.startswith(f"--output '{str(path)[:40]}")  # a long one is cut
        assert caught.value.message.endswith("' cannot be accessed: Permission denied")


def test_a_plugin_file_that_may_not_be_read(closed: Path) -> None:
    file = closed.with_name("mine.py")
    for wanted in (PluginSelection(files=(str(file),)), PluginSelection(files=("mine",))):
        with pytest.MonkeyPatch.context() as patch:
            patch.syspath_prepend(str(file.parent))
            with pytest.raises(ConfigError) as caught:
                discover(wanted)
        assert caught.value.message == f"the plugin file {str(file)!r} cannot be read: Permission denied"
        assert caught.value.hint is not None


def test_accessible_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "file").touch()
    for name in ("file", "gone", "file/under", "gone/under", ""):
        assert user_path(f"~/{name}") == tmp_path / name
        assert user_path(tmp_path / name) == tmp_path / name


def test_a_configuration_in_the_home_directory(
    cli: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "own.yaml").write_text("seed: 11\n")
    shown = cli("config", "show", "--config", "~/own.yaml")
    assert shown.code == 0, shown.stderr
    assert "seed: 11" in shown.stdout
