"""The bundled formatters: the rows that each recognizes, and the exact conversations that it returns."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path
from typing import Any

import pytest

from smollm3_finetune.api import Conversation
from smollm3_finetune.components.discovery import PluginSelection, discover
from smollm3_finetune.components.kinds import FORMATTER
from smollm3_finetune.components.registry import Registry
from smollm3_finetune.config.options import build

TEST_DATA = os.environ.get("SMOLLM3_TEST_DATA")
NAMES = ["alpaca", "messages", "preference", "prompt-completion", "sharegpt", "text"]


@pytest.fixture(scope="module")
def registry() -> Registry:
    return discover(PluginSelection.of([], no_plugins=True))


class Format:
    """Format a row with the named formatter, created from its descriptor as in a run."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry

    def __call__(self, name: str, row: dict[str, Any], **options: Any) -> Conversation:
        component = self.registry.find(FORMATTER, name)
        conversation = component.create(build(component.options_class(), options, "formatter"))(row)
        assert isinstance(conversation, Conversation)
        return conversation

    def error(self, name: str, row: dict[str, Any], **options: Any) -> str:
        with pytest.raises(ValueError) as caught:
            self(name, row, **options)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    def recognized(self, row: dict[str, Any]) -> list[str]:
        return [o.spec.name for o in self.registry.claiming(FORMATTER, row)]


@pytest.fixture
def fmt(registry: Registry) -> Format:
    return Format(registry)


def system(content: str) -> dict[str, Any]:
    return {"role": "system", "content": content}


def user(content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "user", "content": content, **more}


def assistant(content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def tool(content: str, **more: Any) -> dict[str, Any]:
    return {"role": "tool", "content": content, **more}


def call(name: str, arguments: Any, **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}, **more}


def turn(speaker: str, value: Any, **more: Any) -> dict[str, Any]:
    return {"from": speaker, "value": value, **more}


def chat(*messages: Any, **columns: Any) -> dict[str, Any]:
    return {"messages": list(messages), **columns}


# ------------------------------------------------------------------------------------------------- claims

ORDINARY: list[tuple[str, dict[str, Any]]] = [
    ("messages", chat(user("u"), assistant("a"))),
    ("messages", {"conversation": [user("u"), assistant("a")], "model": "m", "language": "en"}),
    ("messages", {"conversations": [user("u"), assistant("a")]}),
    ("messages", chat(user([{"type": "text", "value": "u"}], loss_weight=0.0), assistant("a", loss_weight=1.0))),
    ("messages", chat(user("u"), assistant("a"), tools="[]", chat_template_kwargs={"enable_thinking": None})),
    ("sharegpt", {"conversations": [turn("human", "u"), turn("gpt", "a")], "system": "s", "tools": "[]"}),
    ("sharegpt", {"conversation": [turn("human", "u"), turn("gpt", "a")]}),
    ("sharegpt", {"messages": [turn("human", "u"), turn("gpt", "a")]}),
    ("sharegpt", {"conversations": []}),
    ("alpaca", {"instruction": "i", "input": "", "output": "o"}),
    ("alpaca", {"instruction": "i", "output": "o", "system": "s", "history": [["q", "a"]]}),
    ("prompt-completion", {"prompt": "p", "completion": "c"}),
    ("prompt-completion", {"prompt": [user("p")], "completion": [assistant("c")]}),
    ("prompt-completion", {"prompt": "p", "response": "r", "source": "x"}),
    ("text", {"text": "t"}),
    ("text", {"text": "t", "url": "u", "timestamp": 0}),
    ("preference", {"prompt": "p", "chosen": "c", "rejected": "r"}),
    ("preference", {"chosen": [user("u"), assistant("a")], "rejected": [user("u"), assistant("b")]}),
    ("preference", {"instruction": "i", "chosen": "c", "rejected": "r"}),
]


@pytest.mark.parametrize(("name", "row"), ORDINARY, ids=[f"{i}-{name}" for i, (name, _) in enumerate(ORDINARY)])
def test_an_ordinary_row_is_claimed_by_only_one_formatter(name: str, row: dict[str, Any], registry: Registry) -> None:
    claiming = [o.spec.name for o in registry.of(FORMATTER) if o.spec.claims(row)]  # type: ignore[attr-defined]
    assert claiming == [name]


def test_every_bundled_formatter_is_offered_with_a_summary_and_a_claim(registry: Registry) -> None:
    specs = [o.spec for o in registry.of(FORMATTER)]
    assert [s.name for s in specs] == NAMES == sorted({name for name, _ in ORDINARY})
    for spec in specs:
        assert spec.summary and spec.claims is not None  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("row", "name"),
    [
        # ultrafeedback repeats the chosen conversation in `messages` and the question in `prompt`
        ({"prompt": "u", "chosen": [user("u"), assistant("a")], "rejected": [user("u"), assistant("b")],
          **chat(user("u"), assistant("a"))}, "preference"),
        ({"prompt": "u", "completion": "a", "chosen": "a", "rejected": "b"}, "preference"),
        ({"chosen": None, "rejected": None, **chat(user("u"), assistant("a"))}, "messages"),
        ({"prompt": "u", "response": "a", **chat(user("u"), assistant("a"))}, "messages"),
        ({"prompt": "u", **chat(user("u"), assistant("a"))}, "messages"),
        ({"instruction": "i", "input": "", "output": "o", "text": "Below is an instruction…"}, "alpaca"),
        ({"text": "<|im_start|>user…", **chat(user("u"), assistant("a"))}, "messages"),
        ({"prompt": "p", "completion": "c", "text": "p c"}, "prompt-completion"),
    ],
)  # fmt: skip
def test_a_row_of_two_formats_goes_to_the_more_specific_formatter(row: dict[str, Any], name: str, fmt: Format) -> None:
    assert fmt.recognized(row) == [name]


