"""Gate 3: the chat template and the stop tokens that a file states are the source's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from smollm3_finetune.api import Check
from smollm3_gguf.vocabulary import STOPS, Vocabulary, templates_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SYSTEM = {"role": "system", "content": "Answer in one sentence."}
QUESTION = {"role": "user", "content": "What is 2 + 2?  Say <why>.\n"}
ANSWER = {"role": "assistant", "content": "It is 4, since 2 + 2 = 4."}
MORE = {"role": "user", "content": "And 3 + 3?"}
CONVERSATIONS: Sequence[Sequence[Mapping[str, str]]] = (
    [QUESTION],
    [SYSTEM, QUESTION],
    [QUESTION, ANSWER],
    [SYSTEM, QUESTION, ANSWER, MORE],
    [QUESTION, ANSWER, MORE, ANSWER],
)
"""Conversations that are rendered with both templates."""


def check_template(vocabulary: Vocabulary, tokenizer: PreTrainedTokenizerBase) -> Check:
    """Compare what both templates render, and then their texts."""
    name = "chat template"
    ours, theirs = templates_of(tokenizer), vocabulary.templates
    if not ours and not theirs:
        return Check(name=name, passed=True, says="there is none, in the model and in the file")
    if set(ours) != set(theirs):
        return Check(name=name, passed=False, says=f"the file has {_counted(theirs)}, the model {_counted(ours)}")
    rendered = 0
    for key, template in ours.items():
        for number, conversation in enumerate(CONVERSATIONS, 1):
            expected, found = (_rendered(tokenizer, t, conversation) for t in (template, theirs[key]))
            if expected != found:
                says = (
                    f"conversation {number} is rendered as {_shown(found)} with the file's, but as {_shown(expected)}"
                )
                return Check(name=name, passed=False, says=f"{says} with the model's")
            rendered += expected is not None
        if template != theirs[key]:
            says = "the file's differs from the model's, though it renders the fixed conversations alike"
            return Check(name=name, passed=False, says=says)
    return Check(
        name=name,
        passed=True,
        says=f"renders {rendered} conversations as the model's does, and is the same text",
        figures={"conversations": rendered},
    )


def check_stops(vocabulary: Vocabulary, stops: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> Check:
    """See that an answer ends in the file where it ends in the model. `stops` are the model's stop tokens.

    llama.cpp also ends an answer at some tokens because of their text, which a file cannot change; `says` names them.
    """
    name = "stop tokens"
    wanted = {*stops, *([] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id])}
    if missing := sorted(wanted - vocabulary.stops):
        tokens = tokenizer.convert_ids_to_tokens(missing)
        return Check(name=name, passed=False, says=f"the model stops at {tokens[0]!r}, the file does not")
    keyed = {vocabulary.special[key]: key for key in STOPS if key in vocabulary.special}
    if more := sorted(keyed.keys() - wanted):
        says = f"the file stops at {_token(vocabulary, more[0])} ({keyed[more[0]]}), the model does not"
        return Check(name=name, passed=False, says=says)
    if tokenizer.eos_token_id is not None and vocabulary.special.get("eos") != tokenizer.eos_token_id:
        says = f"eos is {vocabulary.special.get('eos')} in the file, but {tokenizer.eos_token_id} in the tokenizer"
        return Check(name=name, passed=False, says=says)
    shown = ", ".join(repr(vocabulary.tokens[i]) for i in sorted(wanted)) or "none"
    says = f"the file stops at those of the model: {shown}"
    if more := sorted(vocabulary.stops - wanted):
        says += f"; llama.cpp also stops at {', '.join(_token(vocabulary, i) for i in more)}, by its text"
    return Check(name=name, passed=True, says=says)


def _token(vocabulary: Vocabulary, token: int) -> str:
    return repr(vocabulary.tokens[token]) if 0 <= token < len(vocabulary.tokens) else str(token)


def _rendered(tokenizer: Any, template: str, conversation: Sequence[Mapping[str, str]]) -> str | None:
    """What a template renders, or why it refuses a conversation; None if it refuses in the same way for everybody."""
    prompt = conversation[-1]["role"] == "user"
    try:
        return str(
            tokenizer.apply_chat_template(
                list(conversation), chat_template=template, tokenize=False, add_generation_prompt=prompt
            )
        )
    except Exception:  # a template may refuse a role or an order of roles
        return None


def _shown(text: str | None) -> str:
    return "an error" if text is None else repr(text if len(text) <= 80 else f"{text[:79]}…")


def _counted(templates: Mapping[str, str]) -> str:
    return "no template" if not templates else ", ".join(name or "a default template" for name in templates)
