"""Conversations as text and as token ids, with a mask over what the assistant itself must produce.

The mask of a turn begins after the tokens that the generation prompt supplies (the header and, in some modes, a
forced empty think block) and ends with the end-of-turn token. It is found from the template's own prefixes: the
rendering up to a turn with the generation prompt must be a prefix of the rendering with that turn. A turn for which
this does not hold (templates that cut earlier reasoning) is not learned from.
"""

from __future__ import annotations

import datetime
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from smollm3_finetune.api import Conversation
from smollm3_finetune.data.reasoning import has_trace, without_trace
from smollm3_finetune.errors import DataError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
"""The label of a token that no loss looks at (torch.nn.functional.cross_entropy's default)."""
FIXED_DATE = "2026-01-01"
MODE_FLAG = re.compile(r"(?<!\S)(/think|/no_think|/system_override)(?!\S)|(/think|/no_think|/system_override)")
GUARD = "\ue000"
"""A private-use character put into what only looks like a mode flag while the template runs, and taken out after."""


@dataclass(frozen=True, kw_only=True)
class RenderOptions:
    """How conversations become text."""

    template: str | None = None
    """A chat template instead of the tokenizer's own."""
    enable_thinking: bool | None = None
    """The reasoning mode of rows that do not state one; None: think for a row with a trace, else not."""
    history: Literal["keep", "strip"] = "keep"
    """What happens to the reasoning of answers before the last user message."""
    date: str | None = FIXED_DATE
    """What templates are told is today, YYYY-MM-DD, so that a run does not depend on its day; None: today."""


@dataclass
class Encoded:
    """A conversation as tokens."""

    input_ids: list[int]
    labels: list[int]
    """IGNORED outside what is learned."""
    length: int = 0
    """Tokens before anything was cut."""
    notes: list[str] = field(default_factory=list)
    """What was changed on the way: `trace stripped`, `turn rewritten by the template`, `cut`."""


def check_template(tokenizer: PreTrainedTokenizerBase, ref: str, template: str | None = None) -> None:
    """Raises ModelError where there is no chat template."""
    if not (template or tokenizer.chat_template):
        raise ModelError(
            f"the tokenizer of {ref!r} has no chat template",
            hint="use the model's -Instruct variant, or --set data.template=FILE.jinja",
        )


