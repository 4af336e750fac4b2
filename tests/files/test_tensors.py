"""Too little memory, an unreadable file and a damaged file are three errors."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from safetensors.torch import save_file

from smollm3_finetune.api import ModelError, open_tensors


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.arange(3)}, str(path))
    return path


def test_a_whole_file_is_opened(file: Path) -> None:
    with open_tensors(file) as tensors:
        assert tensors.get_tensor("a").tolist() == [0, 1, 2]


def test_a_truncated_file_is_damaged(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(ModelError, match=r"model\.safetensors is damaged: ") as caught:
        open_tensors(file)
    assert caught.value.hint == "copy or download it again"


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Cannot allocate memory (os error 12)"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        safetensors.SafetensorError("Cannot allocate memory (os error 12)"),
        RuntimeError("unable to mmap 64 bytes from file </model.safetensors>: Cannot allocate memory (12)"),
    ],
)
def test_a_file_that_cannot_be_mapped_is_not_damaged(error: Exception, file: Path, monkeypatch: Any) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise error

    monkeypatch.setattr(safetensors, "safe_open", refuse)
    with pytest.raises(type(error)) as caught:
        open_tensors(file)
    assert caught.value is error
    from smollm3_finetune.api import is_resource_error

    assert is_resource_error(error), "the command line reports too little memory"


def test_a_file_that_cannot_be_read_is_not_damaged(file: Path, monkeypatch: Any) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(safetensors, "safe_open", refuse)
    with pytest.raises(ModelError, match=r"cannot be read: Too many open files"):
        open_tensors(file)
