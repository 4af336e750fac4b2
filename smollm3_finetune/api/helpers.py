"""Functions for plugins of any kind. What is heavy is imported when one is called."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from smollm3_finetune.api.models import ModelSource


@contextlib.contextmanager
def seeded(seed: int, device: str = "cpu") -> Iterator[None]:
    """Random numbers inside the context come from `seed`; the caller's stream continues afterwards as if untouched."""
    import torch

    on = torch.device(device)
    others: dict[str, Any] = {"devices": []}
    if on.type != "cpu":
        others = {"devices": [on.index or 0], "device_type": on.type}
    with torch.random.fork_rng(**others):
        torch.manual_seed(seed)
        yield


def options_dict(options: Any) -> dict[str, Any]:
    """The fields of an options instance, for a fingerprint or a saved file."""
    return dataclasses.asdict(options)


def flatten_rows(examples: Sequence[Mapping[str, Sequence[int]]]) -> dict[str, Any]:
    """Rows of `input_ids` and `labels` as arguments of a causal language model that follow each other in one sequence.

    `input_ids`, `labels` and `position_ids` are (1, T) with T the sum of lengths; `cu_seq_lens_q` and `cu_seq_lens_k`
    (rows + 1,) are the borders, `max_length_q` and `max_length_k` the longest row, `use_cache` is False. Other names
    of the examples are left out. The first label of each row is ignored: it would be learned from the last token of
    the row before.
    """
    from smollm3_finetune.api.batches import flatten

    return flatten(examples)


def directory_source(path: Path, *, ref: str, fingerprint: str | None = None, **kwargs: Any) -> ModelSource:
    """A `ModelSource` for a directory in Hugging Face's layout, for loaders that convert into one.

    `fingerprint` saves hashing the files where the identity is known; `kwargs` are added to every
    `from_pretrained`.
    """
    from smollm3_finetune.model_files.source import DirectorySource

    return DirectorySource(ref=ref, directory=path, known_fingerprint=fingerprint, load_kwargs=kwargs)
