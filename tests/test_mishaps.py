"""What goes wrong on a user's machine, told in a sentence: memory, damaged files, contradicting settings."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from smollm3_finetune import load_model
from smollm3_finetune.config.schema import ComponentConfig

Cli = Callable[..., Any]
QUICK = ("--max-steps", "1", "--set", "data.limit=20", "--set", "train.sample_tokens=2", "--output", "run")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """The embedded model as a directory."""
    loaded = load_model("tiny")
    out = tmp_path / "model"
    loaded.base.model.save_pretrained(str(out))
    loaded.tokenizer.save_pretrained(str(out))
    return out


@pytest.mark.parametrize(
    ("error", "message", "hint"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore"), "2 GiB.", "--batch-size"),
        (MemoryError(), "the memory does not suffice: Python has no more", "--batch-size"),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: …"),
            "the memory does not suffice: ",
            "--batch-size",
        ),
        (SafetensorError(f"Error: I/O error: No space left (os error {errno.ENOSPC})"), "nothing more can", "--output"),
    ],
)
def test_what_is_the_machines_fault_is_no_bug(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, error: Exception, message: str, hint: str
) -> None:
    def fails(*args: Any, **kwargs: Any) -> Any:
        raise error

    monkeypatch.setattr("smollm3_finetune.train.run.compose", fails)
    result = cli("train", "--adapter", "full", *QUICK)
    assert result.code == 1
    assert message in result.stderr
    assert hint in result.stderr
    assert "report" not in result.stderr
    assert len(result.stderr.splitlines()[-2:]) == 2


def test_other_faults_still_are(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smollm3_finetune.train.run.compose", lambda *a, **k: 1 / 0)
    assert "unexpected ZeroDivisionError" in cli("train", "--adapter", "full", *QUICK).stderr


def test_weights_that_were_cut_short_are_named(cli: Cli, directory: Path) -> None:
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    result = cli("generate", str(directory), "--prompt", "Hello!")
    assert result.code == 6
    assert "a weight file of" in result.stderr and "is damaged" in result.stderr


def test_saved_weights_of_another_shape_or_cut_short_are_named(cli: Cli) -> None:
    assert cli("train", "--adapter", "full", *QUICK).code == 0
    file = Path("run/adapter/model.safetensors")
    whole = file.read_bytes()
    state = load_file(str(file))
    name = "model.layers.0.mlp.up_proj.weight"
    save_file({**state, name: state[name][:-1].clone()}, str(file))
    result = cli("generate", "run", "--prompt", "Hello!")
    assert result.code == 6
    assert "are of another model" in result.stderr and name in result.stderr
    file.write_bytes(whole[:-1000])
    result = cli("generate", "run", "--prompt", "Hello!")
    assert result.code == 6
    assert f"{file} is damaged" in result.stderr


def test_an_adapter_that_was_not_saved_to_the_end_is_none(cli: Cli) -> None:
    assert cli("train", "--adapter", "full", *QUICK).code == 0
    Path("run/adapter/smollm3.json").unlink()  # the last file that is written
    result = cli("generate", "run", "--prompt", "Hello!")
    assert result.code == 6
    assert "has not finished" in result.stderr


def test_a_generation_config_that_contradicts_itself_loses_no_weights(tmp_path: Path) -> None:
    """Transformers refuses to save one that was changed, and `stop_at` changes it."""
    loaded = load_model("tiny", adapter="full", purpose="train")
    own = loaded.base.model.generation_config
    own.do_sample, own.temperature = False, 0.6
    loaded.stop_at([2])
    loaded.save(tmp_path / "saved")
    assert loaded.base.model.generation_config is own
    again = load_model("tiny", adapter_path=tmp_path / "saved")
    assert again.adapted is not None
    assert '"temperature": 0.6' in (tmp_path / "saved" / "generation_config.json").read_text()


@pytest.mark.parametrize(("word", "meant"), [("bf16", "bfloat16"), ("float61", "float16"), ("int8", None)])
def test_a_number_format_that_is_none_is_the_users_mistake(cli: Cli, word: str, meant: str | None) -> None:
    result = cli("generate", "tiny", "--prompt", "Hello!", "--dtype", word)
    assert result.code == 2
    assert f"--dtype takes a number format, got {word!r}" in result.stderr
    assert (f"did you mean {meant!r}?" if meant else "one of: auto, float32") in result.stderr


def test_a_prompt_from_standard_input_ends_where_it_ends(run_cli: Callable[..., Any]) -> None:
    common = ("generate", "tiny", "--json", "--max-new-tokens", "2")
    typed = run_cli(*common, "--prompt", "Hello!")
    piped = run_cli(*common, "--prompt", "-", input="Hello!\n")
    assert piped.stdout == typed.stdout
    assert typed.code == 0


def test_options_are_added_to_those_of_a_saved_quantizer(tmp_path: Path) -> None:
    from smollm3_finetune.plan import ModelRequest, _with_saved
    from smollm3_finetune.saved import SavedAdapter

    saved = SavedAdapter(
        path=tmp_path,
        model="m",
        loader=None,
        quant=ComponentConfig(name="acme:int4", options={"kind": "fp4", "size": 64}),
        adapter=ComponentConfig(name="acme:lora"),
        base_fingerprint=None,
    )

    def quant(name: str | None, **options: Any) -> ComponentConfig:
        return _with_saved(ModelRequest(ref="m", quant=ComponentConfig(name=name, options=options)), saved).quant

    assert quant(None) == saved.quant
    assert quant(None, size=32).options == {"kind": "fp4", "size": 32}
    assert quant("int4", size=32) == ComponentConfig(name="acme:int4", options={"kind": "fp4", "size": 32})
    assert quant("other", size=32) == ComponentConfig(name="other", options={"size": 32})


def test_a_run_keeps_the_commit_of_a_hub_model(tmp_path: Path) -> None:
    from smollm3_finetune.builtin.hf import HubSource
    from smollm3_finetune.builtin.long_context import YarnSource

    source = HubSource("org/model", None, {}, pickle=False)
    source.__dict__["_config_file"] = tmp_path / "snapshots" / "0123abcd" / "config.json"
    assert source.pins == {"revision": "0123abcd"}
    assert source.fingerprint == "hub:org/model@0123abcd"
    assert YarnSource(inner=source, native=8, context=16, remote_code=False).pins == source.pins


def test_what_pins_a_source_is_in_the_run_and_beside_the_adapter(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    from smollm3_finetune.source import DirectorySource

    monkeypatch.setattr(DirectorySource, "pins", {"revision": "0123abcd"}, raising=False)
    directory = Path("model")
    loaded = load_model("tiny")
    loaded.base.model.save_pretrained(str(directory))
    loaded.tokenizer.save_pretrained(str(directory))
    result = cli("train", "--model", "model", "--adapter", "full", "--max-length", "64", *QUICK)
    assert result.code == 0, result.stderr
    assert "revision: 0123abcd" in Path("run/run.yaml").read_text()
    assert '"revision": "0123abcd"' in Path("run/adapter/smollm3.json").read_text()
