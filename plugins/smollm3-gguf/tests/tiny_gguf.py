"""Writes a tiny LLaMA GGUF file with the gguf package, in the same way as llama.cpp's converter."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType, quants

HIDDEN, FFN, HEADS, KV_HEADS, LAYERS = 64, 128, 4, 2, 2
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
LETTERS = [chr(c) for c in range(ord("a"), ord("z") + 1)] + ["Ġ", "Ċ", ".", "?"]
MERGES = ["h e", "l l", "he ll", "hell o", "Ġ w"]
TOKENS = SPECIAL + LETTERS + [m.replace(" ", "") for m in MERGES]
TOKENS += [f"<unused{i}>" for i in range(64 - len(TOKENS))]


def permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's order of the query and key rows: halves of a head interleaved.

    Source: llama.cpp convert_hf_to_gguf.py, LlamaModel.permute.
    """
    return (
        weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)
    )


def weights(seed: int = 0) -> dict[str, np.ndarray]:
    """float32 weights by transformers' names, in transformers' order."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(0, 0.1, shape).astype(np.float32)

    kv = HIDDEN * KV_HEADS // HEADS
    named = {"model.embed_tokens.weight": normal(len(TOKENS), HIDDEN), "model.norm.weight": 1 + normal(HIDDEN)}
    for i in range(LAYERS):
        p = f"model.layers.{i}."
        named |= {
            p + "input_layernorm.weight": 1 + normal(HIDDEN),
            p + "post_attention_layernorm.weight": 1 + normal(HIDDEN),
            p + "self_attn.q_proj.weight": normal(HIDDEN, HIDDEN),
            p + "self_attn.k_proj.weight": normal(kv, HIDDEN),
            p + "self_attn.v_proj.weight": normal(kv, HIDDEN),
            p + "self_attn.o_proj.weight": normal(HIDDEN, HIDDEN),
            p + "mlp.gate_proj.weight": normal(FFN, HIDDEN),
            p + "mlp.up_proj.weight": normal(FFN, HIDDEN),
            p + "mlp.down_proj.weight": normal(HIDDEN, FFN),
        }
    return named


NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def add_tokenizer(w: gguf.GGUFWriter, eos: int, template: str | None) -> None:
    w.add_vocab_size(len(TOKENS))
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("smollm")
    w.add_token_list(TOKENS)
    w.add_token_types([3 if t in SPECIAL else 1 for t in TOKENS])
    w.add_token_merges(MERGES)
    w.add_bos_token_id(1)
    w.add_eos_token_id(eos)
    w.add_pad_token_id(0)
    w.add_unk_token_id(0)
    if template is not None:
        w.add_chat_template(template)


def write(
    path: Path,
    *,
    kind: GGMLQuantizationType = GGMLQuantizationType.F32,
    architecture: str = "llama",
    eos: int = 2,
    template: str | None = CHATML,
    leave_out: str = "",
    extra: dict[str, int | str] | None = None,
) -> dict[str, np.ndarray]:
    """Write the file; returns its weights, dequantized by `gguf.quants`, by transformers' names."""
    w = gguf.GGUFWriter(path, architecture)
    w.add_context_length(128)
    w.add_embedding_length(HIDDEN)
    w.add_block_count(LAYERS)
    w.add_feed_forward_length(FFN)
    w.add_head_count(HEADS)
    w.add_head_count_kv(KV_HEADS)
    w.add_layer_norm_rms_eps(1e-5)
    w.add_rope_freq_base(10000.0)
    w.add_rope_dimension_count(HIDDEN // HEADS)
    add_tokenizer(w, eos, template)
    for key, value in (extra or {}).items():
        w.add_string(key, value) if isinstance(value, str) else w.add_uint32(key, value)
    held = {}
    for name, value in weights().items():
        gguf_name = name
        for ours, theirs in NAMES.items():
            gguf_name = gguf_name.replace(ours, theirs)
        gguf_name = gguf_name.replace("model.layers.", "blk.")
        if leave_out and leave_out in gguf_name:
            continue
        heads = HEADS if "q_proj" in name else KV_HEADS if "k_proj" in name else 0
        stored = permuted(value, heads) if heads else value
        if value.ndim == 1 or kind == GGMLQuantizationType.F32:
            w.add_tensor(gguf_name, stored)
            held[name] = value
        else:
            packed = quants.quantize(stored, kind)
            w.add_tensor(gguf_name, packed, raw_dtype=kind)
            dequantized = quants.dequantize(packed, kind)
            if heads:  # a permutation of whole rows, undone by the inverse order
                order = permuted(np.arange(value.shape[0], dtype=np.float32)[:, None], heads)[:, 0].astype(int)
                back = np.empty_like(dequantized)
                back[order] = dequantized
                dequantized = back
            held[name] = dequantized
    finish(w)
    return held


def finish(w: gguf.GGUFWriter) -> None:
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


Value = bool | int | float | str | list[int] | None
FLOAT_KEYS = ("epsilon", "factor", "freq_base", "softcapping", "scale", "beta_fast", "beta_slow")


def stored(name: str, value: np.ndarray, architecture: str, heads: int, kv_heads: int) -> np.ndarray:
    """A tensor as llama.cpp's converter stores it, by its GGUF name. Source: convert_hf_to_gguf.py."""
    if architecture == "llama" and ".attn_q." in name:
        return permuted(value, heads)
    if architecture == "llama" and ".attn_k." in name:
        return permuted(value, kv_heads)
    if architecture in ("gemma2", "gemma3", "nemotron") and name.endswith("norm.weight"):
        return value + 1
    if architecture == "gpt2" and name.endswith(
        ("attn_qkv.weight", "attn_output.weight", "ffn_up.weight", "ffn_down.weight")
    ):
        return value.T
    if architecture == "bloom" and ".attn_qkv." in name:  # by head to by projection
        by_head = value.reshape(heads, 3, -1, *value.shape[1:])
        return by_head.swapaxes(0, 1).reshape(value.shape)
    if name.endswith(("ssm_conv1d.weight", "shortconv.conv.weight")):
        return value[:, 0]
    if name.endswith("ffn_gate_inp_shexp.weight"):
        return value[0]
    return -np.exp(value) if name.endswith(".ssm_a") else value


def write_model(
    path: Path,
    architecture: str,
    model: object,
    keys: dict[str, Value],
    *,
    tensors: dict[str, np.ndarray] | None = None,
    without: tuple[str, ...] = (),
) -> None:
    """Write a transformers model: metadata `architecture.KEY` for `keys`, and its weights in float32.

    `tensors` are added as they are; tensors whose GGUF name is in `without` are left out.
    """
    config = model.config  # type: ignore[attr-defined]
    heads = getattr(config, "num_attention_heads", 1)
    kv_heads = getattr(config, "num_key_value_heads", heads)
    w = gguf.GGUFWriter(path, architecture)
    for key, value in keys.items():
        name = f"{architecture}.{key}"
        if value is None:
            continue
        if isinstance(value, bool):
            w.add_bool(name, value)
        elif isinstance(value, str):
            w.add_string(name, value)
        elif isinstance(value, list):
            w.add_array(name, value)
        elif key.endswith(FLOAT_KEYS):
            w.add_float32(name, value)
        else:
            w.add_uint32(name, int(value))
    add_tokenizer(w, 2, CHATML)
    arch = next(a for a, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    found: dict[str, np.ndarray] = {}
    for name, value in model.state_dict().items():  # type: ignore[attr-defined]
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        stem, suffix = next(((name[: -len(s)], s) for s in (".weight", ".bias") if name.endswith(s)), (name, ".weight"))
        array = value.float().numpy()
        if name.endswith("experts.gate_up_proj"):  # (experts, gate and up, hidden)
            block = name.split(".")[2]
            for part, half in zip(("gate", "up"), np.split(array, 2, axis=1), strict=True):
                found[f"blk.{block}.ffn_{part}_exps.weight"] = half.copy()
            continue
        if architecture == "bloom":  # converted from BloomModel
            stem = stem.removeprefix("transformer.")
        if name.endswith((".A_log", ".D")):
            suffix = ""
        target = names.get_name(stem)
        if name.endswith(".e_score_correction_bias"):
            target, suffix = f"blk.{name.split('.')[2]}.exp_probs_b", ".bias"
        assert target is not None, name
        found[target + suffix] = stored(target + suffix, array, architecture, heads, kv_heads)
    for name, value in (found | (tensors or {})).items():
        if name not in without:
            w.add_tensor(name, np.ascontiguousarray(value, dtype=np.float32))
    finish(w)
