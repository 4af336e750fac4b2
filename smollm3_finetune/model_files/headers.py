"""The headers of safetensors files: names, shapes and dtypes of tensors, without torch."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from smollm3_finetune.errors import ModelError, is_resource_error

PART = re.compile(r"-\d{5}-of-\d{5}\.safetensors$")
"""The end of the name of a weight file that is one of several."""
INDEX = "model.safetensors.index.json"
MAX_HEADER = 100_000_000
"""Bytes; the library safetensors has the same limit."""
FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
"""The dtypes of ordinary weights, as headers name them."""


@dataclass(frozen=True)
class TensorHeader:
    """What the header of a file says about a tensor."""

    file: Path
    """The weight file that has it."""
    dtype: str
    """As the file names it: `F32`, `BF16`, `I8`, `F8_E4M3`, …"""
    shape: tuple[int, ...]
    """Its sizes, outermost first."""


def weight_files(directory: Path) -> tuple[Path, ...]:
    """The weight files of a checkpoint: the files in its index, its numbered parts, or a single file.

    Raises ModelError if there are none, if a file in the index is missing, or if there are several sets of files.
    """
    files = tuple(sorted(directory.glob("*.safetensors")))
    if not files:
        raise ModelError(
            f"{directory} contains no weights (*.safetensors)",
            hint="convert pickled weights (.bin or .pt) to safetensors first",
        )
    indexes = sorted(directory.glob("*.safetensors.index.json"))
    if len(indexes) == 1:
        named = {directory / name for name in weight_map(indexes[0]).values()}
        if missing := sorted(f.name for f in named if not f.is_file()):
            raise ModelError(f"{indexes[0]} names {missing[0]}, which does not exist", hint="copy or download it again")
        return tuple(sorted(named))
    sets = {PART.sub("", f.name) for f in files}
    if len(sets) > 1 or len(indexes) > 1:
        names = ", ".join(f.name for f in (indexes or files)[:4])
        raise ModelError(
            f"{directory} contains more than one set of weights: {names}",
            hint="move all but one of them out of the directory",
        )
    return files


def weight_map(index: Path) -> dict[str, str]:
    """The map from tensor to file in the index of a checkpoint. Raises ModelError if the index is invalid."""
    from smollm3_finetune.files.json import read_json

    stated = read_json(index).get("weight_map")
    if not isinstance(stated, dict) or not all(isinstance(v, str) and Path(v).name == v for v in stated.values()):
        raise ModelError(f"{index} has no weight_map from tensors to files", hint="copy or download it again")
    return stated


def read_headers(files: tuple[Path, ...]) -> dict[str, TensorHeader]:
    """The tensors of safetensors files by name, in the order of the files. Raises ModelError if a file is damaged."""
    return {name: about for file in files for name, about in _header(file)}


def _header(file: Path) -> Iterator[tuple[str, TensorHeader]]:
    try:
        with file.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            if not 2 <= size <= MAX_HEADER:
                raise ValueError(f"its header would have {size} bytes")
            stated = json.loads(stream.read(size))
        for name, about in stated.items():
            if name != "__metadata__":
                yield name, TensorHeader(file, str(about["dtype"]), tuple(int(n) for n in about["shape"]))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise ModelError(f"{file} is damaged: {e}", hint="copy or download it again") from e
    except OSError as e:
        if is_resource_error(e):
            raise
        raise ModelError(f"{file} cannot be read: {e.strerror or e}") from e


@dataclass(frozen=True)
class LayerShape:
    """A linear layer of a checkpoint."""

    out_features: int
    """Features of its output."""
    in_features: int
    """Features of its input."""
    dtype: str
    """As safetensors names it: `F32`, `BF16`, …"""


def stored_layers(headers: Mapping[str, TensorHeader]) -> dict[str, LayerShape]:
    """Name to shape of the linear layers in the blocks of a checkpoint, by the headers of its files.

    These are the matrices `NAME.weight` with a number in the name, as `layers.0.mlp.up_proj`: embeddings and head have
    none. A weight is (out, in). That of a Conv1D layer, as in GPT-2, is (in, out): its bias, which has the length of
    the output, shows it.
    """
    found = {}
    for name, about in headers.items():
        layer = name.removesuffix(".weight")
        if layer == name or len(about.shape) != 2 or about.dtype not in FLOATS or not re.search(r"\.\d+\.", name):
            continue
        out, inputs = about.shape
        bias = headers.get(f"{layer}.bias")
        if bias is not None and bias.shape == (inputs,) and inputs != out:
            out, inputs = inputs, out
        found[layer] = LayerShape(out, inputs, about.dtype)
    return found
