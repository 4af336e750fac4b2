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

from smollm3_finetune.api import ModelError
from smollm3_gguf.header import Header, TensorInfo, read_header
from smollm3_gguf.lora_adapter import LoraAdapter
from smollm3_gguf.lora_places import architecture, halves, heads_of, interleaved, places, tensor_of

ALPHA = "adapter.lora.alpha"
FACTORS = (".lora_a", ".lora_b")


def write_adapter(adapter: LoraAdapter, config: Mapping[str, Any], name: str, file: Path) -> None:
    """Write an adapter for a base with this `config.json`, in float32.

    Raises IncompatibleError if a layer has no tensor of its own in a GGUF file of the base.
    """
    from gguf import GGUFWriter

    names = {layer: tensor_of(layer, config) for layer in adapter.factors}
    writer = GGUFWriter(file, architecture(config))
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32(ALPHA, adapter.alpha)
    writer.add_name(name)
    for layer, (a, b) in adapter.factors.items():
        heads = heads_of(layer, config)
        for ending, factor in zip(FACTORS, (a, interleaved(b, heads) if heads else b), strict=True):
            writer.add_tensor(names[layer] + ending, factor.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read_file(file: Path, config: Mapping[str, Any]) -> LoraAdapter:
    """Read an adapter file back, by the names of the base's layers. Raises ModelError if it is not such a file."""
    with file.open("rb") as stream:
        header = read_header(stream)
        stated = {key: header.metadata.get(key) for key in ("general.type", "adapter.type", "general.architecture")}
        expected = {"general.type": "adapter", "adapter.type": "lora", "general.architecture": architecture(config)}
        if stated != expected:
            raise ModelError(f"{file.name} states {stated} instead of {expected}", hint="export again")
        layers = {tensor: layer for layer, tensor in places(config).items()}
        factors: dict[str, list[Tensor | None]] = {}
        for name, info in header.tensors.items():
            stem, ending = name[: -len(FACTORS[0])], name[-len(FACTORS[0]) :]
            if ending not in FACTORS or stem not in layers:
                raise ModelError(f"{file.name} has the tensor {name}, which belongs to no layer", hint="export again")
            factors.setdefault(layers[stem], [None, None])[FACTORS.index(ending)] = _read(stream, header, info)
    pairs = {}
    for layer, (a, b) in factors.items():
        if a is None or b is None:
            raise ModelError(f"{file.name} has only one factor of {layer}", hint="export again")
        heads = heads_of(layer, config)
        pairs[layer] = (a, halves(b, heads) if heads else b)
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
