"""The loaded weights equal those in the file; a file is converted once, and completely."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys

import pytest
import torch
from gguf import GGMLQuantizationType
from smollm3_gguf.loader import GgufLoader
from smollm3_gguf.options import GgufOptions

from smollm3_finetune.api import ModelError, WriteError

DEFAULT = GgufLoader(GgufOptions())


@pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0", "Q4_0", "Q4_1"])
def test_loaded_weights_equal_those_in_the_file(tiny_gguf, context, tmp_path, kind):
    held = tiny_gguf.write(tmp_path / "tiny.gguf", kind=GGMLQuantizationType[kind])
    source = DEFAULT.open(str(tmp_path / "tiny.gguf"), context())
    model = source.load(dtype=torch.float32)
    state = model.state_dict()
    assert set(held) == set(state) - {"lm_head.weight"}
    for name, expected in held.items():
        assert torch.equal(state[name], torch.from_numpy(expected)), name
    assert model.lm_head.weight is model.get_input_embeddings().weight  # the file has no output.weight
    assert model.name_or_path == source.ref


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_copy_is_in_the_requested_dtype(tiny_gguf, context, tmp_path, dtype):
    held = tiny_gguf.write(tmp_path / "tiny.gguf")
    source = GgufLoader(GgufOptions(dtype=dtype)).open(str(tmp_path / "tiny.gguf"), context())
    model = source.load(dtype="auto")
    assert model.dtype == getattr(torch, dtype)
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(model.state_dict()[name], torch.from_numpy(held[name]).to(model.dtype))


def test_a_file_is_converted_once_and_only_when_needed(tiny_gguf, context, tmp_path):
    path = tmp_path / "tiny.gguf"
    tiny_gguf.write(path)
    ctx = context()
    source = DEFAULT.open(str(path), ctx)
    early = dict(source.config)
    assert not ctx.progress.tasks
    assert not ctx.cache.root.exists()
    fingerprint = source.fingerprint
    assert not ctx.progress.tasks
    source.load()
    source.tokenizer()
    assert ctx.progress.tasks == ["dequantizing tiny.gguf"]
    assert ctx.progress.steps == ctx.progress.total
    late = dict(source.config)
    assert early.items() <= late.items()
    assert late["rms_norm_eps"] == 1e-5
    assert late["rope_parameters"] == {"rope_type": "default", "rope_theta": 10000.0}
    assert "quantization_config" not in late

    moved = tmp_path / "elsewhere" / "OTHER.GGUF"
    moved.parent.mkdir()
    path.rename(moved)
    again_ctx = context()
    again = DEFAULT.open(str(moved), again_ctx)  # the cache key is the content, not the name
    again.load()
    assert not again_ctx.progress.tasks
    assert again.fingerprint == fingerprint
    assert again.path == source.path


def test_the_config_comes_from_the_header(tiny_gguf, context, tmp_path):
    tiny_gguf.write(tmp_path / "tiny.gguf")
    config = DEFAULT.open(str(tmp_path / "tiny.gguf"), context()).config
    expected = {
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vocab_size": 64,
        "max_position_embeddings": 128,
        "tie_word_embeddings": True,
        "dtype": "float32",
        "eos_token_id": 2,
    }
    assert expected.items() <= config.items()


def test_another_content_or_dtype_is_another_model(tiny_gguf, context, tmp_path):
    tiny_gguf.write(tmp_path / "a.gguf")
    tiny_gguf.write(tmp_path / "b.gguf", kind=GGMLQuantizationType.Q8_0)
    a = DEFAULT.open(str(tmp_path / "a.gguf"), context())
    b = DEFAULT.open(str(tmp_path / "b.gguf"), context())
    half = GgufLoader(GgufOptions(dtype="bfloat16")).open(str(tmp_path / "a.gguf"), context())
    assert len({a.fingerprint, b.fingerprint, half.fingerprint}) == 3
    assert len({a.path, b.path, half.path}) == 3
    assert a.at(b.path).path == b.path
    assert a.at(b.path).ref == a.ref


FULL = OSError(errno.ENOSPC, "No space left on device")
NO_MEMORY = RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: …")


@pytest.mark.parametrize("error", [FULL, MemoryError(), NO_MEMORY])
@pytest.mark.parametrize("where", ["from_pretrained", "save_pretrained"])
def test_resource_errors_are_raised_unchanged(tiny_gguf, context, tmp_path, monkeypatch, where, error):
    tiny_gguf.write(tmp_path / "tiny.gguf")
    source = DEFAULT.open(str(tmp_path / "tiny.gguf"), context())

    def fails(*args, **kwargs):
        raise error

    owner = "AutoModelForCausalLM" if where == "from_pretrained" else "PreTrainedModel"
    monkeypatch.setattr(f"transformers.{owner}.{where}", fails)
    expected = WriteError if error is FULL else type(error)  # the cache names the file that cannot be written
    with pytest.raises(expected) as caught:
        _ = source.path
    assert error in (caught.value, caught.value.__cause__)


def test_a_file_on_disk_has_no_pins(tiny_gguf, context, tmp_path):
    tiny_gguf.write(tmp_path / "tiny.gguf")
    assert DEFAULT.open(str(tmp_path / "tiny.gguf"), context()).pins == {}


def test_the_tokenizer_and_its_template_are_kept(tiny_gguf, context, tmp_path):
    tiny_gguf.write(tmp_path / "tiny.gguf")
    tokenizer = DEFAULT.open(str(tmp_path / "tiny.gguf"), context()).tokenizer()
    assert tokenizer.chat_template == tiny_gguf.CHATML
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hello w"}], add_generation_prompt=True, tokenize=False
    )
    assert text == "<|im_start|>user\nhello w<|im_end|>\n<|im_start|>assistant\n"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert ids.count(1) == 2
    assert ids.count(2) == 1
    assert tokenizer.convert_ids_to_tokens(tokenizer("hello w", add_special_tokens=False)["input_ids"]) == [
        "hello",
        "Ġw",
    ]


def test_a_chatml_model_stops_at_the_end_of_a_turn(tiny_gguf, context, tmp_path):
    tiny_gguf.write(tmp_path / "tiny.gguf", eos=0)  # the base model's end of text
    source = DEFAULT.open(str(tmp_path / "tiny.gguf"), context())
    assert source.tokenizer().eos_token == "<|im_end|>"
    model = source.load()
    assert model.generation_config.eos_token_id == [2, 0]
    assert model.config.eos_token_id == 2


@pytest.mark.parametrize("template", [None, "{% for m in messages %}{{ m['content'] }}{% endfor %}"])
def test_without_chatml_the_end_token_of_the_file_is_kept(tiny_gguf, context, tmp_path, template):
    tiny_gguf.write(tmp_path / "tiny.gguf", eos=0, template=template)
    source = DEFAULT.open(str(tmp_path / "tiny.gguf"), context())
    assert source.tokenizer().eos_token == "<|endoftext|>"
    assert source.load().generation_config.eos_token_id == 0


def test_missing_weights_are_an_error(tiny_gguf, context, tmp_path):
    tiny_gguf.write(tmp_path / "tiny.gguf", leave_out="blk.1.ffn_up")
    ctx = context()
    source = DEFAULT.open(str(tmp_path / "tiny.gguf"), ctx)
    with pytest.raises(ModelError, match=r"lacks 1 of the model's weights: model\.layers\.1\.mlp\.up_proj\.weight"):
        source.load()
    assert not [p for p in (ctx.cache.root / "gguf").iterdir() if p.is_dir()]


def test_transformers_and_gguf_print_nothing(tiny_gguf, context, tmp_path, capfd):
    tiny_gguf.write(tmp_path / "tiny.gguf", kind=GGMLQuantizationType.Q8_0)
    source = DEFAULT.open(str(tmp_path / "tiny.gguf"), context())
    capfd.readouterr()
    assert source.path.is_dir()
    assert capfd.readouterr() == ("", "")


OPEN = """
import os, sys
from pathlib import Path
from types import SimpleNamespace
sys.path.insert(0, sys.argv[3])
if sys.argv[4] == "die":
    def convert(ref, file, header, out, *_):
        Path(out, "model.safetensors").write_bytes(b"half")
        os._exit(9)
    sys.modules["smollm3_gguf.convert"] = SimpleNamespace(convert=convert)
