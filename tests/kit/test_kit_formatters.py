"""The built-in formatters pass the kit, and a formatter that states wrong columns fails it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest

from smollm3_finetune.testing import FormatterConformance

SAID = [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]
COMMON = {"system_prompt": "s", "label": True, "weight": 1, "id": 17}


class TestMessages(FormatterConformance):
    component = "messages"
    rows = ({"messages": SAID, **COMMON}, {"conversation": SAID, "system": "s", "kto_tag": 1})


class TestSharegpt(FormatterConformance):
    component = "sharegpt"
    rows = ({"conversations": [{"from": "human", "value": "u"}, {"from": "gpt", "value": "a"}], **COMMON},)


class TestAlpaca(FormatterConformance):
    component = "alpaca"
    options: ClassVar = {"input": "context"}
    rows = ({"instruction": "u", "context": "c", "output": "a", "history": [["p", "q"]], **COMMON},)


class TestPromptCompletion(FormatterConformance):
    component = "prompt-completion"
    options: ClassVar = {"prompt": "ask", "completion": "reply"}
    rows = ({"ask": "u", "input": "c", "reply": "a", "history": [["p", "q"]], "prompt": "another", **COMMON},)

    def test_claims_its_rows(self) -> None:
        pytest.skip("these columns are options")


class TestPreference(FormatterConformance):
    component = "preference"
    rows = ({"question": "u", "input": "c", "chosen": "a", "rejected": "b", **COMMON},)


class TestText(FormatterConformance):
    component = "text"
    rows = ({"text": "t", "desirable": True, "label": 3},)


PLUGIN = """
from smollm3_finetune.api import Conversation, FormatterSpec, hookimpl

@hookimpl
def smollm3_formatters():
    return [FormatterSpec(name="asked", summary="asked", factory="asked:Asked", api=2)]

class Asked:
    columns = ("q", "a", "hint")

    def __init__(self, options):
        pass

    def __call__(self, row):
        if "q" not in row:
            raise ValueError("no question")
        said = (("user", row["q"]), ("assistant", row["a"] + row.get("more", "")))
        return Conversation(messages=tuple({"role": role, "content": text} for role, text in said))
"""


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"q": "u", "a": "v", "more": "w"}, r"columns lacks 'more': the conversation of rows\[0\] depends on it"),
        ({"q": "u", "a": "v", "hint": "w"}, "columns has 'hint', which the formatter does not read"),
    ],
)
def test_columns_that_are_stated_wrongly_fail_the_kit(row: dict[str, Any], message: str, plugin_file: Any) -> None:
    file = plugin_file("asked", PLUGIN)

    class Asked(FormatterConformance):
        component = "asked"
        plugins = (Path(file),)
        rows = (row,)

    with pytest.raises(pytest.fail.Exception, match=message):
        Asked().test_states_the_columns_that_it_reads()
    Asked().test_converts_its_rows_without_changing_them()


FILE = Path(__file__).parent / "broken_plugins" / "broken_formatters.py"
CONVERTS = "test_converts_its_rows_without_changing_them"
DAMAGED = "test_damaged_rows_are_converted_or_a_value_error"
OTHERS = "test_claims_no_other_rows"
FAULTS = [
    ("no-types", DAMAGED, ["a row without 'a' raised KeyError", "raise ValueError with the reason"]),
    ("no-reason", DAMAGED, ["raised ValueError without a reason", "users see the text"]),
    ("changes", CONVERTS, ["rows[0] was changed"]),
    ("remembers", CONVERTS, ["another conversation the second time"]),
    ("returns-dict", CONVERTS, ["became a dict, not a Conversation"]),
    ("other-role", CONVERTS, ["the role 'gpt' is not one of"]),
    ("supervises-too-far", CONVERTS, ["`supervised` has 2", "its 2 messages, from 0 to 1"]),
    ("supervises-user", CONVERTS, ["`supervised` has 0, a message of the user", "name the assistant's"]),
    ("odd-calls", CONVERTS, ["a tool call must be", '"function"']),
    ("reads-more", "test_states_the_columns_that_it_reads", ["columns lacks 'label'"]),
    ("empty-is-text", "test_an_empty_row_is_a_value_error", ["must raise ValueError"]),
    ("claims-all", OTHERS, ["claims({}) is true", "the formatter rejects it", "claim a row by its columns"]),
    ("claims-badly", OTHERS, ["claims({}) raised KeyError", "must return a bool for every row"]),
    ("claims-text", "test_claims_its_rows", ["returned 'Well?'; expected True or False"]),
    ("claims-numpy", "test_claims_is_light", ["claims(), imports numpy", "move the import"]),
]


class TestAsked(FormatterConformance):
    component = "asked"
    plugins = (FILE,)
    rows = ({"q": "Well?", "a": "Yes.", "label": True},)


@pytest.mark.parametrize(("name", "test", "parts"), FAULTS, ids=[name for name, *_ in FAULTS])
def test_a_fault_fails_the_test_that_names_it(name: str, test: str, parts: list[str]) -> None:
    faulty: Any = type(name, (FormatterConformance,), {"component": name, "plugins": (FILE,), "rows": TestAsked.rows})
    with pytest.raises(pytest.fail.Exception) as failure:
        getattr(faulty(), test)()
    message = str(failure.value)
    assert all(part in message for part in parts), message
    assert "\n" not in message


def test_every_test_of_the_kit_has_a_fault_that_fails_it() -> None:
    tests = {name for name in vars(FormatterConformance) if name.startswith("test_")}
    assert {test for _, test, _ in FAULTS} == tests


@pytest.mark.parametrize("name", ["messages", "sharegpt", "alpaca", "prompt-completion", "preference", "text"])
def test_a_class_without_rows_uses_rows_of_the_usual_formats(name: str) -> None:
    case: Any = type(name, (FormatterConformance,), {"component": name})
    case().test_converts_its_rows_without_changing_them()
    case().test_damaged_rows_are_converted_or_a_value_error()
    case().test_claims_its_rows()


def test_a_class_without_rows_makes_one_from_the_columns() -> None:
    case: Any = type("asked", (FormatterConformance,), {"component": "asked", "plugins": (FILE,)})
    assert case().known_rows() == [{"a": "Some text.", "q": "Some text."}]
