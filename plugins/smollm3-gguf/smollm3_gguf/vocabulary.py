"""The vocabulary of a file, made from a tokenizer of transformers or read from a header."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from smollm3_finetune.api import IncompatibleError, ModelError
from smollm3_gguf.header import Header
from smollm3_gguf.pretokenizers import SAME, recognized

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED = 1, 2, 3, 4, 5
"""Types of tokens. Control tokens are special; user-defined ones are found in every text as they are."""
SPECIAL = ("bos", "eos", "eot", "eom", "padding", "unknown")
"""Keys `tokenizer.ggml.KEY_token_id` that are written, in this order."""
STOPS = ("eos", "eot", "eom")
"""Those of `SPECIAL` at which llama.cpp ends an answer."""
ENDS = frozenset({"<|eot_id|>", "<|im_end|>", "<|end|>", "<|endoftext|>", "</s>", "<|eom_id|>", "<|end_of_text|>"})
"""Tokens at which llama.cpp ends an answer because of their text. Source: src/llama-vocab.cpp, `special_eog_ids`."""


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """Everything about the tokenizer that a file states."""

    tokens: list[str]
    types: list[int]
    merges: list[str]
    """Two parts, separated by a space."""
    pre: str
    """The name of the pre-tokenizer."""
    special: dict[str, int] = field(default_factory=dict)
    """Key of `SPECIAL` to token id."""
    add_bos: bool = False
    add_eos: bool = False
    templates: dict[str, str] = field(default_factory=dict)
    """Name to chat template; the name of the default one is empty."""

    @property
    def stops(self) -> frozenset[int]:
        """Tokens at which llama.cpp ends an answer."""
        by_key = {self.special[key] for key in STOPS if key in self.special}
        return frozenset(by_key | {i for i, token in enumerate(self.tokens) if token in ENDS})


def vocabulary_of(tokenizer: PreTrainedTokenizerBase, rows: int, stops: Sequence[int]) -> Vocabulary:
    """The vocabulary of a tokenizer for a model with `rows` embeddings that stops at `stops`.

    Raises IncompatibleError if llama.cpp cannot tokenize in the same way.
    """
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise _not_bpe("it is not one of the tokenizers library")
    defined = json.loads(tokenizer.backend_tokenizer.to_str())
    pre = _pre_tokenizer(defined)
    tokens, types = _tokens(defined, rows)
    merges = [m if isinstance(m, str) else " ".join(m) for m in defined["model"]["merges"]]
    if bad := next((m for m in merges if m.count(" ") != 1), None):
        raise _not_bpe(f"its merge {bad!r} has a space in one of its parts")
    add_bos, add_eos = _added_by_default(tokenizer)
    return Vocabulary(
        tokens=tokens,
        types=types,
        merges=merges,
        pre=pre,
        special=_special(tokenizer, stops, tokens),
        add_bos=add_bos,
        add_eos=add_eos,
        templates=templates_of(tokenizer),
    )


def check_tokenizer(defined: Mapping[str, Any]) -> None:
    """Raise IncompatibleError if llama.cpp cannot tokenize as a `tokenizer.json` defines. Light."""
    _pre_tokenizer(defined)


def templates_of(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """The chat templates of a tokenizer by name; the name of the default one is empty."""
    template = tokenizer.chat_template
    if isinstance(template, dict):
        return {"" if name == "default" else name: str(text) for name, text in template.items()}
    return {"": template} if template else {}


def _pre_tokenizer(defined: Mapping[str, Any]) -> str:
    model = defined["model"]
    if model["type"] != "BPE":
        raise _not_bpe(f"its model is {model['type']}")
    for key in ("byte_fallback", "continuing_subword_prefix", "end_of_word_suffix", "dropout"):
        if model.get(key):
            raise _not_bpe(f"it has {key}")
    if defined.get("normalizer"):
        raise IncompatibleError(
            f"llama.cpp cannot apply the normalizer of this model's tokenizer ({defined['normalizer']['type']})",
            hint="smollm3 export RUN --to safetensors",
        )
    for token in defined["added_tokens"]:
        if stripping := [key for key in ("lstrip", "rstrip", "single_word") if token[key]]:
            raise IncompatibleError(
                f"llama.cpp cannot find the token {token['content']!r} as this tokenizer does: it has {stripping[0]}",
                hint="smollm3 export RUN --to safetensors",
            )
    return recognized(defined.get("pre_tokenizer") or {}, bool(model.get("ignore_merges")))


def _not_bpe(reason: str) -> IncompatibleError:
    return IncompatibleError(
        f"only byte-level BPE tokenizers can be exported to GGUF here; of this model's tokenizer, {reason}",
        hint="smollm3 export RUN --to safetensors, then llama.cpp's convert_hf_to_gguf.py",
    )


def _tokens(defined: Mapping[str, Any], rows: int) -> tuple[list[str], list[int]]:
    """All tokens up to the last row of the embeddings, and their types; rows without a token are unused."""
    held: dict[int, tuple[str, int]] = {i: (token, NORMAL) for token, i in defined["model"]["vocab"].items()}
    for token in defined["added_tokens"]:
        held[token["id"]] = (token["content"], CONTROL if token["special"] else USER_DEFINED)
    if held and max(held) >= rows:
        raise ModelError(
            f"the tokenizer has the token {max(held)}, but the embeddings have only {rows} rows",
            hint="use the tokenizer that belongs to this model",
        )
    filled = [held.get(i, (f"[PAD{i}]", UNUSED)) for i in range(rows)]
    tokens = [token for token, _ in filled]
    if len(set(tokens)) != len(tokens):
        twice = next(t for i, t in enumerate(tokens) if t in tokens[:i])
        raise IncompatibleError(f"the tokenizer has two tokens {twice!r}, which llama.cpp cannot tell apart")
    return tokens, [kind for _, kind in filled]


def _added_by_default(tokenizer: PreTrainedTokenizerBase) -> tuple[bool, bool]:
    """Whether the tokenizer puts its `bos` before a text, and its `eos` after it."""
    plain = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    whole = list(tokenizer("a")["input_ids"])
    for before in ([], [tokenizer.bos_token_id]):
        for after in ([], [tokenizer.eos_token_id]):
            if whole == before + plain + after:
                return bool(before), bool(after)
    raise IncompatibleError(
        f"the tokenizer surrounds a text with {tokenizer.convert_ids_to_tokens(whole)}, which GGUF cannot state",
        hint="smollm3 export RUN --to safetensors",
    )


def _special(tokenizer: PreTrainedTokenizerBase, stops: Sequence[int], tokens: Sequence[str]) -> dict[str, int]:
    """The special tokens of a file. `eos` is the tokenizer's; `eot` ends a turn; `eom` is a further stop."""
    found = {
        "bos": tokenizer.bos_token_id,
        "eos": tokenizer.eos_token_id,
        "padding": tokenizer.pad_token_id,
        "unknown": tokenizer.unk_token_id,
    }
    more = [i for i in stops if i != found["eos"]]
    if found["eos"] is None and more:
        found["eos"] = more.pop(0)
    # A stop that llama.cpp knows by its text needs no key, so the others come first.
    more.sort(key=lambda i: tokens[i] in ENDS)
    found["eot"] = end_of_turn(tokenizer, stops, found["eos"])
    more = [i for i in more if i != found["eot"]]
    if more:
        found["eom"] = more.pop(0)
    if left := [tokens[i] for i in more if tokens[i] not in ENDS]:
        raise IncompatibleError(
            f"the model stops at more tokens than GGUF has keys for; without a key: {', '.join(left)}",
            hint="remove some from eos_token_id in generation_config.json",
        )
    return {key: int(value) for key in SPECIAL if (value := found.get(key)) is not None}


