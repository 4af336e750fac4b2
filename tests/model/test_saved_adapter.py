"""A saved adapter appears whole, and its damage is found before it is used."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from smollm3_finetune import LoadedModel, load_model
from smollm3_finetune.errors import ModelError, UnsupportedOp, WriteError
from smollm3_finetune.files.checksums import CHECKSUMS, damage, write_checksums
from smollm3_finetune.model.saved_adapter import SavedAdapter

Cli = Callable[..., Any]
SCALE = str(Path(__file__).parents[1] / "out_of_tree" / "scale_adapter.py")


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return load_model("tiny", adapter="scale", purpose="train", device="cpu", plugins=[SCALE])


@pytest.fixture
def adapter(loaded: LoadedModel) -> Iterator[Path]:
    """A saved adapter, `adapter` in the working directory."""
    path = Path("adapter")
    loaded.save(path)
    (path / "README.md").write_text("card")
    return path


def flip(file: Path, place: int, bit: int = 0) -> None:
    found = bytearray(file.read_bytes())
    found[place] ^= 1 << bit
    file.write_bytes(found)


def files(directory: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in directory.iterdir()}


def test_a_flipped_bit_in_any_file_is_found_and_named(adapter: Path) -> None:
    whole = files(adapter)
    assert {"adapter.safetensors", "smollm3.json", "tokenizer.json", "generation_config.json", CHECKSUMS} < set(whole)
    for name, content in whole.items():
        for place in (0, len(content) // 2, len(content) - 1):
            flip(adapter / name, place, place % 8)
            if name == "README.md":  # a user may edit it
                SavedAdapter.read(adapter)
                continue
            with pytest.raises(ModelError) as caught:
                SavedAdapter.read(adapter)
            assert caught.value.message.startswith("the adapter adapter is damaged: ")
            assert name == CHECKSUMS or caught.value.message.endswith(f": {name} differs from its checksum")
            (adapter / name).write_bytes(content)
    SavedAdapter.read(adapter)


def test_a_missing_or_truncated_file_is_found(adapter: Path) -> None:
    os.truncate(adapter / "adapter.safetensors", 40)
    with pytest.raises(ModelError, match=r"adapter\.safetensors differs from its checksum"):
        SavedAdapter.read(adapter)
    (adapter / "adapter.safetensors").unlink()
    with pytest.raises(ModelError, match=r"adapter\.safetensors is missing"):
        SavedAdapter.read(adapter)


def test_every_command_refuses_a_damaged_adapter(adapter: Path, cli: Cli, rows_file: Path) -> None:
    flip(adapter / "adapter.safetensors", -1, 6)
    common = ("tiny", "-p", SCALE, "--adapter-path", adapter)
    for command in (
        ("generate", *common, "--prompt", "Hello!"),
        ("merge", *common, "--output", "merged"),
    ):
        result = cli(*command)
        assert (result.code, result.stdout) == (6, ""), result.stderr
        assert result.stderr.splitlines()[-2:] == [
            "error: the adapter adapter is damaged: adapter.safetensors differs from its checksum",
            "  hint: copy it again; if you edited the file on purpose: rm adapter/checksums.json",
        ]
    assert not Path("merged").exists()
    with pytest.raises(ModelError, match="is damaged"):
        load_model("tiny", adapter_path=adapter, plugins=[SCALE])
    (adapter / CHECKSUMS).unlink()  # as the hint says
    assert load_model("tiny", adapter_path=adapter, device="cpu", plugins=[SCALE]).adapted is not None


def test_a_damaged_adapter_of_a_run_has_its_last_whole_checkpoint_in_the_hint(loaded: LoadedModel) -> None:
    for step in (9, 10, 20):
        checkpoint = Path(f"run/checkpoints/checkpoint-{step}")
        loaded.write(checkpoint)
        write_checksums(checkpoint)
    loaded.save(Path("run/adapter"))
    for place in ("run/adapter", "run/checkpoints/checkpoint-20"):
        flip(Path(place) / "adapter.safetensors", -1)
    with pytest.raises(ModelError) as caught:
        SavedAdapter.read(Path("run/adapter"))
    assert str(caught.value.hint).startswith(
        "to use the newest undamaged checkpoint: smollm3 generate tiny --adapter-path run/checkpoints/checkpoint-10 "
        "--prompt TEXT; if you edited"
    )
    SavedAdapter.read(Path("run/checkpoints/checkpoint-10"))


def test_saving_again_keeps_other_files_and_an_edited_card(adapter: Path, loaded: LoadedModel) -> None:
    (adapter / "notes.txt").write_text("mine")
    (adapter / "README.md").write_text("edited")
    (adapter / "smollm3.json").write_text("old")
    loaded.save(adapter)
    found = files(adapter)
    assert (found["notes.txt"], found["README.md"]) == (b"mine", b"edited")
    assert set(json.loads(found[CHECKSUMS])["sha256"]) == set(found) - {"notes.txt", "README.md", CHECKSUMS}
    assert damage(adapter) is None
    assert [p.name for p in Path().iterdir()] == ["adapter"]


@pytest.mark.parametrize("existing", [False, True])
def test_a_save_that_fails_leaves_nothing(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch, existing: bool) -> None:
    if existing:
        loaded.save(Path("deep/adapter"))
    before = files(Path("deep/adapter")) if existing else {}

    def full(self: LoadedModel, path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(LoadedModel, "describe", full)
    with pytest.raises(WriteError, match=r"^'deep/adapter' cannot be written: the disk is full"):
        loaded.save(Path("deep/adapter"))
    assert (files(Path("deep/adapter")) if existing else {}) == before
    assert [p.name for p in Path("deep").iterdir()] == (["adapter"] if existing else [])


def test_a_kill_between_two_files_of_a_second_save_is_damage(
    adapter: Path, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    flip(adapter / "adapter.safetensors", -1)  # another state of the adapter, with its own checksums
    write_checksums(adapter, without=("README.md",))
    actual, moved = Path.replace, []

    def killed(self: Path, target: Path) -> Path:
        if target.name == "tokenizer.json" and ".partial-adapter" in str(self.parent):
            raise KeyboardInterrupt
        moved.append(target.name)
        return actual(self, target)

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        loaded.save(adapter)
    assert "adapter.safetensors" in moved
    assert damage(adapter) == "adapter.safetensors differs from its checksum"


def test_without_an_adapter_nothing_is_written() -> None:
    with pytest.raises(UnsupportedOp):
        load_model("tiny", device="cpu").save(Path("deep/adapter"))
    assert not Path("deep").exists()
