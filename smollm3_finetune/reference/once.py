"""Values that are computed once, before the first step, in an entry of the cache."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smollm3_finetune.api import options_dict
from smollm3_finetune.config.load import plain
from smollm3_finetune.reference.stored import Stored, with_room, write
from smollm3_finetune.reference.whole import Evaluated

if TYPE_CHECKING:
    from torch import Tensor

    from smollm3_finetune.api import Progress
    from smollm3_finetune.cache.store import Cache
    from smollm3_finetune.components.selection import SelectedComponent

KIND = "reference"
"""The kind of the cache entries."""
LAYOUT = 1


@dataclass(frozen=True, kw_only=True)
class Once:
    """The stored values of datasets: of the training examples, and of the held-out ones of each source."""

    train: Stored
    held_out: Sequence[Stored]
    entry: Path


def key_of(
    weights: Mapping[str, Any], objective: SelectedComponent, options: Sequence[str], examples: str, dtype: str
) -> dict[str, Any]:
    """What identifies stored values: the reference's weights, the objective, the examples, the precision."""
    return {
        "weights": dict(weights),
        "objective": [objective.component.full_name, objective.component.version],
        "options": plain({name: getattr(objective.options, name) for name in sorted(options)}),
        "examples": examples,
        "dtype": dtype,
        "layout": LAYOUT,
    }


def identity_of(adapter: SelectedComponent | None) -> list[Any]:
    """What identifies an adapter whose trained values are known: its full name, version and options."""
    if adapter is None:
        return []
    return [adapter.component.full_name, adapter.component.version, plain(options_dict(adapter.options))]


def digest_of(values: Mapping[str, Tensor]) -> str:
    """A hash of tensors and their names."""
    import torch

    digest = hashlib.sha256()
    for name in sorted(values):
        value = values[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:32]


def values_once(
    cache: Cache,
    key: Mapping[str, Any],
    train: Any,
    held_out: Sequence[Any],
    reference: Callable[[], AbstractContextManager[Evaluated]],
    progress: Progress,
) -> Once:
    """The stored values of the datasets; `reference` is entered, and its model run, only if they are not stored yet."""

    def build(out: Path) -> None:
        sets = {"train": train, **{f"held_out-{i}": e for i, e in enumerate(held_out)}}
        left = sum(map(len, sets.values()))
        with reference() as evaluated, progress.task("computing the reference", left) as task:
            for name, examples in sets.items():
                blocks = evaluated.blocks(examples, task.advance)
                write(out / name, with_room(blocks, cache.root, left, "SMOLLM3_CACHE=DIR"))
                left -= len(examples)

    entry = cache.get_or_build(KIND, key, build)
    stored = [Stored(entry / f"held_out-{i}") for i in range(len(held_out))]
    return Once(train=Stored(entry / "train"), held_out=stored, entry=entry)
