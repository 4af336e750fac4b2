"""Options of the webhook. The address is a secret, so it is the value of an environment variable."""

from __future__ import annotations

from dataclasses import dataclass

from smollm3_finetune.api import option


@dataclass(frozen=True, kw_only=True)
class WebhookOptions:
    url_variable: str = option("SMOLLM3_WEBHOOK_URL", "The environment variable that holds the address.")
    starts: bool = option(True, "Send a message when a run starts.")
    seconds: float = option(5.0, "Time limit of a message; training waits for it.", gt=0, le=300)
