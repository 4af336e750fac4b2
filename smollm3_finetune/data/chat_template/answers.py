"""Where the assistant's answers are in a rendered text.

The mask of a turn starts after the tokens that the generation prompt supplies. It is computed from prefixes: the
rendering before a turn, with the generation prompt, must be a prefix of the rendering with that turn. A prompt that
opens the reasoning trace (`<think>`) often is not, because the template cuts the trace from the answer: the trace is
then put behind the prompt, where the model writes it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from smollm3_finetune.data.chat_template.reasoning import BLOCKS, traces

OPENED = re.compile(r"<think>\s*\Z")
CLOSE = "</think>"


@dataclass(frozen=True)
class LastAnswer:
    """A rendered text that ends with an answer, and where the answer begins."""

    text: str
    start: int


def continued(before: str, after: str, message: Mapping[str, Any]) -> LastAnswer | None:
    """The text with the answer `message` behind the prompt `before`; `after` is the template's rendering with it.

    None if the model would not write `after` with this prompt, and the reasoning does not make up the difference.
    """
    opened = OPENED.search(before)
    if after.startswith(before) and not (opened and BLOCKS.match(after, len(before))):
        return LastAnswer(after, len(before))
    if opened is None:
        return None
    head = before if after.startswith(before) else before[: opened.start()]
    trace = "\n".join(traces(message))
    if not trace or not after.startswith(head):
        return None
    rest = after[len(head) :]
    shown = BLOCKS.match(rest)
    if shown:
        rest = rest[shown.end() :]
    if opened[0].endswith("\n"):
        written = f"{trace}\n{CLOSE}\n\n" + rest.removeprefix(CLOSE).lstrip("\n")
    else:
        written = f"{trace}{CLOSE}" + rest.removeprefix(CLOSE)
    return LastAnswer(before + written, len(before))
