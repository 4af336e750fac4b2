"""Rows with a better and a worse answer, for objectives that compare them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from smollm3_finetune.api import Conversation, NoOptions
from smollm3_finetune.builtin.formatters.claims import (
    PREFERENCE_COLUMNS,
    QUESTION_COLUMNS,
    RANKED_COLUMNS,
    REJECTED_ONLY,
    SCORE_LISTS,
    TURN_COLUMNS,
    preference_columns,
    ranked_columns,
    rejected_only,
    turn_list,
    uses_from,
)
from smollm3_finetune.builtin.formatters.columns import CHAT_COLUMNS, conversation, with_system
from smollm3_finetune.builtin.formatters.question import question_turns
from smollm3_finetune.builtin.formatters.scores import PAIR_COLUMNS, ranked, scored_alike
from smollm3_finetune.builtin.formatters.supervised_turns import supervised
from smollm3_finetune.builtin.formatters.transcripts import asked, is_transcript, transcript
from smollm3_finetune.builtin.formatters.turns import Turn, read_turns, text_turn
from smollm3_finetune.builtin.formatters.unread import refuse_media
from smollm3_finetune.builtin.options import PreferenceOptions
from smollm3_finetune.files.json import has_value, json_type

ANSWER_COLUMNS = tuple(column for pair in PREFERENCE_COLUMNS for column in pair)
EQUAL = "the answers are equal"
EMPTY = "an answer is empty"
NO_PROMPT = "the answers share no prompt"
OTHER_PROMPT = "the answers do not begin with the prompt"
NO_TURNS = "the transcript does not alternate between Human and Assistant"


@dataclass
class Pair:
    """The two answers of a row, as they are in the row."""

    better: Any
    """None if a list of answers has no scores."""
    better_at: str
    """Its place in the row."""
    worse: Any
    worse_at: str
    read: set[str]
    """The columns that are read."""
    why: str = ""
    """Why they are not a pair; else empty."""
    unread: tuple[str, ...] = ()
    prompt: list[Turn] = field(default_factory=list)
    """The messages before both answers."""
    mismatch: str = ""
    """Why the prompt or the turns of an answer are not those of a pair; else empty."""


class PreferenceFormatter:
    """`{"prompt": "…", "chosen": "…", "rejected": "…"}`

    The answers can have other names, or be a list of answers with scores, of which the best and the worst are taken.
    Each is text, a message, or a list of messages (`role` and `content`, or `from` and `value`). An answer that begins
    with an assistant message continues the prompt. Any other answer is a whole conversation, which must contain the
    prompt. The prompt may be called `instruction` or `question`; to one that is text, `input` and `history` are added
    as in `alpaca` rows. Without a prompt, it is the shared beginning of the two conversations; if the answers are
    text or single messages, it can also be in `conversations`. The supervised messages are those after the shared
    ones. A row whose answers are equal, empty, scored alike or without a shared prompt has no rejected answer, and the
    reason is counted. Optional columns: `system` or `system_prompt`, `tools`, `chat_template_kwargs`, `label` (false:
    the row is left out) and `weight` (0, too).
    """

    def __init__(self, options: PreferenceOptions | NoOptions) -> None:
        self.options = options if isinstance(options, PreferenceOptions) else PreferenceOptions()
        answers = {*ANSWER_COLUMNS, *RANKED_COLUMNS, *SCORE_LISTS, *PAIR_COLUMNS}
        self.own = {*answers, *QUESTION_COLUMNS, *TURN_COLUMNS, self.options.input, "input", "context", "history"}
        self.columns = CHAT_COLUMNS | self.own

    def __call__(self, row: Mapping[str, Any]) -> Conversation:
        refuse_media(row)
        pair = _pair(row)
        self._add_prompt(row, pair)
        if pair.better is None and pair.why:
            return self._conversation(row, pair, with_system(pair.prompt, row), None, (), pair.why)
        sides = (_whole(pair, pair.better, pair.better_at), _whole(pair, pair.worse, pair.worse_at))
        better, worse = (with_system(side, row) for side in sides)
        shared = _count_shared(better, worse)
        why = _reason(pair, better, worse, shared)
        masked = [f"{pair.worse_at}[].weight" for t in worse[shared:] if t.weight == 0]
        pair.unread = (*pair.unread, *masked[:1])
        trained = supervised(better, after=shared) if _has_answer(better, shared) else ()
        return self._conversation(row, pair, better, worse, trained, why)

    def _conversation(
        self, row: Mapping[str, Any], pair: Pair, better: list[Turn], worse: list[Turn] | None,
        trained: tuple[int, ...] | None, why: str,
    ) -> Conversation:  # fmt: skip
        return conversation(
            _with_tools(row, pair),
            better,
            rejected=None if why else worse,
            supervised=trained,
            columns=self.columns,
            not_here=[c for c in row if c in self.own and c not in pair.read],
            unread=pair.unread,
            lacks={"rejected": why} if why else {},
        )

    def _add_prompt(self, row: Mapping[str, Any], pair: Pair) -> None:
        """Set the messages before the answers, and add their columns to those that are read."""
        if pair.prompt:
            return
        named = [c for c in QUESTION_COLUMNS if row.get(c) is not None]
        if named:
            column = next((c for c in named if has_value(row[c])), named[0])
            value = row[column]
            if isinstance(value, list | tuple):
                pair.prompt = _turns(value, column)
            elif isinstance(value, str) and (turns := asked(value, column)) is not None:
                pair.prompt = turns
            else:
                pair.prompt = question_turns(row, column, self.options.input)
                pair.read |= {self.options.input, "history"}
            pair.read.add(column)
        elif (column_of := _prompt_list(row, pair)) is not None:
            pair.prompt = column_of[1]
            pair.read.add(column_of[0])


def _pair(row: Mapping[str, Any]) -> Pair:
    """The two answers of a row."""
    columns = preference_columns(row)
    if columns is None and (worse := rejected_only(row)) is not None:
        return _ending_in_better(row, worse)
    if columns is None and (found := ranked_columns(row, least=0)) is not None:
        best = ranked(row, *found)
        read = {found[0], *([found[2]] if found[1] is None else [])}
        return Pair(best.better, best.better_at, best.worse, best.worse_at, read, best.why, best.unread)
    better, worse = columns or PREFERENCE_COLUMNS[0]
    why, read = scored_alike(row)
    pair = Pair(row.get(better), better, row.get(worse), worse, {better, worse, *read}, why)
    about = row.get("input")
    if better == "preferred_output" and isinstance(about, Mapping):
        pair.prompt = _turns(about.get("messages"), "input.messages")
        pair.unread = tuple(f"input.{k}" for k, v in about.items() if k not in ("messages", "tools") and has_value(v))
        pair.read.add("input")
    return pair


def _ending_in_better(row: Mapping[str, Any], worse: str) -> Pair:
    """The answers of a row whose list of turns ends with the better one."""
    column, value = turn_list(row) or (TURN_COLUMNS[0], ())
    turns = _turns(value, column)
    last = next((i for i in reversed(range(len(turns))) if turns[i].role not in ("assistant", "tool")), -1) + 1
    if last == len(turns):
        raise ValueError(f"{turns[-1].where}: the last message of {column!r} must be from the assistant")
    pair = Pair(turns[last:], column, row[worse], worse, {column, worse}, prompt=turns[:last])
    if worse == REJECTED_ONLY[0] and isinstance(row[worse], str):
        pair.better, pair.prompt = turns[-1:], turns[:-1]  # it replaces the last message
    return pair


def _prompt_list(row: Mapping[str, Any], pair: Pair) -> tuple[str, list[Turn]] | None:
    """The column with the messages before the answers, and these; None if the answers are whole conversations."""
    if not _continues(pair.better):
        return None
    context = row.get("context")
    if isinstance(context, list | tuple):
        return "context", _turns(context, "context")
    if (found := turn_list(row)) is None or found[0] in (pair.better_at, pair.worse_at):
        return None
    turns = _turns(found[1], found[0])
    words = pair.better if isinstance(pair.better, str) else None
    if turns[-1].role == "assistant" and turns[-1].message["content"] == words:
        turns.pop()  # the list repeats the better answer
    return found[0], turns


def _continues(answer: Any) -> bool:
    """Whether an answer is only that, and not a whole conversation."""
    if isinstance(answer, str):
        return not is_transcript(answer)
    first = next(iter(answer), None) if isinstance(answer, list | tuple) else answer
    return isinstance(first, Mapping) and _turns([first], "answer")[0].role == "assistant"


def _whole(pair: Pair, value: Any, where: str) -> list[Turn]:
    """The conversation that ends with an answer."""
    answer = _answer(pair, value, where)
    if answer[-1].role != "assistant" and not pair.mismatch:
        raise ValueError(f"{answer[-1].where}: the last message of {where!r} must be from the assistant")
    prompt = pair.prompt
    if not prompt or answer[0].role in ("assistant", "tool"):
        return [*prompt, *answer]
    messages = [t.message for t in answer]
    begin = [t.message for t in prompt]
    if messages[0]["role"] == "system" and begin[0]["role"] != "system":
        begin = [messages[0], *begin]
    repeated = len(prompt) == 1 and any(
        m["role"] == "user" and str(m["content"]).strip() == str(prompt[0].message["content"]).strip() for m in messages
    )
    if begin != messages[: len(begin)] and not repeated:
        pair.mismatch = pair.mismatch or OTHER_PROMPT
    return answer


def _answer(pair: Pair, value: Any, where: str) -> list[Turn]:
    if isinstance(value, list) and value and isinstance(value[0], Turn):
        return value
    if isinstance(value, Mapping | list | tuple):
        return _turns([value] if isinstance(value, Mapping) else value, where)
    if not isinstance(value, str):
        raise ValueError(f"{where!r} must be text or a list of messages, found {json_type(value)}")
    if not pair.prompt and is_transcript(value):
        turns, alternate = transcript(value, where)
        pair.mismatch = pair.mismatch or ("" if alternate else NO_TURNS)
        return turns
    if not pair.prompt:
        raise ValueError(f"{where!r} is text, so the question must be in 'prompt', which is missing")
    return [text_turn("assistant", value, where)]


def _turns(value: Any, column: str) -> list[Turn]:
    if isinstance(value, list | tuple) and uses_from(value, default=False):
        return read_turns(value, column, role="from", content="value")
    return read_turns(value, column)


def _reason(pair: Pair, better: Sequence[Turn], worse: Sequence[Turn], shared: int) -> str:
    """Why the two conversations are not a pair; empty if they are."""
    if pair.mismatch or pair.why:
        return pair.mismatch or pair.why
    if [t.message for t in better] == [t.message for t in worse]:
        return EQUAL
    if all(t.role == "system" for t in better[:shared]):
        return NO_PROMPT
    if not (_has_answer(better, shared) and _has_answer(worse, shared)):
        return EMPTY
    return ""


def _has_answer(turns: Sequence[Turn], shared: int) -> bool:
    return any(t.role == "assistant" and not t.empty for t in turns[shared:])


def _count_shared(better: Sequence[Turn], worse: Sequence[Turn]) -> int:
    """The number of equal messages at the start; at least the last message of each is not counted."""
    most = min(len(better), len(worse)) - 1
    return next((i for i in range(most) if better[i].message != worse[i].message), most)


def _with_tools(row: Mapping[str, Any], pair: Pair) -> Mapping[str, Any]:
    """The row with the tools that OpenAI's format has inside `input`."""
    about = row.get("input")
    if "input" not in pair.read or not isinstance(about, Mapping) or not has_value(about.get("tools")):
        return row
    return {**row, "tools": about["tools"]}
