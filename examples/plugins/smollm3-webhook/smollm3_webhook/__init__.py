"""Tracker `webhook` for smollm3.

This module holds only the descriptor. It is imported whenever plugins are listed, so it must not import torch.
"""

from __future__ import annotations

from smollm3_finetune.api import ConfigError, Env, TrackerSpec, hookimpl

from smollm3_webhook.options import WebhookOptions


def check(options: WebhookOptions, env: Env) -> None:
    """Refuse options that cannot be used, before anything is loaded or written. Without network access."""
    if not options.separator.isprintable() or len(options.separator) != 1:
        raise ConfigError("tracker webhook: the separator must be one character", hint="--tracker-opt separator=';'")


@hookimpl
def smollm3_trackers() -> list[TrackerSpec]:
    return [
        TrackerSpec(
            name="webhook",
            summary="a CSV file with a line for each value",
            factory="smollm3_webhook.tracker:WebhookTracker",
            options="smollm3_webhook.options:WebhookOptions",
            check=check,
            api=2,  # version of the plugin contract that this was written for
        )
    ]