def end_of_turn(tokenizer: PreTrainedTokenizerBase, stops: Sequence[int], eos: int | None) -> int | None:
    """The stop with which the chat template ends an answer; `eos` if it ends with none of them."""
    if not tokenizer.chat_template:
        return eos
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    try:
        text = str(tokenizer.apply_chat_template(turns, tokenize=False))
    except Exception:  # a template may require anything
        return eos
    ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    allowed = {*stops, *([] if eos is None else [eos])}
    return next((i for i in reversed(ids[-4:]) if i in allowed), eos)


def stops_in(header: Header) -> list[int]:
    """The tokens at which a header states that an answer ends, each once."""
    stated = [header.metadata.get(f"tokenizer.ggml.{key}_token_id") for key in STOPS]
    return list(dict.fromkeys(i for i in stated if isinstance(i, int)))


def vocabulary_in(header: Header) -> Vocabulary:
    """The vocabulary that a header states, which was read with its strings. Raises ModelError if parts are missing."""
    data = header.metadata
    tokens, merges = data.get("tokenizer.ggml.tokens"), data.get("tokenizer.ggml.merges")
    types = data.get("tokenizer.ggml.token_type")
    if not isinstance(tokens, list) or not isinstance(merges, list):
        raise ModelError("the file has no tokens or no merges", hint="use another file of this model")
    special = {key: data.get(f"tokenizer.ggml.{key}_token_id") for key in SPECIAL}
    names = data.get("tokenizer.chat_templates", [])
    templates = {"": data.get("tokenizer.chat_template")}
    templates |= {name: data.get(f"tokenizer.chat_template.{name}") for name in names}
    pre = str(data.get("tokenizer.ggml.pre", "default"))
    return Vocabulary(
        tokens=tokens,
        types=types if isinstance(types, list) else [NORMAL] * len(tokens),
        merges=merges,
        pre=pre,
        special={key: value for key, value in special.items() if value is not None},
        add_bos=bool(data.get("tokenizer.ggml.add_bos_token", SAME.get(pre, pre) == "llama-bpe")),
        add_eos=bool(data.get("tokenizer.ggml.add_eos_token", False)),
        templates={name: text for name, text in templates.items() if text},
    )
