"""Faults that a conversion can have, injected into a written file: each is found and named."""

from __future__ import annotations

import dataclasses
import shutil

import numpy as np
import pytest
from smollm3_gguf.check_template import check_stops
from smollm3_gguf.vocabulary import vocabulary_of


@pytest.fixture(scope="module")
def models(exported, tmp_path_factory):
    """A SmolLM3 with a tied head and a Llama with a head of its own."""
    root = tmp_path_factory.mktemp("models")
    return {
        "smollm3": exported.write_model(root / "smollm3"),
        "llama": exported.write_model(root / "llama", "llama", tie_word_embeddings=False),
    }


@pytest.fixture
def failed(exported, context):
    """What the failed checks of a file say, by name."""

    def checks(directory, file):
        return {name: c.says for name, c in exported.checked(directory, file, context()).items() if not c.passed}

    return checks


def unpermuted(rows, heads):
    """Rows in transformers' order, as a converter leaves them that forgets this layer."""
    from smollm3_gguf.rows import restored

    return rows[restored(len(rows), heads)]


@pytest.mark.parametrize("kind", ["f32", "q4_0"])
@pytest.mark.parametrize(("place", "heads"), [("attn_q", 4), ("attn_k", 2)])
def test_a_wrong_order_of_rows_in_the_layer_without_rope(
    models, exported, edit_gguf, failed, context, tmp_path, kind, place, heads
):
    file = exported.export(models["smollm3"], tmp_path / "out", context(), type=kind)
    edit_gguf.edit_rows(file, f"blk.3.{place}.weight", lambda rows: unpermuted(rows, heads))
    says = failed(models["smollm3"], file)
    assert list(says) == ["weights"]
    assert f"blk.3.{place}.weight is not model.layers.3.self_attn.{place[-1]}_proj.weight" in says["weights"]
    assert f"not in the order that llama.cpp expects of {heads} heads" in says["weights"]


@pytest.mark.parametrize("kind", ["f32", "q8_0"])
def test_another_tensor_in_the_place_of_the_head(models, exported, edit_gguf, failed, context, tmp_path, kind):
    file = exported.export(models["llama"], tmp_path / "out", context(), type=kind)
    other = edit_gguf.rows_of(file, "token_embd.weight")
    edit_gguf.edit_rows(file, "output.weight", lambda _: other)
    says = failed(models["llama"], file)
    assert list(says) == ["weights"]
    assert "output.weight is not lm_head.weight" in says["weights"]


