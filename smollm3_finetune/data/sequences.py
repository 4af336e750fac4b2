"""The token sequences of an example, with their masks: one, or the prompt of several answers and each answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from smollm3_finetune.api.data import BRANCHES, IGNORE_INDEX, Encoded
from smollm3_finetune.data.prepared_row import TokenSequence

PROMPT, CHOSEN, REJECTED = "prompt", "chosen", "rejected"

Example = Mapping[str, Sequence[int]]


def sequences_of(example: Example | None, made: Sequence[Encoded], *, pair: bool) -> tuple[TokenSequence, ...]:
    """The sequences of an example; if it has none, those that were encoded for it.

    Branches are the prompt and each answer. So are two sequences of a `pair`, which are `…input_ids` with matching
    `…labels`.
    """
    example = example or {}
    if BRANCHES in example:
        return _branches(example, pair=pair)
    found = []
    for key, ids in example.items():
        prefix = key.removesuffix("input_ids")
        labels = example.get(f"{prefix}labels")
        if key.endswith("input_ids") and labels is not None and len(labels) == len(ids):
            found.append(_sequence(prefix.rstrip("_"), ids, labels))
    if not found:
        several = [CHOSEN, REJECTED] if pair and len(made) == 2 else [f"sequence {i}" for i in range(len(made))]
        names = [""] if len(made) == 1 else several
        found = [_sequence(name, e.input_ids, e.labels) for name, e in zip(names, made, strict=True)]
    if pair and [s.name or CHOSEN for s in found] == [CHOSEN, REJECTED]:
        return _split(*found)
    return tuple(found)


def numbered_sequences(examples: Sequence[Example], made: Sequence[Encoded], what: str) -> tuple[TokenSequence, ...]:
    """The sequences of each chunk or example of a row, named by its number."""
    found = []
    for i, example in enumerate(examples):
        for sequence in sequences_of(example, made[i : i + 1], pair=False):
            name = f"{what} {i + 1} of {len(examples)}{', ' if sequence.name else ''}{sequence.name}"
            found.append(replace(sequence, name=name))
    return tuple(found)


def _sequence(name: str, ids: Sequence[int], labels: Sequence[int]) -> TokenSequence:
    return TokenSequence(
        name=name, ids=ids, supervised=[t > 0 and label != IGNORE_INDEX for t, label in enumerate(labels)]
    )


def _branches(example: Example, *, pair: bool) -> tuple[TokenSequence, ...]:
    """The prompt, with the last token that all answers share, and each answer without it."""
    prefix, *branches = example[BRANCHES]
    ids, starts = example["input_ids"], [prefix]
    for length in branches[:-1]:
        starts.append(starts[-1] + length)
    shared = int(len({ids[start] for start in starts}) == 1)
    prompt = [*ids[:prefix], *ids[prefix : prefix + shared]]
    found = [TokenSequence(name=PROMPT, ids=prompt, supervised=[False] * len(prompt))] if prompt else []
    names = [CHOSEN, REJECTED] if pair and len(branches) == 2 else [f"answer {n + 1}" for n in range(len(branches))]
    for n, (name, start, length) in enumerate(zip(names, starts, branches, strict=True)):
        own = slice(start + shared, start + length)
        mask = [label != IGNORE_INDEX for label in example["labels"][own]]
        repeated = shared if n else 0
        found.append(TokenSequence(name=name, ids=ids[own], supervised=mask, start=len(prompt), repeated=repeated))
    return tuple(found)


def _split(chosen: TokenSequence, rejected: TokenSequence) -> tuple[TokenSequence, ...]:
    """The tokens before the first supervised one that two sequences share, and the rest of each."""
    both = zip(chosen.ids, rejected.ids, chosen.supervised, rejected.supervised, strict=False)
    most = min(len(chosen.ids), len(rejected.ids))
    shared = next((i for i, (a, b, one, other) in enumerate(both) if a != b or one or other), most)
    rests = [
        TokenSequence(name=name, ids=s.ids[shared:], supervised=s.supervised[shared:], start=shared, repeated=repeated)
        for name, s, repeated in ((CHOSEN, chosen, 0), (REJECTED, rejected, shared))
    ]
    prompt = TokenSequence(name=PROMPT, ids=chosen.ids[:shared], supervised=[False] * shared)
    return (prompt, *rests) if shared else tuple(rests)
