"""Processes that write the same file do not disturb each other, and what a killed one left is deleted."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from smollm3_finetune.files import partial
from smollm3_finetune.files.partial import LONGEST, delete_unfinished, partial_name, unfinished
from smollm3_finetune.files.writing import whole_directory, write_text

WRITER = """
import sys
from pathlib import Path
from smollm3_finetune.files.partial import unfinished
with unfinished(Path(sys.argv[1])) as path:
    path.write_text("of the other process")
    print("written", flush=True)
    sys.stdin.readline()
    path.replace(sys.argv[1])
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty directory."""
    path = tmp_path / "folder"
    path.mkdir()
    return path


@pytest.fixture
def other(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process in the middle of writing `file`."""
    command = [sys.executable, "-c", WRITER, str(folder / "file")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "written\n"
        yield process
        process.kill()


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_two_processes_write_the_same_file(folder: Path, other: subprocess.Popen[str]) -> None:
    file = folder / "file"
    write_text(file, "of this process")
    assert file.read_text() == "of this process"
    assert len(names(folder)) == 2, "the other process still writes"
    assert other.communicate("go on\n") == ("", None)
    assert other.returncode == 0
    assert (file.read_text(), names(folder)) == ("of the other process", ["file"])


def test_the_next_write_deletes_what_a_killed_process_left(folder: Path, other: subprocess.Popen[str]) -> None:
    other.kill()
    other.wait()
    write_text(folder / "file2", "another file")
    assert len(names(folder)) == 2, "a leftover of another file stays"
    write_text(folder / "file", "whole")
    assert names(folder) == ["file", "file2"]


def test_the_holder_of_a_directory_deletes_no_file_of_a_process_that_runs(
    folder: Path, other: subprocess.Popen[str]
) -> None:
    (folder / ".partial-checkpoint").mkdir()  # without a process in its name
    partial_name(folder / "directory").mkdir()
    delete_unfinished(folder)
    assert [str(other.pid) in n for n in names(folder)] == [False, True], "this process and the other one"
    other.kill()
    other.wait()
    delete_unfinished(folder)
    assert len(names(folder)) == 1


def test_a_leftover_of_a_process_with_the_same_number_is_deleted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a container, every command may be process 7."""
    mine = partial_name(folder / "file")
    mine.touch()
    write_text(folder / "file", "a")
    assert mine.exists()
    monkeypatch.setattr(partial, "_own", set())
    write_text(folder / "file", "b")
    assert names(folder) == ["file"]


def test_a_leftover_of_another_computer_is_deleted_after_a_day(folder: Path) -> None:
    here = partial_name(folder / "run")
    beginning, _, end = here.name.rpartition(".")
    there = here.with_name(f"{beginning}.{int(end[:4], 16) ^ 1:04x}{end[4:]}")
    there.mkdir()
    with whole_directory(folder / "run"):
        assert there.exists()
    os.utime(there, (0, 0))
    with whole_directory(folder / "run"):
        assert not there.exists()


def test_the_longest_name_of_a_file_can_be_written(folder: Path) -> None:
    for name in ("n" * 255, "n" * LONGEST, "n" * (LONGEST + 1), "a[b]*.json"):
        write_text(folder / name, "whole")
        with unfinished(folder / name) as path:
            path.touch()
    assert len(names(folder)) == 4
