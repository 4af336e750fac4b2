"""Checks of the files beside the weights: config, tokenizer, chat template and stop tokens are those of the source."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from smollm3_finetune.api import Check, Exported, ModelError, read_json
from smollm3_finetune.model_files.stops import stated_stops

GENERATION = "generation_config.json"
DTYPE_KEYS = ("dtype", "torch_dtype")
"""Keys of `config.json` that may differ."""
TEXTS = 1000
"""Training rows whose token ids are compared, at most."""
FIXED_TEXTS = (
    "The quick brown fox.",
    "  Two  spaces,\ta tab\nand lines\n\n",
    "naïve café, 你好, 🙂",
    "f(x) = x**2 # 1,234.5",
)


def same_model_files(subject: Exported, out: Path) -> Iterator[Check]:
    """One check each of the config, the tokenizer with its template, and the stop tokens."""
    source = subject.model.path
    yield _check("config", _config(source, out), "config.json is the model's, except for the dtype")
    yield _tokenizer(subject, out)
    stops = ", ".join(map(str, stated_stops(source))) or "none"
    yield _check("stop tokens", _stops(source, out), f"the stop tokens and the generation config are equal ({stops})")


def _check(name: str, problem: str | None, right: str) -> Check:
    return Check(name=name, passed=problem is None, says=problem or right)


def _config(source: Path, out: Path) -> str | None:
    """The first key of the config that differs, as a clause; None if all are equal."""
    if not (out / "config.json").is_file():
        return "config.json is missing"
    try:
        ours, theirs = read_json(out / "config.json"), read_json(source / "config.json")
    except ModelError as e:
        return e.message
    return _difference("config.json", ours, theirs, ignored=DTYPE_KEYS)


def _stops(source: Path, out: Path) -> str | None:
    try:
        found, wanted = stated_stops(out), stated_stops(source)
        if found != wanted:
            return f"the stop tokens are {found}, but those of the model are {wanted}"
        if (source / GENERATION).is_file() != (out / GENERATION).is_file():
            return f"{GENERATION} {'is missing' if (source / GENERATION).is_file() else 'is not of the model'}"
        if (source / GENERATION).is_file():
            return _difference(GENERATION, read_json(out / GENERATION), read_json(source / GENERATION))
    except ModelError as e:
        return e.message
    return None


def _tokenizer(subject: Exported, out: Path) -> Check:
    """The tokenizer in `out` has the same vocabulary, template and special tokens, and gives the same ids."""
    wanted = subject.model.tokenizer()
    try:
        found = subject.model.at(out).tokenizer()
    except ModelError as e:
        return Check(name="tokenizer", passed=False, says=e.message)
    if found.get_vocab() != wanted.get_vocab():
        return Check(name="tokenizer", passed=False, says="the vocabulary differs from the model's")
    if found.chat_template != wanted.chat_template:
        return Check(name="tokenizer", passed=False, says="the chat template differs from the model's")
    if found.special_tokens_map != wanted.special_tokens_map:
        return Check(name="tokenizer", passed=False, says="the special tokens differ from the model's")
    texts: Sequence[str] = [*FIXED_TEXTS, *islice(subject.texts(), TEXTS)]
    for text in texts:
        if found(text).input_ids != wanted(text).input_ids:
            return Check(name="tokenizer", passed=False, says=f"the token ids of {text[:40]!r} differ")
    return Check(
        name="tokenizer",
        passed=True,
        says=f"vocabulary, chat template and the token ids of {len(texts)} texts are equal",
        figures={"texts": len(texts)},
    )


def _difference(file: str, found: Any, wanted: Any, ignored: Sequence[str] = ()) -> str | None:
    """The first key whose values differ, as a clause; None if there is none."""
    for key in sorted({*found, *wanted} - {*ignored}):
        if found.get(key) != wanted.get(key):
            return f"{key} of {file} is {found.get(key)!r}, but {wanted.get(key)!r} in the model"
    return None
