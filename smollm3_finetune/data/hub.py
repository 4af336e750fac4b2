"""Rows of a dataset on the Hub, streamed through `datasets`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from smollm3_finetune.data.files import Row, without_fill_nulls
from smollm3_finetune.errors import DataError


def commit_of(name: str, revision: str | None) -> str:
    """The commit of a revision of a Hub dataset. Raises DataError if the Hub cannot be asked or does not know it."""
    from huggingface_hub import HfApi

    try:
        return str(HfApi().dataset_info(name, revision=revision).sha)
    except Exception as e:  # any failure means that the rows cannot be read
        raise _hub_error(name, e, "check the network and the name; for a private dataset, set HF_TOKEN") from e


def part_of(subset: str | None, split: str) -> str:
    """The part of a dataset that is read: `subset/split`, or the split if there is no subset."""
    return split if subset is None else f"{subset}/{split}"


def hub_rows(name: str, subset: str | None, split: str, revision: str | None) -> Iterator[Row]:
    """The rows of one split. Raises DataError if the split cannot be read or has no rows."""
    import datasets

    title = f"{name}[{part_of(subset, split)}]"
    hint = f"--set 'data.path={{path: {name}, split: SPLIT, subset: SUBSET}}'"
    number = 0
    try:
        rows: Any = datasets.load_dataset(name, subset, split=split, revision=revision, streaming=True)
        for number, value in enumerate(rows, start=1):
            yield Row(without_fill_nulls(value), f"{title} row {number}")
    except (OSError, ValueError, RuntimeError) as e:
        raise _hub_error(name, e, hint) from e
    if not number:
        raise DataError(f"{title} contains no rows", hint=hint)


def _hub_error(name: str, error: Exception, hint: str) -> DataError:
    first = str(error).strip().partition("\n")[0] or type(error).__name__
    return DataError(f"{name!r} is not a local file and cannot be read as a Hub dataset: {first}", hint=hint)
