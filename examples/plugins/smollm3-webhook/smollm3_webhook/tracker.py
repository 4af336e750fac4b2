"""The tracker: one POST for each message, with the standard library."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from http.client import InvalidURL
from pathlib import PurePath
from typing import Any, Literal
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from smollm3_finetune.api import TrackedRun
from smollm3_webhook.options import WebhookOptions

Event = Literal["started", "finished", "stopped", "failed"]


class WebhookTracker:
    def __init__(self, options: WebhookOptions) -> None:
        self.options = options

    def open(self, run: TrackedRun) -> WebhookRun:
        opened = WebhookRun(self.options, run)
        if self.options.starts:
            word = "continues" if run.first_step else "starts"
            steps = f"from step {run.first_step} of {run.total_steps}" if run.first_step else f"{run.total_steps} steps"
            opened.send("started", f"{word}: {about(run.configuration)}, {steps}")
        return opened


class WebhookRun:
    def __init__(self, options: WebhookOptions, run: TrackedRun) -> None:
        self.options, self.run = options, run
        self.step, self.latest = run.first_step, dict[str, float]()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Remember the latest values; nothing is sent."""
        self.step = step
        self.latest |= values

    def end(self, state: Literal["finished", "stopped", "failed"], report: Mapping[str, Any] | None) -> None:
        loss = f", loss {self.latest['loss']:.4f}" if "loss" in self.latest else ""
        text = f"{state} after {self.step} of {self.run.total_steps} steps{loss}"
        before, after = (((report or {}).get(when) or {}).get("held_out_loss") for when in ("before", "after"))
        if before is not None and after is not None:
            text += f", held-out loss {before:.4f} before, {after:.4f} after"
        self.send(state, text)

    def send(self, event: Event, text: str) -> None:
        """Post a message. `text` is the field that Slack, Mattermost and Google Chat show."""
        message = {"text": f"{self.run.name} {text}", "event": event, "run": self.run.name, "step": self.step,
                   "total_steps": self.run.total_steps, "values": self.latest}  # fmt: skip
        variable = self.options.url_variable
        headers = {"Content-Type": "application/json", "User-Agent": "smollm3-webhook"}
        try:
            request = Request(os.environ[variable], data=json.dumps(message).encode(), headers=headers, method="POST")
            urlopen(request, timeout=self.options.seconds).close()
        except (InvalidURL, ValueError):  # whose messages contain the address
            raise ValueError(f"the value of {variable} is not an http or https address") from None
        except HTTPError as e:  # an answer that is not a success
            e.close()
            raise OSError(f"the webhook answered {e.code} {e.reason}") from None


def about(configuration: Mapping[str, Any]) -> str:
    """The model and its components, without paths of this machine."""
    names = [(configuration.get(section) or {}).get("name") for section in ("quant", "adapter", "objective")]
    return ", ".join([PurePath(str(configuration.get("model"))).name, *(n.rpartition(":")[2] for n in names if n)])
