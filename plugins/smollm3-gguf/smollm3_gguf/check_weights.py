"""Gate 1: the tensors of a written file, read back, against those of the source."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smollm3_finetune.api import Check, Progress, StoredTensors
from smollm3_gguf.families import settled
from smollm3_gguf.header import Header
from smollm3_gguf.metadata import rope_factors
from smollm3_gguf.names import HEAD, gguf_name
from smollm3_gguf.reading import FileTensors, in_order
from smollm3_gguf.rows import heads_of
from smollm3_gguf.types import FLOATS, K_QUANTS, type_of
from smollm3_gguf.write import CHUNK, ROPE_FACTORS, kind, written_names

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

NAME = "weights"
COARSE = 0.5
"""Relative error at which a tensor that llama.cpp quantized counts as another one; rows in a wrong order give 1.4."""


def check_weights(
    source: StoredTensors,
    source_config: Mapping[str, Any],
    file: Path,
    header: Header,
    option: str,
    progress: Progress,
) -> Check:
    """Compare every tensor of the source with the file, and see that the file has no other."""
    config = settled(source_config)
    tensors = FileTensors(file, header)
    names = {gguf_name(name) or name: name for name in written_names(source, config)}
    if (says := _other_names(names, tensors, config)) is not None:
        return Check(name=NAME, passed=False, says=says)
    factors = rope_factors(source_config)
    if factors is not None and tensors[ROPE_FACTORS].tobytes() != factors.tobytes():
        return Check(name=NAME, passed=False, says=f"{ROPE_FACTORS} holds other RoPE factors than the model's config")
    worst = 0.0
    with progress.task(f"comparing {file.name} with its source", total=len(names)) as task:
        for place, name in names.items():
            expected = source[name]
            if tuple(expected.shape) != header.tensors[place].shape:
                shapes = f"{header.tensors[place].shape} instead of {tuple(expected.shape)}"
                return Check(name=NAME, passed=False, says=f"{place} has the shape {shapes}")
            says, error = _difference(tensors, place, expected, config, option)
            if says is not None:
                return Check(name=NAME, passed=False, says=f"{place} is not {name}: {says}")
            worst = max(worst, error)
            task.advance()
    figures: dict[str, float | int | str | None] = {"tensors": len(names)}
    if option in K_QUANTS:
        says = f"all {len(names)} tensors are the source's, quantized by llama.cpp; relative error at most {worst:.2f}"
        figures["relative error"] = worst
    elif option in FLOATS:
        rounded = "" if option == "f32" else f", rounded to {option}"
        says = f"all {len(names)} tensors equal the source's bit for bit{rounded}"
    else:
        says = f"all {len(names)} tensors equal the source's, quantized again and compared bit for bit"
    return Check(name=NAME, passed=True, says=says, figures=figures)


def _other_names(names: Mapping[str, str], tensors: FileTensors, config: Mapping[str, Any]) -> str | None:
    """What differs between the tensors that the file should have and those that it has."""
    found = {name for name in tensors if name != ROPE_FACTORS or rope_factors(config) is None}
    if missing := sorted(set(names) - found):
        return f"the file lacks {missing[0]}, which is {names[missing[0]]} of the source"
    if extra := sorted(found - set(names)):
        if extra[0] == gguf_name(HEAD):
            return f"the file has {extra[0]}, but the head of the source is tied to its embeddings"
        return f"the file has {extra[0]}, which the source does not have"
    return None


def _difference(
    tensors: FileTensors, place: str, expected: Tensor, config: Mapping[str, Any], option: str
) -> tuple[str | None, float]:
    """What differs between a tensor of the file and the source's, or None; and the relative error of a k-quant."""
    import numpy as np

    heads = heads_of(place, config)
    if option in K_QUANTS:
        return _coarse_difference(tensors[place], expected, heads)
    wanted = type_of(place, option, expected.shape[-1])
    stated = tensors.kind(place)
    if stated != kind(wanted):
        return f"it is of type {stated.name.lower()} instead of {wanted}", 0.0
    stored = in_order(np.asarray(tensors.stored(place)), heads)
    rows = expected if expected.ndim > 1 else expected.reshape(-1, 1)
    step = max(1, CHUNK // rows.shape[-1])
    for start in range(0, len(rows), step):
        fresh = _fresh_bytes(rows[start : start + step], wanted)
        different = (fresh != stored[start : start + step]).any(axis=1)
        if different.any():
            row = start + int(different.argmax())
            return _described(tensors, place, expected, heads, row), 0.0
    return None, 0.0


def _fresh_bytes(rows: Tensor, type: str) -> np.ndarray[Any, Any]:
    """The bytes of rows, rounded by torch or quantized by gguf.

    Quantized values are quantized again: equal blocks have equal bytes, and so dequantize alike.
    """
    import torch
    from gguf import quantize

    rounded = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
    if type in rounded:
        exact = rows.to(torch.float32).to(rounded[type]).contiguous()
        values: np.ndarray[Any, Any] = exact.view(torch.uint8).numpy()
    else:
        values = quantize(rows.to(torch.float32).contiguous().numpy(), kind(type))
    return values.reshape(len(rows), -1)


def _described(tensors: FileTensors, place: str, expected: Tensor, heads: int, row: int) -> str:
    """How the values of a tensor differ, from the first row that does."""
    import numpy as np

    found, source = tensors[place], expected.float().numpy()
    if heads and _same_rows(found, source):
        return f"its rows are not in the order that llama.cpp expects of {heads} heads; the first wrong one is {row}"
    ordered = in_order(found, heads)
    error = np.linalg.norm(ordered - source) / (np.linalg.norm(source) or 1.0)
    return f"row {row} and others differ, by {error:.1e} of the whole"


def _same_rows(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> bool:
    """Whether two weights have the same rows in different orders, as far as the sums of the rows say."""
    import numpy as np

    sums = [np.sort(x.reshape(len(x), -1).sum(axis=1, dtype=np.float64)) for x in (a, b)]
    size = np.abs(b).mean() * (b.shape[-1] if b.ndim > 1 else 1) + 1e-30
    return bool(np.abs(sums[0] - sums[1]).max() < 0.05 * size)


def _coarse_difference(found: np.ndarray[Any, Any], expected: Tensor, heads: int) -> tuple[str | None, float]:
    import numpy as np

    source = expected.float().numpy()
    error = float(np.linalg.norm(in_order(found, heads) - source) / (np.linalg.norm(source) or 1.0))
    if error < COARSE:
        return None, error
    if heads and float(np.linalg.norm(found - source)) < float(np.linalg.norm(in_order(found, heads) - source)):
        return f"its rows are not in the order that llama.cpp expects of {heads} heads", error
    return f"its relative error is {error:.2f} (limit {COARSE})", error
