"""Where the layers of a model are in a GGUF file of it, and how their rows are ordered there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from smollm3_finetune.api import IncompatibleError

ARCHITECTURES = {"llama": "llama", "smollm3": "smollm3"}
"""Model type of transformers to llama.cpp's architecture."""
PROJECTIONS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
HEADS = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
HINT = "export the merged model: --to gguf"


def architecture(config: Mapping[str, Any]) -> str:
    """llama.cpp's architecture. Raises IncompatibleError for a model type that is not exported."""
    kind = str(config.get("model_type"))
    if kind not in ARCHITECTURES:
        raise IncompatibleError(f"adapters of {kind} models cannot be exported to GGUF", hint="--to peft")
    return ARCHITECTURES[kind]


def places(config: Mapping[str, Any]) -> dict[str, str]:
    """Name of each linear layer to its tensor; the head only if it is not tied to the embeddings."""
    found = {
        f"model.layers.{i}.{ours}": f"blk.{i}.{theirs}.weight"
        for i in range(config["num_hidden_layers"])
        for ours, theirs in PROJECTIONS.items()
    }
    return found if config.get("tie_word_embeddings") else {**found, "lm_head": "output.weight"}


def tensor_of(layer: str, config: Mapping[str, Any]) -> str:
    """The tensor of a layer. Raises IncompatibleError if it has none of its own."""
    found = places(config).get(layer)
    if found is None:
        why = ", which shares its weight with the embeddings" if layer == "lm_head" else ""
        raise IncompatibleError(f"llama.cpp cannot adapt {layer}{why}", hint=HINT)
    return found


def heads_of(layer: str, config: Mapping[str, Any]) -> int | None:
    """Heads of a layer whose rows llama.cpp orders for RoPE: q and k, in every layer; None for the others."""
    key = HEADS.get(layer.rpartition(".")[2])
    return None if key is None else int(config.get(key) or config["num_attention_heads"])


def interleaved(rows: Tensor, heads: int) -> Tensor:
    """llama.cpp's order of the rows of q and k: the halves of each head alternate.

    Source: llama.cpp, conversion/llama.py.
    """
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


def halves(rows: Tensor, heads: int) -> Tensor:
    """transformers' order of the rows of q and k, from llama.cpp's."""
    return rows.reshape(heads, -1, 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)
