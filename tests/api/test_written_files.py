"""Files that exporters write: tensors in files of a size, and what belongs to a model beside its weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from smollm3_finetune.api import StoredTensors, copy_model_files, model_files, write_tensors


@pytest.mark.parametrize("written_as", ["pt", "mlx"])
def test_tensors_are_read_back_from_files_of_the_size(written_as: str, tmp_path: Path) -> None:
    tensors = {f"t{i}": torch.full((4,), float(i)) for i in range(5)}
    write_tensors(tmp_path, tensors.items(), max_bytes=32, format=written_as)
    files = sorted(tmp_path.glob("model-0000?-of-00003.safetensors"))
    assert len(files) == 3
    for file in files:
        with safe_open(str(file), "pt") as opened:
            assert opened.metadata() == {"format": written_as}
    found = StoredTensors(tmp_path)
    assert {n: t.tolist() for n, t in found.items()} == {n: t.tolist() for n, t in tensors.items()}


def test_a_small_model_is_one_file_without_an_index(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    write_tensors(out, [("t", torch.ones(3))])
    assert [file.name for file in out.iterdir()] == ["model.safetensors"]


def test_a_link_out_of_the_directory_and_foreign_files_are_left_out(tmp_path: Path) -> None:
    secret, model, out = tmp_path / "secret.json", tmp_path / "model", tmp_path / "out"
    model.mkdir()
    out.mkdir()
    secret.write_text("{}")
    for name in ("config.json", "model.safetensors", "tokenizer.json", "LICENSE", "rows.jsonl", "code.py"):
        (model / name).write_text("{}")
    (model / "tokenizer_config.json").symlink_to(secret)
    said: list[str] = []
    copy_model_files(model, out, said.append)
    assert (
        [f.name for f in model_files(model)] == sorted(f.name for f in out.iterdir()) == ["LICENSE", "tokenizer.json"]
    )
    assert len(said) == 1
    assert "tokenizer_config.json is not copied" in said[0]
