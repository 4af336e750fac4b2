"""Values of a reference on disk: one directory for the examples of a dataset, memory-mapped example by example.

The values of a name are one flat tensor in each file, beside their shapes, so that any number of examples can be
stored: a tensor for each would make a header of many megabytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smollm3_finetune.errors import PluginError
from smollm3_finetune.files.room import check_room

if TYPE_CHECKING:
    from torch import Tensor

BLOCK = 512
"""Examples in each file; only the last one has fewer."""
COUNT = "count.txt"
VALUES, SHAPES = "values/", "shapes/"


class Stored:
    """The values of each example of a dataset, in their order; -1 is the last one."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._count = int((directory / COUNT).read_text(encoding="utf-8"))
        self._open = lru_cache(maxsize=None)(_Block)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, example: int) -> dict[str, Tensor]:
        block, place = divmod(range(self._count)[example], BLOCK)
        return self._open(file_of(self.directory, block)).values(place)


class _Block:
    """One file, opened."""

    def __init__(self, file: Path) -> None:
        import safetensors
        import torch

        opened: Any = safetensors.safe_open
        self.file = opened(str(file), framework="pt")
        self.shapes: dict[str, Tensor] = {}
        self.ends: dict[str, list[int]] = {}
        for key in self.file.keys():  # noqa: SIM118  (not a mapping)
            if key.startswith(SHAPES):
                name, shapes = key.removeprefix(SHAPES), self.file.get_tensor(key)  # (examples, dimensions)
                self.shapes[name] = shapes
                self.ends[name] = [0, *torch.cumsum(shapes.prod(1), 0).tolist()]

    def values(self, place: int) -> dict[str, Tensor]:
        found = {}
        for name, shapes in self.shapes.items():
            start, end = self.ends[name][place : place + 2]
            values = self.file.get_slice(f"{VALUES}{name}")
            one = values[start:end] if start < end else values[:][:0]  # a slice of nothing is refused
            found[name] = one.reshape(shapes[place].tolist())
        return found


def write(directory: Path, blocks: Iterable[Sequence[Mapping[str, Tensor]]]) -> None:
    """Write the values of the examples, `BLOCK` of them at a time.

    Raises PluginError if examples have different names, or values of one name different dtypes or dimensions.
    """
    from safetensors.torch import save_file

    directory.mkdir(parents=True)
    count, kind = 0, None
    for number, block in enumerate(blocks):
        tensors: dict[str, Tensor] = {}
        for values in block:
            own = {name: (value.dtype, value.ndim) for name, value in values.items()}
            kind = kind or own
            if own != kind:
                raise PluginError(
                    f"reference_values() returned {_described(own)} for one example and {_described(kind)} for another",
                    hint="give all examples the same names, dtypes and numbers of dimensions",
                )
        for name in block[0]:
            tensors |= _flat(name, [values[name] for values in block])
        save_file(tensors, str(file_of(directory, number)))
        count += len(block)
    (directory / COUNT).write_text(str(count), encoding="utf-8")


def with_room(
    blocks: Iterable[Sequence[Mapping[str, Tensor]]], directory: Path, total: int, elsewhere: str
) -> Iterator[Sequence[Mapping[str, Tensor]]]:
    """The blocks of `total` examples that are written into `directory`.

    Before each block, the space for it and for the following ones is estimated from the examples so far. Raises
    WriteError if the disk has less; `elsewhere` is what chooses another disk.
    """
    count, size = 0, 0
    for block in blocks:
        size += sum(v.numel() * v.element_size() for values in block for v in values.values())
        each, left = size / (count + len(block)), total - count
        hint = f"choose another disk: {elsewhere}"
        check_room(directory, each * left, f"the reference of {left:,} examples", hint=hint)
        yield block
        count += len(block)


def file_of(directory: Path, block: int) -> Path:
    return directory / f"{block:06d}.safetensors"


def _flat(name: str, values: Sequence[Tensor]) -> dict[str, Tensor]:
    import torch

    shapes = torch.tensor([list(v.shape) for v in values], dtype=torch.int64).reshape(len(values), values[0].ndim)
    return {f"{VALUES}{name}": torch.cat([v.reshape(-1) for v in values]), f"{SHAPES}{name}": shapes}


def _described(kind: Mapping[str, tuple[Any, int]]) -> str:
    return ", ".join(f"{n} ({str(d).removeprefix('torch.')}, {dims} dimensions)" for n, (d, dims) in kind.items())
