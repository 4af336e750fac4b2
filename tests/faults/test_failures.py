"""Failed writes of Python, torch, safetensors, tokenizers, Arrow, NumPy and SQLite are recognized and explained."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from faults import environment, needs_shim

from smollm3_finetune.errors import ConfigError, PluginError, WriteError, is_failed_write
from smollm3_finetune.files.failures import write_error, writing
from smollm3_finetune.files.room import check_room, checkpoint_bytes

REASONS = {
    "ENOSPC": "the disk is full",
    "ENOINODES": "the disk is full",  # the file system of the test has inodes
    "EDQUOT": "your disk quota is used up",
    "EIO": "the disk reported an input/output error",
    "EROFS": "the file system is read-only",
    "EFBIG": "the file would exceed the largest size allowed",
}


@needs_shim
def test_each_failed_call_of_each_library_is_a_write_error_with_its_reason(tmp_path: Path) -> None:
    folder, scratch = tmp_path / "folder", tmp_path / "scratch"
    scratch.mkdir()
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("attempts.py")), str(folder), str(scratch / "counter")],
        env={**os.environ, **environment(folder, scratch)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = json.loads(done.stdout)
    failed = {name: about for name, about in found.items() if about["message"] is not None}
    assert {name.split()[0] for name in failed} == {name.split()[0] for name in found}
    assert len(failed) > 0.6 * len(found)  # not every call can fail in every way: a file is not too large at its open
    for name, about in failed.items():
        writer, kind, _ = name.split()
        reasons = REASONS.values() if writer == "sqlite" else (REASONS[kind],)  # SQLite distinguishes only a full disk
        begins = tuple(f"'{folder}/{writer}.npy' cannot be written: {reason}" for reason in reasons)
        assert about["message"].startswith(begins), (name, about)
        assert about["message"].endswith("; the one before it is complete"), (name, about)
        assert about["hint"].endswith(", then: smollm3 train"), (name, about)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"), "unexpected pos"),
        (OSError(errno.EMFILE, "Too many open files"), "Too many open files"),
        (OSError("10000 requested and 8 written"), "10000 requested and 8 written"),
    ],
)
def test_a_failed_write_that_a_component_raised_names_the_file(tmp_path: Path, error: Exception, reason: str) -> None:
    attributed = PluginError("the adapter lora failed")
    attributed.__cause__ = error
    with pytest.raises(WriteError) as caught, writing(tmp_path / "adapter", left=lambda: "nothing was lost"):
        raise attributed
    assert caught.value.message.startswith(f"{str(tmp_path / 'adapter')!r} cannot be written: ")
    assert reason in caught.value.message
    assert caught.value.message.endswith("; nothing was lost")
    assert caught.value.exit_code == 8


def test_the_innermost_context_names_the_file(tmp_path: Path) -> None:
    outer, inner = writing(tmp_path / "outer"), writing(tmp_path / "inner")
    with pytest.raises(WriteError, match="inner' cannot") as caught, outer, inner:
        raise OSError(errno.EIO, "Input/output error")
    assert "outer" not in str(caught.value)


def test_a_directory_that_was_deleted_is_named(tmp_path: Path) -> None:
    gone = tmp_path / "run"
    with pytest.raises(WriteError) as caught, writing(gone / "report.json"):
        (gone / "report.json").write_text("{}")
    assert caught.value.message == f"'{gone}/report.json' cannot be written: the directory {gone} does not exist"
    assert caught.value.hint == f"mkdir -p {gone}, or use another directory"


def test_a_file_elsewhere_that_fails_is_named_itself(tmp_path: Path) -> None:
    scratch = str(tmp_path / "scratch" / "job.json")
    with pytest.raises(WriteError) as caught, writing(tmp_path / "model", left="nothing was kept"):
        raise OSError(errno.ENOSPC, "No space left on device", scratch)
    assert caught.value.message == f"{str(scratch)!r} cannot be written: the disk is full"


@pytest.mark.parametrize(
    "error",
    [
        ValueError("wrong"),
        ConfigError("the rows are wrong"),
        FileNotFoundError(errno.ENOENT, "No such file", "/elsewhere/tokenizer.json"),
        RuntimeError("PytorchStreamReader failed reading zip archive: failed finding central directory"),
        RuntimeError("[enforce fail at inline_container.cc:325] . PytorchStreamReader failed reading file data/0"),
        KeyError("errno 28"),
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
)
def test_other_errors_pass_unchanged(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(type(error)) as caught, writing(tmp_path / "file"):
        raise error
    assert caught.value is error
    assert not is_failed_write(error)


def test_an_error_that_was_only_being_handled_is_not_the_cause(tmp_path: Path) -> None:
    wrong = ValueError("wrong")
    wrong.__context__ = FileNotFoundError(errno.ENOENT, "No such file", str(tmp_path / "absent"))
    with pytest.raises(ValueError, match="wrong"), writing(tmp_path / "file"):
        raise wrong


def test_an_unknown_place_counts_only_errors_that_cannot_come_from_reading() -> None:
    assert write_error(OSError(errno.EIO, "Input/output error", "model.safetensors"), None) is None
    found = write_error(OSError(errno.ENOSPC, "No space left on device", "/cache/entry"), None)
    assert found is not None
    assert found.message == "'/cache/entry' cannot be written: the disk is full"


def test_room_is_compared_before_writing(tmp_path: Path) -> None:
    check_room(tmp_path / "new" / "run", 1, "the checkpoint")
    with pytest.raises(
        WriteError, match=r"^the checkpoint needs 1000000\.0 TB, but .* free; step 20 is saved\n"
    ) as caught:
        check_room(tmp_path / "new", 1e18, "the checkpoint", left="step 20 is saved")
    assert caught.value.hint is not None
    assert f"df -h {tmp_path}" in caught.value.hint


def test_a_checkpoint_is_expected_to_be_as_large_as_the_one_before(tmp_path: Path) -> None:
    assert checkpoint_bytes(None, trained=1000) == 12_000
    assert checkpoint_bytes(tmp_path / "absent", trained=1000) == 12_000
    (tmp_path / "checkpoint-1").mkdir()
    (tmp_path / "checkpoint-1" / "optimizer.pt").write_bytes(bytes(500))
    assert checkpoint_bytes(tmp_path / "checkpoint-1", trained=1000) == 500
