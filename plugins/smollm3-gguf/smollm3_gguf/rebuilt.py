"""A tokenizer made from the metadata of a file, as llama.cpp makes it: independent of the one that was exported."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from smollm3_gguf.pretokenizers import built, known, looks_up_words
from smollm3_gguf.vocabulary import CONTROL, UNUSED, USER_DEFINED, Vocabulary

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

FILLER = re.compile(r"\[PAD\d+\]")
"""Names of rows of the embeddings without a token."""


def can_rebuild(vocabulary: Vocabulary, model: Any) -> bool:
    """Whether the tokenizer of a file is one of those that are rebuilt here. `model` is `tokenizer.ggml.model`."""
    return model == "gpt2" and known(vocabulary.pre)


def rebuilt(vocabulary: Vocabulary) -> Tokenizer:
    """The tokenizer of a file. It adds `bos` and `eos` where llama.cpp does."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, processors

    ids = {
        token: i
        for i, (token, kind) in enumerate(zip(vocabulary.tokens, vocabulary.types, strict=True))
        if not (kind == UNUSED and FILLER.fullmatch(token))
    }
    merges = [(left, right) for left, _, right in (merge.partition(" ") for merge in vocabulary.merges)]
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=merges, ignore_merges=looks_up_words(vocabulary.pre)))
    tokenizer.pre_tokenizer = built(vocabulary.pre)
    tokenizer.decoder = decoders.ByteLevel()
    found = [
        AddedToken(token, special=kind == CONTROL, normalized=False)
        for token, kind in zip(vocabulary.tokens, vocabulary.types, strict=True)
        if kind in (CONTROL, USER_DEFINED)
    ]
    tokenizer.add_tokens([token for token in found if not token.special])
    tokenizer.add_special_tokens([token for token in found if token.special])
    before = ["bos"] if vocabulary.add_bos and "bos" in vocabulary.special else []
    after = ["eos"] if vocabulary.add_eos and "eos" in vocabulary.special else []
    if around := [vocabulary.special[key] for key in (*before, *after)]:
        named = [vocabulary.tokens[i] for i in around]
        first, last = named[: len(before)], named[len(before) :]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[*first, "$A", *last],
            pair=[*first, "$A", *last, *first, "$B:1", *last],
            special_tokens=list(dict(zip(named, around, strict=True)).items()),
        )
    return tokenizer


def for_transformers(vocabulary: Vocabulary) -> PreTrainedTokenizerFast:
    """The tokenizer of a file, with its special tokens and chat templates, as one of transformers."""
    from transformers import PreTrainedTokenizerFast

    names = {"bos": "bos_token", "eos": "eos_token", "padding": "pad_token", "unknown": "unk_token"}
    special = {
        name: vocabulary.tokens[vocabulary.special[key]] for key, name in names.items() if key in vocabulary.special
    }
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=rebuilt(vocabulary), **special)
    named = vocabulary.templates
    if named:
        one = named.get("")
        tokenizer.chat_template = (
            one if set(named) == {""} else {name or "default": text for name, text in named.items()}
        )
    return tokenizer
