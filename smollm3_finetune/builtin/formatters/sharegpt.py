"""Rows of turns with from and value, the format of ShareGPT exports."""

from __future__ import annotations

from smollm3_finetune.builtin.formatters.messages import MessagesFormatter


class SharegptFormatter(MessagesFormatter):
    """`{"conversations": [{"from": "human", "value": "…"}, {"from": "gpt", "value": "…"}]}`

    A turn from `function_call` is an assistant turn whose value is the call as JSON (`{"name": …, "arguments": …}`, or
    a list of them). A turn from `observation` is a tool answer. Everything else, columns included, is as for
    `messages`.
    """

    role = "from"
    content = "value"
    default_column = "conversations"
