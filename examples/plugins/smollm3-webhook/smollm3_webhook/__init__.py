"""Tracker `webhook` for smollm3: a message when a run starts, ends or fails."""

from __future__ import annotations

import os
import re
from urllib.parse import urlsplit

from smollm3_finetune.api import ConfigError, Env, TrackerSpec, hookimpl
from smollm3_webhook.options import WebhookOptions


def check(options: WebhookOptions, env: Env) -> None:
    """Refuse to plan a run without the address; nothing is sent."""
    address = os.environ.get(options.url_variable, "")
    if not address:
        raise ConfigError(
            f"tracker webhook: the environment variable {options.url_variable} is not set",
            hint=f"export {options.url_variable}=https://…, or --tracker-opt url_variable=NAME",
        )
    parts = urlsplit(address)
    # a space would make the standard library show the path, which is secret, in its error
    if parts.scheme not in ("http", "https") or not parts.hostname or re.search(r"[\x00-\x20\x7f]", address):
        raise ConfigError(
            f"tracker webhook: the value of {options.url_variable} is not an http or https address",
            hint=f"export {options.url_variable}=https://…",
        )


@hookimpl
def smollm3_trackers() -> list[TrackerSpec]:
    return [
        TrackerSpec(
            name="webhook",
            summary="a JSON message to a webhook, such as Slack's, when a run starts, ends or fails",
            factory="smollm3_webhook.tracker:WebhookTracker",
            options="smollm3_webhook.options:WebhookOptions",
            check=check,
            api=2,
        )
    ]