@pytest.mark.parametrize("row", [{}, {"text": None}, {"text": 3}, {"messages": "m"}, {"prompt": "p"}, {"output": "o"}])
def test_unknown_rows_are_not_claimed(row: dict[str, Any], fmt: Format) -> None:
    assert fmt.recognized(row) == []


def test_evaluating_claims_imports_no_formatter() -> None:
    import subprocess
    import sys

    code = (
        "import sys, smollm3_finetune.builtin\n"
        "print(sorted(m for m in sys.modules if m.startswith('smollm3_finetune.builtin.formatters')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(
        ["smollm3_finetune.builtin.formatters", "smollm3_finetune.builtin.formatters.claims"]
    )


def test_the_formatters_are_importable_from_their_package() -> None:
    from smollm3_finetune.builtin import formatters

    for name in formatters.__all__:
        assert getattr(formatters, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'Formater'"):
        _ = formatters.Formater


# ----------------------------------------------------------------------------------------------- messages


def test_messages_of_several_turns(fmt: Format) -> None:
    turns = (system("s"), user("u"), assistant("a"), user("v"), assistant("b"))
    for column in ("messages", "conversation", "conversations"):
        assert fmt("messages", {column: list(turns)}) == Conversation(messages=turns)


def test_typed_parts_are_joined_and_nulls_beside_them_do_not_matter(fmt: Format) -> None:
    parts = [{"type": "text", "text": "one ", "value": None}, {"type": "text", "value": "two", "text": None}]
    row = chat(user(parts), assistant([{"type": "text", "text": "a"}]))
    assert fmt("messages", row) == Conversation(messages=(user("one two"), assistant("a")))


@pytest.mark.parametrize(
    ("name", "role"),
    [("developer", "system"), ("human", "user"), ("gpt", "assistant"), ("model", "assistant"), ("ipython", "tool"),
     ("function", "tool"), ("observation", "tool"), ("User", "user")],
)  # fmt: skip
def test_common_names_of_roles_are_supported(name: str, role: str, fmt: Format) -> None:
    row = chat({"role": name, "content": "x"}, assistant("a"))
    assert fmt("messages", row).messages[0] == {"role": role, "content": "x"}


@pytest.mark.parametrize("text", ["", "  \n", "žluťoučký 🦙 漢字", "a\u2028b\x85c", "e\u0301", "x\x00y", "<think>\n"])
def test_the_text_of_a_user_is_unchanged(text: str, fmt: Format) -> None:
    assert fmt("messages", chat(user(text), assistant("é"))).messages == (user(text), assistant("é"))


def test_a_very_long_row_is_not_cut(fmt: Format) -> None:
    turns = [m for i in range(2000) for m in (user(f"{i} " + "long " * 200), assistant("answer " * 200))]
    conversation = fmt("messages", chat(*turns))
    assert conversation == Conversation(messages=tuple(turns))
    assert fmt("text", {"text": "long " * 1_000_000}).text == "long " * 1_000_000


CALL_FORMS = [
    call("f", {"x": [1, "ü"]}),
    call("f", '{"x": [1, "\\u00fc"]}'),
    {"function": {"name": "f", "arguments": {"x": [1, "ü"]}}},
    {"name": "f", "arguments": {"x": [1, "ü"]}},
    {"id": None, "type": None, "function": None, "name": "f", "arguments": '{"x": [1, "ü"]}'},
    {"name": "f", "parameters": {"x": [1, "ü"]}},
    {"name": "f", "parameters": '{"x": [1, "ü"]}', "arguments": None, "index": 0},
    {"type": "function", "function": {"name": "f", "parameters": {"x": [1, "ü"]}, "arguments": {}}},
]


@pytest.mark.parametrize("form", CALL_FORMS)
def test_tool_calls_are_normalized(form: dict[str, Any], fmt: Format) -> None:
    expected = (user("u"), {"role": "assistant", "tool_calls": [call("f", {"x": [1, "ü"]})], "content": ""})
    for calls in ([form], form, json.dumps([form])):
        row = chat(user("u"), {"role": "assistant", "content": None, "tool_calls": calls})
        assert fmt("messages", row) == Conversation(messages=expected)
    row = chat(user("u"), {"role": "assistant", "content": None, "function_call": form})
    assert fmt("messages", row) == Conversation(messages=expected)


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({"name": "f", "args": {"x": 1}},
         "tool_calls[0].args is not a key of a tool call; did you mean 'arguments'? "
         "(keys: name, arguments, parameters, id, type, index)"),
        ({"name": "f", "argument": {"x": 1}},
         "tool_calls[0].argument is not a key of a tool call; did you mean 'arguments'? "
         "(keys: name, arguments, parameters, id, type, index)"),
        ({"type": "function", "function": {"name": "f", "strict": True}},
         "tool_calls[0].function.strict is not a key of a tool call (keys: name, arguments, parameters)"),
        ({"function": {"name": "f"}, "arguments": {"x": 1}},
         "tool_calls[0].arguments is not a key of a tool call (keys: function, id, type, index)"),
        ({"name": "f", "arguments": {"x": 1}, "parameters": {"x": 2}},
         "tool_calls[0] has different values in 'arguments' and 'parameters'"),
    ],
)  # fmt: skip
def test_no_part_of_a_tool_call_is_dropped(form: dict[str, Any], message: str, fmt: Format) -> None:
    row = chat(user("u"), assistant(None, tool_calls=[form]))
    assert fmt.error("messages", row) == f"messages[1].{message}"


