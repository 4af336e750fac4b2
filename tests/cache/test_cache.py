"""The cache of derived checkpoints: entries are complete, built once, and identified by their whole key."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from smollm3_finetune.cache.store import Cache, default_root
from smollm3_finetune.errors import SmolLM3Error

KEY = {"source": "abc", "dtype": "float32", "tools": {"gadget": "1.2"}}


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "entries")


def fill(directory: Path) -> None:
    (directory / "part").write_text("whole")


def leftovers(cache: Cache) -> list[str]:
    return [p.name for p in cache.root.rglob("*.partial-*")]


def test_an_entry_is_built_once_and_found_afterwards(cache: Cache) -> None:
    assert cache.find("dense", KEY) is None
    built = []

    def build(directory: Path) -> None:
        assert list(directory.iterdir()) == []
        built.append(directory)
        fill(directory)

    entry = cache.get_or_build("dense", KEY, build)
    assert (entry / "part").read_text() == "whole"
    assert cache.get_or_build("dense", KEY, build) == entry == cache.find("dense", KEY) == cache.location("dense", KEY)
    assert len(built) == 1
    assert built[0] != entry  # built elsewhere and renamed
    assert json.loads(entry.with_name(f"{entry.name}.json").read_text()) == KEY


def test_a_build_that_raises_leaves_no_entry_and_the_next_one_starts_empty(cache: Cache) -> None:
    def half(directory: Path) -> None:
        fill(directory)
        raise RuntimeError("half way")

    for _ in range(2):
        with pytest.raises(RuntimeError, match="half way"):
            cache.get_or_build("dense", KEY, half)
        assert cache.find("dense", KEY) is None
        assert leftovers(cache) == []
    assert (cache.get_or_build("dense", KEY, fill) / "part").exists()


CHILD = """
import sys, time
from pathlib import Path
from smollm3_finetune.cache.store import Cache
root, log, seconds = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
def build(directory):
    with log.open("a") as stream:
        stream.write("built\\n")
    (directory / "part").write_text("who")
    time.sleep(seconds)
    (directory / "part").write_text("whole")
entry = Cache(root).get_or_build("dense", {"k": 1}, build)
assert (entry / "part").read_text() == "whole"
"""


def child(cache: Cache, log: Path, seconds: float) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", CHILD, str(cache.root), str(log), str(seconds)])


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, "the child never began to build"
        time.sleep(0.01)


def test_only_one_of_several_processes_builds_and_the_others_wait(cache: Cache, tmp_path: Path) -> None:
    log = tmp_path / "log"
    children = [child(cache, log, 0.7) for _ in range(3)]
    assert [c.wait(120) for c in children] == [0, 0, 0]
    assert log.read_text() == "built\n"


def test_a_killed_build_leaves_no_entry_and_the_next_build_removes_its_files(cache: Cache, tmp_path: Path) -> None:
    log = tmp_path / "log"
    killed = child(cache, log, 600)
    wait_for(log)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait(60)
    assert cache.find("dense", {"k": 1}) is None
    assert len(leftovers(cache)) == 1
    entry = cache.get_or_build("dense", {"k": 1}, fill)
    assert (entry / "part").read_text() == "whole"
    assert leftovers(cache) == []


@pytest.mark.parametrize(
    "other",
    [
        {**KEY, "dtype": "bfloat16"},
        {**KEY, "more": None},
        {**KEY, "tools": {"gadget": "1.3"}},
        {k: v for k, v in KEY.items() if k != "dtype"},
    ],
)
def test_every_part_of_the_key_changes_the_entry(other: dict[str, Any], cache: Cache) -> None:
    assert cache.location("dense", other) != cache.location("dense", KEY)


def test_the_kind_changes_the_entry_but_the_order_of_the_key_does_not(cache: Cache) -> None:
    backwards = dict(reversed(KEY.items()))
    assert cache.location("dense", backwards) == cache.location("dense", KEY)
    assert cache.location("packed", KEY) != cache.location("dense", KEY)


def test_the_root_is_set_by_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SMOLLM3_CACHE", str(tmp_path / "own"))
    assert default_root() == tmp_path / "own"
    assert Cache.default().root == tmp_path / "own"
    monkeypatch.delenv("SMOLLM3_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_root() == tmp_path / "xdg" / "smollm3"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_root() == tmp_path / "home" / ".cache" / "smollm3"


@pytest.mark.parametrize("variable", ["HOME", "XDG_CACHE_HOME"])
def test_a_root_that_cannot_be_accessed_is_one_sentence(
    cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    for name in ("SMOLLM3_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, f"/{'x' * 300}")  # stat() refuses this as it refuses a closed directory
    for command in (("cache", "list"), ("cache", "clean", "--dry-run")):
        result = cli(*command)
        assert (result.code, result.stdout) == (2, "")
        message, hint = result.stderr.splitlines()
        assert message.startswith("error: the cache '/xxx")
        assert message.endswith("cannot be accessed: File name too long")
        assert hint == "  hint: set SMOLLM3_CACHE=DIR to a writable directory"
    cache = Cache.default()  # what needs no cache runs all the same
    for use in (cache.find, lambda kind, key: cache.get_or_build(kind, key, lambda out: None)):
        with pytest.raises(SmolLM3Error, match="cannot be read: File name too long"):
            use("dense", KEY)


def test_without_a_home_directory_the_hint_names_the_variable(
    cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SMOLLM3_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # what it does without a home directory
    result = cli("cache", "list")
    assert result.code == 2
    assert result.stderr.startswith(
        "error: the cache needs a home directory, but there is none\n  hint: set SMOLLM3_CACHE"
    )


def test_a_root_that_cannot_be_created_is_an_error_with_a_hint(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SmolLM3Error, match="cannot be written") as caught:
        Cache(tmp_path / "file").get_or_build("dense", KEY, fill)
    assert caught.value.hint is not None and "SMOLLM3_CACHE" in caught.value.hint