def test_a_head_although_the_source_ties_it(models, exported, failed, context, tmp_path):
    untied = shutil.copytree(models["smollm3"], tmp_path / "untied")
    from safetensors.torch import load_file, save_file

    weights = load_file(untied / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"] * 2
    save_file(weights, str(untied / "model.safetensors"), metadata={"format": "pt"})
    exported.edit_json(untied / "config.json", tie_word_embeddings=False)
    file = exported.export(untied, tmp_path / "out", context(), type="f32")
    says = failed(models["smollm3"], file)
    assert says["weights"] == "the file has output.weight, but the head of the source is tied to its embeddings"


def test_a_stale_template(models, exported, edit_gguf, failed, context, tmp_path):
    file = exported.export(models["smollm3"], tmp_path / "out", context(), type="f32")
    edit_gguf.edit_text(file, "message.role == 'assistant'", "message.role == 'Assistant'")
    says = failed(models["smollm3"], file)
    assert list(says) == ["chat template"]
    assert says["chat template"].startswith("conversation 3 is rendered as an error with the file's, but as ")


def test_a_template_that_differs_where_no_conversation_shows_it(models, exported, edit_gguf, failed, context, tmp_path):
    file = exported.export(models["smollm3"], tmp_path / "out", context(), type="f32")
    edit_gguf.edit_text(file, "unknown role", "unknown Role")
    says = failed(models["smollm3"], file)
    assert says == {
        "chat template": "the file's differs from the model's, though it renders the fixed conversations alike"
    }


def test_two_tokens_that_changed_places(models, exported, edit_gguf, failed, context, tmp_path):
    file = exported.export(models["smollm3"], tmp_path / "out", context(), type="f32")
    tokenizer = exported.subject_of(models["smollm3"]).model.tokenizer()
    first, second = tokenizer.convert_ids_to_tokens([300, 301])
    if len(first.encode()) != len(second.encode()):
        same = [i for i in range(302, 2000) if len(tokenizer.convert_ids_to_tokens(i).encode()) == len(first.encode())]
        second = tokenizer.convert_ids_to_tokens(same[0])
    edit_gguf.swap_texts(file, first, second)
    says = failed(models["smollm3"], file)
    assert "tokens" in says
    assert says["tokens"].startswith(f"token 300 is {second!r} in the file, but {first!r} in the tokenizer")


def test_token_ids_that_are_shifted_by_one(models, exported, failed, context, tmp_path, monkeypatch):
    import smollm3_gguf.vocabulary as vocabulary

    own = vocabulary._tokens

    def shifted(defined, rows):
        tokens, types = own(defined, rows)
        return [tokens[-1], *tokens[:-1]], [types[-1], *types[:-1]]

    monkeypatch.setattr(vocabulary, "_tokens", shifted)
    file = exported.export(models["smollm3"], tmp_path / "out", context(), type="f32")
    monkeypatch.undo()
    assert failed(models["smollm3"], file)["tokens"].startswith("token 0 is ")


def test_another_pre_tokenizer(models, exported, edit_gguf, failed, context, tmp_path):
    """The embedded tokenizer divides numbers into digits; `dbrx` is as long a name, with another division."""
    directory = shutil.copytree(models["smollm3"], tmp_path / "model")
    file = exported.export(directory, tmp_path / "out", context(), type="f32")
    content = file.read_bytes()
    name, other = (len(t).to_bytes(8, "little") + t for t in (b"smollm", b"llama3"))
    assert content.count(name) == 1
    file.write_bytes(content.replace(name, other))
    says = failed(directory, file)
    assert list(says) == ["tokens"]
    assert "has the ids" in says["tokens"]


def test_another_stop_token(models, exported, failed, context, tmp_path):
    file = exported.export(models["smollm3"], tmp_path / "out", context(), type="f32")
    directory = shutil.copytree(models["smollm3"], tmp_path / "model")
    exported.edit_json(directory / "generation_config.json", eos_token_id=[4, 7])
    assert failed(directory, file) == {"stop tokens": "the model stops at '<tool_call>', the file does not"}


def test_a_stop_token_that_the_model_does_not_have(models, exported, failed, context, tmp_path):
    directory = shutil.copytree(models["smollm3"], tmp_path / "model")
    exported.edit_json(directory / "generation_config.json", eos_token_id=[4, 7])
    file = exported.export(directory, tmp_path / "out", context(), type="f32")
    assert failed(models["smollm3"], file) == {
        "stop tokens": "the file stops at '<tool_call>' (eom), the model does not"
    }


def test_stop_tokens_of_llama_cpp_are_said(exported):
    tokenizer = exported.subject_of(exported.TINY).model.tokenizer()
    vocabulary = vocabulary_of(tokenizer, 2048, [4])
    texts = [*vocabulary.tokens[:-1], "<|eot_id|>"]
    check = check_stops(dataclasses.replace(vocabulary, tokens=texts), [4], tokenizer)
    assert check.passed
    assert "llama.cpp also stops at" in check.says
    assert check.says.endswith("'<|eot_id|>', by its text")


def test_another_rope_base(models, exported, failed, context, tmp_path):
    file = exported.export(models["smollm3"], tmp_path / "out", context(), type="f32")
    directory = shutil.copytree(models["smollm3"], tmp_path / "model")
    exported.edit_json(directory / "config.json", rope_parameters={"rope_type": "default", "rope_theta": 123456.0})
    says = failed(directory, file)
    assert list(says) == ["config"]
    assert says["config"].startswith("rope_parameters is ")


@pytest.mark.parametrize("kind", ["f32", "q5_1"])
def test_one_value_of_one_row(models, exported, edit_gguf, failed, context, tmp_path, kind):
    file = exported.export(models["smollm3"], tmp_path / "out", context(), type=kind)

    def flipped(rows):
        changed = np.array(rows)
        changed[5, 4] ^= 1
        return changed

    edit_gguf.edit_rows(file, "blk.2.ffn_gate.weight", flipped)
    says = failed(models["smollm3"], file)["weights"]
    assert says.startswith("blk.2.ffn_gate.weight is not model.layers.2.mlp.gate_proj.weight: row 5 and others differ")
