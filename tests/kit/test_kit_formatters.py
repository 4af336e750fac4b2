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
