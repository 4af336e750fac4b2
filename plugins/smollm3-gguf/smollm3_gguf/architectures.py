"""Which GGUF architectures transformers reads, and the config that a header implies. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from smollm3_gguf.header import Header

NOT_CAUSAL = frozenset({"t5", "t5encoder", "umt5"})
"""Architectures that transformers reads and that are no causal language models."""


def _plain(name: str) -> str:
    """`qwen2_moe`, `qwen2moe` and `qwen2-moe` are one architecture."""
    return name.lower().replace("-", "").replace("_", "")


def readable() -> dict[str, str]:
    """The causal architectures that the installed transformers reads: plain name to transformers' model type."""
    from transformers.integrations.ggml import GGUF_CONFIG_MAPPING

    names = set(GGUF_CONFIG_MAPPING) - {"general", "tokenizer"}
    try:
        from transformers.integrations.gguf.gguf_config_mapping import GGUF_CONFIG_ARCHS
    except ImportError:  # transformers older than its second GGUF reader
        pass
    else:
        names |= set(GGUF_CONFIG_ARCHS)
    return {_plain(n): n for n in sorted(names) if n not in NOT_CAUSAL}


def model_type(architecture: str) -> str | None:
    """transformers' model type for llama.cpp's architecture name; None where transformers cannot read it."""
    return readable().get(_plain(architecture))


def implied_config(header: Header, dtype: str) -> dict[str, Any]:
    """What the header tells of the `config.json` that the conversion will write.

    `model_type`, the sizes (`hidden_size`, `intermediate_size`, `num_hidden_layers`, `num_attention_heads`,
    `num_key_value_heads`, `head_dim`, `vocab_size`, `max_position_embeddings`), the RoPE base, the normalization's
    epsilon and the token ids, each where the header states it; `tie_word_embeddings` and `dtype`. No
    `quantization_config`, since the converted model is dense.
    """
    from transformers.integrations.ggml import GGUF_CONFIG_MAPPING

    kind = model_type(header.architecture) or header.architecture
    config: dict[str, Any] = {
        "model_type": kind,
        "tie_word_embeddings": "output.weight" not in header.tensors,
        "dtype": dtype,
    }
    renames: Mapping[str, str | None] = GGUF_CONFIG_MAPPING.get(kind, {})
    prefix = f"{header.architecture}."
    for key, value in header.metadata.items():
        name = renames.get(key.removeprefix(prefix)) if key.startswith(prefix) else None
        if name:
            config[name] = value
    for key, name in (("bos", "bos_token_id"), ("eos", "eos_token_id"), ("padding", "pad_token_id")):
        if f"tokenizer.ggml.{key}_token_id" in header.metadata:
            config[name] = header.metadata[f"tokenizer.ggml.{key}_token_id"]
    if isinstance(tokens := header.metadata.get("tokenizer.ggml.tokens"), int):
        config.setdefault("vocab_size", tokens)
    return config
