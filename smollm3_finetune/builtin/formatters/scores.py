"""The scores of answers: those of a pair, and those of a list of answers to one prompt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from smollm3_finetune.builtin.formatters.claims import SCORE_KEYS, SCORE_LISTS, as_list
from smollm3_finetune.files.json import has_value

PAIR_SCORES = {
    ("chosen_score", "rejected_score"): 1,
    ("score_chosen", "score_rejected"): 1,
    ("chosen_rating", "rejected_rating"): 1,
    ("chosen-rating", "rejected-rating"): 1,
    ("chosen_avg_rating", "rejected_avg_rating"): 1,
    ("chosen_reward", "rejected_reward"): 1,
    ("chosen_rank", "rejected_rank"): -1,
}
"""The columns that can hold the scores of a pair: 1 if the highest is best, -1 if the lowest is."""
PAIR_COLUMNS = frozenset(column for pair in PAIR_SCORES for column in pair)


def scored_alike(row: Mapping[str, Any]) -> tuple[str, set[str]]:
    """Why the scores of a pair do not make the chosen answer the better one, or nothing; and the columns read."""
    if PAIR_COLUMNS.isdisjoint(row):
        return "", set()
    read: set[str] = set()
    for (better, worse), sign in PAIR_SCORES.items():
        one, other = number(row.get(better)), number(row.get(worse))
        if one is None or other is None:
            continue
        read |= {better, worse}
        if one == other:
            return f"{better} equals {worse}", read
        if sign * one < sign * other:
            return f"{better} and {worse} favor the rejected answer", read
    return "", read


@dataclass(frozen=True)
class Ranked:
    """The best and the worst of a list of answers."""

    better: Any
    """None if no answer has a score."""
    better_at: str
    """Its place in the row: `completions[2]`."""
    worse: Any
    worse_at: str
    why: str
    """Why they are not a pair; else empty."""
    unread: tuple[str, ...]
    """Keys of the two answers that have a value and are not read."""


def ranked(row: Mapping[str, Any], column: str, key: str | None, scores: str) -> Ranked:
    """The first answer with the best score and the first with the worst; answers without a score are not considered."""
    answers = list(as_list(row[column]) or ())
    if key is None:
        values, sign, keys = list(as_list(row[scores]) or ()), SCORE_LISTS.get(scores, 1), set[str]()
    else:
        sign, keys = SCORE_KEYS[scores], {key, scores}
        values = [a.get(scores) if isinstance(a, Mapping) else None for a in answers]
    found = [(sign * n, i) for i, value in enumerate(values) if (n := number(value)) is not None]
    if not found:
        return Ranked(None, column, None, column, f"no answer in {column} has a score", ())
    best, worst = max(n for n, _ in found), min(n for n, _ in found)
    one, other = (next(i for n, i in found if n == value) for value in (best, worst))
    why = (
        f"only one answer in {column} has a score"
        if len(found) == 1
        else f"the scores of {column} are equal"
        if best == worst
        else ""
    )
    texts, unread = answers, set[str]()
    if key is not None:
        texts = [a.get(key) if isinstance(a, Mapping) else a for a in answers]
        unread = {k for i in {one, other} for k, v in answers[i].items() if k not in keys and has_value(v)}
    keys_unread = tuple(f"{column}[].{k}" for k in sorted(unread))
    return Ranked(texts[one], f"{column}[{one}]", texts[other], f"{column}[{other}]", why, keys_unread)


def number(value: Any) -> float | None:
    """A finite number, or one as text; None for anything else, such as `N/A`."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        found = float(value)
    except (ValueError, OverflowError):
        return None
    return found if abs(found) < float("inf") else None
