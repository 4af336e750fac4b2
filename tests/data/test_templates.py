"""Known problems of chat templates, tested on the embedded model's template and on templates as users have them.

Expectations are handwritten: «…» marks supervised text, everything else is context. They are compared token by token
with the embedded model's tokenizer, whose tokens have several letters, so that boundaries matter.
"""

from __future__ import annotations

import datetime
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import smollm3_finetune
from smollm3_finetune.api import Conversation
from smollm3_finetune.api.data import IGNORE_INDEX
from smollm3_finetune.data.chat_template.renderer import Renderer, RenderOptions
from smollm3_finetune.errors import DataError

TINY = Path(smollm3_finetune.__file__).parent / "builtin" / "tiny"
EMBEDDED, LIKE, TOOLS, PLAIN, CUTS = "embedded", "smollm3_like", "smollm3_like_tools", "chatml", "cuts_history"
ALL = (EMBEDDED, LIKE, TOOLS, PLAIN, CUTS)
MODAL = (EMBEDDED, LIKE, TOOLS, CUTS)
LONG = 100_000

USER = "<|im_start|>user\nHi<|im_end|>\n"
HEADER = "<|im_start|>assistant\n"
EMPTY = "<think>\n\n</think>\n"
TRACE = "<think>\nhm\n</think>\n"
METADATA = "<|im_start|>system\n## Metadata\n\nReasoning Mode: /{mode}\n<|im_end|>\n"
DATED = "<|im_start|>system\nDate: 01 January 2026\nMode: /{mode}\n<|im_end|>\n"
HEADS = {
    EMBEDDED: METADATA,
    LIKE: DATED,
    TOOLS: DATED,
    PLAIN: "<|im_start|>system\nYou are a small assistant.<|im_end|>\n",
    CUTS: "",
}
"""The text with which each template begins a conversation without a system message."""
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
CALLED = '<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>'
SCHEMA = {"name": "add", "description": "Adds.", "parameters": {"type": "object", "properties": {}}}
SHOWN_SCHEMA = '{"name": "add", "description": "Adds.", "parameters": {"type": "object", "properties": {}}}'


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(str(TINY))


@cache
def source(name: str) -> str | None:
    return None if name == EMBEDDED else (Path(__file__).parent / "templates" / f"{name}.jinja").read_text("utf-8")


def renderer(name: str, **options: Any) -> Renderer:
    return Renderer(tokenizer(), RenderOptions(template=source(name), **options))


def user(content: str = "Hi", **more: Any) -> dict[str, Any]:
    return {"role": "user", "content": content, **more}


