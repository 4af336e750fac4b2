"""Failures on a user's machine, each reported in one sentence: memory, damaged files, contradicting settings."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from smollm3_finetune import load_model
from smollm3_finetune.api import ModelError, is_resource_error
from smollm3_finetune.config.schema import ComponentConfig
from smollm3_finetune.runs.rundir import RunDir

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
        (MemoryError(), "out of memory: Python cannot allocate more", "--batch-size"),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: …"),
            "out of memory: ",
            "--batch-size",
        ),
        (
            SafetensorError(f"Error: I/O error: No space left (os error {errno.ENOSPC})"),
            "the disk is full",
            "another disk",
        ),
    ],
)
def test_resource_errors_are_not_reported_as_bugs(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, error: Exception, message: str, hint: str
) -> None:
    def fails(*args: Any, **kwargs: Any) -> Any:
        raise error

    monkeypatch.setattr("smollm3_finetune.train.run.compose", fails)
    result = cli("train", "--adapter", "full", *QUICK)
    assert result.code == (8 if "disk" in message else 1)
    assert message in result.stderr
    assert hint in result.stderr
    assert "report" not in result.stderr
    assert len(result.stderr.splitlines()[-2:]) == 2


FULL = OSError(errno.ENOSPC, "No space left on device")
NO_MEMORY = RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: …")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (FULL, True),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), True),
        (OSError(errno.EROFS, "Read-only file system"), True),
        (OSError(errno.EFBIG, "File too large"), True),
        (OSError(errno.EIO, "Input/output error"), False),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), True),
        (SafetensorError(f"Error: I/O error: No space left (os error {errno.ENOSPC})"), True),
        (RuntimeError(f"Data processing error: No space left on device (os error {errno.ENOSPC})"), True),
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (NO_MEMORY, True),
        (OSError(errno.EACCES, "Permission denied"), False),
        (SafetensorError("Error while deserializing header: header too large"), False),
        (SafetensorError("No such file or directory (os error 2)"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("DefaultCPUAllocator: can't allocate memory"), False),
    ],
)
def test_resource_errors_are_recognized(error: Exception, expected: bool) -> None:
    assert is_resource_error(error) is expected


STARVED = """
from smollm3_finetune.api import ALL_OPS, AdapterSpec, LoaderSpec, QuantizerSpec, directory_source, hookimpl

def fail(*args):
    import builtins, errno
    import torch
    raise RAISED

@hookimpl
def smollm3_quantizers():
    return [QuantizerSpec(name="starved", summary="q", factory="starved:Starved", provides=ALL_OPS, api=2)]

@hookimpl
def smollm3_adapters():
    return [AdapterSpec(name="starved", summary="a", factory="starved:Starved", merges=False, api=2)]

@hookimpl
def smollm3_loaders():
    return [LoaderSpec(name="starved", summary="l", factory="starved:Starved", claims=lambda ref: ref == "starved",
                       api=2)]

class Starved:
    def __init__(self, options): ...
    load = attach = restore = open = fail
