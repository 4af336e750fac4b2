"""The formatter: turns a support ticket into a conversation between a customer and an assistant.

    {"subject": "Cannot log in", "status": "solved", "rating": "good", "thread": [
        {"from": "customer", "text": "My badge is refused."}, {"from": "agent", "text": "Renew it at the desk."}]}

Internal notes (`"internal": true`) are dropped. Messages of one side that follow each other become one. A ticket with
`"rating": "bad"` is labeled as a bad answer: `sft` leaves it out, `kto` uses it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from smollm3_finetune.api import Conversation
from smollm3_tickets.options import TicketsOptions

EMAIL = re.compile(r"[\w.+-]{1,64}@[\w-]+(?:\.[\w-]+)+")
NUMBER = re.compile(r"\+?\d(?:[ ./-]?\d){5,}")
READ = {"from", "text", "internal"}
RATINGS = {"good": True, "bad": False, None: None}


class TicketsFormatter:
    columns = ("subject", "thread", "status", "rating")

    def __init__(self, options: TicketsOptions) -> None:
        self.options = options

    def __call__(self, row: Mapping[str, Any]) -> Conversation:
        """Convert a ticket. Raises ValueError if it is damaged; smollm3 adds file and line to the message."""
        thread, rating, status = row.get("thread"), row.get("rating"), row.get("status")
        if not isinstance(thread, list) or not thread:
            raise ValueError(f"the column 'thread' must hold a list of messages, got {thread!r}")
        if not (rating is None or isinstance(rating, str)) or rating not in RATINGS:
            raise ValueError(f'the column \'rating\' must be "good", "bad" or null, got {rating!r}')
        turns = [] if self.options.system is None else [{"role": "system", "content": self.options.system}]
        unread: set[str] = set()
        for number, message in enumerate(thread, 1):
            role, content = self._turn(message, number)
            unread |= {f"thread[].{key}" for key in message if key not in READ}
            if message.get("internal"):
                continue
            if turns and turns[-1]["role"] == role:
                turns[-1]["content"] += f"\n\n{content}"
            else:
                turns.append({"role": role, "content": content})
        subject = row.get("subject")
        if not isinstance(subject, str):
            raise ValueError(f"the column 'subject' must hold text, got {subject!r}")
        first = next((turn for turn in turns if turn["role"] == "user"), None)
        if first is None or not any(turn["role"] == "assistant" for turn in turns):
            raise ValueError("the thread must have a message of the customer and an answer")
        if subject.strip():
            first["content"] = f"{self._clean(subject)}\n\n{first['content']}"
        left_out = bool(self.options.statuses) and status not in self.options.statuses
        return Conversation(
            messages=tuple(turns),
            supervised=() if left_out else None,
            desirable=RATINGS[rating],
            unread=tuple(sorted(unread)),
        )

    def _turn(self, message: Any, number: int) -> tuple[str, str]:
        """The role and the text of the message with this number."""
        sender, text = (message.get("from"), message.get("text")) if isinstance(message, Mapping) else (None, None)
        if not isinstance(sender, str) or not isinstance(text, str) or not text.strip():
            raise ValueError(f"message {number} of the thread must have text in 'from' and 'text', got {message!r}")
        return "assistant" if sender in self.options.agents else "user", self._clean(text)

    def _clean(self, text: str) -> str:
        if self.options.redact:
            text = NUMBER.sub("[number]", EMAIL.sub("[email]", text))
        return text.strip()
