"""Conversations as tokens: exactly what the assistant itself must produce is supervised."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from smollm3_finetune.api import Conversation
from smollm3_finetune.api.data import IGNORE_INDEX
from smollm3_finetune.data.chat_template.renderer import Encoded, Renderer, RenderOptions
from smollm3_finetune.errors import DataError, ModelError

TEMPLATE = """\
{%- set think = enable_thinking | default(true) -%}
{%- for m in messages -%}
  {%- if m.role == 'tool' -%}{{ raise_exception('tools are not for us') }}{%- endif -%}
  {{- '<|im_start|>' + m.role + '\n' -}}
  {%- if m.role == 'assistant' and not think -%}{{- '<think>\n\n</think>\n' -}}{%- endif -%}
  {{- m.content + '<|im_end|>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- '<|im_start|>assistant\n' + ('' if think else '<think>\n\n</think>\n') -}}
{%- endif -%}
"""
REWRITES = """\
{%- for m in messages -%}
  {%- set text = m.content if loop.last else m.content.split('</think>')[-1] -%}
  {{- '<|im_start|>' + m.role + '\n' + text + '<|im_end|>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}
"""
LONG = 10_000


def tokenizer(template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    """One token per byte, and the two markers, so every boundary is a token boundary."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end_of_text|>")
    made.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    made.chat_template = template
    return made


def encode(tok: PreTrainedTokenizerFast, conversation: Conversation, max_length: int, **options: Any) -> Encoded:
    return Renderer(tok, RenderOptions(**options)).encode(conversation, max_length)


def talk(*contents: str, **template_kwargs: Any) -> Conversation:
    """Alternating turns of user and assistant."""
    roles = ("user", "assistant")
    turns = tuple({"role": roles[i % 2], "content": c} for i, c in enumerate(contents))
    return Conversation(messages=turns, template_kwargs=template_kwargs)


def supervised(
    conversation: Conversation, max_length: int = LONG, tok: PreTrainedTokenizerFast | None = None
) -> list[str]:
    """The text of each unbroken run of supervised tokens."""
    tok = tok or tokenizer()
    encoded = encode(tok, conversation, max_length)
    assert len(encoded.input_ids) == len(encoded.labels) <= max_length
    runs: list[list[int]] = [[]]
    for token, label in zip(encoded.input_ids, encoded.labels, strict=True):
        assert label in (IGNORE_INDEX, token)
        if label == IGNORE_INDEX:
            runs.append([])
        else:
            runs[-1].append(label)
    return [tok.decode(r) for r in runs if r]


def test_the_answer_and_its_end_are_supervised_and_nothing_else() -> None:
    assert supervised(talk("hello", "good day")) == ["good day<|im_end|>"]


def test_tokens_of_the_generation_prompt_are_not_supervised() -> None:
    conversation = talk("hello", "good day", enable_thinking=False)
    assert supervised(conversation) == ["good day<|im_end|>"]
    text, _, _ = Renderer(tokenizer()).spans(conversation)
    assert "<think>\n\n</think>\ngood day" in text  # it exists, and belongs to the prompt


def test_a_trace_that_the_assistant_writes_itself_is_supervised() -> None:
    assert supervised(talk("hi", "<think>\nhm\n</think>\nyes")) == ["<think>\nhm\n</think>\nyes<|im_end|>"]


def test_every_turn_of_the_assistant_is_supervised() -> None:
    assert supervised(talk("a", "one", "b", "two", "c")) == ["one<|im_end|>", "two<|im_end|>"]


def test_repeated_and_non_ascii_text_has_correct_boundaries() -> None:
    assert supervised(talk("même", "même", "même", "été – 你好")) == ["même<|im_end|>", "été – 你好<|im_end|>"]
    assert supervised(talk("x", "ends with a line\n\n")) == ["ends with a line\n\n<|im_end|>"]


def test_a_conversation_is_cut_at_its_end() -> None:
    conversation = talk("hello", "good day")
    whole = encode(tokenizer(), conversation, LONG)
    cut = encode(tokenizer(), conversation, len(whole.input_ids) - 6)
    assert cut.input_ids == whole.input_ids[:-6]
    assert (cut.length, cut.notes, whole.notes) == (len(whole.input_ids), ["cut"], [])
    assert supervised(conversation, len(whole.input_ids) - 6) == ["good"]  # without ' day', <|im_end|> and the newline
    assert supervised(conversation, 8) == []


def test_the_tokens_are_those_of_the_rendered_text() -> None:
    tok = tokenizer()
    conversation = talk("hello", "good day", enable_thinking=True)
    text, _, _ = Renderer(tok).spans(conversation)
    assert text == "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\ngood day<|im_end|>\n"
    assert tok.decode(encode(tok, conversation, LONG).input_ids) == text


def test_the_prompt_is_a_prefix_of_the_conversation() -> None:
    tok = tokenizer()
    text, ((start, _),), _ = Renderer(tok).spans(talk("hello", "good day", enable_thinking=False))
    assert text[:start] == Renderer(tok).prompt([{"role": "user", "content": "hello"}], enable_thinking=False)


def test_a_template_that_refuses_a_conversation_is_quoted() -> None:
    conversation = Conversation(messages=({"role": "tool", "content": "x"}, {"role": "assistant", "content": "y"}))
    with pytest.raises(DataError, match="the chat template refuses a conversation: tools are not for us"):
        encode(tokenizer(), conversation, LONG)


def test_a_turn_that_the_template_rewrites_later_is_not_supervised() -> None:
    tok = tokenizer(REWRITES)
    assert supervised(talk("hi", "<think>hm</think>yes"), tok=tok) == ["<think>hm</think>yes<|im_end|>"]
    both = talk("hi", "<think>hm</think>yes", "and", "no")
    assert supervised(both, tok=tok) == ["no<|im_end|>"]
    assert encode(tok, both, LONG).notes == ["turn rewritten by the template"]


def test_nothing_is_supervised_if_the_prompt_is_not_a_prefix() -> None:
    bad = tokenizer(TEMPLATE.replace("'' if think else '<think>", "'Sure: ' if think else '<think>"))
    assert supervised(talk("hi", "yes", enable_thinking=True), tok=bad) == []


def test_a_tokenizer_without_a_template_is_an_error_with_a_hint() -> None:
    tok = tokenizer(None)
    tok.name_or_path = "org/base"
    renderer = Renderer(tok)
    with pytest.raises(ModelError, match="the tokenizer of 'org/base' has no chat template, which conversations need"):
        encode(tok, talk("hi", "yes"), LONG)
    user = {"role": "user", "content": " Once upon"}
    assert renderer.prompt([user]) == " Once upon", "continued as it stands"
    assert renderer.end_of_turn_ids() == [tok.eos_token_id]
    for messages, kwargs in (([{"role": "system", "content": "x"}, user], {}), ([user], {"enable_thinking": False})):
        with pytest.raises(ModelError, match="which a system message and reasoning modes need"):
            renderer.prompt(messages, **kwargs)


def test_generation_stops_at_the_tokenizers_end_and_at_the_end_of_a_turn() -> None:
    tok = tokenizer()
    assert Renderer(tok).end_of_turn_ids() == [tok.eos_token_id, tok.convert_tokens_to_ids("<|im_end|>")]
    tok.eos_token = "<|im_end|>"
    assert Renderer(tok).end_of_turn_ids() == [tok.convert_tokens_to_ids("<|im_end|>")]


def test_a_turn_that_ends_in_ordinary_text_adds_no_stop_token() -> None:
    tok = tokenizer(TEMPLATE.replace("<|im_end|>", "."))
    assert Renderer(tok).end_of_turn_ids() == [tok.eos_token_id]