@pytest.mark.parametrize("arguments", [None, "", "{}", {}])
def test_a_call_without_arguments_has_an_empty_object(arguments: Any, fmt: Format) -> None:
    row = chat(user("u"), assistant(None, tool_calls=[call("f", arguments)]))
    assert fmt("messages", row).messages[1]["tool_calls"] == [call("f", {})]


def test_a_conversation_with_tools_keeps_ids_names_reasoning_and_order(fmt: Format) -> None:
    calls = [call("f", '{"n": 1}', id="c1"), call("g", {"m": None}, id="c2")]
    row = chat(
        user("u", tool_calls=None, name=None), assistant("Looking.", tool_calls=calls, reasoning_content="hm"),
        {"role": "function", "content": "1", "tool_call_id": "c1", "name": "f"},
        {"role": "ipython", "content": [{"type": "text", "text": "2"}], "tool_call_id": "c2", "tool_calls": []},
        assistant("Done.", thinking="so"),
        tools=[call("f", None)],
    )  # fmt: skip
    assert fmt("messages", row) == Conversation(
        messages=(
            user("u"),
            assistant(
                "Looking.", reasoning_content="hm",
                tool_calls=[call("f", {"n": 1}, id="c1"), call("g", {"m": None}, id="c2")],
            ),
            tool("1", tool_call_id="c1", name="f"), tool("2", tool_call_id="c2"),
            assistant("Done.", reasoning_content="so"),
        ),
        tools=(call("f", None),),
    )  # fmt: skip


SCHEMA = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}