"""
RAISED = {
    "OSError(errno.ENOSPC, 'No space left on device')": "the output or a file cannot be written: the disk is full",
    "OSError(errno.EDQUOT, 'Disk quota exceeded')": "the output or a file cannot be written: your disk quota",
    "MemoryError()": "out of memory: Python cannot allocate more",
    "torch.OutOfMemoryError('CUDA out of memory.')": "out of memory: CUDA out of memory.",
    'RuntimeError("DefaultCPUAllocator: can\'t allocate memory: 9 bytes")': "out of memory: DefaultCPU",
}


@pytest.mark.parametrize("raised", RAISED)
@pytest.mark.parametrize("where", ["load", "attach", "open"])
def test_resource_errors_are_not_attributed_to_a_component(
    cli: Cli, plugin_file: Callable[[str, str], Path], where: str, raised: str
) -> None:
    file = plugin_file("starved", STARVED.replace("RAISED", raised))
    chosen = {"load": ("--quant", "starved", "--adapter", "full"), "attach": ("--adapter", "starved"),
              "open": ("--loader", "starved", "--adapter", "full")}[where]  # fmt: skip
    result = cli("train", "-p", file, *chosen, *QUICK)
    assert result.code == (8 if "disk" in RAISED[raised] else 1), result.stderr
    _, _, told = result.stderr.partition("error: ")
    assert told.startswith(RAISED[raised]), result.stderr
    assert "starved" not in told
    assert "unexpected" not in result.stderr


@pytest.mark.parametrize("error", [FULL, NO_MEMORY, OSError(errno.ENETUNREACH, "Network is unreachable")])
def test_a_full_disk_is_not_reported_as_a_network_error(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    from smollm3_finetune.builtin.hf import HubSource

    def fails(*args: Any, **kwargs: Any) -> Any:
        raise error

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fails)
    expected = type(error) if is_resource_error(error) else ModelError
    with pytest.raises(expected) as caught:
        _ = HubSource("org/model", None, {}, pickle=False).config
    assert (caught.value is error) is is_resource_error(error)


def test_a_failed_hub_request_is_one_sentence_with_the_command_for_a_directory(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*args: Any, **kwargs: Any) -> Any:
        raise OSError("The Hub cannot be reached. Please try again.")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fails)
    done = cli("generate", "org/model", "--prompt", "Hi")
    message, hint = done.stderr.splitlines()
    assert message.endswith("the Hub request for it failed: The Hub cannot be reached")
    assert hint.endswith("; for a local one: smollm3 generate DIRECTORY")


@pytest.mark.parametrize("error", [NO_MEMORY, SafetensorError(f"Cannot allocate memory (os error {errno.ENOMEM})")])
def test_out_of_memory_is_not_reported_as_damaged_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    load_model("tiny", adapter="full", purpose="train").save(tmp_path / "saved")

    def fails(*args: Any, **kwargs: Any) -> Any:
        raise error

    where = "safetensors.safe_open" if isinstance(error, SafetensorError) else "torch.nn.Module.load_state_dict"
    monkeypatch.setattr(where, fails)
    with pytest.raises(type(error)) as caught:
        load_model("tiny", adapter_path=tmp_path / "saved")
    assert caught.value is error


def test_other_errors_are_attributed(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smollm3_finetune.train.run.compose", lambda *a, **k: 1 / 0)
    assert "unexpected ZeroDivisionError" in cli("train", "--adapter", "full", *QUICK).stderr


def test_truncated_weights_are_named(cli: Cli, directory: Path) -> None:
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    result = cli("generate", str(directory), "--prompt", "Hello!")
    assert result.code == 6
    assert "a weight file of" in result.stderr and "is damaged" in result.stderr


def test_saved_weights_of_another_shape_or_truncated_are_named(cli: Cli) -> None:
    assert cli("train", "--adapter", "full", *QUICK).code == 0
    Path("run/adapter/checksums.json").unlink()  # as another tool or an earlier version saved it
    file = Path("run/adapter/model.safetensors")
    whole = file.read_bytes()
    state = load_file(str(file))
    name = "model.layers.0.mlp.up_proj.weight"
    save_file({**state, name: state[name][:-1].clone()}, str(file))
    result = cli("generate", "run", "--prompt", "Hello!")
    assert result.code == 6
    assert "belong to another model" in result.stderr and name in result.stderr
    file.write_bytes(whole[:-1000])
    result = cli("generate", "run", "--prompt", "Hello!")
    assert result.code == 6
    assert f"{file} is damaged" in result.stderr


def test_a_partially_saved_adapter_is_not_an_adapter(cli: Cli) -> None:
    assert cli("train", "--adapter", "full", *QUICK).code == 0
    Path("run/adapter/smollm3.json").unlink()  # written last
    result = cli("generate", "run", "--prompt", "Hello!")
    assert result.code == 6
    assert "has not finished" in result.stderr


def test_an_invalid_generation_config_does_not_prevent_saving(tmp_path: Path) -> None:
    """transformers refuses to save an invalid config that was changed, and `stop_at` changes it."""
    loaded = load_model("tiny", adapter="full", purpose="train")
    own = loaded.base.model.generation_config
    own.do_sample, own.temperature = False, 0.6
    loaded.stop_at([2])
    loaded.save(tmp_path / "saved")
    assert loaded.base.model.generation_config is own
    again = load_model("tiny", adapter_path=tmp_path / "saved")
    assert again.adapted is not None
    assert '"temperature": 0.6' in (tmp_path / "saved" / "generation_config.json").read_text()


@pytest.mark.parametrize(("word", "meant"), [("bfloat61", "bfloat16"), ("float61", "float16"), ("int8", None)])
def test_an_unknown_dtype_is_a_user_error(cli: Cli, word: str, meant: str | None) -> None:
    result = cli("generate", "tiny", "--prompt", "Hello!", "--dtype", word)
    assert result.code == 2
    assert f"--dtype takes a torch dtype, got {word!r}" in result.stderr
    assert (f"did you mean {meant!r}?" if meant else "one of: auto, float32") in result.stderr


def test_a_prompt_from_standard_input_loses_only_its_last_line_break(cli: Any, run_cli: Callable[..., Any]) -> None:
    common = ("generate", "tiny", "--json", "--max-new-tokens", "2")
    typed = cli(*common, "--prompt", "Hello!")
    piped = run_cli(*common, "--prompt", "-", input="Hello!\n")
    assert piped.stdout == typed.stdout
    assert typed.code == 0


def test_options_are_added_to_those_of_a_saved_quantizer(tmp_path: Path) -> None:
    from smollm3_finetune.model.plan import ModelRequest, _with_saved
    from smollm3_finetune.model.saved_adapter import SavedAdapter

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

    both = frozenset({"kind", "size"})  # what a saved adapter has without a record counts as set
    assert quant(None) == replace(saved.quant, given=both)
    assert quant(None, size=32).options == {"kind": "fp4", "size": 32}
    assert quant("int4", size=32) == ComponentConfig(name="acme:int4", options={"kind": "fp4", "size": 32}, given=both)
    assert quant("other", size=32) == ComponentConfig(name="other", options={"size": 32})


def test_a_run_keeps_the_commit_of_a_hub_model(tmp_path: Path) -> None:
    from smollm3_finetune.builtin.hf import HubSource
    from smollm3_finetune.builtin.long_context import YarnSource

    source = HubSource("org/model", None, {}, pickle=False)
    source.__dict__["_config_file"] = tmp_path / "snapshots" / "0123abcd" / "config.json"
    assert source.pins == {"revision": "0123abcd"}
    assert source.fingerprint == "hub:org/model@0123abcd"
    assert YarnSource(inner=source, native=8, context=16, remote_code=False).pins == source.pins


def test_the_pins_of_a_source_are_saved_with_the_run_and_the_adapter(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    from smollm3_finetune.model_files.source import DirectorySource

    monkeypatch.setattr(DirectorySource, "pins", {"revision": "0123abcd"}, raising=False)
    directory = Path("model")
    loaded = load_model("tiny")
    loaded.base.model.save_pretrained(str(directory))
    loaded.tokenizer.save_pretrained(str(directory))
    result = cli("train", "--model", "model", "--adapter", "full", "--max-length", "64", *QUICK)
    assert result.code == 0, result.stderr
    assert "revision: 0123abcd" in Path("run/run.yaml").read_text()
    assert '"revision": "0123abcd"' in Path("run/adapter/smollm3.json").read_text()


def test_a_tokenizer_that_git_lfs_did_not_fetch_is_named(cli: Cli, directory: Path) -> None:
    (directory / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    result = cli("train", "--model", str(directory), "--adapter", "full", *QUICK)
    assert result.code == 6, result.stderr
    assert f"the tokenizer of '{directory}' does not load" in result.stderr
    assert "git lfs pull" in result.stderr


def test_a_run_can_be_used_from_another_directory(
    cli: Cli, directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(directory.parent)
    assert cli("train", "--model", "./model", "--adapter", "full", *QUICK).code == 0
    run = Path("run").absolute()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    result = cli("generate", str(run), "--prompt", "Hello!", "--max-new-tokens", "2")
    assert result.code == 0, result.stderr


def test_a_checkpoint_has_the_template_and_the_end_that_were_trained(cli: Cli) -> None:
    template = load_model("tiny").tokenizer.chat_template
    Path("mine.jinja").write_text("{# mine #}" + template)
    saving = ("--set", "train.save_every=1", "--set", "data.template=mine.jinja")
    assert cli("train", "--adapter", "full", *QUICK, *saving).code == 0
    found = [
        load_model("tiny", adapter_path=path).tokenizer for path in ("run/checkpoints/checkpoint-1", "run/adapter")
    ]
    assert [t.chat_template.startswith("{# mine #}") for t in found] == [True, True]
    assert [t.eos_token for t in found] == ["<|im_end|>", "<|im_end|>"]


def test_two_processes_cannot_resume_the_same_run(cli: Cli) -> None:
    assert cli("train", "--adapter", "full", *QUICK, "--set", "train.save_every=1").code == 0
    before = Path("run/metrics.jsonl").read_text()
    with RunDir(Path("run")).held():
        result = cli("train", "--resume", "run", "--max-steps", "2")
    assert result.code == 2
    holder = f"error: the run run is being trained by another process (process {os.getpid()}, since 20"
    assert holder in result.stderr
    assert f"hint: wait for it to finish, or stop it: kill {os.getpid()}" in result.stderr
    assert Path("run/metrics.jsonl").read_text() == before
    assert cli("train", "--resume", "run", "--max-steps", "2").code == 0
    assert not list(Path("run").glob(".*"))