from conftest import Recorder
from smollm3_finetune.api import BuildContext, Purpose, WriteError
from smollm3_finetune.testing import Cache
from smollm3_gguf.loader import GgufLoader
from smollm3_gguf.options import GgufOptions
progress = Recorder()
ctx = BuildContext(purpose=Purpose.TRAIN, device="cpu", dtype="float32", seed=0,
                   cache=Cache(Path(sys.argv[2])), progress=progress)
source = GgufLoader(GgufOptions()).open(sys.argv[1], ctx)
print(source.path, len(progress.tasks))
"""


def start(path, cache, how="live"):
    here = os.path.dirname(__file__)
    command = [sys.executable, "-c", OPEN, str(path), str(cache), here, how]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.long
def test_only_one_of_two_processes_converts(tiny_gguf, tmp_path):
    tiny_gguf.write(tmp_path / "tiny.gguf")
    runs = [start(tmp_path / "tiny.gguf", tmp_path / "cache") for _ in range(2)]
    done = [run.communicate(timeout=120) for run in runs]
    assert [run.returncode for run in runs] == [0, 0], done
    paths, counts = zip(*(out.split() for out, _ in done), strict=True)
    assert sorted(counts) == ["0", "1"]
    assert len(set(paths)) == 1


def test_a_killed_conversion_leaves_no_cache_entry(tiny_gguf, context, tmp_path):
    tiny_gguf.write(tmp_path / "tiny.gguf")
    run = start(tmp_path / "tiny.gguf", tmp_path / "cache", "die")
    run.communicate(timeout=120)
    assert run.returncode == 9
    ctx = context()
    source = DEFAULT.open(str(tmp_path / "tiny.gguf"), ctx)
    source.load()
    assert len(ctx.progress.tasks) == 1
    assert json.loads((source.path / "config.json").read_text())["model_type"] == "llama"
    assert not list(source.path.parent.glob("*.partial-*"))


def test_a_flipped_bit_in_any_converted_file_is_found_and_the_file_converted_again(tiny_gguf, context, tmp_path):
    tiny_gguf.write(tmp_path / "tiny.gguf")
    ctx = context()
    entry = DEFAULT.open(str(tmp_path / "tiny.gguf"), ctx).path
    whole = {file.name: file.read_bytes() for file in entry.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= set(whole)
    for name, content in whole.items():
        flipped = bytearray(content)
        flipped[len(content) * 2 // 3] ^= 1
        (entry / name).write_bytes(flipped)
        conversions = len(ctx.progress.tasks)
        assert DEFAULT.open(str(tmp_path / "tiny.gguf"), ctx).path == entry
        assert len(ctx.progress.tasks) == conversions + 1, name
        assert {file.name: file.read_bytes() for file in entry.iterdir()} == whole, name
