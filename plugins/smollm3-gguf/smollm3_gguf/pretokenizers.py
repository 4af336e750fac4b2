"""Pre-tokenizers that llama.cpp has under a name, and how a tokenizer is recognized as one of them.

A pre-tokenizer divides a text before merges are applied. llama.cpp has a fixed list of them, and a file states one by
name. Here a tokenizer is recognized by its own definition, which is compared part by part with those below. Source of
the names: llama.cpp, src/llama-vocab.cpp (`tokenizer_pre`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from smollm3_finetune.api import IncompatibleError

if TYPE_CHECKING:
    from tokenizers import pre_tokenizers

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
BYTES_AFTER_SPLIT = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
WORDS = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
"""The words of GPT-2."""
SPLIT = [{"type": "Split", "pattern": {"Regex": LLAMA3}, "behavior": "Isolated", "invert": False}, BYTES_AFTER_SPLIT]

KNOWN: Mapping[str, tuple[list[dict[str, Any]], bool]] = {
    "gpt-2": ([WORDS], False),
    "smollm": ([{"type": "Digits", "individual_digits": True}, WORDS], False),
    "smaug-bpe": (SPLIT, False),
    "llama-bpe": (SPLIT, True),
}
"""Name to the steps, and whether llama.cpp then looks up whole words before it merges (`ignore_merges`).

The last two divide a text in the same way. SmolLM3 has one or the other, by the `ignore_merges` of its tokenizer.
"""
SAME = {"llama3": "llama-bpe", "llama-v3": "llama-bpe", "starcoder": "smollm", "dbrx": "smaug-bpe"}
"""Further names in files, and the entry of `KNOWN` that llama.cpp treats in the same way."""
IRRELEVANT = ("trim_offsets",)
"""Settings that change no token."""


def recognized(definition: Mapping[str, Any], ignore_merges: bool) -> str:
    """The name of a pre-tokenizer, from its definition in tokenizer.json.

    Raises IncompatibleError, with what is unknown about it, if llama.cpp has no such pre-tokenizer or none is proven
    here to be equal.
    """
    steps = definition.get("pretokenizers", []) if definition.get("type") == "Sequence" else [definition]
    plain = [{k: v for k, v in step.items() if k not in IRRELEVANT} for step in steps]
    for name, (known, whole_words) in KNOWN.items():
        if plain == known and whole_words == ignore_merges:
            return name
    shown = json.dumps(plain, ensure_ascii=False)
    lookup = " with ignore_merges" if ignore_merges else ""
    raise IncompatibleError(
        f"the pre-tokenizer of this model is not one that can be exported to GGUF{lookup}: "
        f"{shown[:160]}{'…' if len(shown) > 160 else ''}",
        hint=f"pre-tokenizers that can: {', '.join(KNOWN)}; for others: smollm3 export RUN --to safetensors",
    )


def known(name: str) -> bool:
    """Whether a name in a file is one of `KNOWN`, or treated in the same way."""
    return SAME.get(name, name) in KNOWN


def looks_up_words(name: str) -> bool:
    """Whether llama.cpp looks up whole words before it merges, for a name in a file."""
    return KNOWN[SAME.get(name, name)][1]


def built(name: str) -> pre_tokenizers.PreTokenizer:
    """The pre-tokenizer of a name in a file."""
    from tokenizers import Regex, pre_tokenizers

    steps: list[pre_tokenizers.PreTokenizer] = []
    for step in KNOWN[SAME.get(name, name)][0]:
        if step["type"] == "Split":
            steps.append(pre_tokenizers.Split(Regex(step["pattern"]["Regex"]), behavior="isolated", invert=False))
        elif step["type"] == "Digits":
            steps.append(pre_tokenizers.Digits(individual_digits=True))
        else:
            steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=step["use_regex"]))
    return steps[0] if len(steps) == 1 else pre_tokenizers.Sequence(steps)
