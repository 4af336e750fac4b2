"""llama.cpp's adapter file: the factors of a LoRA adapter by the names of GGUF tensors.

Source of the format: llama.cpp, src/llama-adapter.cpp.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from smollm3_finetune.api import IncompatibleError, ModelError
from smollm3_gguf.families import family_of, settled
from smollm3_gguf.header import Header, TensorInfo, read_header
from smollm3_gguf.lora_adapter import HINT, LoraAdapter
from smollm3_gguf.names import HEAD, gguf_name, hf_name
from smollm3_gguf.rows import heads_of, interleaved, restored

ALPHA = "adapter.lora.alpha"
FACTORS = (".lora_a", ".lora_b")


def write_adapter(adapter: LoraAdapter, config: Mapping[str, Any], name: str, file: Path) -> None:
    """Write an adapter for a base with this `config.json`, in float32.

    Raises IncompatibleError if a layer has no tensor of its own in a GGUF file of the base.
    """
    from gguf import GGUFWriter

    full = settled(config)
    places = {layer: _tensor_of(layer, full) for layer in adapter.factors}
    writer = GGUFWriter(file, family_of(full).architecture)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32(ALPHA, adapter.alpha)
    writer.add_name(name)
    for layer, (a, b) in adapter.factors.items():
        heads = heads_of(places[layer], full)
        rows = interleaved(len(b), heads) if heads else slice(None)
        for ending, factor in zip(FACTORS, (a, b[rows]), strict=True):
            writer.add_tensor(places[layer] + ending, factor.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _tensor_of(layer: str, config: Mapping[str, Any]) -> str:
    """The tensor of a linear layer. Raises IncompatibleError if it has none of its own."""
    if f"{layer}.weight" == HEAD and config.get("tie_word_embeddings"):
        raise IncompatibleError(
            "llama.cpp cannot adapt lm_head, which shares its weight with the embeddings", hint=HINT
        )
    name = gguf_name(f"{layer}.weight")
    if name is None:
        raise IncompatibleError(f"a GGUF file has no tensor for the adapted layer {layer}", hint=HINT)
    return name


def read_file(file: Path, config: Mapping[str, Any]) -> LoraAdapter:
    """Read an adapter file back, by the names of the base's layers. Raises ModelError if it is not such a file."""
    full = settled(config)
    with file.open("rb") as stream:
        header = read_header(stream)
        expected = {
            "general.type": "adapter",
            "adapter.type": "lora",
            "general.architecture": family_of(full).architecture,
        }
        for key, value in expected.items():
            if (stated := header.metadata.get(key)) != value:
                raise ModelError(f"{file.name} states {key} = {stated} instead of {value}", hint="export again")
        factors: dict[str, list[Tensor | None]] = {}
        for name, info in header.tensors.items():
            stem, ending = name[: -len(FACTORS[0])], name[-len(FACTORS[0]) :]
            layer = hf_name(stem)
            if ending not in FACTORS or layer is None:
                raise ModelError(f"{file.name} has the tensor {name}, which belongs to no layer", hint="export again")
            factor = _read(stream, header, info)
            if ending == FACTORS[1] and (heads := heads_of(stem, full)):
                factor = factor[restored(len(factor), heads)]
            factors.setdefault(layer.removesuffix(".weight"), [None, None])[FACTORS.index(ending)] = factor
    pairs = {layer: (a, b) for layer, (a, b) in factors.items() if a is not None and b is not None}
    if incomplete := sorted(factors.keys() - pairs.keys()):
        raise ModelError(f"{file.name} has only one of the two factors of {incomplete[0]}", hint="export again")
    return LoraAdapter(alpha=header.metadata[ALPHA], factors=pairs)


def _read(stream: BinaryIO, header: Header, info: TensorInfo) -> Tensor:
    """A float32 tensor of an open file."""
    stream.seek(header.data_start + info.offset)
    count = int(torch.Size(info.shape).numel())
    return torch.frombuffer(bytearray(stream.read(4 * count)), dtype=torch.float32).reshape(info.shape)


def float32(value: float) -> float:
    """A number as a file holds it."""
    stored: float = struct.unpack("<f", struct.pack("<f", value))[0]
    return stored