def assistant(content: str = "Yes.", **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def system(content: str) -> dict[str, Any]:
    return {"role": "system", "content": content}


def tool(content: str = "2") -> dict[str, Any]:
    return {"role": "tool", "content": content}


def talk(*messages: dict[str, Any], tools: tuple[dict[str, Any], ...] = (), **template_kwargs: Any) -> Conversation:
    return Conversation(messages=messages, tools=tools, template_kwargs=template_kwargs)


def check(made: Renderer, conversation: Conversation, written: str) -> Counter[str]:
    """Assert that text, tokens and labels of a conversation are those of `written`; returns its notes with counts.

    Each supervised answer must also follow the generation prompt: the prompt of the previous messages, in the same
    mode, is the text before the answer.
    """
    text, spans, _ = made.spans(conversation)
    assert text == written.replace("«", "").replace("»", "")
    ids: list[int] = []
    labels: list[int] = []
    for i, piece in enumerate(written.replace("»", "«").split("«")):
        tokens = made.tokenizer.encode(piece, add_special_tokens=False)
        ids += tokens
        labels += tokens if i % 2 else [IGNORE_INDEX] * len(tokens)
    encoded = made.encode(conversation, LONG)
    decoded = made.tokenizer.convert_ids_to_tokens
    assert decoded(encoded.input_ids) == decoded(ids)
    assert encoded.labels == labels
    check_prompts(made, conversation, text, [start for start, _ in spans])
    return Counter(encoded.notes)


def check_prompts(made: Renderer, conversation: Conversation, text: str, starts: list[int]) -> None:
    kwargs = {"enable_thinking": made.mode(conversation), **conversation.template_kwargs}
    kwargs = {**kwargs, **({"tools": list(conversation.tools)} if conversation.tools else {})}
    answers = [i for i, m in enumerate(conversation.messages) if m["role"] == "assistant" and i]
    prompts = [made.prompt(conversation.messages[:i], **kwargs) for i in answers]
    for start in starts:
        assert text[:start] in prompts or conversation.messages[0]["role"] == "assistant"


def head(name: str, mode: str) -> str:
    return HEADS[name].format(mode=mode)


# ------------------------------------------------------------------------------------------- handwritten tokens


def tokens_of(made: Renderer, conversation: Conversation) -> tuple[list[str], list[str]]:
    encoded = made.encode(conversation, LONG)
    supervised = [i for i in encoded.labels if i != IGNORE_INDEX]
    assert encoded.labels[-len(supervised) - 1 : -1] == supervised  # one run, before the last line break
    show = made.tokenizer.convert_ids_to_tokens
    return show(encoded.input_ids[: -len(supervised) - 1]), show(supervised)


def test_every_token_of_a_no_think_row_is_as_expected() -> None:
    context, supervised = tokens_of(renderer(PLAIN), talk(system("A"), user("B"), assistant("C")))
    newline = "Ċ"
    assert context == [
        "<|im_start|>", "system", newline, "A", "<|im_end|>", newline,
        "<|im_start|>", "user", newline, "B", "<|im_end|>", newline,
        "<|im_start|>", "assistant", newline,
    ]  # fmt: skip
    assert supervised == ["C", "<|im_end|>"]
    for name in (EMBEDDED, LIKE, TOOLS):
        context, supervised = tokens_of(renderer(name), talk(user("B"), assistant("C")))
        block = ["<think>", newline, newline, "</think>", newline]
        assert context[-8:] == ["<|im_start|>", "assistant", newline, *block]
        assert supervised == ["C", "<|im_end|>"]


# --------------------------------------------------------------------------------------------- header and modes


@pytest.mark.parametrize("name", ALL)
def test_the_mask_begins_after_the_generation_prompt(name: str) -> None:
    forced = {PLAIN: "", CUTS: "<think>\n\n</think>\n\n"}.get(name, EMPTY)
    written = head(name, "no_think") + USER + HEADER + forced + "«Yes.<|im_end|>»\n"
    assert check(renderer(name), talk(user(), assistant()), written) == {}


def test_the_generation_markers_of_the_template_include_the_header_and_the_block() -> None:
    rendered = tokenizer().apply_chat_template(
        [user(), assistant()], chat_template=source(LIKE), enable_thinking=False, return_dict=True,
        return_assistant_tokens_mask=True, tokenize=True,
    )  # fmt: skip
    covered = [i for i, m in zip(rendered["input_ids"], rendered["assistant_masks"], strict=True) if m]
    assert tokenizer().decode(covered) == HEADER + EMPTY + "Yes.<|im_end|>\n"


@pytest.mark.parametrize("name", ALL)
def test_a_row_with_a_trace_and_no_mode_is_a_think_row(name: str) -> None:
    separator = "\n" if name == CUTS else ""
    written = head(name, "think") + USER + HEADER + f"«{TRACE}{separator}Yes.<|im_end|>»\n"
    assert check(renderer(name), talk(user(), assistant(TRACE + "Yes.")), written) == {}
    assert renderer(name).mode(talk(user(), assistant(TRACE + "Yes."))) is (None if name == PLAIN else True)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("by", ["row", "run"])
def test_an_explicit_no_think_strips_traces_and_counts_them(name: str, by: str) -> None:
    forced = {PLAIN: "", CUTS: "<think>\n\n</think>\n\n"}.get(name, EMPTY)
    written = head(name, "no_think") + USER + HEADER + forced + "«Yes.<|im_end|>»\n"
    made = renderer(name, enable_thinking=False if by == "run" else None)
    row = talk(user(), assistant(TRACE + "\nYes."), **({"enable_thinking": False} if by == "row" else {}))
    assert check(made, row, written) == {"trace stripped": 1}
    assert made.counts == {"trace stripped": 1}
    beside = replace(row, messages=(user(), assistant(reasoning_content="hm")))
    assert check(made, beside, written) == {"trace stripped": 1}


@pytest.mark.parametrize("name", [EMBEDDED, LIKE, TOOLS])
def test_the_mode_of_a_row_overrides_that_of_the_run(name: str) -> None:
    written = head(name, "think") + USER + HEADER + "«Yes.<|im_end|>»\n"
    made = renderer(name, enable_thinking=False)
    assert check(made, talk(user(), assistant(), enable_thinking=True), written) == {}


@pytest.mark.parametrize("name", MODAL)
def test_empty_template_kwargs_set_no_mode(name: str) -> None:
    nothing = {"enable_thinking": None, "custom_instructions": None, "xml_tools": None, "python_tools": []}
    plain, empty = talk(user(), assistant()), talk(user(), assistant(), **nothing)
    assert renderer(name).spans(empty) == renderer(name).spans(plain)
    made = renderer(name, enable_thinking=True)
    assert made.mode(empty) is True


def test_a_mode_that_is_not_a_boolean_is_refused() -> None:
    with pytest.raises(DataError, match="enable_thinking must be true or false, found 'no'"):
        renderer(LIKE).spans(talk(user(), assistant(), enable_thinking="no"))


@pytest.mark.parametrize("name", [EMBEDDED, LIKE, TOOLS])
def test_an_empty_block_in_the_row_does_not_double_the_templates(name: str) -> None:
    written = head(name, "no_think") + USER + HEADER + EMPTY + "«Yes.<|im_end|>»\n"
    assert check(renderer(name), talk(user(), assistant("<think>\n\n</think>\n\nYes.")), written) == {}


# ------------------------------------------------------------------------------------------------- reasoning


@pytest.mark.parametrize("name", ALL)
def test_reasoning_content_is_supervised_even_if_the_template_does_not_read_it(name: str) -> None:
    separator = "\n" if name == CUTS else ""
    written = head(name, "think") + USER + HEADER + f"«{TRACE}{separator}Yes.<|im_end|>»\n"
    for field in ("reasoning_content", "reasoning", "thinking"):
        assert check(renderer(name), talk(user(), assistant(**{field: "hm"})), written) == {}
    twice = talk(user(), assistant(TRACE + separator + "Yes.", reasoning_content="hm"))
    assert check(renderer(name), twice, written) == {}


def test_two_different_reasonings_are_refused() -> None:
    with pytest.raises(DataError, match="message 1 has conflicting reasoning in content and reasoning_content"):
        renderer(LIKE).spans(talk(user(), assistant(TRACE + "Yes.", reasoning_content="other")))


@pytest.mark.parametrize("name", [EMBEDDED, LIKE, TOOLS, PLAIN])
def test_several_reasoning_blocks_are_supervised_and_stripped_together(name: str) -> None:
    written = head(name, "think") + USER + HEADER + f"«<think>\n\n</think>\n{TRACE}{TRACE}Yes.<|im_end|>»\n"
    row = talk(user(), assistant(f"<think>\n\n</think>\n{TRACE}{TRACE}Yes."))
    assert check(renderer(name), row, written) == {}
    assert "hm" not in renderer(name, enable_thinking=False).spans(row)[0]


@pytest.mark.parametrize("name", [EMBEDDED, LIKE, TOOLS, PLAIN])
def test_a_trace_that_lost_its_opening_tag_is_a_trace(name: str) -> None:
    written = head(name, "think") + USER + HEADER + f"«{TRACE}Yes.<|im_end|>»\n"
    assert check(renderer(name), talk(user(), assistant("hm\n</think>\nYes.")), written) == {}


@pytest.mark.parametrize("name", ALL)
def test_think_tags_mentioned_in_an_answer_are_kept_and_set_no_mode(name: str) -> None:
    forced = {PLAIN: "", CUTS: "<think>\n\n</think>\n\n"}.get(name, EMPTY)
    says = "Put it between <think> and </think>, then answer."
    written = head(name, "no_think") + USER + HEADER + forced + f"«{says}<|im_end|>»\n"
    assert check(renderer(name), talk(user(), assistant(says)), written) == {}


HISTORY = (user(), assistant(TRACE + "One."), user("And?"), assistant(TRACE + "Two."))
AND = "<|im_start|>user\nAnd?<|im_end|>\n"


@pytest.mark.parametrize("name", [EMBEDDED, LIKE, TOOLS, PLAIN])
def test_reasoning_kept_in_the_history_is_supervised(name: str) -> None:
    written = head(name, "think") + USER + HEADER + f"«{TRACE}One.<|im_end|>»\n" + AND + HEADER
    assert check(renderer(name), talk(*HISTORY), written + f"«{TRACE}Two.<|im_end|>»\n") == {}


@pytest.mark.parametrize("name", ALL)
def test_reasoning_stripped_from_the_history_is_not_supervised(name: str) -> None:
    separator = "\n" if name == CUTS else ""
    written = head(name, "think") + USER + HEADER + "One.<|im_end|>\n" + AND + HEADER
    written += f"«{TRACE}{separator}Two.<|im_end|>»\n"
    notes = check(renderer(name, history="strip"), talk(*HISTORY), written)
    assert notes == {"earlier reasoning stripped": 1}


def test_a_turn_that_the_template_cuts_later_is_not_supervised() -> None:
    written = USER + HEADER + "One.<|im_end|>\n" + AND + HEADER + f"«{TRACE}\nTwo.<|im_end|>»\n"
    assert check(renderer(CUTS), talk(*HISTORY), written) == {"turn rewritten by the template": 1}


def test_answers_between_tool_calls_keep_their_reasoning() -> None:
    turns = (user(), assistant(TRACE, tool_calls=[CALL]), tool(), assistant(TRACE + "Yes."))
    calling = f"«{TRACE}{CALLED}<|im_end|>»\n"
    answered = "<|im_start|>tool\n2<|im_end|>\n"
    for name in (EMBEDDED, TOOLS):
        written = head(name, "think") + USER + HEADER + calling + answered + HEADER + f"«{TRACE}Yes.<|im_end|>»\n"
        assert check(renderer(name, history="strip"), talk(*turns), written) == {}


def test_a_template_that_cuts_supervised_reasoning_is_refused() -> None:
    cuts = str(source(PLAIN)).replace("message.content", "message.content.split('</think>')[-1]")
    made = Renderer(tokenizer(), RenderOptions(template=cuts))
    with pytest.raises(DataError, match="drops the reasoning of message 1"):
        made.spans(talk(user(), assistant(TRACE + "Yes.")))


# ------------------------------------------------------------------------------------------------- mode flags

INSTRUCTED = {
    EMBEDDED: "<|im_start|>system\n## Metadata\n\nReasoning Mode: /{mode}\n\n"
    "## Custom Instructions\n\n{told}\n<|im_end|>\n",
    LIKE: "<|im_start|>system\nDate: 01 January 2026\nMode: /{mode}\nInstructions: {told}\n<|im_end|>\n",
    TOOLS: "<|im_start|>system\nDate: 01 January 2026\nMode: /{mode}\nInstructions: {told}\n<|im_end|>\n",
    PLAIN: "<|im_start|>system\n{told}<|im_end|>\n",
    CUTS: "<|im_start|>system\n{told}<|im_end|>\n",
}


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(
    "told", ["Read /data/think/a and x/no_think.", "Say /thinking.", "(/no_think)", "See /etc/system_override here."]
)
def test_a_flag_within_other_text_has_no_effect_and_is_kept(name: str, told: str) -> None:
    forced = {PLAIN: "", CUTS: "<think>\n\n</think>\n\n"}.get(name, EMPTY)
    written = INSTRUCTED[name].format(mode="no_think", told=told) + USER + HEADER
    assert check(renderer(name), talk(system(told), user(), assistant()), written + forced + "«Yes.<|im_end|>»\n") == {}
    separator = "\n" if name == CUTS else ""
    written = INSTRUCTED[name].format(mode="think", told=told) + USER + HEADER
    written += f"«{TRACE}{separator}Yes.<|im_end|>»\n"
    assert check(renderer(name), talk(system(told), user(), assistant(TRACE + "Yes.")), written) == {}


@pytest.mark.parametrize("name", [LIKE, TOOLS])
@pytest.mark.parametrize("told", ["/no_think Be kind.", "Be kind. /no_think", "Be kind.\n/no_think"])
def test_a_flag_that_the_template_obeys_sets_the_mode_and_strips_traces(name: str, told: str) -> None:
    left = told.replace("/no_think", "").rstrip()
    written = INSTRUCTED[name].format(mode="no_think", told=left) + USER + HEADER + EMPTY + "«Yes.<|im_end|>»\n"
    row = talk(system(told), user(), assistant(TRACE + "Yes."))
    assert check(renderer(name), row, written) == {"trace stripped": 1}
    asked = replace(row, template_kwargs={"enable_thinking": True})  # this template lets the flag win
    assert check(renderer(name), asked, written) == {"trace stripped": 1}


@pytest.mark.parametrize("name", [EMBEDDED, LIKE, TOOLS])
def test_a_think_flag_makes_a_row_without_a_trace_a_think_row(name: str) -> None:
    written = INSTRUCTED[name].format(mode="think", told="Be kind.") + USER + HEADER + "«Yes.<|im_end|>»\n"
    row = talk(system("Be kind.\n/think"), user(), assistant())
    assert check(renderer(name, enable_thinking=False), row, written) == {}


def test_the_embedded_template_obeys_only_a_flag_on_a_separate_line() -> None:
    own_line = talk(system("/no_think\nBe kind."), user(), assistant(TRACE + "Yes."))
    written = INSTRUCTED[EMBEDDED].format(mode="no_think", told="Be kind.") + USER + HEADER + EMPTY
    assert check(renderer(EMBEDDED), own_line, written + "«Yes.<|im_end|>»\n") == {"trace stripped": 1}
    within = talk(system("Write /no_think to hurry."), user(), assistant(TRACE + "Yes."))
    written = INSTRUCTED[EMBEDDED].format(mode="think", told="Write /no_think to hurry.") + USER + HEADER
    assert check(renderer(EMBEDDED), within, written + f"«{TRACE}Yes.<|im_end|>»\n") == {}


def test_of_two_flags_the_one_that_the_template_obeys_counts() -> None:
    row = talk(system("/think\nBe kind.\n/no_think"), user(), assistant(TRACE + "Yes."))
    for name in (EMBEDDED, LIKE, TOOLS):
        assert renderer(name).mode(row) is False
    swapped = replace(row, messages=(system("/no_think\nBe kind.\n/think"), *row.messages[1:]))
    assert renderer(EMBEDDED).mode(swapped) is True  # its last line wins
    assert renderer(LIKE).mode(swapped) is False  # /no_think is searched first


def test_a_flag_that_a_template_deletes_but_does_not_obey_has_no_effect() -> None:
    deletes = str(source(LIKE)).replace("{%- set state.mode = '/no_think' -%}", "")
    made = Renderer(tokenizer(), RenderOptions(template=deletes))
    told = INSTRUCTED[LIKE].format(mode="{mode}", told="Be kind.") + USER + HEADER
    for content, mode, supervised in (
        ("Yes.", "no_think", EMPTY + "«Yes."),
        (TRACE + "Yes.", "think", f"«{TRACE}Yes."),
    ):
        row = talk(system("Be kind. /no_think"), user(), assistant(content))
        assert check(made, row, told.format(mode=mode) + supervised + "<|im_end|>»\n") == {}


def test_a_flag_is_an_ordinary_word_to_a_template_without_flags() -> None:
    for name in (PLAIN, CUTS):
        separator = "\n" if name == CUTS else ""
        written = INSTRUCTED[name].format(told="Be kind. /no_think") + USER + HEADER
        row = talk(system("Be kind. /no_think"), user(), assistant(TRACE + "Yes."))
        assert check(renderer(name), row, written + f"«{TRACE}{separator}Yes.<|im_end|>»\n") == {}


@pytest.mark.parametrize("name", [LIKE, TOOLS])
def test_a_system_override_replaces_the_metadata_only_as_a_whole_word(name: str) -> None:
    written = "<|im_start|>system\nBe kind.<|im_end|>\n" + USER + HEADER + EMPTY + "«Yes.<|im_end|>»\n"
    assert check(renderer(name), talk(system("/system_override Be kind."), user(), assistant()), written) == {}


@pytest.mark.parametrize("name", [EMBEDDED, LIKE, TOOLS])
def test_custom_instructions_are_escaped_like_a_system_message(name: str) -> None:
    told = "Read /data/no_think/a."
    written = INSTRUCTED[name].format(mode="think", told=told) + USER + HEADER + f"«{TRACE}Yes.<|im_end|>»\n"
    assert check(renderer(name), talk(user(), assistant(TRACE + "Yes."), custom_instructions=told), written) == {}


@pytest.mark.parametrize("name", [LIKE, TOOLS])
def test_a_flag_in_custom_instructions_sets_the_mode_if_the_template_obeys_it(name: str) -> None:
    written = INSTRUCTED[name].format(mode="no_think", told=" Hurry.") + USER + HEADER + EMPTY + "«Yes.<|im_end|>»\n"
    row = talk(user(), assistant(TRACE + "Yes."), custom_instructions="/no_think Hurry.")
    assert check(renderer(name), row, written) == {"trace stripped": 1}


@pytest.mark.parametrize("name", [LIKE, TOOLS, PLAIN, CUTS])
def test_custom_instructions_that_the_template_drops_are_refused(name: str) -> None:
    row = talk(system("Be kind."), user(), assistant(), custom_instructions="Be brief.")
    with pytest.raises(DataError, match="the chat template drops the custom_instructions"):
        renderer(name).spans(row)


# ------------------------------------------------------------------------------------------------------ tools


@pytest.mark.parametrize("name", [EMBEDDED, TOOLS])
def test_tool_calls_are_supervised_and_tool_results_are_not(name: str) -> None:
    turns = (user(), assistant("", tool_calls=[CALL]), tool(), assistant("It is 2."))
    written = (
        head(name, "no_think") + USER + HEADER + EMPTY + f"«{CALLED}<|im_end|>»\n"
        "<|im_start|>tool\n2<|im_end|>\n" + HEADER + EMPTY + "«It is 2.<|im_end|>»\n"
    )
    assert check(renderer(name), talk(*turns), written) == {}


def test_tool_calls_in_a_template_that_puts_results_into_the_user_turn() -> None:
    turns = (user(), assistant(TRACE, tool_calls=[CALL]), tool(), assistant(TRACE + "It is 2."))
    written = (
        USER + HEADER + f"«{TRACE}\n{CALLED}<|im_end|>»\n"
        "<|im_start|>user\n<tool_response>2</tool_response><|im_end|>\n" + HEADER + f"«{TRACE}\nIt is 2.<|im_end|>»\n"
    )
    assert check(renderer(CUTS), talk(*turns), written) == {}


@pytest.mark.parametrize("name", [LIKE, PLAIN])
def test_tool_calls_that_the_template_drops_are_refused(name: str) -> None:
    with pytest.raises(DataError, match="the chat template drops the tool calls of message 1"):
        renderer(name).spans(talk(user(), assistant("Wait.", tool_calls=[CALL])))


def test_arguments_that_the_template_drops_are_refused() -> None:
    template = str(source(TOOLS)).replace(", 'arguments': call.function.arguments", "")
    assert "arguments" not in template
    with pytest.raises(DataError, match="the chat template drops the tool calls of message 1"):
        Renderer(tokenizer(), RenderOptions(template=template)).spans(talk(user(), assistant("", tool_calls=[CALL])))


def test_a_template_may_render_tool_answers_as_user_messages_and_the_row_is_noted() -> None:
    note = "tool answer rendered as a user message"
    asked = assistant('<tool_call>{"name": "add"}</tool_call>')
    written = (
        head(LIKE, "no_think") + USER + HEADER + EMPTY + '«<tool_call>{"name": "add"}</tool_call><|im_end|>»\n'
        "<|im_start|>user\n2<|im_end|>\n" + HEADER + EMPTY + "«Yes.<|im_end|>»\n"
    )
    assert check(renderer(LIKE), talk(user(), asked, tool(), assistant()), written) == {note: 1}
    prompt = renderer(LIKE).prompt([user(), asked, tool()], enable_thinking=False)
    assert written.replace("«", "").replace("»", "").startswith(prompt)
    for name in (EMBEDDED, TOOLS, CUTS):  # a turn of their own, or a mark inside the user turn
        assert note not in renderer(name).spans(talk(user(), asked, tool(), assistant()))[2]


def test_a_tool_result_that_the_template_drops_is_refused() -> None:
    silent = str(source(CUTS)).replace("+ message.content + '</tool_response>", "+ '</tool_response>")
    with pytest.raises(DataError, match="the chat template drops message 1, role 'tool'"):
        Renderer(tokenizer(), RenderOptions(template=silent)).spans(talk(user(), tool("42"), assistant()))


@pytest.mark.parametrize("name", [LIKE, TOOLS])
def test_a_system_message_in_the_middle_that_the_template_drops_is_refused(name: str) -> None:
    with pytest.raises(DataError, match="the chat template drops message 1, role 'system'"):
        renderer(name).spans(talk(user(), system("Be brief."), assistant()))


TOOL_TEXT = {
    EMBEDDED: "<|im_start|>system\n## Metadata\n\nReasoning Mode: /no_think\n\n## Tools\n\nTo call a tool, answer "
    '<tool_call>{{"name": ..., "arguments": {{...}}}}</tool_call>\n{schema}\n<|im_end|>\n',
    LIKE: "<|im_start|>system\nDate: 01 January 2026\nMode: /no_think\nXML tools:\n{schema}\n<|im_end|>\n",
    TOOLS: "<|im_start|>system\nDate: 01 January 2026\nMode: /no_think\nXML tools:\n{schema}\n<|im_end|>\n",
}


@pytest.mark.parametrize("name", [EMBEDDED, LIKE, TOOLS])
def test_tools_are_passed_under_the_name_that_the_template_reads(name: str) -> None:
    written = TOOL_TEXT[name].format(schema=SHOWN_SCHEMA) + USER + HEADER + EMPTY + "«Yes.<|im_end|>»\n"
    assert check(renderer(name), talk(user(), assistant(), tools=(SCHEMA,)), written) == {}
    assert check(renderer(name), talk(user(), assistant(), xml_tools=[SCHEMA]), written) == {}
    assert check(renderer(name), talk(user(), assistant(), xml_tools=[SHOWN_SCHEMA]), written) == {}


@pytest.mark.parametrize("name", [LIKE, TOOLS])
def test_python_tools_in_template_kwargs_are_rendered_with_xml_tools(name: str) -> None:
    written = TOOL_TEXT[name].format(schema="one\nPython tools:\ndef two(): ...")
    written += USER + HEADER + EMPTY + "«Yes.<|im_end|>»\n"
    row = talk(user(), assistant(), xml_tools=["one"], python_tools=["def two(): ..."])
    assert check(renderer(name), row, written) == {}


def test_tools_that_the_template_drops_are_refused() -> None:
    with pytest.raises(DataError, match="the chat template drops the tools"):
        renderer(PLAIN).spans(talk(user(), assistant(), tools=(SCHEMA,)))
    for name in (PLAIN, CUTS):
        for key in ("xml_tools", "python_tools"):
            with pytest.raises(DataError, match=f"the chat template drops the {key}"):
                renderer(name).spans(talk(user(), assistant(), **{key: [SCHEMA]}))
    with pytest.raises(DataError, match="python_tools are not supported by this template"):
        renderer(EMBEDDED).spans(talk(user(), assistant(), python_tools=["f"]))
    with pytest.raises(DataError, match="differ from those in its template_kwargs"):
        renderer(TOOLS).spans(replace(talk(user(), assistant(), tools=(SCHEMA,)), template_kwargs={"tools": [CALL]}))
    with pytest.raises(DataError, match="the chat template drops the tools"):  # beside the row's own list
        renderer(LIKE).spans(talk(user(), assistant(), tools=(SCHEMA,), xml_tools=["other"]))
    overridden = talk(system("/system_override Be kind."), user(), assistant(), tools=(SCHEMA,))
    with pytest.raises(DataError, match="the chat template drops the tools"):
        renderer(LIKE).spans(overridden)


def test_a_prompt_that_the_template_would_cut_is_refused_too() -> None:
    with pytest.raises(DataError, match="drops the tool calls of message 1"):
        renderer(LIKE).prompt([user(), assistant("", tool_calls=[CALL]), tool()])


# ------------------------------------------------------------------------------------------------------- dates


class Today(datetime.datetime):
    """A day in the past."""

    @classmethod
    def now(cls, tz: Any = None) -> Today:
        return cls(2031, 5, 4)


@pytest.mark.parametrize("name", ALL)
def test_the_text_does_not_depend_on_the_day(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    row = talk(user(), assistant())
    before = renderer(name).spans(row)
    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Today)
    assert renderer(name).spans(row) == before


@pytest.mark.parametrize("name", [LIKE, TOOLS])
def test_the_date_is_the_configured_one_or_today(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    row = talk(user(), assistant())
    assert "Date: 07 March 2024\n" in renderer(name, date="2024-03-07").spans(row)[0]
    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Today)
    assert "Date: 04 May 2031\n" in renderer(name, date=None).spans(row)[0]


def test_a_fixed_date_is_formatted_like_strftime() -> None:
    template = "  {%- set f = '%Y|%y|%m|%d|%-d|%B|%b|%A|%a|%H:%M:%S|%j|%I %p|100%%' %}\n \n {{ strftime_now(f) }}"
    text = Renderer(tokenizer(), RenderOptions(template=template, date="2024-03-07")).prompt([user("2024")])
    assert text == " \n 2024|24|03|07|7|March|Mar|Thursday|Thu|00:00:00|067|12 AM|100%"


# ------------------------------------------------------------------------------------ turns, boundaries, lengths


@pytest.mark.parametrize("name", [EMBEDDED, LIKE, TOOLS, PLAIN])
def test_an_empty_turn_is_context_and_is_counted(name: str) -> None:
    forced = "" if name == PLAIN else EMPTY
    written = head(name, "no_think") + USER + HEADER + forced + "<|im_end|>\n" + AND + HEADER + forced
    row = talk(user(), assistant(""), user("And?"), assistant())
    assert check(renderer(name), row, written + "«Yes.<|im_end|>»\n") == {"empty turn": 1}
    missing = replace(row, messages=(user(), assistant(None), user("And?"), assistant()))  # type: ignore[arg-type]
    assert check(renderer(name), missing, written + "«Yes.<|im_end|>»\n") == {"empty turn": 1}


@pytest.mark.parametrize("name", MODAL)
@pytest.mark.parametrize("content", [TRACE, "<think>\nhm, and so on"])
def test_reasoning_without_an_answer_is_not_supervised(name: str, content: str) -> None:
    for made in (renderer(name), renderer(name, enable_thinking=False)):
        encoded = made.encode(talk(user(), assistant(content)), LONG)
        assert set(encoded.labels) == {IGNORE_INDEX} and "empty turn" in encoded.notes


@pytest.mark.parametrize("name", ALL)
def test_text_in_other_scripts_has_correct_boundaries(name: str) -> None:
    forced = {PLAIN: "", CUTS: "<think>\n\n</think>\n\n"}.get(name, EMPTY)
    written = head(name, "no_think") + "<|im_start|>user\n你好 🙂<|im_end|>\n" + HEADER + forced
    row = talk(user("你好 🙂"), assistant("été – ‏שלום 👩‍👧"))
    assert check(renderer(name), row, written + "«été – ‏שלום 👩‍👧<|im_end|>»\n") == {}


@pytest.mark.parametrize("name", [EMBEDDED, PLAIN])
def test_an_answer_that_begins_with_a_line_break_shares_no_token_with_the_header(name: str) -> None:
    forced = "" if name == PLAIN else EMPTY
    written = head(name, "no_think") + USER + HEADER + forced + "«\n\n  Yes.\n<|im_end|>»\n"
    assert check(renderer(name), talk(user(), assistant("\n\n  Yes.\n")), written) == {}


def test_with_a_tokenizer_that_joins_line_breaks_those_of_the_answer_are_supervised() -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {c: i for i, c in enumerate([*alphabet, "ĊĊ"])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[("Ċ", "Ċ")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    joining = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>")
    assert joining.tokenize("a\n\nb") == ["a", "ĊĊ", "b"]
    made = Renderer(joining, RenderOptions(template=source(PLAIN)))
    written = HEADS[PLAIN] + USER + HEADER + "«\nYes.<|im_end|>»\n"
    counts = check(made, talk(user(), assistant("\nYes.")), written)
    assert counts == {"several tokens: <|im_start|>": 1}  # this tokenizer does not have it


@pytest.mark.parametrize("name", ALL)
def test_a_very_long_row_is_cut_at_its_end(name: str) -> None:
    made = renderer(name)
    row = talk(user(), assistant("word " * 20_000 + "end"))
    whole = made.encode(row, 1 << 20)
    cut = made.encode(row, 256)
    assert whole.length == len(whole.input_ids) == cut.length > 20_000
    assert (cut.input_ids, cut.labels) == (whole.input_ids[:256], whole.labels[:256])
    assert (whole.notes, cut.notes) == ([], ["cut"])
    assert any(label != IGNORE_INDEX for label in cut.labels)


@pytest.mark.parametrize("name", ALL)
def test_a_conversation_may_begin_with_the_assistant(name: str) -> None:
    row = talk(assistant("Welcome."), user(), assistant())
    text, spans, notes = renderer(name).spans(row)
    supervised = [text[a:b] for a, b in spans]
    if name == CUTS:  # the block at the end of its prompt does not occur in earlier turns
        assert (supervised, notes) == (["Yes.<|im_end|>"], ["turn rewritten by the template"])
    else:
        assert (supervised, notes) == (["Welcome.<|im_end|>", "Yes.<|im_end|>"], [])


@pytest.mark.parametrize("name", ALL)
def test_only_the_selected_turns_are_supervised_including_user_turns(name: str) -> None:
    forced = {PLAIN: "", CUTS: "<think>\n\n</think>\n\n"}.get(name, EMPTY)
    made = renderer(name)
    row = replace(talk(user(), assistant("One."), user("And?"), assistant()), supervised=(2, 3))
    text, spans, notes = made.spans(row)
    assert [text[a:b] for a, b in spans] == ["And?<|im_end|>", "Yes.<|im_end|>"]
    assert text.endswith("<|im_start|>user\nAnd?<|im_end|>\n" + HEADER + forced + "Yes.<|im_end|>\n")
    assert notes == []


@pytest.mark.parametrize("name", ALL)
def test_typed_parts_are_text(name: str) -> None:
    parts = [{"type": "text", "text": "Y"}, {"type": "text", "text": "es."}]
    assert renderer(name).spans(talk(user(), assistant(parts))) == renderer(name).spans(talk(user(), assistant()))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ALL)
def test_generation_stops_at_the_end_of_a_turn(name: str) -> None:
    made = renderer(name)
    end = tokenizer().convert_tokens_to_ids("<|im_end|>")
    other = tokenizer().convert_tokens_to_ids("<|end_of_text|>")
    assert made.end_of_turn_ids() == [other, end], "the base's generation config states both"
    assert made.counts == {}
    base = AutoTokenizer.from_pretrained(str(TINY), eos_token="<|end_of_text|>")  # as base checkpoints have it
    assert Renderer(base, made.options).end_of_turn_ids() == [base.convert_tokens_to_ids("<|end_of_text|>"), end]


@pytest.mark.parametrize("name", ALL)
def test_a_single_turn_needs_at_most_three_renderings(name: str) -> None:
    made = renderer(name)
    calls = Counter[str]()
    row = talk(system("Be kind."), user(), assistant(TRACE + "Yes."))
    made.encode(row, LONG)  # the template is probed once
    apply = made.tokenizer.apply_chat_template

    def counting(*args: Any, **kwargs: Any) -> Any:
        calls["render"] += 1
        return apply(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(made.tokenizer, "apply_chat_template", counting)
        made.encode(row, LONG)
    assert calls["render"] <= 3


def test_a_prompt_without_a_mode_uses_the_template_default_and_the_history() -> None:
    assert renderer(LIKE).prompt([user()]).endswith(HEADER)  # it thinks by default
    assert renderer(EMBEDDED).prompt([user()]).endswith(HEADER + EMPTY)  # it does not
    assert renderer(EMBEDDED).prompt([*HISTORY[:3]]).endswith(HEADER)
    assert renderer(LIKE, enable_thinking=False).prompt([user()]).endswith(HEADER + EMPTY)
    stripped = renderer(LIKE, history="strip").prompt(HISTORY[:3])
    assert stripped == head(LIKE, "think") + USER + HEADER + "One.<|im_end|>\n" + AND + HEADER
