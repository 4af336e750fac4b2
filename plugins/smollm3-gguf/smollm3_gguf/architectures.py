"""GGUF architectures that transformers can read, and the config that a header implies."""

from __future__ import annotations

import re
from typing import Any

from smollm3_gguf.families import every_fourth
from smollm3_gguf.header import Header
from smollm3_gguf.rope import Read
from smollm3_gguf.settings import Settings, check_settings, read_settings, stated_by_transformers

NOT_CAUSAL = frozenset({"t5", "t5encoder", "umt5"})
"""Architectures that transformers can read but that are not causal language models."""
INCOMPLETE = frozenset({"deci", "gemma4", "gpt_oss"})
"""Architectures of transformers' table that it cannot load: it lacks the model, does not read the settings that differ
between layers, and looks for names of tensors that no file has."""
OWN = {"smollm3": "smollm3"}
"""Architectures that this plugin reads itself, because transformers does not: llama.cpp's name to the model type."""
TEXT = {"gemma3": "gemma3_text"}
"""Model types of files that contain only the language model of a larger one."""


def _plain(name: str) -> str:
    """Normalize a name: `qwen2_moe`, `qwen2moe` and `qwen2-moe` are the same architecture."""
    return name.lower().replace("-", "").replace("_", "")


def _translated() -> frozenset[str]:
    """Architectures whose header transformers translates with a function of its own."""
    try:
        from transformers.integrations.gguf.gguf_config_mapping import GGUF_CONFIG_ARCHS
    except ImportError:  # transformers without its second GGUF reader
        return frozenset()
    return frozenset(GGUF_CONFIG_ARCHS)


def readable() -> dict[str, str]:
    """Causal architectures that can be read: normalized name to transformers' model type."""
    from gguf import MODEL_ARCH_NAMES
    from transformers.integrations.ggml import GGUF_CONFIG_MAPPING

    written = {_plain(name) for name in MODEL_ARCH_NAMES.values()}  # "mistral" is "llama" in a file
    named = set(GGUF_CONFIG_MAPPING) - NOT_CAUSAL - INCOMPLETE
    known = {n: TEXT.get(n, n) for n in named if _plain(n) in written}
    known |= {n: n for n in _translated()}
    return {_plain(n): kind for n, kind in sorted((known | OWN).items())}


def is_incomplete(architecture: str) -> bool:
    """Whether transformers' table has an architecture that it cannot load."""
    return _plain(architecture) in {_plain(name) for name in INCOMPLETE}


def model_type(architecture: str) -> str | None:
    """transformers' model type for llama.cpp's architecture name; None if it cannot be read."""
    return readable().get(_plain(architecture))


def implied_config(header: Header, dtype: str, ref: str, read: Read | None = None) -> dict[str, Any]:
    """The `config.json` that the header states; dense, so without `quantization_config`.

    `read` returns the values of a tensor; without it, `rope_parameters` that depend on tensors are left out. Raises
    ModelError, with `ref`, if the header states something that transformers' model cannot use.
    """
    kind = model_type(header.architecture) or header.architecture
    _check_blocks(header, ref)
    settings = _settings(header, kind, ref, read)
    check_settings(ref, settings.config.get("model_type", kind), settings)
    config = {"model_type": kind, **settings.config}
    config |= {"tie_word_embeddings": "output.weight" not in header.tensors, "dtype": dtype}
    for key, name in (("bos", "bos_token_id"), ("eos", "eos_token_id"), ("padding", "pad_token_id")):
        if f"tokenizer.ggml.{key}_token_id" in header.metadata:
            config[name] = header.metadata[f"tokenizer.ggml.{key}_token_id"]
        elif kind in OWN.values():
            config[name] = None  # the class has defaults that belong to a vocabulary of 128,256 tokens
    if kind == "smollm3":
        config["no_rope_layers"] = every_fourth(config["num_hidden_layers"])
    if isinstance(tokens := header.metadata.get("tokenizer.ggml.tokens"), int):
        config.setdefault("vocab_size", tokens)
    return config


BLOCK = re.compile(r"blk\.(\d+)\.")


def _check_blocks(header: Header, ref: str) -> None:
    """Refuse a number of blocks that the tensors do not have, before lists of that length are made of it.

    Files without the tensors of the blocks that predict further tokens (MTP) may count these blocks.
    """
    from smollm3_finetune.api import ModelError

    stated = header.metadata.get(f"{header.architecture}.block_count")
    if stated is None:
        return  # `read_settings` names the missing key
    further = header.metadata.get(f"{header.architecture}.nextn_predict_layers", 0)
    found = len({match[1] for name in header.tensors if (match := BLOCK.match(name))})
    if stated == found or (isinstance(further, int) and 0 < further <= found and stated == found + further):
        return
    raise ModelError(
        f"{ref} states {stated!r:.40} blocks, but has the tensors of {found}",
        hint="download it again, or use another file",
    )


def _settings(header: Header, kind: str, ref: str, read: Read | None) -> Settings:
    from smollm3_finetune.api import ModelError

    try:
        if header.architecture in _translated():
            return stated_by_transformers(header)
        return read_settings(header, kind, read)
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as e:
        what = f"lacks the key {e}" if isinstance(e, KeyError) else f"has metadata that do not fit together: {e}"
        raise ModelError(f"{ref} {what}", hint="download it again, or use another file") from e
