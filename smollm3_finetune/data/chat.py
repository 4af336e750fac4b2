"""Conversations as token ids, with a mask over what the assistant itself must produce.

The mask of a turn begins after the tokens that the generation prompt supplies (the header and, in some modes, a
forced empty think block) and ends with the end-of-turn token. It is found from the template's own prefixes: the
rendering up to a turn with the generation prompt must be a prefix of the rendering with that turn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from smollm3_finetune.api import Conversation
from smollm3_finetune.errors import DataError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
"""The label of a token that no loss looks at (torch.nn.functional.cross_entropy's default)."""


def check_template(tokenizer: PreTrainedTokenizerBase, ref: str) -> None:
    """Raises ModelError where the tokenizer has no chat template."""
    if not tokenizer.chat_template:
        raise ModelError(
            f"the tokenizer of {ref!r} has no chat template", hint="use the model's -Instruct variant, which has one"
        )


def render(
    tokenizer: PreTrainedTokenizerBase, conversation: Conversation, upto: int | None = None, *, prompt: bool = False
) -> str:
    """The text of the first `upto` messages (all unless given), with the generation prompt where `prompt`.

    Raises DataError with the template's own words where it refuses the conversation.
    """
    messages = [dict(m) for m in conversation.messages[:upto]]
    kwargs: dict[str, Any] = dict(conversation.template_kwargs)
    if conversation.tools:
        kwargs["tools"] = [dict(t) for t in conversation.tools]
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt, **kwargs)
    except Exception as e:  # jinja2.TemplateError and whatever the template's author raises
        raise DataError(f"the chat template refuses a conversation: {e}") from e
    return str(text)


def assistant_spans(
    tokenizer: PreTrainedTokenizerBase, conversation: Conversation
) -> tuple[str, list[tuple[int, int]]]:
    """The rendered conversation and the (start, end) characters that the assistant must produce.

    Raises DataError where the template rewrites earlier turns, so that there is no prefix to tell from.
    """
    text = render(tokenizer, conversation)
    spans = []
    for i, message in enumerate(conversation.messages):
        if message["role"] != "assistant":
            continue
        before = render(tokenizer, conversation, i, prompt=True)
        after = render(tokenizer, conversation, i + 1)
        if not (after.startswith(before) and text.startswith(after)):
            raise DataError(
                f"the chat template does not render message {i} as a continuation of its prompt, so what the "
                "assistant must produce cannot be told"
            )
        spans.append((len(before), len(after.rstrip("\n"))))
    return text, spans


def encode(tokenizer: PreTrainedTokenizerBase, conversation: Conversation, max_length: int) -> dict[str, list[int]]:
    """`input_ids` and `labels` (IGNORED outside the assistant's turns) of a conversation, cut to `max_length`."""
    text, spans = assistant_spans(tokenizer, conversation)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids: Sequence[int] = encoded["input_ids"]
    offsets: Sequence[tuple[int, int]] = encoded["offset_mapping"]
    labels = [IGNORED] * len(ids)
    turn = 0
    for t, (start, end) in enumerate(offsets):
        while turn < len(spans) and spans[turn][1] <= start:
            turn += 1
        if turn < len(spans) and spans[turn][0] <= start and end <= spans[turn][1]:
            labels[t] = ids[t]
    return {"input_ids": list(ids[:max_length]), "labels": labels[:max_length]}


def end_of_turn_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens at which generation stops: the tokenizer's own end, and what the template ends an answer with."""
    found = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
    if tokenizer.chat_template:
        probe = Conversation(messages=({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}))
        _, spans = assistant_spans(tokenizer, probe)
        ids = encode(tokenizer, probe, 1 << 20)
        last = [i for i in ids["labels"] if i != IGNORED][-1:]
        special = set(tokenizer.all_special_ids) | set(tokenizer.get_added_vocab().values())
        found += [i for i in last if spans and i in special and i not in found]
    return found


def prompt_text(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, Any]], **kwargs: Any) -> str:
    """What a model is given to answer the last message."""
    return render(tokenizer, Conversation(messages=tuple(messages), template_kwargs=kwargs), prompt=True)
