"""How many answers and tool calls of the rows are trained on, and how many are not."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from smollm3_finetune.api import Conversation
from smollm3_finetune.data.counts import counted

TOLERATED = 0.1
"""The share of answers, or of tool calls, above which a warning is printed."""


@dataclass(kw_only=True)
class Shares:
    """Counts of the answers and tool calls that rows give to train on. An answer with tool calls counts as both."""

    answers: int = 0
    answers_missed: int = 0
    """Answers without a supervised token in any example: rewritten by the template, cut, stripped or empty."""
    tool_calls: int = 0
    tool_calls_missed: int = 0

    def add(self, other: Shares) -> None:
        self.answers += other.answers
        self.answers_missed += other.answers_missed
        self.tool_calls += other.tool_calls
        self.tool_calls_missed += other.tool_calls_missed

    def sentence(self) -> str:
        """What is not trained on, such as `8 of 8 tool calls and 8 of 16 answers are not trained on`; may be empty."""
        kinds = [
            f"{missed:,} of {counted(total, name)}"
            for missed, total, name in (
                (self.tool_calls_missed, self.tool_calls, "tool call"),
                (self.answers_missed, self.answers, "answer"),
            )
            if missed
        ]
        one = self.answers_missed + self.tool_calls_missed == 1
        return f"{' and '.join(kinds)} {'is' if one else 'are'} not trained on" if kinds else ""

    @property
    def many(self) -> bool:
        """Whether more is missed than is tolerated without a warning."""
        return self.answers_missed > TOLERATED * self.answers or self.tool_calls_missed > TOLERATED * self.tool_calls


def shares(conversation: Conversation, trained: Iterable[int]) -> Shares:
    """The counts of one row, whose messages `trained` have supervised tokens."""
    found, known = Shares(), set(trained)
    for i in set(conversation.supervised_messages() if conversation.text is None else ()):
        message = conversation.messages[i]
        if message["role"] == "assistant":
            calls = len(message.get("tool_calls") or ())
            missed = i not in known
            found.add(Shares(answers=1, answers_missed=int(missed), tool_calls=calls, tool_calls_missed=calls * missed))
    return found