@pytest.mark.parametrize(
    "columns",
    [
        {"tools": [SCHEMA]}, {"tools": json.dumps([SCHEMA])}, {"tools": [json.dumps(SCHEMA)]}, {"tools": SCHEMA},
        {"functions": [SCHEMA["function"]]}, {"tools": None, "functions": json.dumps([SCHEMA["function"]])},
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["messages", "sharegpt", "alpaca", "prompt-completion", "preference"])
def test_tools_are_read_from_a_list_or_from_json_text(name: str, columns: dict[str, Any], fmt: Format) -> None:
    row = next(r for n, r in ORDINARY if n == name)
    assert fmt(name, {**row, **columns}).tools == (SCHEMA,)


@pytest.mark.parametrize("nothing", [None, "", " ", "[]", []])
def test_empty_values_mean_no_tools(nothing: Any, fmt: Format) -> None:
    row = chat(user("u"), assistant("a"), tools=nothing)
    assert fmt("messages", row) == Conversation(messages=(user("u"), assistant("a")))


def test_template_arguments_drop_nulls_and_keep_false(fmt: Format) -> None:
    kwargs = {"enable_thinking": False, "custom_instructions": None, "python_tools": [], "xml_tools": ["{}"]}
    expected = {"enable_thinking": False, "xml_tools": ["{}"]}
    for value in (kwargs, json.dumps(kwargs)):
        assert fmt("messages", chat(user("u"), assistant("a"), chat_template_kwargs=value)).template_kwargs == expected
    for nothing in (None, "", {}, {"enable_thinking": None}):
        assert fmt("messages", chat(user("u"), assistant("a"), chat_template_kwargs=nothing)).template_kwargs == {}


def test_a_system_column_is_added_unless_there_is_a_system_message(fmt: Format) -> None:
    expected = Conversation(messages=(system("s"), user("u"), assistant("a")))
    assert fmt("messages", chat(user("u"), assistant("a"), system="s")) == expected
    assert fmt("messages", chat(system("s"), user("u"), assistant("a"), system="s")) == expected
    assert fmt("messages", chat(system("s"), user("u"), assistant("a"), system=" ")) == expected
    message = fmt.error("messages", chat(system("s"), user("u"), assistant("a"), system="t"))
    assert message == "'system' and messages[0] are two different system prompts"


# ------------------------------------------------------------------------------------------- loss weights


def weighted(*weights: dict[str, Any]) -> dict[str, Any]:
    """Two questions and two answers, each with the given weight."""
    turns = [user("u"), assistant("a"), user("v"), assistant("b")]
    return chat(*({**t, **w} for t, w in zip(turns, weights, strict=True)))


MASKED = [{"loss_weight": 0.0}, {"loss_weight": 0}, {"weight": 0}, {"train": False}, {"loss": False}]
COUNTED: list[dict[str, Any]] = [{}, {"loss_weight": 1.0}, {"weight": 1}, {"train": True}, {"loss": None}]


@pytest.mark.parametrize(("zero", "one"), list(itertools.product(MASKED, COUNTED)))
def test_weight_0_masks_an_answer_and_weight_1_keeps_it(zero: dict[str, Any], one: Any, fmt: Format) -> None:
    plain = (user("u"), assistant("a"), user("v"), assistant("b"))
    assert fmt("messages", weighted(zero, one, zero, one)) == Conversation(messages=plain)
    assert fmt("messages", weighted({}, zero, {}, one)) == Conversation(messages=plain, supervised=(3,))
    assert fmt("messages", weighted(one, one, one, zero)) == Conversation(messages=plain, supervised=(1,))


@pytest.mark.parametrize("one", COUNTED[1:4])
def test_weights_of_user_turns_count_only_if_the_option_is_set(one: dict[str, Any], fmt: Format) -> None:
    row = weighted(one, {}, {}, {"weight": 0})
    assert fmt("messages", row).supervised == (1,)
    assert fmt("messages", row, learn_user=True).supervised == (0, 1)
    assert fmt("messages", weighted({}, {}, {}, {}), learn_user=True).supervised is None
    only = chat(system("s"), user("u", **one), assistant("a", weight=0))
    assert fmt("messages", only, learn_user=True).supervised == (1,)
    assert fmt("messages", only).supervised == (), "the row masks its only answer: counted, and no error"


def test_weights_of_system_and_tool_turns_are_ignored(fmt: Format) -> None:
    row = chat(system("s") | {"weight": 1}, user("u"), tool("t", weight=1), assistant("a"))
    assert fmt("messages", row, learn_user=True).supervised is None


@pytest.mark.parametrize("weight", [0.5, 2, -1, "1", "false", float("nan"), [1]])
@pytest.mark.parametrize("key", ["loss_weight", "weight", "train", "loss"])
def test_other_weights_are_refused_in_every_turn(key: str, weight: Any, fmt: Format) -> None:
    for i in range(2):
        row = chat(user("u"), assistant("a"))
        row["messages"][i][key] = weight
        message = f"messages[{i}].{key} must be 0 or 1 (masked or supervised), found {weight!r}"
        assert fmt.error("messages", row) == message


def test_conflicting_weights_are_refused(fmt: Format) -> None:
    row = chat(user("u"), assistant("a", loss_weight=0.0, train=True))
    assert fmt.error("messages", row) == "messages[1]: loss_weight 0.0 and train True disagree"


@pytest.mark.parametrize("nothing", ["", " \n", None, [], [{"type": "text", "text": ""}]])
def test_an_empty_answer_is_kept_but_not_supervised(nothing: Any, fmt: Format) -> None:
    conversation = fmt("messages", chat(user("u"), assistant(nothing), user("v"), assistant("b")))
    assert conversation.supervised == (3,)
    assert [m["content"].strip() for m in conversation.messages] == ["u", "", "v", "b"]
    message = fmt.error("messages", chat(user("u"), assistant(nothing, reasoning_content="hm")))
    assert message == "there is no assistant message to train on: messages[1] is empty"


def test_a_row_without_supervised_turns_gives_the_reason(fmt: Format) -> None:
    row = chat(*(m for _ in range(5) for m in (user("u"), assistant(""))), system="s")
    assert fmt.error("messages", row) == (
        "there is no assistant message to train on: messages[1] is empty, messages[3] is empty, "
        "messages[5] is empty, and 2 more"
    )


def test_indices_include_the_system_prompt_but_those_in_errors_do_not(fmt: Format) -> None:
    row = weighted({}, {"weight": 0}, {}, {}) | {"system": "s"}
    assert fmt("messages", row).supervised == (4,)


# ---------------------------------------------------------------------------------------- wrong messages


def calling(value: Any) -> dict[str, Any]:
    return chat(user("u"), assistant(None, tool_calls=value))


def with_columns(**columns: Any) -> dict[str, Any]:
    return chat(user("u"), assistant("a"), **columns)


WRONG_MESSAGES: list[tuple[dict[str, Any], str]] = [
    ({}, "'messages' must be a list of messages with role and content, found nothing"),
    ({"messages": {}}, "'messages' must be a list of messages with role and content, found an object"),
    ({"conversation": []}, "'conversation' must be a list with at least one message"),
    (chat("hello"), "messages[0] must be an object with role and content, found text"),
    (chat(user(None), assistant("a")),
     "messages[0]: content must be text or a list of parts, found nothing at messages[0].content"),
    (chat(user("u"), {"role": "assistant", "contents": "a"}),
     "messages[1]: content must be text or a list of parts, found nothing at messages[1].content"),
    (chat(user({"text": "u"})),
     "messages[0]: content must be text or a list of parts, found an object at messages[0].content"),
    (chat(user([{"type": "text", "text": "u"}, {"type": "image_url", "image_url": {}}]), assistant("a")),
     "messages[0]: only text and reasoning parts are supported, found a part of type 'image_url' "
     "at messages[0].content[1]"),
    (chat(user(["u"]), assistant("a")),
     "messages[0]: only text and reasoning parts are supported, found text at messages[0].content[0]"),
    (chat(user([{"type": "text", "text": 3}]), assistant("a")),
     "messages[0]: a text part needs text in 'text' or 'value', at messages[0].content[0]"),
    (chat(user("u")), "there is no assistant message to train on"),
    (chat(user("u", tool_calls=[call("f", {})]), assistant("a")),
     "messages[0]: only an assistant message can have tool_calls, found them with the role 'user'"),
    (chat(user("u", reasoning_content="hm"), assistant("a")),
     "messages[0]: only an assistant message can have reasoning, found it with the role 'user'"),
    (chat(user("u"), assistant("a", reasoning_content=3)),
     "messages[1].reasoning_content must be text, found a number"),
    (chat(user("u"), tool("t", tool_call_id=3), assistant("a")),
     "messages[1].tool_call_id must be text, found a number"),
    (calling(3), "messages[1].tool_calls must be a list of tool calls, found a number"),
    (calling("[{"), "messages[1].tool_calls is not valid JSON: Expecting property name enclosed in double quotes "
                    "(line 1, column 3)"),
    (calling([3]), "messages[1].tool_calls[0] must be an object with a name and arguments, found a number"),
    (calling([call("f", {}), {"type": "custom", "custom": {}}]),
     "messages[1].tool_calls[1].type must be 'function', found 'custom'"),
    (calling([{"type": "function", "function": "f"}]),
     "messages[1].tool_calls[0].function must be an object with a name and arguments, found text"),
    (calling([call("", {})]),
     "messages[1].tool_calls[0].function.name must be non-empty text, found empty text"),
    (calling([{"arguments": {}}]), "messages[1].tool_calls[0].name must be non-empty text, found nothing"),
    (calling([call("f", "{x}")]), "messages[1].tool_calls[0].function.arguments is not valid JSON: "
                                  "Expecting property name enclosed in double quotes (line 1, column 2)"),
    (calling([call("f", "[1]")]), "messages[1].tool_calls[0].function.arguments must be an object or an object as JSON "
                                  "text, found a list"),
    (calling("[" * 100_000), "messages[1].tool_calls is not usable JSON: it is nested too deeply, "
     "more than 100 levels (the limit is SMOLLM3_MAX_DEPTH=100)"),
    (with_columns(tools="f"), "tools is not valid JSON: Expecting value (line 1, column 1)"),
    (with_columns(tools=3), "tools must be a list of tool schemas, found a number"),
    (with_columns(tools=[[]]), "tools[0] must be an object that describes a tool, found a list"),
    (with_columns(system=3), "'system' must be text, found a number"),
    (with_columns(images=["cat.png"]), "'images' is not supported; only text is"),
    (with_columns(chat_template_kwargs=[1]), "chat_template_kwargs must be an object, found a list"),
    (with_columns(chat_template_kwargs={"enable_thinking": "false"}),
     "chat_template_kwargs.enable_thinking must be true or false, found 'false'"),
    (with_columns(chat_template_kwargs={"xml_tools": "[]"}),
     "chat_template_kwargs.xml_tools must be a list, found '[]'"),
    (with_columns(chat_template_kwargs={"tokenize": True}), "chat_template_kwargs.tokenize cannot be set by a row"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "message"), WRONG_MESSAGES, ids=[m[:60] for _, m in WRONG_MESSAGES])
def test_a_wrong_row_of_messages_names_the_field(row: dict[str, Any], message: str, fmt: Format) -> None:
    assert fmt.error("messages", row) == message


def test_an_unknown_role_lists_the_known_ones(fmt: Format) -> None:
    message = fmt.error("messages", chat({"role": "critic", "content": "c"}, assistant("a")))
    assert message.startswith(
        "messages[0]: found the role 'critic' (roles: system, developer, user, human, assistant, "
    )
    message = fmt.error("messages", chat({"role": "usr", "content": "c"}, assistant("a")))
    assert message.startswith("messages[0]: found the role 'usr'; did you mean 'user'? (roles: system, ")


# ----------------------------------------------------------------------------------------------- sharegpt


def test_sharegpt_turns_tools_and_observations(fmt: Format) -> None:
    row = {
        "conversations": [
            turn("system", "s"), turn("human", "u"), turn("function_call", '{"name": "f", "arguments": {"x": 1}}'),
            turn("observation", '{"y": 2}'), turn("gpt", "é"), turn("user", "v"),
            turn("function_call", json.dumps([{"name": "f", "arguments": "{}"}, {"name": "g", "arguments": None}])),
            turn("tool", "1"), turn("assistant", "b"),
        ],
        "tools": json.dumps([SCHEMA]),
    }  # fmt: skip
    assert fmt("sharegpt", row) == Conversation(
        messages=(
            system("s"), user("u"), {"role": "assistant", "tool_calls": [call("f", {"x": 1})], "content": ""},
            tool('{"y": 2}'), assistant("é"), user("v"),
            {"role": "assistant", "tool_calls": [call("f", {}), call("g", {})], "content": ""},
            tool("1"), assistant("b"),
        ),
        tools=(SCHEMA,),
    )  # fmt: skip


def test_sharegpt_supports_the_columns_weights_and_options_of_messages(fmt: Format) -> None:
    turns = [turn("human", "u", weight=1), turn("gpt", "", weight=1), turn("gpt", "a", weight=0), turn("gpt", "b")]
    row = {"conversations": turns, "system": "s", "tools": "", "chat_template_kwargs": {"enable_thinking": True}}
    expected = Conversation(
        messages=(system("s"), user("u"), assistant(""), assistant("a"), assistant("b")),
        template_kwargs={"enable_thinking": True},
        supervised=(4,),
    )
    assert fmt("sharegpt", row) == expected
    assert fmt("sharegpt", row, learn_user=True).supervised == (1, 4)


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ([], "'conversations' must be a list with at least one message"),
        (["u"], "conversations[0] must be an object with from and value, found text"),
        ([turn("human", None)],
         "conversations[0]: value must be text or a list of parts, found nothing at conversations[0].value"),
        ([turn("human", "u"), turn("function_call", "f(1)")],
         "conversations[1].value is not valid JSON: Expecting value (line 1, column 1)"),
        ([turn("human", "u"), turn("function_call", '{"arguments": {}}')],
         "conversations[1].value.name must be non-empty text, found nothing"),
        ([turn("human", "u"), turn("function_call", None)],
         "conversations[1].value must be a list of tool calls, found nothing"),
        ([turn("human", "u"), turn("gpt", "")],
         "there is no assistant message to train on: conversations[1] is empty"),
    ],
)  # fmt: skip
def test_a_wrong_sharegpt_row_names_the_field(turns: list[Any], message: str, fmt: Format) -> None:
    assert fmt.error("sharegpt", {"conversations": turns}) == message
    if turns and isinstance(turns[0], dict):
        role = fmt.error("sharegpt", {"conversations": [turn("narrator", "x"), *turns]})
        assert role.startswith("conversations[0]: found the role 'narrator' in 'from' (roles: system, ")


