"""Damaged entries of the cache are found before they are used, named, and built again."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from smollm3_finetune.cache.store import Cache, sums_file
from smollm3_finetune.errors import SmolLM3Error
from smollm3_finetune.files import checksums

KEY = {"source": "abc", "dtype": "float32"}
FILES = {"weights": bytes(range(256)) * 4, "config.json": b"{}", "deep/part": b"part"}


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def cache(tmp_path: Path, said: list[str]) -> Cache:
    return Cache(tmp_path / "entries").reporting(said.append)


def fill(directory: Path) -> None:
    for name, content in FILES.items():
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_bytes(content)


def content(entry: Path) -> dict[str, bytes]:
    return {f.relative_to(entry).as_posix(): f.read_bytes() for f in entry.rglob("*") if f.is_file()}


def built_again(cache: Cache) -> bool:
    """Use the entry, and check that it is right."""
    calls = []

    def build(directory: Path) -> None:
        calls.append(directory)
        fill(directory)

    assert content(cache.get_or_build("dense", KEY, build)) == FILES
    return bool(calls)


def flip(file: Path, byte: int, bit: int) -> None:
    found = bytearray(file.read_bytes())
    found[byte] ^= 1 << bit
    file.write_bytes(found)


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_in_any_file_is_found_and_named(name: str, cache: Cache, said: list[str]) -> None:
    entry = cache.get_or_build("dense", KEY, fill)
    assert not built_again(cache)
    for byte, bit in ((0, 0), (-1, 7)):
        flip(entry / name, byte, bit)
        assert cache.find("dense", KEY) is None
        assert built_again(cache)
        assert said.pop() == (
            f"the cache entry dense/{entry.name[:8]} is damaged ({name} differs from its checksum) and is built again"
        )
    assert not built_again(cache)
    assert said == []
    assert not list(cache.root.rglob("*.partial-*"))


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda entry: (entry / "weights").unlink(), "weights is missing"),
    "truncated": (lambda entry: os.truncate(entry / "weights", 100), "weights differs from its checksum"),
    "empty": (lambda entry: os.truncate(entry / "weights", 0), "weights differs from its checksum"),
    "directory": (lambda entry: shutil.rmtree(entry / "deep"), "deep/part is missing"),
    "sums": (lambda entry: os.truncate(sums_file(entry), 9), ".sums.json cannot be read"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_other_damage_is_found_too(kind: str, cache: Cache, said: list[str]) -> None:
    change, reason = DAMAGE[kind]
    change(cache.get_or_build("dense", KEY, fill))
    assert built_again(cache)
    assert reason in said.pop()
    assert not built_again(cache)


@pytest.mark.parametrize("text", [None, "", "{", "[]", '{"source": "another"}', "\xff"])
def test_a_damaged_description_is_written_again_without_building(text: str | None, cache: Cache) -> None:
    entry = cache.get_or_build("dense", KEY, fill)
    about = entry.with_name(f"{entry.name}.json")
    about.unlink() if text is None else about.write_text(text, encoding="latin-1")
    assert not built_again(cache)
    assert json.loads(about.read_text()) == KEY


def test_the_damaged_entry_remains_if_it_cannot_be_built_again(cache: Cache) -> None:
    entry = cache.get_or_build("dense", KEY, fill)
    flip(entry / "weights", 3, 3)

    def fail(directory: Path) -> None:
        raise RuntimeError("the source is gone")

    for _ in range(2):
        with pytest.raises(RuntimeError, match="the source is gone"):
            cache.get_or_build("dense", KEY, fail)
    assert cache.find("dense", KEY) is None
    assert built_again(cache)


def test_an_entry_of_an_earlier_version_gets_checksums_at_its_first_use(cache: Cache, said: list[str]) -> None:
    entry = cache.get_or_build("dense", KEY, fill)
    sums_file(entry).unlink()
    assert not built_again(cache)
    assert sums_file(entry).exists()
    flip(entry / "weights", 0, 0)
    assert built_again(cache)
    assert len(said) == 1


def test_a_damaged_entry_of_a_cache_that_cannot_be_written_is_an_error(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = cache.get_or_build("dense", KEY, fill)

    def refused(self: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("filelock.FileLock.acquire", refused)
    assert not built_again(Cache(cache.root))
    flip(entry / "weights", 0, 0)
    with pytest.raises(SmolLM3Error, match=rf"dense/{entry.name[:8]} is damaged, and the cache directory .* cannot be"):
        built_again(Cache(cache.root))


def test_a_process_reads_each_file_once(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []

    def counting(path: Path) -> str:
        read.append(path.name)
        return str(actual(path))

    actual = checksums.file_sha256
    monkeypatch.setattr(checksums, "file_sha256", counting)
    monkeypatch.setattr(checksums, "SETTLED", -1.0)
    entry = cache.get_or_build("dense", KEY, fill)
    read.clear()
    for _ in range(2):
        assert not built_again(Cache(cache.root))
    assert read == []  # known since the entry was built, although it was renamed
    os.utime(entry / "weights")  # any change of the inode
    assert not built_again(cache)
    assert read == ["weights"]
