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
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return held
