"""The embeddings of a model: a tokenizer with added tokens can have more tokens than the model has embeddings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from smollm3_finetune.errors import ModelError
from smollm3_finetune.model_files.vocabulary import embeddings_of as embeddings_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def check_ids(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], embeddings: int | None, where: str) -> None:
    """Raises ModelError with the first of the token `ids` of `where` that has no embedding."""
    if embeddings is None or not ids or max(ids) < embeddings:
        return
    beyond = next(i for i in ids if i >= embeddings)
    raise ModelError(
        f"the token {tokenizer.convert_ids_to_tokens(beyond)!r} (id {beyond}) of {where} is beyond the {embeddings} "
        "embeddings of the model",
        hint=f"resize the embeddings in Python: model.resize_token_embeddings({max(len(tokenizer), beyond + 1)}); "
        "model.save_pretrained(DIR), and use DIR as the model; or remove the token",
    )


def with_usable_padding(
    tokenizer: PreTrainedTokenizerBase, embeddings: int | None, say: Callable[[str], None]
) -> PreTrainedTokenizerBase:
    """The tokenizer, whose pad token becomes its end token if it has no embedding, which is said."""
    pad, end = tokenizer.pad_token_id, tokenizer.eos_token_id
    if embeddings is not None and pad is not None and pad >= embeddings and end is not None and end < embeddings:
        say(
            f"the pad token {tokenizer.pad_token!r} (id {pad}) is beyond the {embeddings} embeddings of the model: "
            f"{tokenizer.eos_token!r} is used instead"
        )
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer
