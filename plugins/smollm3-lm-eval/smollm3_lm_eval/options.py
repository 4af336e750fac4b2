"""The options of the evaluator. Imported for help and checks, so it imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from smollm3_finetune.api import option


@dataclass(frozen=True, kw_only=True)
class HarnessOptions:
    num_fewshot: int | None = option(
        None, "Examples in each prompt; none: the task's own number. A task that states 0 keeps 0.", ge=0, le=1000
    )
    chat_template: bool = option(
        False, "Render prompts with the chat template, date and reasoning mode of the model, as in training."
    )
    fewshot_as_multiturn: bool = option(
        True, "With chat_template: each example is a user message and its answer; false: all are in one message."
    )
    system: str | None = option(None, "System message, or without chat_template the first text of each prompt.")
    think_end: str = option(
        "</think>", "With chat_template in reasoning mode: the answer is what follows the last of this text."
    )
    add_bos_token: bool | None = option(
        None, "Begin each prompt with the tokenizer's begin token; none: as the tokenizer does."
    )
    include: tuple[str, ...] = option((), "Directories with YAML files of more tasks, which can then be named.")
