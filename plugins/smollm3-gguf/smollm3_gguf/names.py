"""Names of tensors: transformers' and those of GGUF files, for models with the blocks of Llama. Light."""

from __future__ import annotations

import re

TOP = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
HEAD, EMBEDDINGS = "lm_head.weight", "model.embed_tokens.weight"
IN_BLOCK = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
"""Modules of a block, in the order of the file."""
COMPUTED = "rotary_emb.inv_freq"
"""End of the name of a tensor in some old checkpoints that is computed from the config."""

_TOP_BACK = {theirs: ours for ours, theirs in TOP.items()}
_BLOCK_BACK = {theirs: ours for ours, theirs in IN_BLOCK.items()}
_OURS = re.compile(r"model\.layers\.(\d+)\.(.+)\.(weight|bias)")
_THEIRS = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")


def gguf_name(name: str) -> str | None:
    """The name in a file of transformers' tensor `name`; None if it has no place there."""
    if name in TOP:
        return TOP[name]
    found = _OURS.fullmatch(name)
    if found is None or found[2] not in IN_BLOCK:
        return None
    return f"blk.{found[1]}.{IN_BLOCK[found[2]]}.{found[3]}"


def hf_name(name: str) -> str | None:
    """transformers' name of a tensor `name` of a file; None if it is not one of `gguf_name`."""
    if name in _TOP_BACK:
        return _TOP_BACK[name]
    found = _THEIRS.fullmatch(name)
    if found is None or found[2] not in _BLOCK_BACK:
        return None
    return f"model.layers.{found[1]}.{_BLOCK_BACK[found[2]]}.{found[3]}"


def position(name: str) -> tuple[int, int, str]:
    """A sort key for names in a file: embeddings, blocks, last norm, head."""
    if found := _THEIRS.fullmatch(name):
        return int(found[1]), list(_BLOCK_BACK).index(found[2]), found[3]
    return {"token_embd.weight": -1}.get(name, 1 << 30), len(name), name
