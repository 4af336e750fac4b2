"""Rows of a dataset on the Hub, streamed through `datasets`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from smollm3_finetune.data.files import Row, without_fillers
from smollm3_finetune.errors import DataError


def commit_of(name: str, revision: str | None) -> str:
    """The commit that a revision of a dataset on the Hub is at. Raises DataError where the Hub does not tell."""
    from huggingface_hub import HfApi

    try:
        return str(HfApi().dataset_info(name, revision=revision).sha)
    except Exception as e:  # whatever it is, the rows cannot be had without it
        raise _unread(name, e, "check the network and the name; a dataset that is not public needs HF_TOKEN") from e


def part_of(subset: str | None, split: str) -> str:
    """Which part of a dataset is read: its split, behind the subset if one is named."""
    return split if subset is None else f"{subset}/{split}"


def hub_rows(name: str, subset: str | None, split: str, revision: str | None) -> Iterator[Row]:
    """The rows of one split. Raises DataError where the Hub or the split cannot be had, or holds no rows."""
    import datasets

    title = f"{name}[{part_of(subset, split)}]"
    hint = f"--set 'data.path={{path: {name}, split: SPLIT, subset: SUBSET}}'"
    number = 0
    try:
        rows: Any = datasets.load_dataset(name, subset, split=split, revision=revision, streaming=True)
        for number, value in enumerate(rows, start=1):
            yield Row(without_fillers(value), f"{title} row {number}")
    except (OSError, ValueError, RuntimeError) as e:
        raise _unread(name, e, hint) from e
    if not number:
        raise DataError(f"{title} holds no rows", hint=hint)


def _unread(name: str, error: Exception, hint: str) -> DataError:
    first = str(error).strip().partition("\n")[0] or type(error).__name__
    return DataError(f"{name!r} is no file here, and as a Hub dataset it cannot be read: {first}", hint=hint)
