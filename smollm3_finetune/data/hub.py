"""Rows of a dataset on the Hub, streamed through `datasets`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from smollm3_finetune.data.reading import Row
from smollm3_finetune.errors import DataError

if TYPE_CHECKING:
    from smollm3_finetune.data.sources import Source


def hub_rows(source: Source) -> Iterator[Row]:
    """The rows of one split. Raises DataError where the Hub or the split cannot be had."""
    import datasets

    config = source.config
    title = f"{source.hub}[{config.split}]"
    try:
        rows: Any = datasets.load_dataset(
            source.hub, config.subset, split=config.split, revision=config.revision, streaming=True
        )
        for number, value in enumerate(rows, start=1):
            yield Row(value, f"{title} row {number}")
    except (OSError, ValueError, RuntimeError) as e:
        first = str(e).strip().partition("\n")[0] or type(e).__name__
        raise DataError(
            f"{source.hub!r} is no file here, and as a Hub dataset it cannot be read: {first}",
            hint="check the network, or data.path[…].split and .subset",
        ) from e


def hub_fingerprint(source: Source) -> str:
    """The dataset, its commit, subset and split."""
    from huggingface_hub import HfApi

    config = source.config
    try:
        commit = HfApi().dataset_info(str(source.hub), revision=config.revision).sha
    except Exception as e:  # whatever it is, the rows cannot be told apart without it
        raise DataError(f"the Hub does not tell the commit of {source.hub!r}: {e}") from e
    return f"hub:{source.hub}@{commit}:{config.subset}:{config.split}"
