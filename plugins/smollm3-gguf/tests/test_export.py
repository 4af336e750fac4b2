"""An exported file holds the model: weights, config, tokens, chat template; and it is read back."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from smollm3_gguf.exporter import GgufExporter
from smollm3_gguf.header import read_header
from smollm3_gguf.loader import GgufLoader
from smollm3_gguf.options import GgufExportOptions, GgufOptions
from smollm3_gguf.reading import FileTensors, open_gguf
from smollm3_gguf.rows import interleaved, restored
from smollm3_gguf.types import K_QUANTS, type_of

from smollm3_finetune.api import IncompatibleError, MissingRequirementError, ModelError

TYPES = ["f32", "f16", "bf16", "q8_0", "q5_0", "q5_1", "q4_0", "q4_1"]
ROWS = ["<|im_start|>user\nWhat is 12 * 34?<|im_end|>\n", "naïve 日本語\t\tend "]


@pytest.fixture(scope="module")
def smollm3(exported, tmp_path_factory):
    """A random SmolLM3 of four layers, the last without RoPE."""
    return exported.write_model(tmp_path_factory.mktemp("models") / "smollm3")


@pytest.mark.parametrize("kind", TYPES)
def test_every_type_passes_the_gates(exported, context, smollm3, tmp_path, kind):
    file = exported.export(smollm3, tmp_path / "out", context(), type=kind)
    assert file.name == f"model-{kind.upper()}.gguf"
    checks = exported.checked(smollm3, file, context(), ROWS)
    assert list(checks) == ["weights", "config", "tokens", "chat template", "stop tokens"]
    for check in checks.values():
        assert check.passed, check.says
    assert checks["tokens"].figures == {"random texts": 200, "training rows": 2, "pre-tokenizer": "smollm"}
    assert checks["weights"].figures["tensors"] == 2 + 9 * 4
    with file.open("rb") as stream:
        header = read_header(stream)
    tensors = FileTensors(file, header)
    assert "output.weight" not in header.tensors  # the head is tied
    assert tensors.kind("blk.0.attn_norm.weight").name == "F32"
    assert tensors.kind("blk.3.ffn_down.weight").name == kind.upper()
    assert tensors.kind("token_embd.weight").name == ("Q8_0" if kind.startswith("q") else kind.upper())


@pytest.mark.parametrize("kind", ["f32", "q4_0"])
@pytest.mark.parametrize("model_type", ["smollm3", "llama", "mistral"])
def test_the_model_is_read_back(exported, context, tmp_path, model_type, kind):
    untied = {} if model_type == "smollm3" else {"tie_word_embeddings": False}
    if model_type == "llama":
        untied |= {"attention_bias": True, "mlp_bias": True, "head_dim": 32}
    directory = exported.write_model(tmp_path / "model", model_type, **untied)
    file = exported.export(directory, tmp_path / "out", context(), type=kind)
    for check in exported.checked(directory, file, context()).values():
        assert check.passed, check.says
    subject = exported.subject_of(directory)
    again = GgufExporter(GgufExportOptions(type=kind)).reload(subject, file.parent, context())
    loaded = GgufLoader(GgufOptions()).open(str(file), context()).load(dtype=torch.float32)
    state, theirs = again.state_dict(), loaded.state_dict()
    assert set(state) == set(theirs)
    for name, value in state.items():
        assert torch.equal(value, theirs[name]), name
    ids = torch.randint(5, 2048, (2, 24), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        source = subject.model.load(dtype=torch.float32).eval()
        expected, found = source(ids).logits, again(ids).logits
    difference = ((found - expected).norm() / expected.norm()).item()
    assert difference < 1e-6 if kind == "f32" else 0.01 < difference < 0.5
    assert again.config.to_dict().get("no_rope_layers") == source.config.to_dict().get("no_rope_layers")


def test_q_and_k_are_interleaved_in_every_layer(exported, context, smollm3, tmp_path, tiny_gguf):
    file = exported.export(smollm3, tmp_path / "out", context(), type="f32")
    with file.open("rb") as stream:
        tensors = FileTensors(file, read_header(stream))
    source = exported.subject_of(smollm3).model.load(dtype=torch.float32).state_dict()
    for layer in range(4):  # layer 3 has no RoPE
        for place, name, heads in (("attn_q", "q_proj", 4), ("attn_k", "k_proj", 2)):
            weight = source[f"model.layers.{layer}.self_attn.{name}.weight"].numpy()
            assert np.array_equal(tensors[f"blk.{layer}.{place}.weight"], tiny_gguf.permuted(weight, heads))


@pytest.mark.parametrize(("rows", "heads"), [(64, 4), (32, 1), (96, 3), (4, 2)])
def test_both_orders_of_rows_are_inverse(rows, heads):
    order, back = interleaved(rows, heads), restored(rows, heads)
    assert np.array_equal(order[back], np.arange(rows))
    assert np.array_equal(back[order], np.arange(rows))


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0},
        {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 128, "rope_theta": 50000.0},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 50000.0,
         "attention_factor": 1.5, "beta_fast": 16.0},
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
         "original_max_position_embeddings": 256, "rope_theta": 500000.0},
    ],
)  # fmt: skip
def test_rope_scaling_is_stated_and_read_back(exported, context, tmp_path, rope):
    directory = exported.write_model(tmp_path / "model", "llama", rope_parameters=rope)
    file = exported.export(directory, tmp_path / "out", context(), type="f32")
    for check in exported.checked(directory, file, context()).values():
        assert check.passed, check.says
    subject = exported.subject_of(directory)
    again = GgufExporter(GgufExportOptions(type="f32")).reload(subject, file.parent, context())
    ids = torch.randint(5, 2048, (1, 200), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, found = subject.model.load(dtype=torch.float32).eval()(ids).logits, again(ids).logits
    assert ((found - expected).norm() / expected.norm()).item() < 1e-5


def test_a_copy_of_a_tied_head_is_left_out_and_another_head_is_written(exported, context, tmp_path):
    from safetensors.torch import load_file, save_file

    directory = exported.write_model(tmp_path / "model")
    weights = load_file(directory / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, str(directory / "model.safetensors"), metadata={"format": "pt"})
    file = exported.export(directory, tmp_path / "tied", context(), type="f32")
    assert "output.weight" not in open_gguf(file).tensors
    assert exported.checked(directory, file, context())["weights"].passed
    weights["lm_head.weight"] += 1
    save_file(weights, str(directory / "model.safetensors"), metadata={"format": "pt"})
    file = exported.export(directory, tmp_path / "other", context(), type="f32")
    assert "output.weight" in open_gguf(file).tensors
    assert exported.checked(directory, file, context())["weights"].passed


def test_rows_that_are_not_divisible_into_blocks_are_f16_and_said(exported, context, tmp_path):
    directory = exported.write_model(tmp_path / "model", intermediate_size=144)
    ctx = context()
    file = exported.export(directory, tmp_path / "out", ctx, type="q4_0")
    assert any("4 matrices are f16 instead of q4_0" in line and "ffn_down" in line for line in ctx.progress.said)
    with file.open("rb") as stream:
        tensors = FileTensors(file, read_header(stream))
    assert tensors.kind("blk.0.ffn_down.weight").name == "F16"
    assert tensors.kind("blk.0.ffn_up.weight").name == "Q4_0"
    assert exported.checked(directory, file, context())["weights"].passed


@pytest.mark.parametrize(
    ("value", "kind", "error", "says"),
    [
        (float("nan"), "f32", ModelError, "model.norm.weight has values that are not finite"),
        (1e6, "f16", None, ""),  # norms stay float32
        (1e6, "f16-matrix", IncompatibleError, r"up_proj.weight has values up to 1e\+06, which float16 cannot hold"),
    ],
)
def test_values_that_a_type_cannot_hold_are_refused(exported, context, tmp_path, value, kind, error, says):
    from safetensors.torch import load_file, save_file

    directory = exported.write_model(tmp_path / "model")
    weights = load_file(directory / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight" if kind.endswith("matrix") else "model.norm.weight"
    weights[name].view(-1)[3] = value
    save_file(weights, str(directory / "model.safetensors"), metadata={"format": "pt"})
    kind = kind.partition("-")[0]
    if error is None:
        file = exported.export(directory, tmp_path / "out", context(), type=kind)
        assert exported.checked(directory, file, context())["weights"].passed
    else:
        with pytest.raises(error, match=says):
            exported.export(directory, tmp_path / "out", context(), type=kind)


@pytest.mark.parametrize(
    ("model_type", "changes", "says"),
    [
        ("smollm3", {"no_rope_layers": [1, 0, 1, 0]}, r"no_rope_layers = 1010"),
        ("smollm3", {"no_rope_layers": [1, 1, 1, 1]}, r"no_rope_layers = 1111"),
        ("smollm3", {"attention_bias": True}, "attention_bias = true"),
        ("smollm3", {"use_sliding_window": True, "sliding_window": 16}, "sliding_window = 16"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act = gelu"),
        ("mistral", {"sliding_window": 64}, "sliding_window = 64"),
        ("qwen2", {}, "does not write models of type qwen2"),
    ],
)
def test_models_that_llama_cpp_computes_differently_are_refused(exported, tmp_path, model_type, changes, says):
    from smollm3_gguf import check_export

    directory = exported.write_model(tmp_path / "model", model_type, **changes)
    with pytest.raises(IncompatibleError, match=says):
        check_export(GgufExportOptions(), exported.subject_of(directory).model)


@pytest.mark.parametrize(
    "rope", [{"rope_type": "dynamic", "factor": 2.0}, {"rope_type": "yarn", "factor": 2.0, "truncate": False}]
)
def test_rope_that_llama_cpp_computes_differently_is_refused(exported, tmp_path, rope):
    from smollm3_gguf import check_export

    directory = exported.write_model(tmp_path / "model")
    rope |= {"rope_theta": 10000.0, "original_max_position_embeddings": 128}
    exported.edit_json(directory / "config.json", rope_parameters=rope)
    with pytest.raises(IncompatibleError, match=r"RoPE scaling of type dynamic|truncate = false"):
        check_export(GgufExportOptions(), exported.subject_of(directory).model)


def test_a_k_quant_without_llama_cpp_is_refused_before_the_merge(exported, smollm3, monkeypatch):
    from smollm3_gguf import check_export

    monkeypatch.setattr("smollm3_gguf.llama_process.installed", lambda: False)
    with pytest.raises(MissingRequirementError, match=r"type q4_k_m is quantized by llama\.cpp"):
        check_export(GgufExportOptions(type="q4_k_m"), exported.subject_of(smollm3).model)


def test_types_of_tensors():
    assert type_of("blk.0.ffn_up.weight", "q4_0") == "q4_0"
    assert type_of("blk.0.attn_q.bias", "q4_0") == "f32"
    assert type_of("output_norm.weight", "bf16") == "f32"
    assert type_of("token_embd.weight", "q5_1") == "q8_0"
    assert type_of("output.weight", "f16") == "f16"
    assert type_of("blk.0.ffn_up.weight", "q4_0", 48) == "f16"
    assert {type_of("blk.0.ffn_up.weight", k) for k in K_QUANTS} == {"f32"}


def test_metadata_of_the_file(exported, context, smollm3, tmp_path):
    exported.edit_json(smollm3 / "generation_config.json", temperature=0.6, top_p=0.95)
    data = open_gguf(exported.export(smollm3, tmp_path / "out", context(), type="q8_0")).metadata
    assert data["general.architecture"] == "smollm3"
    assert data["general.file_type"] == 7
    assert data["tokenizer.ggml.pre"] == "smollm"
    assert data["tokenizer.ggml.eos_token_id"] == data["tokenizer.ggml.eot_token_id"] == 4
    assert data["tokenizer.ggml.eom_token_id"] == 1
    assert data["tokenizer.ggml.add_bos_token"] is False
    assert data["general.sampling.temp"] == pytest.approx(0.6)
    assert data["tokenizer.chat_template"] == (smollm3 / "chat_template.jinja").read_text()
    assert json.loads((smollm3 / "config.json").read_text())["vocab_size"] == len(data["tokenizer.ggml.tokens"])


@pytest.mark.parametrize(("kind", "disk"), [("f32", 4), ("f16", 2), ("q4_0", 0.625), ("q4_k_m", 4.625)])
def test_types_of_llama_cpp_need_room_for_a_temporary_file(kind, disk):
    from smollm3_gguf import refine_export, smollm3_exporters

    spec = refine_export(smollm3_exporters()[0], GgufExportOptions(type=kind), None)
    assert spec.disk == disk
