"""What is supervised under the templates of many model families, compared token by token with handwritten examples.

The templates were written for this project in the manner of each family, as short as possible. «…» marks supervised
text. A conversation whose turns a template rewrites has several examples, the one with the whole conversation first.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import smollm3_finetune
from smollm3_finetune.api import IGNORE_INDEX, Conversation, branch_rows
from smollm3_finetune.api.data import BRANCHES
from smollm3_finetune.components.discovery import PluginSelection, discover
from smollm3_finetune.components.kinds import OBJECTIVE
from smollm3_finetune.components.selection import SelectedComponent, choose
from smollm3_finetune.data.chat_template.notes import NO_PREFIX, NO_TRACE, OWN_EXAMPLE
from smollm3_finetune.data.chat_template.renderer import Renderer, RenderOptions
from smollm3_finetune.data.chat_template.tool_forms import FORMS
from smollm3_finetune.data.rows import PositionedRow
from smollm3_finetune.data.shares import Shares
from smollm3_finetune.data.tokenization import ExampleBuilder
from smollm3_finetune.errors import DataError

PAIRS = Path(__file__).parents[1] / "out_of_tree" / "pair_objectives.py"
SMOLLM3 = Path(__file__).parent / "templates" / "smollm3_like.jinja"
TINY = Path(smollm3_finetune.__file__).parent / "builtin" / "tiny"
MARKERS = (
    "<s>", "</s>", "[INST]", "[/INST]", "<|eot_id|>", "<start_of_turn>", "<end_of_turn>", "<|end|>", "<|endoftext|>",
    "<|user|>", "<|assistant|>", "<|system|>", "<|observation|>", "<|start|>", "<|message|>", "<|channel|>",
    "<|return|>", "<|call|>",
    "<|User|>", "<|Assistant|>", "<think>", "</think>", "<tool_call>", "</tool_call>",
)  # fmt: skip
ENDS = {"</s>": ("llama2", "mistral", "vicuna", "zephyr"), "<|endoftext|>": ("phi", "glm", "instruction", "deepseek")}

LOOP = "{% for m in messages %}"
CHATML = LOOP + (
    "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA2 = LOOP + (
    "{% if m.role == 'user' %}{{ '<s>[INST] ' + m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content + ' </s>' }}{% endif %}{% endfor %}"
)
LLAMA3 = LOOP + (
    "{{ '<|start|>' + m.role + '<|message|>\n\n' + m.content | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant<|message|>\n\n' }}{% endif %}"
)
MISTRAL = "<s>" + LOOP + (
    "{% if m.role == 'user' %}{{ '[INST]' + m.content + '[/INST]' }}{% else %}{{ m.content + '</s>' }}{% endif %}"
    "{% endfor %}"
)  # fmt: skip
GEMMA = LOOP + (
    "{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' + m.content + '<end_of_turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
PHI = LOOP + (
    "{{ '<|' + m.role + '|>' + m.content + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% else %}{{ '<|endoftext|>' }}{% endif %}"
)
QWEN3 = LOOP + (
    "{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' %}"
    "{% if loop.last or m.reasoning_content %}"
    "{{ '<think>\n' + (m.reasoning_content or '') + '\n</think>\n\n' }}{% endif %}{{ m.content }}"
    "{% for c in m.tool_calls or [] %}{{ '<tool_call>' + c.function | tojson + '</tool_call>' }}{% endfor %}"
    "{% else %}{{ m.content }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)
GPT_OSS = LOOP + (
    "{% if m.role != 'assistant' %}{{ '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' }}"
    "{% elif m.tool_calls %}{% for c in m.tool_calls %}"
    "{{ '<|start|>assistant to=' + c.function.name + '<|message|>' + c.function.arguments | tojson + '<|call|>' }}"
    "{% endfor %}{% else %}"
    "{% if m.thinking and loop.last %}{{ '<|start|>assistant<|channel|>analysis<|message|>' + m.thinking + '<|end|>' }}"
    "{% endif %}{{ '<|start|>assistant<|channel|>final<|message|>' + m.content }}"
    "{{ '<|return|>' if loop.last else '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"
)
GLM = LOOP + (
    "{{ '<|' + ('observation' if m.role == 'tool' else m.role) + '|>\n' + m.content }}"
    "{% for c in m.tool_calls or [] %}{{ c.function.name + '\n' + c.function.arguments | tojson }}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
INSTRUCTION = LOOP + (
    "{{ '### ' + m.role | capitalize + ':\n' + m.content + '\n\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Assistant:\n' }}{% endif %}"
)
R1 = LOOP + (
    "{% if m.role == 'user' %}{{ '<|User|>' + m.content }}"
    "{% else %}{{ '<|Assistant|>' + m.content.split('</think>')[-1] + '<|im_end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|Assistant|><think>\n' }}{% endif %}"
)
DEEPSEEK = LOOP + (
    "{% if m.role == 'user' %}{{ '<|User|>' + m.content }}"
    "{% elif m.role == 'tool' %}{{ '<|observation|>' + m.content }}"
    "{% elif m.content is none %}{{ '<|Assistant|>' }}{% for c in m.tool_calls %}"
    "{{ '<tool_call>' + c.function.name + '\n' + c.function.arguments + '</tool_call>' }}{% endfor %}"
    "{{ '<|endoftext|>' }}"
    "{% else %}{{ '<|Assistant|>' + m.content + '<|endoftext|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|Assistant|>' }}{% endif %}"
)
VICUNA = LOOP + (
    "{% if m.role == 'user' %}{{ 'USER: ' + m.content }}{% else %}{{ ' ASSISTANT: ' + m.content + '</s>' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ ' ASSISTANT:' }}{% endif %}"
)
ZEPHYR = LOOP + (
    "{{ '<|' + m.role + '|>\n' + m.content + '</s>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
OPENS = LOOP + (
    "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
)
"""A template that renders the content as it is, and whose prompt opens the trace."""
TEMPLATES = {
    "chatml": CHATML, "llama2": LLAMA2, "llama3": LLAMA3, "mistral": MISTRAL, "gemma": GEMMA, "phi": PHI,
    "qwen3": QWEN3, "gpt_oss": GPT_OSS, "glm": GLM, "instruction": INSTRUCTION, "r1": R1, "deepseek": DEEPSEEK,
    "vicuna": VICUNA, "zephyr": ZEPHYR, "opens": OPENS,
}  # fmt: skip
BLOCK = "<think>\n\n</think>\n\n"
TRACE = "<think>\nhm\n</think>\n\n"


@cache
def with_markers() -> PreTrainedTokenizerFast:
    tokenizer: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(str(TINY))
    tokenizer.add_tokens(list(MARKERS), special_tokens=True)
    return tokenizer


@cache
def objective() -> SelectedComponent:
    return choose(discover(PluginSelection.of([], no_plugins=True)), OBJECTIVE, "sft", {})


@cache
def comparing() -> SelectedComponent:
    found = discover(PluginSelection.of([str(PAIRS)], no_plugins=True))
    return choose(found, OBJECTIVE, "prefer", {})


def renderer(family: str, directory: Path | None = None, template: str | None = None) -> Renderer:
    tokenizer = copy.deepcopy(with_markers())
    tokenizer.eos_token = next((end for end, families in ENDS.items() if family in families), "<|im_end|>")
    if directory is not None:
        tokenizer.name_or_path = str(directory)
    return Renderer(tokenizer, RenderOptions(template=template or TEMPLATES[family]))


def builder(made: Renderer, max_length: int = 10_000) -> ExampleBuilder:
    return ExampleBuilder(objective(), made, max_length, chunk=False)


def placed(conversation: Conversation) -> PositionedRow:
    return PositionedRow(
        source=0, where="row", position=0.5, conversation=conversation, validation=False, undesirable=False
    )


def talk(*messages: Any, **more: Any) -> Conversation:
    """Messages; texts are those of the user and of the assistant, in turn."""
    roles = ("user", "assistant")
    turns = [m if isinstance(m, Mapping) else {"role": roles[i % 2], "content": m} for i, m in enumerate(messages)]
    return Conversation(messages=tuple(turns), **more)


def check(made: Renderer, conversation: Conversation, *written: str, max_length: int = 10_000) -> Shares:
    """Assert that the examples of a conversation have the tokens and labels of `written`; returns its shares."""
    build = builder(made, max_length)
    compare(made, build(placed(conversation)), written)
    return build.shares


def check_pair(made: Renderer, conversation: Conversation, chosen: str, rejected: str) -> dict[str, list[int]]:
    """Assert that both answers of a pair have these tokens and labels; returns the example."""
    build = ExampleBuilder(comparing(), made, 10_000, chunk=False)
    (example,) = build(placed(conversation))
    compare(made, branch_rows([example]), (chosen, rejected))
    return example


def compare(made: Renderer, examples: Sequence[Mapping[str, Sequence[int]]], written: Sequence[str]) -> None:
    show = made.tokenizer.convert_ids_to_tokens
    expected = []
    for one in written:
        ids: list[int] = []
        labels: list[int] = []
        for i, piece in enumerate(one.replace("»", "«").split("«")):
            tokens = made.tokenizer.encode(piece, add_special_tokens=False)
            ids += tokens
            labels += tokens if i % 2 else [IGNORE_INDEX] * len(tokens)
        expected.append((ids, labels))
    assert [made.tokenizer.decode(e["input_ids"]) for e in examples] == [made.tokenizer.decode(i) for i, _ in expected]
    assert [show(e["input_ids"]) for e in examples] == [show(ids) for ids, _ in expected]
    assert [list(e["labels"]) for e in examples] == [labels for _, labels in expected]


TWO = ("Hi", "One.", "And?", "Two.")
IM_USER, IM_ASSISTANT = "<|im_start|>user\n", "<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("family", "written"),
    [
        (
            "chatml",
            [
                f"{IM_USER}Hi<|im_end|>\n{IM_ASSISTANT}«One.<|im_end|>»\n"
                f"{IM_USER}And?<|im_end|>\n{IM_ASSISTANT}«Two.<|im_end|>»\n"
            ],
        ),
        ("llama2", ["<s>[INST] Hi [/INST]« One. </s>»<s>[INST] And? [/INST]« Two. </s>»"]),
        (
            "llama3",
            [
                "<|start|>user<|message|>\n\nHi<|eot_id|><|start|>assistant<|message|>\n\n«One.<|eot_id|>»"
                "<|start|>user<|message|>\n\nAnd?<|eot_id|><|start|>assistant<|message|>\n\n«Two.<|eot_id|>»"
            ],
        ),
        ("mistral", ["<s>[INST]Hi[/INST]«One.</s>»[INST]And?[/INST]«Two.</s>»"]),
        (
            "gemma",
            [
                "<start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n«One.<end_of_turn>»\n"
                "<start_of_turn>user\nAnd?<end_of_turn>\n<start_of_turn>model\n«Two.<end_of_turn>»\n"
            ],
        ),
        (
            "phi",
            ["<|user|>Hi<|end|><|assistant|>«One.<|end|>»<|user|>And?<|end|><|assistant|>«Two.<|end|><|endoftext|>»"],
        ),
        (
            "qwen3",
            [
                f"{IM_USER}Hi<|im_end|>\n{IM_ASSISTANT}One.<|im_end|>\n"
                f"{IM_USER}And?<|im_end|>\n{IM_ASSISTANT}{BLOCK}«Two.<|im_end|>»\n",
                f"{IM_USER}Hi<|im_end|>\n{IM_ASSISTANT}{BLOCK}«One.<|im_end|>»\n",
            ],
        ),
        (
            "gpt_oss",
            [
                "<|start|>user<|message|>Hi<|end|>"
                "<|start|>assistant«<|channel|>final<|message|>One.<|end|>»"
                "<|start|>user<|message|>And?<|end|>"
                "<|start|>assistant«<|channel|>final<|message|>Two.<|return|>»"
            ],
        ),
        ("glm", ["<|user|>\nHi<|assistant|>\n«One.<|user|>»\nAnd?<|assistant|>\n«Two.<|user|>»"]),
        (
            "instruction",
            ["### User:\nHi\n\n### Assistant:\n«One.»\n\n### User:\nAnd?\n\n### Assistant:\n«Two.<|endoftext|>»\n\n"],
        ),
        ("deepseek", ["<|User|>Hi<|Assistant|>«One.<|endoftext|>»<|User|>And?<|Assistant|>«Two.<|endoftext|>»"]),
        ("vicuna", ["USER: Hi ASSISTANT:« One.</s>»USER: And? ASSISTANT:« Two.</s>»"]),
        (
            "zephyr",
            ["<|user|>\nHi</s>\n<|assistant|>\n«One.</s>»\n<|user|>\nAnd?</s>\n<|assistant|>\n«Two.</s>»\n"],
        ),
    ],
)
def test_two_turns(family: str, written: list[str], tmp_path: Path) -> None:
    directory = None
    if family == "glm":
        directory = stops(tmp_path, "<|user|>", "<|observation|>")
    made = renderer(family, directory)
    assert check(made, talk(*TWO), *written) == Shares(answers=2)
    assert (made.counts[OWN_EXAMPLE] == 1) == (len(written) > 1)


def stops(directory: Path, *tokens: str) -> Path:
    """A directory whose generation config stops at these tokens."""
    ids = renderer("glm").tokenizer.convert_tokens_to_ids([*tokens, "<|endoftext|>"])
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": ids}), encoding="utf-8")
    return directory


# ------------------------------------------------------------------------------------------------------ tool calls

CALL = {"role": "assistant", "content": "", "tool_calls": [
    {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
]}  # fmt: skip
TOOL = ("Sum?", CALL, {"role": "tool", "content": "2"}, {"role": "assistant", "content": "It is 2."})
CALLED = '<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>'


def test_a_call_that_a_later_answer_rewrites_is_trained_on() -> None:
    asked = f"{IM_USER}Sum?<|im_end|>\n{IM_ASSISTANT}"
    whole = f"{asked}{CALLED}<|im_end|>\n<|im_start|>tool\n2<|im_end|>\n{IM_ASSISTANT}{BLOCK}«It is 2.<|im_end|>»\n"
    found = check(renderer("qwen3"), talk(*TOOL), whole, f"{asked}{BLOCK}«{CALLED}<|im_end|>»\n")
    assert found == Shares(answers=2, tool_calls=1)


def test_turns_that_one_prompt_leads_to_share_an_example() -> None:
    """A template that drops reasoning before the last question, but keeps it between calls and their answers."""
    cuts = (Path(__file__).parent / "templates" / "cuts_history.jinja").read_text("utf-8")
    call = {**CALL, "content": TRACE}
    conversation = talk("Sum?", call, TOOL[2], {"role": "assistant", "content": TRACE + "It is 2."}, *TWO[2:])
    asked = f"{IM_USER}Sum?<|im_end|>\n{IM_ASSISTANT}"
    answered = f"<|im_end|>\n{IM_USER}<tool_response>2</tool_response><|im_end|>\n{IM_ASSISTANT}"
    written = (
        f"{asked}{CALLED}{answered}It is 2.<|im_end|>\n{IM_USER}And?<|im_end|>\n{IM_ASSISTANT}«Two.<|im_end|>»\n",
        f"{asked}«{TRACE}{CALLED}<|im_end|>»{answered.removeprefix('<|im_end|>')}«{TRACE}It is 2.<|im_end|>»\n",
    )
    roles = talk(
        *conversation.messages[:4], {"role": "user", "content": "And?"}, {"role": "assistant", "content": "Two."}
    )
    assert check(renderer("qwen3", template=cuts), roles, *written) == Shares(answers=3, tool_calls=1)


def test_a_call_that_ends_in_a_token_of_its_own() -> None:
    written = (
        "<|start|>user<|message|>Sum?<|end|>"
        '<|start|>assistant« to=add<|message|>{"a": 1}<|call|>»<|start|>tool<|message|>2<|end|>'
        "<|start|>assistant«<|channel|>final<|message|>It is 2.<|return|>»"
    )
    assert check(renderer("gpt_oss"), talk(*TOOL), written) == Shares(answers=2, tool_calls=1)


def test_a_call_without_an_end_stops_at_the_header_of_the_tools_answer(tmp_path: Path) -> None:
    made = renderer("glm", stops(tmp_path, "<|user|>", "<|observation|>"))
    written = '<|user|>\nSum?<|assistant|>\n«add\n{"a": 1}<|observation|>»\n2<|assistant|>\n«It is 2.<|user|>»'
    check(made, talk(*TOOL), written)
    check(made, talk(*TOOL[:2]), '<|user|>\nSum?<|assistant|>\n«add\n{"a": 1}<|observation|>»')


SPLICES = {
    "text and null": DEEPSEEK,
    "text": DEEPSEEK.replace("m.content is none", "m.tool_calls"),
    "object and null": DEEPSEEK.replace("c.function.arguments", "c.function.arguments | tojson"),
    "written out": DEEPSEEK.replace(" + c.function.arguments + ", " }}{{ c.function.arguments }}{{ "),
    "null by get": DEEPSEEK.replace("m.content is none", "m.get('content') is none"),
}  # fmt: skip


@pytest.mark.parametrize("form", SPLICES)
def test_each_form_of_calls_gives_the_same_text(form: str) -> None:
    written = (
        '<|User|>Sum?<|Assistant|>«<tool_call>add\n{"a": 1}</tool_call><|endoftext|>»'
        "<|observation|>2<|Assistant|>«It is 2.<|endoftext|>»"
    )
    made = renderer("deepseek", template=SPLICES[form])
    assert check(made, talk(*TOOL), written) == Shares(answers=2, tool_calls=1)
    prompt = made.prompt(talk(*TOOL[:3]).messages)
    assert prompt == written.replace("«", "").replace("»", "").removesuffix("It is 2.<|endoftext|>")


def test_calls_that_no_form_shows_are_refused_with_the_first_reason() -> None:
    dropped = renderer("chatml")
    with pytest.raises(DataError, match="drops the tool calls of message 1"):
        dropped.spans(talk(*TOOL))
    python = renderer("chatml", template=LOOP + "{{ m.content }}{% for c in m.tool_calls or [] %}"
                      "{{ c.function.name }}{{ dict(c.function.arguments) if c.function.arguments is mapping }}"
                      "{% endfor %}{% endfor %}")  # fmt: skip
    with pytest.raises(DataError, match="arguments of a tool call of message 1 as Python, not as JSON"):
        python.spans(talk(*TOOL))
    assert len(FORMS) == 4


# ------------------------------------------------------------------------------------------------------- reasoning

FORMS_OF_A_TRACE = {
    "inline": {"content": "<think>\nhm\n</think>\n\nYes."},
    "inline, closed without a line break": {"content": "<think>hm</think>Yes."},
    "without the opening tag": {"content": "hm\n</think>\n\nYes."},
    "without the opening tag, closed without a line break": {"content": "hm</think>Yes."},
    "reasoning_content": {"content": "Yes.", "reasoning_content": "hm"},
    "reasoning": {"content": "Yes.", "reasoning": "hm\n"},
    "thinking": {"content": "Yes.", "thinking": "<think>\nhm\n</think>"},
}


@pytest.mark.parametrize("form", FORMS_OF_A_TRACE)
def test_each_form_of_a_trace_gives_the_same_text_where_a_template_has_a_place_for_it(form: str) -> None:
    row = talk("Hi", {"role": "assistant", **FORMS_OF_A_TRACE[form]})
    analysis = "<|channel|>analysis<|message|>hm<|end|><|start|>assistant"
    check(
        renderer("gpt_oss"), row,
        f"<|start|>user<|message|>Hi<|end|><|start|>assistant«{analysis}<|channel|>final<|message|>Yes.<|return|>»",
    )  # fmt: skip
    check(renderer("qwen3"), row, f"{IM_USER}Hi<|im_end|>\n{IM_ASSISTANT}«{TRACE}Yes.<|im_end|>»\n")
    check(renderer("r1"), row, "<|User|>Hi<|Assistant|><think>\n«hm\n</think>\n\nYes.<|im_end|>»")
    opened = f"{IM_USER}Hi<|im_end|>\n{IM_ASSISTANT}<think>\n«hm\n</think>\n"
    examples = builder(renderer("opens"))(placed(row))
    text = renderer("opens").tokenizer.decode(examples[0]["input_ids"])
    assert text.replace("</think>\n\n", "</think>\n") == opened.replace("«", "") + "Yes.<|im_end|>\n"


def test_a_prompt_that_opens_the_trace_leads_to_each_answer() -> None:
    traced = ("Hi", TRACE + "One.", "And?", TRACE + "Two.")
    user = "<|User|>Hi<|Assistant|>"
    found = check(
        renderer("r1"), talk(*traced),
        f"{user}\n\nOne.<|im_end|><|User|>And?<|Assistant|><think>\n«hm\n</think>\n\nTwo.<|im_end|>»",
        f"{user}<think>\n«hm\n</think>\n\nOne.<|im_end|>»",
    )  # fmt: skip
    assert found == Shares(answers=2)


def test_an_answer_without_the_trace_that_the_prompt_opens_is_named_and_counted() -> None:
    made = renderer("r1")
    assert check(made, talk("Hi", "One.")) == Shares(answers=1, answers_missed=1)
    assert made.counts == {NO_TRACE: 1}
    mixed = talk("Hi", "One.", "And?", TRACE + "Two.")
    written = "<|User|>Hi<|Assistant|>One.<|im_end|><|User|>And?<|Assistant|><think>\n«hm\n</think>\n\nTwo.<|im_end|>»"
    assert check(made, mixed, written) == Shares(answers=2, answers_missed=1)
    assert made.counts == {NO_TRACE: 1, OWN_EXAMPLE: 1}
    other = renderer("chatml", template=CHATML.replace("<|im_start|>assistant\n", "<|im_start|>assistant\nSure: "))
    check(other, talk("Hi", "One."))
    assert other.counts == {NO_PREFIX: 1}


@pytest.mark.parametrize(
    "content", ["Put a `</think>` there.", 'Close it with "</think>", then stop.', "Use <think> and </think> so."]
)
def test_a_mention_of_the_closing_tag_is_not_a_trace(content: str) -> None:
    check(renderer("chatml"), talk("Hi", content), f"{IM_USER}Hi<|im_end|>\n{IM_ASSISTANT}«{content}<|im_end|>»\n")


def test_a_closing_tag_that_may_be_either_is_refused() -> None:
    with pytest.raises(DataError, match="message 1 has </think> without <think>, which may end its reasoning or be"):
        renderer("chatml").spans(talk("Hi", "The tag </think> ends it."))


# ----------------------------------------------------------------------------------------------------- end of turns


def test_a_template_that_ends_no_turn_is_named(tmp_path: Path) -> None:
    for family, directory, end in (
        ("glm", stops(tmp_path, "<|user|>"), "<|user|>"),
        ("instruction", None, "<|endoftext|>"),
    ):
        made = renderer(family, directory)
        builder(made)(placed(talk("Hi", "One.")))
        assert made.counts == {f"the template ends no turn: {end!r} is supervised as the end": 1}
        assert made.tokenizer.convert_tokens_to_ids(end) in made.end_of_turn_ids()
    without = renderer("instruction")
    without.tokenizer.eos_token = None
    assert without.spans(talk("Hi", "One."))[2] == ["the template ends no turn: nothing teaches the model to stop"]


def test_words_that_later_messages_change_are_rewritten_and_an_end_is_not() -> None:
    trimmed = PHI.replace("m.content +", "(m.content if loop.last else m.content | replace('.', '')) +")
    made = renderer("phi", template=trimmed)
    check(
        made,
        talk(*TWO[:2], "So", "Two."),
        "<|user|>Hi<|end|><|assistant|>One<|end|><|user|>So<|end|><|assistant|>«Two.<|end|><|endoftext|>»",
        "<|user|>Hi<|end|><|assistant|>«One.<|end|><|endoftext|>»",
    )


def test_turns_past_the_maximum_length_are_counted() -> None:
    made = renderer("chatml")
    one = f"{IM_USER}Hi<|im_end|>\n{IM_ASSISTANT}«One.<|im_end|>»\n"
    length = len(made.tokenizer.encode(one.replace("«", "").replace("»", ""), add_special_tokens=False))
    found = check(made, talk(*TWO), one, max_length=length)
    assert found == Shares(answers=2, answers_missed=1)
    assert (found.many, found.sentence()) == (True, "1 of 2 answers is not trained on")


def test_what_is_not_trained_on_is_said_as_a_share() -> None:
    found = Shares(answers=16, answers_missed=8, tool_calls=8, tool_calls_missed=8)
    assert found.sentence() == "8 of 8 tool calls and 8 of 16 answers are not trained on"
    assert found.many and Shares().sentence() == "" and not Shares().many
    assert not Shares(answers=10, answers_missed=1).many


def test_a_pair_of_answers_is_one_example() -> None:
    pair = talk(*TWO, rejected=({"role": "user", "content": "Hi"}, {"role": "assistant", "content": "No."}))
    made = renderer("qwen3")
    build = builder(made)
    assert len(build(placed(pair))) == 1
    assert build.shares == Shares(answers=2, answers_missed=1)
    assert made.counts["turn rewritten by the template"] == 1


def pair(chosen: str, rejected: str, before: Sequence[str] = ("Hi",), **more: Any) -> Conversation:
    made = talk(*before, chosen, supervised=(len(before),), **more)
    return replace(made, rejected=talk(*before, rejected).messages)


SYSTEM = "<|im_start|>system\nDate: 01 January 2026\nMode: {}\n<|im_end|>\n"
PAIRS_OF = {
    "chatml": (
        pair("Yes.", "No."), f"{IM_USER}Hi<|im_end|>\n{IM_ASSISTANT}", "«Yes.<|im_end|>»\n", "«No.<|im_end|>»\n",
    ),
    "llama2": (pair("Yes.", "No."), "<s>[INST] Hi [/INST]", "« Yes. </s>»", "« No. </s>»"),
    "phi": (
        pair("Yes.", "No."), "<|user|>Hi<|end|><|assistant|>",
        "«Yes.<|end|><|endoftext|>»", "«No.<|end|><|endoftext|>»",
    ),
    "qwen3": (
        pair("Yes.", "No."), f"{IM_USER}Hi<|im_end|>\n{IM_ASSISTANT}{BLOCK}", "«Yes.<|im_end|>»\n", "«No.<|im_end|>»\n",
    ),
    "qwen3, one with reasoning": (
        pair(f"{TRACE}Yes.", "No."), f"{IM_USER}Hi<|im_end|>\n{IM_ASSISTANT}",
        f"«{TRACE}Yes.<|im_end|>»\n", f"«{BLOCK}No.<|im_end|>»\n",
    ),
    "qwen3, the other with reasoning, later": (
        pair("Yes.", f"{TRACE}No.", TWO[:3]),
        f"{IM_USER}Hi<|im_end|>\n{IM_ASSISTANT}One.<|im_end|>\n{IM_USER}And?<|im_end|>\n{IM_ASSISTANT}",
        f"«{BLOCK}Yes.<|im_end|>»\n", f"«{TRACE}No.<|im_end|>»\n",
    ),
    "smollm3": (
        pair("Yes.", "No."), f"{SYSTEM.format('/no_think')}{IM_USER}Hi<|im_end|>\n{IM_ASSISTANT}<think>\n\n</think>\n",
        "«Yes.<|im_end|>»\n", "«No.<|im_end|>»\n",
    ),
    "smollm3, one with reasoning": (
        pair("Yes.", "<think>\nhm\n</think>\nNo."), f"{SYSTEM.format('/think')}{IM_USER}Hi<|im_end|>\n{IM_ASSISTANT}",
        "«Yes.<|im_end|>»\n", "«<think>\nhm\n</think>\nNo.<|im_end|>»\n",
    ),
    "opens, both with reasoning": (
        pair(f"{TRACE}Yes.", f"{TRACE}No."), f"{IM_USER}Hi<|im_end|>\n{IM_ASSISTANT}<think>\n",
        "«hm\n</think>\n\nYes.<|im_end|>»\n", "«hm\n</think>\n\nNo.<|im_end|>»\n",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", PAIRS_OF)
def test_both_answers_of_a_pair_follow_one_prompt_and_are_supervised_with_their_end(case: str) -> None:
    conversation, prompt, chosen, rejected = PAIRS_OF[case]
    family = case.partition(",")[0]
    template = SMOLLM3.read_text(encoding="utf-8") if family == "smollm3" else None
    made = renderer(family, template=template)
    example = check_pair(made, conversation, prompt + chosen, prompt + rejected)
    shared = len(made.tokenizer.encode(prompt, add_special_tokens=False))
    assert example[BRANCHES][0] == shared - 1  # each branch begins with the last token of the prompt
    assert not made.counts.total()


def test_a_beginning_that_the_template_renders_differently_is_not_shared() -> None:
    begin = ({"role": "user", "content": "Hi"}, CALL)
    answers = ({"role": "tool", "content": "1"}, {"role": "assistant", "content": "Yes."})
    conversation = Conversation(
        messages=(*begin, *answers), rejected=(begin[0], {"role": "assistant", "content": "No."}), supervised=(1, 3)
    )
    made = renderer("qwen3")
    written = (
        f"{IM_USER}Hi<|im_end|>\n{IM_ASSISTANT}{CALLED}<|im_end|>\n"
        f"<|im_start|>tool\n1<|im_end|>\n{IM_ASSISTANT}{BLOCK}«Yes.<|im_end|>»\n",
        f"{IM_USER}Hi<|im_end|>\n{IM_ASSISTANT}{BLOCK}«No.<|im_end|>»\n",
    )
    example = check_pair(made, conversation, *written)
    header = made.tokenizer.encode(f"{IM_USER}Hi<|im_end|>\n{IM_ASSISTANT}", add_special_tokens=False)
    assert example[BRANCHES][0] == len(header) - 1
    assert made.counts == {"turn rewritten by the template": 1}


def test_the_answers_of_both_sides_are_counted_and_notes_once_for_each_row() -> None:
    made = renderer("chatml")
    build = ExampleBuilder(comparing(), made, 14, chunk=False)
    long = "No, and no again, whatever you say."
    assert len(build(placed(pair(long, long.upper())))) == 1
    assert (build.shares, made.counts["cut"]) == (Shares(answers=2), 1)
