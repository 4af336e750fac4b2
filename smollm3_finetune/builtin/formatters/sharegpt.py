"""Rows of turns with from and value, as ShareGPT's exports have them."""

from __future__ import annotations

from smollm3_finetune.builtin.formatters.messages import MessagesFormatter


class SharegptFormatter(MessagesFormatter):
    """`{"conversations": [{"from": "human", "value": "…"}, {"from": "gpt", "value": "…"}]}`

    A turn from `function_call` is the assistant's, its value the call as JSON (`{"name": …, "arguments": …}`, or a
    list of them); `observation` is the tool's answer. Everything else is as for `messages`, with the same columns.
    """

    role = "from"
    content = "value"
    default_column = "conversations"
