"""Files and directories appear whole or not at all."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from smollm3_finetune.files.checksums import CHECKSUMS, damage, write_checksums
from smollm3_finetune.files.json import write_json
from smollm3_finetune.files.writing import append_text, whole_directory, write_text


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty directory."""
    path = tmp_path / "folder"
    path.mkdir()
    return path


def fail_after_a_file(target: Path) -> None:
    with whole_directory(target) as partial:
        (partial / "state.json").write_text("{}")
        raise RuntimeError


def test_a_failed_write_keeps_the_former_content(folder: Path) -> None:
    file = folder / "report.json"
    write_json(file, {"loss": 1.0})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(file, {"loss": float("nan")})
    with pytest.raises(UnicodeEncodeError):
        write_text(file, "x" * 10_000 + "\ud800")  # fails after the file was opened
    assert json.loads(file.read_text()) == {"loss": 1.0}
    assert [p.name for p in folder.iterdir()] == ["report.json"]


def test_an_interrupted_line_is_not_appended(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = folder / "chat.jsonl"
    append_text(file, "first\n")

    class Interrupted(io.FileIO):
        def write(self, data: Any) -> int:
            super().write(data[:3])
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", lambda path, *args, **kwargs: Interrupted(path, "a"))
        with pytest.raises(KeyboardInterrupt):
            append_text(file, "second\n")
    assert file.read_bytes() == b"first\n"


def test_a_directory_appears_whole(folder: Path) -> None:
    target = folder / "checkpoint-1"
    with whole_directory(target) as partial:
        (partial / "state.json").write_text("{}")
        assert not target.exists()
    assert [p.name for p in target.iterdir()] == ["state.json"]
    with pytest.raises(RuntimeError):
        fail_after_a_file(folder / "checkpoint-2")
    assert [p.name for p in folder.iterdir()] == ["checkpoint-1"]


def test_a_leftover_of_a_killed_process_is_not_part_of_the_directory(folder: Path) -> None:
    leftover = folder / ".partial-checkpoint-1"
    leftover.mkdir()
    (leftover / "half").write_text("half")
    with whole_directory(folder / "checkpoint-1") as partial:
        (partial / "state.json").write_text("{}")
    assert [p.name for p in (folder / "checkpoint-1").iterdir()] == ["state.json"]


@pytest.fixture
def summed(folder: Path) -> Path:
    (folder / "deep").mkdir()
    (folder / "weights").write_bytes(bytes(range(256)))
    (folder / "deep" / "state").write_bytes(b"state")
    (folder / "README.md").write_text("card")
    write_checksums(folder, without=("README.md",))
    return folder


def test_checksums_find_every_flipped_bit(summed: Path) -> None:
    assert damage(summed) is None
    for name in ("weights", "deep/state"):
        content = (summed / name).read_bytes()
        for bit in range(8):
            (summed / name).write_bytes(bytes((content[0] ^ 1 << bit,)) + content[1:])
            assert damage(summed) == f"{name} differs from its checksum"
        (summed / name).write_bytes(content)
    assert damage(summed) is None


def test_checksums_find_missing_and_truncated_files(summed: Path) -> None:
    (summed / "deep" / "state").write_bytes(b"stat")
    assert damage(summed) == "deep/state differs from its checksum"
    (summed / "deep" / "state").unlink()
    assert damage(summed) == "deep/state is missing"


def test_files_without_a_checksum_may_change(summed: Path) -> None:
    (summed / "README.md").write_text("another card")
    (summed / "new").write_text("new")
    assert damage(summed) is None


def test_a_directory_of_an_earlier_version_has_no_checksums(summed: Path) -> None:
    (summed / CHECKSUMS).unlink()
    assert damage(summed) is None


@pytest.mark.parametrize("content", ["", "{", "[]", '{"sha256": 1}', '{"sha256": {"a": 1}}', "[" * 100_000])
def test_damaged_checksums_are_damage(summed: Path, content: str) -> None:
    (summed / CHECKSUMS).write_text(content)
    assert damage(summed) == "checksums.json cannot be read"


def test_checksums_read_no_file_outside_the_directory(summed: Path) -> None:
    (summed / CHECKSUMS).write_text(json.dumps({"sha256": {"../secret": "0" * 64}}))
    assert damage(summed) == "../secret is missing"