class Renderer:
    """Renders conversations with one tokenizer, template and set of options."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, options: RenderOptions = RenderOptions()) -> None:
        self.tokenizer = tokenizer
        self.options = options
        own = tokenizer.chat_template
        text = options.template or (own if isinstance(own, str) else str((own or {}).get("default", "")))
        self.template = text
        self.knows_modes = "enable_thinking" in text
        self.counts: Counter[str] = Counter()
        """How often each note was made, over all conversations encoded so far."""

    def prompt(self, messages: Sequence[Mapping[str, Any]], **template_kwargs: Any) -> str:
        """What a model is given to answer the last message."""
        conversation = Conversation(messages=tuple(messages), template_kwargs=template_kwargs)
        return self._render(conversation, [_guarded(m) for m in messages], prompt=True)

    def spans(self, conversation: Conversation) -> tuple[str, list[tuple[int, int]], list[str]]:
        """The rendered text, the (start, end) characters to learn, and notes on what was changed.

        Raises DataError where the template refuses the conversation or would drop a part of it.
        """
        if conversation.text is not None:
            return conversation.text, [(0, len(conversation.text))], []
        conversation, learned, notes = self._prepared(conversation)
        messages = [_guarded(m) for m in conversation.messages]
        self._check_nothing_dropped(conversation, messages)
        text = self._render(conversation, messages)
        spans = []
        for i in learned:
            before = self._render(conversation, messages[:i], prompt=True)
            after = self._render(conversation, messages[: i + 1])
            if after.startswith(before) and text.startswith(after):
                spans.append((len(before), len(after.rstrip("\n"))))
            else:
                notes.append("turn rewritten by the template")
        return text, spans, notes

    def encode(self, conversation: Conversation, max_length: int) -> Encoded:
        """Token ids and labels of a conversation, cut to `max_length` tokens."""
        text, spans, notes = self.spans(conversation)
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids: list[int] = list(encoded["input_ids"])
        labels = [IGNORED] * len(ids)
        turn = 0
        for t, (start, end) in enumerate(encoded["offset_mapping"]):
            while turn < len(spans) and spans[turn][1] <= start:
                turn += 1
            if turn < len(spans) and spans[turn][0] <= start and end <= spans[turn][1]:
                labels[t] = ids[t]
        if conversation.text is not None and self.tokenizer.eos_token_id is not None:
            ids.append(int(self.tokenizer.eos_token_id))
            labels.append(ids[-1])
        if len(ids) > max_length:
            notes.append("cut")
        self.counts.update(set(notes))
        return Encoded(input_ids=ids[:max_length], labels=labels[:max_length], length=len(ids), notes=notes)

    def end_of_turn_ids(self) -> list[int]:
        """The tokens at which generation stops: the tokenizer's own end, and what the template ends an answer with."""
        end = self.tokenizer.eos_token_id
        found = [] if end is None else [int(end)]
        probe = Conversation(messages=({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}))
        learned = [i for i in self.encode(probe, 1 << 20).labels if i != IGNORED]
        special = {*self.tokenizer.all_special_ids, *self.tokenizer.get_added_vocab().values()}
        return found + [i for i in learned[-1:] if i in special and i not in found]

    def _prepared(self, conversation: Conversation) -> tuple[Conversation, list[int], list[str]]:
        """The conversation in its reasoning mode, the messages to learn from, and notes.

        An explicit no_think strips the traces; without a mode of its own a row with a trace is a think row.
        """
        from dataclasses import replace

        messages = [dict(m) for m in conversation.messages]
        learned = conversation.learned_messages()
        notes: list[str] = []
        kwargs = dict(conversation.template_kwargs)
        traced = [i for i, m in enumerate(messages) if m["role"] == "assistant" and has_trace(m)]
        mode = kwargs.get("enable_thinking", self.options.enable_thinking)
        if mode is None and self.knows_modes:
            mode = bool(traced)
        if mode is not None:
            kwargs["enable_thinking"] = mode
        if mode is False:
            for i in traced:
                messages[i] = without_trace(messages[i])
                notes.append("trace stripped")
        elif self.options.history == "strip":
            last_user = max((i for i, m in enumerate(messages) if m["role"] == "user"), default=-1)
            for i in (i for i in traced if i < last_user):
                messages[i] = without_trace(messages[i])
                notes.append("earlier reasoning stripped")
            learned = [i for i in learned if i not in traced or i > last_user]
        return replace(conversation, messages=tuple(messages), template_kwargs=kwargs), learned, notes

    def _check_nothing_dropped(self, conversation: Conversation, messages: list[dict[str, Any]]) -> None:
        """Raises DataError where the template leaves tool calls out, or shows a tool's words as the user's."""
        calling = [i for i, m in enumerate(messages) if m.get("tool_calls")]
        answering = [i for i, m in enumerate(messages) if m["role"] == "tool"]
        if not calling and not answering and not conversation.tools:
            return
        text = self._render(conversation, messages)
        for i in calling:
            less = [{k: v for k, v in m.items() if j != i or k != "tool_calls"} for j, m in enumerate(messages)]
            if self._render(conversation, less) == text:
                raise DataError(f"the chat template drops the tool calls of message {i}", hint=_TEMPLATE_HINT)
        for i in answering:
            as_user = [{**m, "role": "user"} if j == i else m for j, m in enumerate(messages)]
            if self._render(conversation, as_user) == text:
                raise DataError(
                    f"the chat template shows the tool's answer, message {i}, as the user's words", hint=_TEMPLATE_HINT
                )
        if conversation.tools:
            from dataclasses import replace

            if self._render(replace(conversation, tools=()), messages) == text:
                raise DataError("the chat template drops the tools of a conversation", hint=_TEMPLATE_HINT)

    def _render(
        self, conversation: Conversation, messages: Sequence[Mapping[str, Any]], *, prompt: bool = False
    ) -> str:
        """The text of `messages`. Raises DataError with the template's own words where it refuses them."""
        kwargs: dict[str, Any] = dict(conversation.template_kwargs)
        if conversation.tools:
            tools = [dict(t) for t in conversation.tools]
            kwargs = {"tools": tools, "xml_tools": tools, **kwargs}
        if self.options.date is not None:
            day = datetime.datetime.fromisoformat(self.options.date)
            kwargs["strftime_now"] = day.strftime
        if self.options.template is not None:
            kwargs["chat_template"] = self.options.template
        try:
            text = self.tokenizer.apply_chat_template(
                [dict(m) for m in messages], tokenize=False, add_generation_prompt=prompt, **kwargs
            )
        except Exception as e:  # jinja2.TemplateError and whatever the template's author raises
            raise DataError(f"the chat template refuses a conversation: {e}") from e
        return str(text).replace(GUARD, "")


_TEMPLATE_HINT = "give a template that renders tools: --set data.template=FILE.jinja"


def _guarded(message: Mapping[str, Any]) -> dict[str, Any]:
    """A copy whose text cannot flip the reasoning mode, unless a mode flag stands in it as a word of its own."""
    content = message.get("content")
    if not isinstance(content, str) or message["role"] != "system":
        return dict(message)

    def guard(match: re.Match[str]) -> str:
        alone, inside = match.groups()
        return alone if alone is not None else f"/{GUARD}{inside[1:]}"

    return {**message, "content": MODE_FLAG.sub(guard, content)}