# ------------------------------------------------------------------------------------------------- alpaca


def test_alpaca_with_everything(fmt: Format) -> None:
    row = {
        "instruction": "Přelož.", "input": "漢字", "output": "Znaky.", "system": "s",
        "history": [["q1", "a1"], ("q2", "")], "tools": "[]", "chat_template_kwargs": {"enable_thinking": False},
    }  # fmt: skip
    turns = (
        system("s"), user("q1"), assistant("a1"), user("q2"), assistant(""),
        user("Přelož.\n\n漢字"), assistant("Znaky."),
    )  # fmt: skip
    expected = Conversation(messages=turns, template_kwargs={"enable_thinking": False}, supervised=(2, 6))
    assert fmt("alpaca", row) == expected
    assert fmt("alpaca", row, learn_history=False).supervised == (6,)


@pytest.mark.parametrize("nothing", [{}, {"input": "", "system": "", "history": []}, {"input": None, "history": None}])
def test_alpaca_without_the_optional_columns(nothing: dict[str, Any], fmt: Format) -> None:
    row = {"instruction": " i ", "output": "o\n", **nothing}
    expected = Conversation(messages=(user(" i "), assistant("o\n")))
    assert fmt("alpaca", row) == fmt("alpaca", row, learn_history=False) == expected


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"instruction": " "}, "'instruction' must be non-empty text, found empty text"),
        ({"output": None}, "'output' must be non-empty text, found nothing"),
        ({"output": ["o"]}, "'output' must be non-empty text, found a list"),
        ({"input": 3}, "'input' must be text, found a number"),
        ({"system": 3}, "'system' must be text, found a number"),
        ({"history": "q"}, "'history' must be a list of pairs, found text"),
        ({"history": [["q", "a"], ["q"]]}, "history[1] must be a pair of texts, question and answer, found ['q']"),
        ({"history": [["q", None]]}, "history[0] must be a pair of texts, question and answer, found ['q', None]"),
        ({"images": ["x"]}, "'images' is not supported; only text is"),
    ],
)
def test_a_wrong_alpaca_row_names_the_column(columns: dict[str, Any], message: str, fmt: Format) -> None:
    assert fmt.error("alpaca", {"instruction": "i", "output": "o", **columns}) == message


