"""Command `smollm3 serve`.

This module holds only the descriptor. It is imported whenever plugins are listed, so it must not import torch.
"""

from __future__ import annotations

from smollm3_finetune.api import CommandSpec, hookimpl


@hookimpl
def smollm3_commands() -> list[CommandSpec]:
    return [
        CommandSpec(
            name="serve",
            summary="Show the lowest loss of a run, and its step.",
            factory="smollm3_serve.command:serve",
            api=2,  # version of the plugin contract that this was written for
        )
    ]
