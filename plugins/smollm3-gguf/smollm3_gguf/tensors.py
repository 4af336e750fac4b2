"""Checks that every tensor of a GGUF file gets a place in the model, and that every weight comes from the file.

transformers skips tensors that it does not know, and initializes weights that it does not find.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from smollm3_finetune.api import ModelError
from smollm3_gguf.header import Header
from smollm3_gguf.rope import FACTOR_TENSORS

IGNORED = (".attn_rot_embd.weight",)
"""Ends of the names of tensors that llama.cpp ignores too: frequencies that are computed from the metadata."""


def read_tensor(file: Path, header: Header, name: str) -> list[float]:
    """The values of one tensor, dequantized and flattened."""
    import numpy as np
    from gguf import GGMLQuantizationType, dequantize
    from gguf.constants import GGML_QUANT_SIZES

    tensor = header.tensors[name]
    kind = GGMLQuantizationType(tensor.ggml_type)
    elements, width = GGML_QUANT_SIZES[kind]
    with file.open("rb") as stream:
        stream.seek(header.data_start + tensor.offset)
        data = np.frombuffer(stream.read(prod(tensor.shape) // elements * width), dtype=np.uint8)
    values: list[float] = dequantize(data, kind).reshape(-1).tolist()
    return values


@contextlib.contextmanager
def placing(ref: str, header: Header) -> Iterator[None]:
    """Inside the context, transformers' first reader refuses a file whose tensors do not all match the model.

    The comparison takes place before any tensor is dequantized.
    """
    from transformers import modeling_gguf_pytorch_utils as reader

    original = reader.get_gguf_hf_weights_map

    def checked(hf_model: Any, *args: Any, **kwargs: Any) -> Any:
        places = original(hf_model, *args, **kwargs)
        if isinstance(hf_model, PreTrainedModel) and not kwargs.get("qual_name"):
            _check_places(ref, header, places, hf_model)
        return places

    reader.get_gguf_hf_weights_map = checked
    try:
        yield
    finally:
        reader.get_gguf_hf_weights_map = original


def _check_places(ref: str, header: Header, places: Mapping[str, str], model: PreTrainedModel) -> None:
    """Compare the names of the tensors that the model expects with those of the file."""
    expected = {name: place for name, place in places.items() if "." in name}
    stems = {name.removesuffix(".weight") for name in expected}
    if model.config.tie_word_embeddings:
        expected.pop("output.weight", None)
    unplaced = [name for name in header.tensors if name.removesuffix(".weight") not in stems and not _ignored(name)]
    _refuse_unplaced(ref, unplaced, model)
    held = {name.removesuffix(".weight") for name in header.tensors}
    absent = [place for name, place in expected.items() if name.removesuffix(".weight") not in held]
    _refuse_missing(ref, [name for name in absent if not _zero(name, model)])


def check_loaded(ref: str, model: PreTrainedModel, info: Mapping[str, Iterable[Any]]) -> None:
    """Refuse a model with weights that are not from the file, or a file with tensors that are not in the model.

    `info` is what `from_pretrained` reports. Biases that the file does not have become zero.
    """
    if wrong := sorted(info["mismatched_keys"]):
        name, found, expected = wrong[0]
        raise ModelError(
            f"{ref}: {name} has the shape {tuple(found)}, but its metadata state {tuple(expected)}",
            hint="use the model's original repository instead of the GGUF file",
        )
    missing = sorted(info["missing_keys"])
    _refuse_missing(ref, [name for name in missing if not _zero(name, model)])
    _refuse_unplaced(ref, sorted(n for n in info["unexpected_keys"] if not _ignored(n)), model)
    with torch.no_grad():
        for name in missing:
            model.get_parameter(name).zero_()


def _ignored(name: str) -> bool:
    return name in FACTOR_TENSORS or name.endswith(IGNORED)


def _zero(name: str, model: PreTrainedModel) -> bool:
    """Whether a weight is a bias that exists only because the same option gives other layers theirs."""
    option = "attention_bias" if ".self_attn." in name else "mlp_bias" if ".mlp." in name else ""
    return name.endswith(".bias") and bool(option) and bool(getattr(model.config, option, False))


def _refuse_unplaced(ref: str, names: list[str], model: PreTrainedModel) -> None:
    if names:
        raise ModelError(
            f"{ref} has {len(names)} tensors that have no place in transformers' model {model.config.model_type}: "
            f"{_shown(names)}",
            hint="use the model's original repository instead of the GGUF file",
        )


def _refuse_missing(ref: str, names: list[str]) -> None:
    if names:
        raise ModelError(
            f"{ref} lacks {len(names)} of the model's weights: {_shown(names)}",
            hint="download the file again, or upgrade transformers if it does not know the names of these tensors",
        )


def _shown(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