# -------------------------------------------------------------------------------------- prompt, completion


@pytest.mark.parametrize("prompt", ["p", [user("p")], [{"role": "human", "content": [{"type": "text", "text": "p"}]}]])
@pytest.mark.parametrize("answer", ["c", [assistant("c")]])
@pytest.mark.parametrize("column", ["completion", "response"])
def test_prompt_and_completion_as_text_or_messages(prompt: Any, answer: Any, column: str, fmt: Format) -> None:
    row = {"prompt": prompt, column: answer}
    assert fmt("prompt-completion", row) == Conversation(messages=(user("p"), assistant("c")))
    row = {**row, "system": "s", "completion": answer, "response": None}
    assert fmt("prompt-completion", row) == Conversation(messages=(system("s"), user("p"), assistant("c")))


def test_only_the_completion_is_supervised(fmt: Format) -> None:
    prompt = [system("s"), user("u"), assistant("a", weight=1), user("v")]
    completion = [assistant(None, tool_calls=[call("f", "{}")]), tool("1"), assistant("b"), assistant("c", weight=0)]
    conversation = fmt("prompt-completion", {"prompt": prompt, "completion": completion, "tools": [SCHEMA]})
    assert conversation == Conversation(
        messages=(
            system("s"), user("u"), assistant("a"), user("v"),
            {"role": "assistant", "tool_calls": [call("f", {})], "content": ""}, tool("1"),
            assistant("b"), assistant("c"),
        ),
        tools=(SCHEMA,),
        supervised=(4, 6),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "", "completion": "c"}, "'prompt' must be non-empty text, found empty text"),
        ({"prompt": 3, "completion": "c"}, "'prompt' must be non-empty text, found a number"),
        ({"prompt": [], "completion": "c"}, "'prompt' must be a list with at least one message"),
        ({"prompt": "p", "completion": None}, "'completion' must be non-empty text, found nothing"),
        ({"prompt": "p", "response": " "}, "'response' must be non-empty text, found empty text"),
        ({"prompt": "p", "completion": "c", "response": "r"},
         "'completion' and 'response' are two different answers to the same prompt"),
        ({"prompt": [user("p"), assistant("a")], "completion": [user("c")]},
         "there is no assistant message to train on"),
        ({"prompt": "p", "completion": [{"role": "gpt", "content": 3}]},
         "completion[0]: content must be text or a list of parts, found a number at completion[0].content"),
    ],
)  # fmt: skip
def test_a_wrong_prompt_completion_row_names_the_column(row: dict[str, Any], message: str, fmt: Format) -> None:
    assert fmt.error("prompt-completion", row) == message


