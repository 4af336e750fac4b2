"""GGUF architectures that transformers can read, and the config that a header implies. Does not import torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from smollm3_gguf.header import Header

NOT_CAUSAL = frozenset({"t5", "t5encoder", "umt5"})
"""Architectures that transformers can read but that are not causal language models."""


def _plain(name: str) -> str:
    """Normalize a name: `qwen2_moe`, `qwen2moe` and `qwen2-moe` are the same architecture."""
    return name.lower().replace("-", "").replace("_", "")


def readable() -> dict[str, str]:
    """Causal architectures that the installed transformers can read: normalized name to transformers' model type."""
    from transformers.integrations.ggml import GGUF_CONFIG_MAPPING

    names = set(GGUF_CONFIG_MAPPING) - {"general", "tokenizer"}
    try:
        from transformers.integrations.gguf.gguf_config_mapping import GGUF_CONFIG_ARCHS
    except ImportError:  # transformers without its second GGUF reader
        pass
    else:
        names |= set(GGUF_CONFIG_ARCHS)
    return {_plain(n): n for n in sorted(names) if n not in NOT_CAUSAL}


def model_type(architecture: str) -> str | None:
    """transformers' model type for llama.cpp's architecture name; None if transformers cannot read it."""
    return readable().get(_plain(architecture))


def implied_config(header: Header, dtype: str) -> dict[str, Any]:
    """The part of the converted `config.json` that the header determines.

    Contains `model_type`, `tie_word_embeddings` and `dtype`; and, if the header states them, the sizes (`hidden_size`,
    `intermediate_size`, `num_hidden_layers`, `num_attention_heads`, `num_key_value_heads`, `head_dim`, `vocab_size`,
    `max_position_embeddings`), the RoPE base, the epsilon of the normalization and the token ids. Contains no
    `quantization_config`, because the converted model is dense.
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
