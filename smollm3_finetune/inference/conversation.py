"""The history of a chat: a system message and turns, as the messages that a prompt and a training row have."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Turn:
    """A message of the user and the answer to it."""

    prompt: str
    answer: str
    """With its reasoning, as the model wrote it."""
    whole: bool = True
    """False if the answer was cut: by its user, or at a limit of tokens."""


@dataclass
class History:
    """The turns so far."""

    system: str | None = None
    turns: list[Turn] = field(default_factory=list)

    def messages(self, prompt: str | None = None) -> list[dict[str, Any]]:
        """All messages, and `prompt` as the last one."""
        found = [{"role": "system", "content": self.system}] if self.system else []
        for turn in self.turns:
            found += [{"role": "user", "content": turn.prompt}, {"role": "assistant", "content": turn.answer}]
        return found + ([{"role": "user", "content": prompt}] if prompt is not None else [])

    def row(self) -> dict[str, Any]:
        """A row of training data. Answers that were cut are masked: a model must not learn to end there."""
        messages = self.messages()
        answers = (m for m in messages if m["role"] == "assistant")
        for message, turn in zip(answers, self.turns, strict=True):
            if not turn.whole:
                message["train"] = False
        return {"messages": messages}