# --------------------------------------------------------------------------------------------------- text


def test_raw_text_is_unchanged(fmt: Format) -> None:
    text = "  <|im_start|>é\u2028漢\r\n "
    assert fmt("text", {"text": text}) == Conversation(text=text)
    assert fmt("text", {"content": text, "text": "other"}, column="content") == Conversation(text=text)


def test_a_row_without_text_names_the_column(fmt: Format) -> None:
    assert fmt.error("text", {"text": " \n"}) == "'text' must be non-empty text, found empty text"
    assert fmt.error("text", {"text": ["t"]}) == "'text' must be non-empty text, found a list"
    assert fmt.error("text", {"text": "t"}, column="body") == "there is no column 'body' (columns: 'text')"


# --------------------------------------------------------------------------------------------- preference

PAIR = Conversation(messages=(user("u"), assistant("a")), rejected=(user("u"), assistant("b")))


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "u", "chosen": "a", "rejected": "b"},
        {"prompt": [user("u")], "chosen": "a", "rejected": [assistant("b")]},
        {"prompt": "u", "chosen": assistant("a"), "rejected": assistant("b")},
        {"prompt": "u", "chosen": [user("u"), assistant("a")], "rejected": [user("u"), assistant("b")]},
        {"chosen": [user("u"), assistant("a")], "rejected": [user("u"), assistant("b")]},
        {"prompt": None, "chosen": [user("u"), assistant("a")], "rejected": [user("u"), assistant("b", score=1)]},
        {"conversations": [turn("human", "u")], "chosen": turn("gpt", "a"), "rejected": turn("gpt", "b")},
        {"messages": [user("u")], "chosen": assistant("a"), "rejected": assistant("b")},
        {"chosen_messages": [user("u"), assistant("a")], "rejected_messages": [user("u"), assistant("b")]},
        {"prompt": "u", "chosen_response": "a", "rejected_response": "b", "chosen": None},
    ],
)
def test_a_pair_is_a_conversation_with_a_rejected_alternative(row: dict[str, Any], fmt: Format) -> None:
    assert fmt("preference", row) == PAIR
    assert fmt.recognized(row) == ["preference"]


def test_the_prompt_of_a_pair_is_the_common_prefix_and_not_supervised(fmt: Format) -> None:
    shared = [system("s"), user("u"), assistant("a"), user("v")]
    row = {"chosen": [*shared, assistant("b")], "rejected": [*shared, assistant("c")], "tools": [SCHEMA]}
    expected = Conversation(
        messages=(*shared, assistant("b")), rejected=(*shared, assistant("c")), tools=(SCHEMA,), supervised=(4,)
    )
    assert fmt("preference", row) == expected
    split = {"prompt": shared[1:], "system": "s", "chosen": "b", "rejected": "c", "tools": [SCHEMA]}
    assert fmt("preference", split) == expected


def test_both_sides_of_a_pair_keep_a_last_message_if_one_continues_the_other(fmt: Format) -> None:
    row = {"chosen": [user("u"), assistant("a")], "rejected": [user("u"), assistant("a"), user("v"), assistant("b")]}
    assert fmt("preference", row).supervised is None  # message 1, the assistant's only one


def test_a_system_prompt_may_precede_the_prompt(fmt: Format) -> None:
    row: dict[str, Any] = {"prompt": "u", **{k: [system("s"), user("u"), assistant(k)] for k in ("chosen", "rejected")}}
    assert fmt("preference", row).messages == (system("s"), user("u"), assistant("chosen"))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"chosen": "a", "rejected": "b"},
         "'chosen' is text, so the question must be in 'prompt', which is missing"),
        ({"prompt": "u", "chosen": 3, "rejected": "b"}, "'chosen' must be text or a list of messages, found a number"),
        ({"prompt": "u", "chosen": "a"}, "'rejected' must be text or a list of messages, found nothing"),
        ({"prompt": "u", "chosen": "a", "rejected": [user("b")]},
         "rejected[0]: the last message of 'rejected' must be from the assistant"),
        ({"prompt": "", "chosen": "a", "rejected": "b"}, "'prompt' must be non-empty text, found empty text"),
        ({"prompt": "u", "chosen": [assistant("a", weight=0.5)], "rejected": "b"},
         "chosen[0].weight must be 0 or 1 (masked or supervised), found 0.5"),
    ],
)  # fmt: skip
def test_a_wrong_pair_names_the_column(row: dict[str, Any], message: str, fmt: Format) -> None:
    assert fmt.error("preference", row) == message


# ------------------------------------------------------------------------------------------------- labels


