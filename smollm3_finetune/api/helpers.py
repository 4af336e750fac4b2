"""Functions for plugins of any kind. Heavy packages are imported when a function is called."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerBase

    from smollm3_finetune.api.models import ModelSource


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


def pad_rows(examples: Sequence[Mapping[str, Sequence[int]]], tokenizer: PreTrainedTokenizerBase) -> dict[str, Tensor]:
    """A batch of rows of `input_ids` and `labels`, each padded on the right to the longest: an objective's collator.

    Returns `input_ids`, `labels` and `attention_mask`, each (B, T) on the CPU. Padding has the tokenizer's padding
    token, else its end-of-sequence token, and the label IGNORE_INDEX. Other names of the examples are left out. The
    first label of each row is ignored: no token of the row predicts it.

        def collator(self, tokenizer):
            return lambda examples: pad_rows(examples, tokenizer)
    """
    from smollm3_finetune.api.batches import pad

    return pad(examples, tokenizer)


def has_supervised_logits(model: nn.Module) -> bool:
    """Whether `model`, or a model that it wraps, computes logits at supervised tokens only, as in most runs.

    It then returns no logits when it is called with `labels`: its output has the `loss`, the summed cross-entropy as
    `loss_sum`, and the number of supervised tokens as `terms`.
    """
    from smollm3_finetune.api.batches import has_supervised_logits

    return has_supervised_logits(model)


def directory_source(path: Path, *, ref: str, fingerprint: str | None = None, **kwargs: Any) -> ModelSource:
    """A `ModelSource` for a directory in Hugging Face's layout, for loaders that convert into one.

    `fingerprint` saves hashing the files where the identity is known; `kwargs` are added to every
    `from_pretrained`.
    """
    from smollm3_finetune.model_files.source import DirectorySource

    return DirectorySource(ref=ref, directory=path, known_fingerprint=fingerprint, load_kwargs=kwargs)
