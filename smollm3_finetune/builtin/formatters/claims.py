"""Which bundled formatter recognizes a row, decided by its columns. Imported at every plugin discovery, so kept light.

Ranks decide if a row matches several formatters. Preference pairs come first, because the other columns only repeat
the better conversation. Prompt and completion come after lists of turns, because they often repeat the first question
and answer of such a list. Raw text comes last, because other formats may have a rendered copy in a `text` column.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

TURN_COLUMNS = ("messages", "conversation", "conversations")
"""The columns that can hold a list of turns, or one as JSON text. The first that does is read."""
PREFERENCE_COLUMNS = (
    ("chosen", "rejected"),
    ("chosen_messages", "rejected_messages"),
    ("chosen_response", "rejected_response"),
    ("preferred_output", "non_preferred_output"),
    ("response_j", "response_k"),
)
"""The columns of the better and of the worse answer. The first pair with two values is read."""
REJECTED_ONLY = ("rejected_response", "rejected_messages")
"""The columns of a worse answer whose better one ends the list of turns of the row."""
QUESTION_COLUMNS = ("prompt", "instruction", "question")
"""The columns of the prompt of a pair. The first with a value is read."""
RANKED_COLUMNS = ("completions", "responses", "answers", "generations")
"""The columns that can hold a list of scored answers to one prompt."""
ANSWER_KEYS = ("response", "completion", "answer", "content", "text")
"""The keys of the text of a scored answer."""
SCORE_KEYS = {"overall_score": 1, "score": 1, "rating": 1, "reward": 1, "rank": -1}
"""The keys of the score of an answer: 1 if the highest is best, -1 if the lowest is."""
SCORE_LISTS = {"scores": 1, "ratings": 1, "rating": 1, "rewards": 1, "ranks": -1, "rank": -1}
"""The columns that can hold the scores of the answers in another column."""
PREFERENCE_RANK = 10
PROMPT_COMPLETION_RANK = -5
TEXT_RANK = -10


def turn_list(row: Mapping[str, Any]) -> tuple[str, Sequence[Any]] | None:
    """(column, turns) of the row; None if no column holds turns."""
    lists = ((column, as_list(row.get(column))) for column in TURN_COLUMNS)
    return next(((column, turns) for column, turns in lists if turns is not None), None)


def looks_like_list(value: Any) -> bool:
    """Whether a value is text that may be a JSON list, the only form of a list in a CSV column."""
    return isinstance(value, str) and value.lstrip().startswith("[")


def as_list(value: Any) -> Sequence[Any] | None:
    """A list, or one as JSON text; None for anything else."""
    if looks_like_list(value):
        from smollm3_finetune.files.limits import parse_json  # only here: this module is imported by --help

        try:
            value = parse_json(value)
        except ValueError:
            return None
    return value if isinstance(value, list | tuple) else None


def uses_from(turns: Sequence[Any], default: bool) -> bool:
    """Whether turns use `from` (sharegpt) instead of `role`; `default` if the first turn does not decide it."""
    first = next(iter(turns), None)
    if not isinstance(first, Mapping) or ("from" in first) == ("role" in first):
        return default
    return "from" in first


def _is_sharegpt(row: Mapping[str, Any]) -> bool | None:
    """Whether the turns of the row are in ShareGPT format; None if it has no turns."""
    found = turn_list(row)
    return None if found is None else uses_from(found[1], default=found[0] == "conversations")


def messages(row: Mapping[str, Any]) -> bool:
    return _is_sharegpt(row) is False


def sharegpt(row: Mapping[str, Any]) -> bool:
    return _is_sharegpt(row) is True


def alpaca(row: Mapping[str, Any]) -> bool:
    return "instruction" in row and "output" in row


def prompt_completion(row: Mapping[str, Any]) -> bool:
    return "prompt" in row and ("completion" in row or "response" in row)


def preference_columns(row: Mapping[str, Any]) -> tuple[str, str] | None:
    """The columns of the better and the worse answer; None if the row is not a pair.

    Both must have a value: in a table of mixed rows they are empty for rows that are not pairs.
    """
    pairs = (pair for pair in PREFERENCE_COLUMNS if all(row.get(column) is not None for column in pair))
    return next(pairs, None)


def rejected_only(row: Mapping[str, Any]) -> str | None:
    """The column of a worse answer, if the better one ends the list of turns of the row; None if there is none."""
    column = next((c for c in REJECTED_ONLY if row.get(c) is not None), None)
    return column if column is not None and turn_list(row) is not None else None


def ranked_columns(row: Mapping[str, Any], least: int = 2) -> tuple[str, str | None, str] | None:
    """Where a row has a list of answers with scores: its column, the key of each answer's text, and where scores are.

    The key is None if the answers are not objects; the scores are then in another column, else under a key of each
    answer. None if the row has no such list of `least` answers, or if another column has the answer to train on.
    """
    if any(row.get(column) is not None for column in ("output", "completion", "response")) or _ends_in_answer(row):
        return None
    for column in RANKED_COLUMNS:
        answers = as_list(row.get(column))
        if answers is None or len(answers) < least:
            continue
        first = next(iter(answers), None)
        if isinstance(first, Mapping) and "role" not in first:
            key = next((k for k in ANSWER_KEYS if k in first), None)
            score = next((k for k in SCORE_KEYS if k in first), None)
            if key is not None and score is not None:
                return column, key, score
        for scores in SCORE_LISTS:
            values = as_list(row.get(scores))
            if values is not None and len(values) == len(answers):
                return column, None, scores
        if not answers:
            return column, None, column
    return None


def _ends_in_answer(row: Mapping[str, Any]) -> bool:
    """Whether the list of turns of a row ends with an answer, so that it is a conversation and not a prompt."""
    found = turn_list(row)
    last = found[1][-1] if found is not None and found[1] else None
    role = last.get("role", last.get("from")) if isinstance(last, Mapping) else None
    return role in ("assistant", "gpt", "model", "bot", "chatgpt")


def preference(row: Mapping[str, Any]) -> bool:
    finders = (preference_columns, rejected_only, ranked_columns)
    return any(find(row) is not None for find in finders)


def text(row: Mapping[str, Any]) -> bool:
    return isinstance(row.get("text"), str)