LABELED = {
    "messages": chat(user("u"), assistant("a")),
    "sharegpt": {"conversations": [turn("human", "u"), turn("gpt", "a")]},
    "prompt-completion": {"prompt": "u", "completion": "a"},
    "alpaca": {"instruction": "u", "output": "a"},
}


@pytest.mark.parametrize("name", LABELED)
@pytest.mark.parametrize("column", ["label", "desirable", "kto_tag"])
def test_a_label_says_whether_the_answer_is_good(name: str, column: str, fmt: Format) -> None:
    for value in (False, 0, 0.0, "false", "False", " 0 "):
        assert fmt(name, {**LABELED[name], column: value}).desirable is False
    for value in (True, 1, 1.0, "true", "TRUE", "1"):
        assert fmt(name, {**LABELED[name], column: value}).desirable is True
    for value in (None, "", "math", 3, 0.5, [0], {"a": 1}):  # the name or the number of a class, or nothing
        assert fmt(name, {**LABELED[name], column: value}).desirable is None
    assert fmt(name, LABELED[name]).desirable is None


def test_labels_that_disagree_are_refused(fmt: Format) -> None:
    row = {**LABELED["messages"], "label": True, "desirable": "false"}
    assert fmt.error("messages", row) == "'label' (True) and 'desirable' ('false') disagree"


# ---------------------------------------------------------------------------------------- typed reasoning


@pytest.mark.parametrize("kind", ["reasoning", "thinking", "reasoning_content"])
@pytest.mark.parametrize("key", ["text", "value", "own"])
def test_reasoning_in_a_typed_part_is_the_reasoning_of_the_message(kind: str, key: str, fmt: Format) -> None:
    def part(kind: str, text: str) -> dict[str, Any]:
        own = "text" if kind == "text" else kind
        return {"type": kind, own if key == "own" else key: text, "signature": None}

    row = chat(user([part("text", "u")]), assistant([part(kind, "Six"), part(kind, "sevens."), part("text", "42")]))
    expected = assistant("42", reasoning_content="Six\nsevens.")
    assert fmt("messages", row).messages == (user("u"), expected)
    pair = {"prompt": "u", "chosen": row["messages"][1:], "rejected": "b"}
    assert fmt("preference", pair).messages == (user("u"), expected)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([user("u"), assistant([{"type": "text", "text": "42"}, {"type": "reasoning", "text": "late"}])],
         "messages[1]: reasoning after the text of a message is not supported, found at messages[1].content[1]"),
        ([user([{"type": "reasoning", "text": "r"}, {"type": "text", "text": "u"}]), assistant("a")],
         "messages[0]: only an assistant message can have reasoning, found it with the role 'user'"),
        ([user("u"), assistant([{"type": "reasoning", "text": "r"}, {"type": "text", "text": "a"}], thinking="other")],
         "messages[1] has two different texts of reasoning, in a part of its content and in a field"),
        ([user("u"), assistant([{"type": "reasoning", "summary": []}])],
         "messages[1]: a reasoning part needs text in 'text' or 'value', at messages[1].content[0]"),
    ],
)  # fmt: skip
def test_reasoning_that_cannot_be_represented_is_refused(messages: list[Any], message: str, fmt: Format) -> None:
    assert fmt.error("messages", chat(*messages)) == message


def test_an_empty_reasoning_part_and_a_field_with_the_same_text_are_not_errors(fmt: Format) -> None:
    text = {"type": "text", "text": "a"}
    empty = chat(user("u"), assistant([{"type": "reasoning", "text": " "}, text, {"type": "reasoning", "text": ""}]))
    assert fmt("messages", empty).messages[1] == assistant("a")
    same = chat(user("u"), assistant([{"type": "reasoning", "text": "r"}, text], reasoning_content="r"))
    assert fmt("messages", same).messages[1] == assistant("a", reasoning_content="r")


# ---------------------------------------------------------------------------------------------- real rows


@pytest.mark.skipif(TEST_DATA is None, reason="SMOLLM3_TEST_DATA does not name the folder with the real data files")
@pytest.mark.parametrize(
    ("file", "name", "count"),
    [("v1_sft_demo.jsonl", "messages", 500), ("alpaca_en_demo.json", "alpaca", 999), ("c4_demo.jsonl", "text", 300)],
)
def test_every_row_of_the_real_files_is_recognized_and_formatted(
    file: str, name: str, count: int, fmt: Format, registry: Registry
) -> None:
    text = Path(str(TEST_DATA), file).read_text(encoding="utf-8")
    rows = json.loads(text) if file.endswith(".json") else [json.loads(line) for line in text.split("\n") if line]
    assert len(rows) == count
    component = registry.find(FORMATTER, name)
    formatter = component.create(build(component.options_class(), {}, "formatter"))
    for row in rows:
        assert fmt.recognized(row) == [name]
        conversation = formatter(row)
        assert conversation.supervised is None and conversation.rejected is None
        if name == "text":
            assert conversation == Conversation(text=row["text"])
        elif name == "alpaca":
            question = f"{row['instruction']}\n\n{row['input']}" if row["input"].strip() else row["instruction"]
            assert conversation.messages == (user(question), assistant(row["output"]))
        else:
            (asked,), (answered,) = (m["content"] for m in row["messages"])
            assert conversation.messages == (user(asked["value"]), assistant(answered["value"]))
