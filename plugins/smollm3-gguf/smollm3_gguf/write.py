"""Writes a GGUF file tensor by tensor, so that no more than one tensor is in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smollm3_finetune.api import IncompatibleError, ModelError, Progress, StoredTensors
from smollm3_gguf.families import family_of, settled
from smollm3_gguf.metadata import add_sampling, add_sizes, add_vocabulary, rope_factors
from smollm3_gguf.names import COMPUTED, EMBEDDINGS, HEAD, gguf_name, position
from smollm3_gguf.rows import heads_of, interleaved
from smollm3_gguf.types import BLOCKS, type_of

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from smollm3_gguf.vocabulary import Vocabulary

CHUNK = 1 << 22
"""Values that are converted at once."""
ROPE_FACTORS = "rope_freqs.weight"


@dataclass(frozen=True, kw_only=True)
class Planned:
    """One tensor of the file."""

    name: str
    source: str
    """transformers' name."""
    shape: tuple[int, ...]
    type: str
    """A name of `types.py`."""
    heads: int
    """Heads whose rows are interleaved; 0: the rows keep their order."""


def planned_tensors(source: StoredTensors, source_config: Mapping[str, Any], option: str) -> list[Planned]:
    """The tensors of the file for a checkpoint, in the order of the file.

    Raises IncompatibleError for a tensor without a place, and ModelError if the head is missing.
    """
    config, architecture = settled(source_config), family_of(source_config).architecture
    plan = []
    for name in written_names(source, config):
        place = gguf_name(name)
        if place is None:
            raise IncompatibleError(
                f"the tensor {name} has no place in a GGUF file of architecture {architecture}",
                hint="smollm3 export RUN --to safetensors",
            )
        shape = tuple(source.headers[name].shape)
        plan.append(
            Planned(
                name=place,
                source=name,
                shape=shape,
                type=type_of(place, option, shape[-1]),
                heads=heads_of(place, config),
            )
        )
    return sorted(plan, key=lambda p: position(p.name))


def written_names(source: StoredTensors, config: Mapping[str, Any]) -> list[str]:
    """The tensors of a checkpoint that a file has: without computed ones, and without the copy of a tied head."""
    names = [name for name in source if not name.endswith(COMPUTED)]
    if HEAD not in source.headers:
        if not config.get("tie_word_embeddings"):
            raise ModelError(f"the checkpoint {source.directory} has no {HEAD}", hint="copy or download it again")
    elif config.get("tie_word_embeddings"):
        import torch

        if torch.equal(source[HEAD], source[EMBEDDINGS]):
            names.remove(HEAD)
    return names


def write_gguf(
    file: Path,
    source: StoredTensors,
    *,
    config: Mapping[str, Any],
    vocabulary: Vocabulary,
    generation: Mapping[str, Any],
    option: str,
    name: str,
    progress: Progress,
) -> None:
    """Write `file`. `config` passed `check_config`. Errors of the disk are raised unchanged."""
    import numpy as np
    from gguf import GGUFWriter

    plan = planned_tensors(source, config, option)
    writer = GGUFWriter(file, family_of(config).architecture)
    add_sizes(writer, config, name, option)
    if omitted := add_sampling(writer, generation):
        progress.say(f"sampling defaults that are omitted, as they are not usable numbers: {', '.join(omitted)}")
    add_vocabulary(writer, vocabulary)
    factors = rope_factors(config)
    if factors is not None:
        writer.add_tensor_info(ROPE_FACTORS, factors.shape, np.dtype(np.float32), factors.nbytes, raw_dtype=kind("f32"))
    for p in plan:
        writer.add_tensor_info(p.name, p.shape, np.dtype(np.float32), size(p.shape, p.type), raw_dtype=kind(p.type))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    alignment = writer.data_alignment
    writer.close()
    _say_fallbacks(plan, option, progress)
    with file.open("r+b") as out, progress.task(f"writing {file.name}", total=len(plan)) as task:
        out.seek(0, 2)
        out.write(bytes(-out.tell() % alignment))
        if factors is not None:
            out.write(factors.data)
            out.write(bytes(-out.tell() % alignment))
        for p in plan:
            for rows in converted(p.source, source[p.source], p.type, p.heads):
                out.write(rows.data)
            out.write(bytes(-out.tell() % alignment))
            task.advance()


def kind(type: str) -> Any:
    """gguf's number of a type."""
    from gguf import GGMLQuantizationType

    return GGMLQuantizationType[type.upper()]


def size(shape: tuple[int, ...], type: str) -> int:
    """Bytes of a tensor."""
    from gguf.constants import GGML_QUANT_SIZES

    elements, width = GGML_QUANT_SIZES[kind(type)]
    return int(prod(shape) // elements * width)


def converted(name: str, tensor: Tensor, type: str, heads: int) -> Iterator[np.ndarray[Any, Any]]:
    """The bytes of a tensor in the file, some rows at a time.

    Raises ModelError for values that are not finite, and IncompatibleError for values that float16 cannot hold.
    """
    import numpy as np
    import torch
    from gguf import quantize

    rows = tensor if tensor.ndim > 1 else tensor.reshape(-1, 1)
    order = torch.from_numpy(interleaved(len(rows), heads)) if heads else None
    step = max(1, CHUNK // rows.shape[-1])
    for start in range(0, len(rows), step):
        part = rows[start : start + step] if order is None else rows[order[start : start + step]]
        values = part.to(torch.float32).contiguous().numpy()
        if not np.isfinite(values).all():
            raise ModelError(
                f"{name} has values that are not finite",
                hint="train again with a lower learning rate, or export an earlier checkpoint",
            )
        with np.errstate(over="ignore"):
            stored = quantize(values, kind(type))
        if type == "f16" and not np.isfinite(stored).all():
            raise IncompatibleError(
                f"{name} has values up to {abs(values).max():.3g}, which float16 cannot hold", hint="--type bf16"
            )
        yield np.ascontiguousarray(stored)


def _say_fallbacks(plan: list[Planned], option: str, progress: Progress) -> None:
    """Name the matrices whose rows are not divisible into blocks."""
    odd = [p for p in plan if option in BLOCKS and p.type == "f16"]
    if odd:
        names = ", ".join(p.name for p in odd[:2]) + (", …" if len(odd) > 2 else "")
        progress.say(
            f"{len(odd)} matrices are f16 instead of {option}, because their rows are not divisible by 32: {names}"
        )
