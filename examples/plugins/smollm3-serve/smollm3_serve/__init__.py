"""Command `smollm3 serve`: an OpenAI-compatible endpoint for the model of a run, or any other model."""

from __future__ import annotations

from smollm3_finetune.api import CommandSpec, hookimpl


@hookimpl
def smollm3_commands() -> list[CommandSpec]:
    return [
        CommandSpec(
            name="serve",
            summary="Serve a model over HTTP, as the chat completions of OpenAI's API.",
            factory="smollm3_serve.command:serve",
            api=2,
        )
    ]
