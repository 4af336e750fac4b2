"""Writes a quantized checkpoint: the same tensors give the same bytes, in files of bounded size."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smollm3_finetune.errors import ModelError
from smollm3_finetune.files.failures import writing
from smollm3_finetune.files.json import write_json
from smollm3_finetune.files.partial import PARTIAL
from smollm3_finetune.files.writing import publish_files
from smollm3_finetune.model_files.headers import INDEX
from smollm3_finetune.model_files.writing import copy_rest

if TYPE_CHECKING:
    from torch import Tensor

Tensors = Mapping[str, "Tensor"] | Iterable[tuple[str, "Tensor"]]


def write_quantized(
    path: Path,
    out: Path,
    tensors: Tensors,
    config: Mapping[str, Any],
    ties: Mapping[str, str],
    *,
    shard_bytes: int,
    say: Callable[[str], None],
) -> None:
    """Write tensors, `config.json` and the other files of the model in `path` into the directory `out`.

    `ties` is the name of each tied tensor to the name of the one that it shares its values with. Everything is written
    to a folder in `out` first, and `config.json` is moved last: an interrupted write leaves no `config.json`.
    """
    json.dumps(config, allow_nan=False)  # fails before tensors are computed
    partial = out / f"{PARTIAL}checkpoint"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with writing(out, elsewhere="--output DIR"):
            partial.mkdir(parents=True)
            _Shards(partial, shard_bytes).write(_once(_ordered(tensors), ties))
            write_json(partial / "config.json", config)
            copy_rest(path, partial, say)
            publish_files(partial, out, last="config.json")
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_shards(directory: Path, tensors: Iterator[tuple[str, Tensor]], size: int, format: str = "pt") -> None:
    """Write tensors into safetensors files of at most `size` bytes, named as transformers names them.

    The tensors are taken one by one, in their order; memory holds at most one file. The files state the `format`.
    """
    _Shards(directory, size, format).write(tensors)


def _ordered(tensors: Tensors) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a mapping by name; those of an iterable in its order."""
    if isinstance(tensors, Mapping):
        return ((name, tensors[name]) for name in sorted(tensors))
    return iter(tensors)


def _once(tensors: Iterator[tuple[str, Tensor]], ties: Mapping[str, str]) -> Iterator[tuple[str, Tensor]]:
    """The tensors without those that are tied to another one, whose values must be the same."""
    import torch

    origins = set(ties.values())
    first: dict[str, tuple[str, Tensor]] = {}
    """Origin of a tie to the first of its tensors that was given."""
    written: set[str] = set()
    for name, tensor in tensors:
        if name in written:
            raise ModelError(f"the checkpoint would have two tensors named {name!r}")
        written.add(name)
        origin = ties.get(name, name)
        if origin in origins:
            if origin in first:
                other, value = first[origin]
                if tensor.shape != value.shape or tensor.dtype != value.dtype or not torch.equal(tensor, value):
                    raise ModelError(f"{name!r} and {other!r} differ, but config.json ties them")
                continue
            first[origin] = (name, tensor)
            name = origin
        yield name, tensor


class _Shards:
    """Safetensors files of at most `size` bytes of tensors, except for a single tensor that is larger."""

    def __init__(self, directory: Path, size: int, format: str = "pt") -> None:
        self.directory, self.size, self.format = directory, size, format
        self.files: list[list[str]] = []
        """The names of the tensors in each file."""
        self.total = 0

    def write(self, tensors: Iterator[tuple[str, Tensor]]) -> None:
        pending: dict[str, Tensor] = {}
        held = 0
        for name, tensor in tensors:
            size = tensor.numel() * tensor.element_size()
            if pending and held + size > self.size:
                self._save(pending)
                pending, held = {}, 0
            pending[name] = _own(tensor)
            held += size
        self._save(pending)
        self._name_files()

    def _save(self, tensors: Mapping[str, Tensor]) -> None:
        from safetensors.torch import save_file

        save_file(dict(tensors), str(self._file(len(self.files))), metadata={"format": self.format})
        self.files.append(sorted(tensors))
        self.total += sum(t.numel() * t.element_size() for t in tensors.values())

    def _file(self, number: int) -> Path:
        return self.directory / f"{number}.safetensors"

    def _name_files(self) -> None:
        """Name the files as transformers does, with an index if there are several."""
        count = len(self.files)
        if count == 1:
            self._file(0).rename(self.directory / "model.safetensors")
            return
        weight_map = {}
        for number, names in enumerate(self.files):
            name = f"model-{number + 1:05}-of-{count:05}.safetensors"
            self._file(number).rename(self.directory / name)
            weight_map.update(dict.fromkeys(names, name))
        index = {"metadata": {"total_size": self.total}, "weight_map": dict(sorted(weight_map.items()))}
        write_json(self.directory / INDEX, index)


def _own(tensor: Tensor) -> Tensor:
    """The tensor on the CPU, contiguous, with memory of its own, which safetensors requires."""
    values = tensor.detach().cpu().contiguous()
    whole = values.untyped_storage().nbytes() == values.numel() * values.element_size()
    return values if whole and values.data_ptr() != tensor.data_ptr() else values.clone()
