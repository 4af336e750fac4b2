"""GGUF files of SmolLM3, which transformers does not read, are opened, converted and checked for completeness."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from gguf import GGUFWriter
from smollm3_gguf.exporter import GgufExporter
from smollm3_gguf.loader import GgufLoader
from smollm3_gguf.options import GgufExportOptions, GgufOptions

from smollm3_finetune.api import ModelError

DEFAULT = GgufLoader(GgufOptions())


def write_with(tiny_gguf, file, model, monkeypatch, without=(), tensors=None):
    """Write a SmolLM3 as llama.cpp's converter does: without the width of heads, q and k permuted."""
    c = model.config
    keys = {
        "vocab_size": c.vocab_size, "context_length": 256, "embedding_length": c.hidden_size,
        "block_count": c.num_hidden_layers, "feed_forward_length": c.intermediate_size,
        "attention.head_count": c.num_attention_heads, "attention.head_count_kv": c.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": 1e-6, "rope.freq_base": 2e6,
        "rope.dimension_count": c.hidden_size // c.num_attention_heads,
    }  # fmt: skip
    own = tiny_gguf.stored
    monkeypatch.setattr(tiny_gguf, "stored", lambda name, value, _, *heads: own(name, value, "llama", *heads))
    tiny_gguf.write_model(file, "smollm3", model, keys, without=without, tensors=tensors)


@pytest.fixture
def model(exported, tmp_path):
    directory = exported.write_model(tmp_path / "model", num_hidden_layers=5, vocab_size=64)
    return exported.subject_of(directory).model.load(dtype=torch.float32)


def test_a_file_of_a_converter_gives_the_model(tiny_gguf, context, model, tmp_path, monkeypatch):
    write_with(tiny_gguf, tmp_path / "x.gguf", model, monkeypatch)
    ctx = context()
    source = DEFAULT.open(str(tmp_path / "x.gguf"), ctx)
    early = dict(source.config)
    assert early["model_type"] == "smollm3"
    assert early["no_rope_layers"] == [1, 1, 1, 0, 1]
    loaded = source.load(dtype=torch.float32)
    assert ctx.progress.steps == ctx.progress.total
    assert early.items() <= dict(source.config).items()
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    ids = torch.arange(5, 35)[None]
    with torch.no_grad():
        assert torch.equal(loaded.eval()(ids).logits, model.eval()(ids).logits)
    assert source.tokenizer().eos_token == "<|im_end|>"


def test_missing_and_foreign_tensors_are_refused(tiny_gguf, context, model, tmp_path, monkeypatch):
    write_with(tiny_gguf, tmp_path / "a.gguf", model, monkeypatch, without=("blk.3.attn_k.weight",))
    with pytest.raises(
        ModelError, match=r"lacks 1 of the model's weights: model\.layers\.3\.self_attn\.k_proj\.weight"
    ):
        DEFAULT.open(str(tmp_path / "a.gguf"), context()).load()
    monkeypatch.undo()
    more = {"blk.0.attn_q_norm.weight": np.ones(16, dtype=np.float32)}
    write_with(tiny_gguf, tmp_path / "b.gguf", model, monkeypatch, tensors=more)
    with pytest.raises(ModelError, match=r"1 tensors that have no place .* blk\.0\.attn_q_norm\.weight"):
        DEFAULT.open(str(tmp_path / "b.gguf"), context()).load()


def test_keys_that_the_model_cannot_use_are_refused(exported, context, tmp_path, monkeypatch):
    directory = exported.write_model(tmp_path / "model")
    own = GGUFWriter.add_block_count

    def more(self, count):
        own(self, count)
        self.add_float32("smollm3.logit_scale", 0.5)

    monkeypatch.setattr(GGUFWriter, "add_block_count", more)
    file = exported.export(directory, tmp_path / "out", context(), type="f32")
    with pytest.raises(ModelError, match=r"states smollm3\.logit_scale = 0\.5"):
        DEFAULT.open(str(file), context())


@pytest.mark.parametrize("kind", ["f32", "q8_0"])
def test_an_exported_file_is_a_base_with_the_same_loss_and_tokenizer(exported, context, tmp_path, kind):
    """Training on the file starts where the exported model was: equal logits, tokens, template and stop tokens."""
    directory = shutil.copytree(exported.TINY, tmp_path / "tiny")
    file = exported.export(directory, tmp_path / "out", context(), type=kind)
    source = DEFAULT.open(str(file), context())
    tokenizer, theirs = source.tokenizer(), exported.subject_of(directory).model.tokenizer()
    messages = [{"role": "user", "content": "What is 12 + 30?"}, {"role": "assistant", "content": "42."}]
    text = theirs.apply_chat_template(messages, tokenize=False)
    assert tokenizer.apply_chat_template(messages, tokenize=False) == text
    ids = torch.tensor(theirs(text)["input_ids"])[None]
    assert tokenizer(text)["input_ids"] == ids[0].tolist()
    subject = exported.subject_of(directory)
    expected = (
        subject.model.load(dtype=torch.float32)
        if kind == "f32"
        else GgufExporter(GgufExportOptions(type=kind)).reload(subject, file.parent, context())
    )
    model = source.load(dtype=torch.float32)
    with torch.no_grad():
        loss = model.eval()(ids, labels=ids).loss
        assert torch.equal(loss, expected.eval()(ids, labels=ids).loss)
    assert model.generation_config.eos_token_id == [4, 1]
    stated = json.loads((source.path / "generation_config.json").read_text())
    assert stated["eos_token_id"] == [4, 1]


def test_numbers_are_divided_as_the_file_states(tiny_gguf, context, tmp_path):
    """transformers' reader ignores the name `smollm`, and divides as GPT-2 does: 12 is one word."""
    tiny_gguf.write(tmp_path / "x.gguf")
    tokenizer = DEFAULT.open(str(tmp_path / "x.gguf"), context()).tokenizer()
    words = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("a12 b")
    assert [word for word, _ in words] == ["a", "1", "2", "Ġb"]
