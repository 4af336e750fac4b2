"""The measured memory of a run."""

from __future__ import annotations

import platform
import sys
import time
from pathlib import Path

import pytest

from smollm3_finetune.train import memory
from smollm3_finetune.train.memory import anonymous, device_name, give_back, watching

SIZE = 64 * 2**20


@pytest.mark.skipif(sys.platform != "linux", reason="anonymous memory is measured on Linux")
def test_the_peak_is_that_of_memory_that_was_freed() -> None:
    with watching("cpu") as watch:
        before = watch.so_far()
        block = bytearray(SIZE)
        block[::4096] = b"x" * len(block[::4096])  # pages that are not touched take no memory
        time.sleep(5 * memory.EVERY)
        del block
        after = watch.so_far()
    now = anonymous()
    assert now is not None
    assert before["device"] == after["device"] == "cpu"
    assert before["peak"] < SIZE / 2
    assert SIZE * 0.95 < after["peak"] < SIZE * 1.5
    assert now - after["floor"] < SIZE / 2, "it was freed"


def test_nothing_is_measured_where_the_system_does_not_state_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "STATUS", tmp_path / "missing")
    with watching("cpu") as watch:
        assert watch.so_far() == {}
    with watching("mps") as watch:
        assert watch.so_far() == {}


def test_device_names() -> None:
    assert (device_name("cpu"), device_name("mps:0")) == ("cpu", "mps")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library may not keep freed memory")
def test_freed_memory_is_given_back_to_the_system() -> None:
    """The last of many blocks in the heap stays in use, so that the heap does not shrink by itself."""
    blocks = [bytearray(60_000) for _ in range(1000)]
    last = bytearray(60_000)
    full = anonymous()
    blocks.clear()
    kept = anonymous()
    give_back()
    assert full is not None and kept is not None
    assert full - kept < 30_000_000, "the C library keeps the blocks"
    assert full - (anonymous() or 0) > 50_000_000
    assert len(last) == 60_000
