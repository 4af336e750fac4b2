"""Command `smollm3 soup`: the mean of the LoRA adapters of several runs, as an adapter."""

from __future__ import annotations

from smollm3_finetune.api import CommandSpec, hookimpl


@hookimpl
def smollm3_commands() -> list[CommandSpec]:
    return [
        CommandSpec(
            name="soup",
            summary="Average the LoRA adapters of several runs of one base, exactly.",
            factory="smollm3_soup.command:soup",
            api=2,
        )
    ]
