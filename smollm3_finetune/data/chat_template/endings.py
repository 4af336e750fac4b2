"""How a chat template ends the assistant's turns, found by rendering a probe once for each renderer.

Some templates end the last turn with another token than the turns before it (Phi, gpt-oss). Some end no turn (GLM): a
model that is trained on their text alone never learns to stop.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smollm3_finetune.errors import DataError
from smollm3_finetune.model_files.stops import stated_stops

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROBE = "zq?qz"
"""A placeholder for any message text."""
TAG = re.compile(r"<[^<>\s]+>|\[[^\[\]\s]+\]")
"""A marker such as <|end|>, </s> or [/INST], which may or may not be a single token of the tokenizer."""
PART_OF_A_TAG = re.compile(r"[<\[][^<>\[\]\s]*\Z")
CALL = {"type": "function", "function": {"name": "a", "arguments": {}}}

Render = Callable[[Sequence[Mapping[str, Any]], Mapping[str, Any]], str]


class Endings:
    """The text with which a template ends a turn."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, render: Render) -> None:
        self.tokenizer, self.render = tokenizer, render

    def _probed(self, *messages: Mapping[str, Any]) -> str | None:
        """The text after PROBE, the last of which is in the last message; None if the template refuses these roles."""
        try:
            _, probe, after = self.render(messages, {}).rpartition(PROBE)
        except DataError:
            return None
        return after if probe else None

    @cached_property
    def last(self) -> str | None:
        """The text after the words of an answer that is the last message."""
        return self._probed({"role": "user", "content": "a"}, {"role": "assistant", "content": PROBE})

    @cached_property
    def user(self) -> str | None:
        """The text after the words of a user message that is the last one."""
        return self._probed({"role": "user", "content": PROBE})

    @cached_property
    def none(self) -> bool:
        """Whether the template ends no turn."""
        return self.last is not None and not self.last.strip()

    def next_stop(self, *, after_call: bool) -> str | None:
        """The first token of the header that follows a turn, if generation of the base model stops at it."""
        return self._after_call if after_call else self._after_answer

    @cached_property
    def _after_answer(self) -> str | None:
        return self._stop_in({"role": "assistant", "content": PROBE}, {"role": "user", "content": "a"})

    @cached_property
    def _after_call(self) -> str | None:
        call = {"role": "assistant", "content": PROBE, "tool_calls": [CALL]}
        return self._stop_in(call, {"role": "tool", "content": "a"}) or self._after_answer

    def _stop_in(self, turn: Mapping[str, Any], following: Mapping[str, Any]) -> str | None:
        messages = [{"role": "user", "content": "a"}, turn]
        try:
            alone, both = self.render(messages, {}), self.render([*messages, following], {})
        except DataError:
            return None
        header = both.removeprefix(alone) if both.startswith(alone) else ""
        return next((stop for stop in self.stops if header.startswith(stop)), None)

    @cached_property
    def stops(self) -> list[str]:
        """The tokens at which generation of the base model stops, except the tokenizer's end, from its files."""
        ids = [i for i in self.stop_ids if i != self.tokenizer.eos_token_id]
        return [t for t in self.tokenizer.convert_ids_to_tokens(ids) if isinstance(t, str) and t]

    @cached_property
    def stop_ids(self) -> list[int]:
        """The ids of the tokens at which generation of the base model stops, from its files."""
        return stated_stops(Path(str(self.tokenizer.name_or_path)))

    def added(self, *, after_call: bool) -> str:
        """The text that is added to a last turn without an end; empty if the tokenizer has no end token either."""
        return self.next_stop(after_call=after_call) or str(self.tokenizer.eos_token or "")

    def of_earlier_turn(self, text: str, after: str) -> int | None:
        """Where a turn ends in `text`, whose rendering up to it, `after`, differs; None if its own words differ.

        The differing part must be in the end of the turn: `<|end|><|endoftext|>` for `<|end|><|user|>`, or `<|return|>`
        for `<|end|>`.
        """
        if not self.last or not after.endswith(self.last):
            return None
        words = len(after) - len(self.last)
        same = common_prefix(text, after)
        if same < words:
            return None
        same = max(words, same - len(_partial(text[words:same])))
        if text[words:same].strip():
            return words + len(text[words:same].rstrip("\n"))
        tag = TAG.match(text, words)  # it must be an end, not the next header
        return tag.end() if tag and self.user is not None and self.user.startswith(tag[0]) else None


def _partial(text: str) -> str:
    found = PART_OF_A_TAG.search(text)
    return found[0] if found else ""


def common_prefix(one: str, other: str) -> int:
    """The number of characters that two texts begin with in common."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[:middle] == other[:middle] else (low, middle - 1)
    return low
