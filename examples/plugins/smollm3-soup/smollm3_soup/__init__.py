"""Command `smollm3 soup`.

This module holds only the descriptor. It is imported whenever plugins are listed, so it must not import torch.
"""

from __future__ import annotations

from smollm3_finetune.api import CommandSpec, hookimpl


@hookimpl
def smollm3_commands() -> list[CommandSpec]:
    return [
        CommandSpec(
            name="soup",
            summary="Show the lowest loss of a run, and its step.",
            factory="smollm3_soup.command:soup",
            api=2,  # version of the plugin contract that this was written for
        )
    ]
