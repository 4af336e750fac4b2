"""Tests: the promises of every tracker (conformance kit), and what this tracker refuses."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping

import pytest
from smollm3_finetune.api import ConfigError, Env, Purpose, TrackedRun
from smollm3_finetune.testing import TrackerConformance

from smollm3_webhook import check
from smollm3_webhook.options import WebhookOptions


class TestWebhook(TrackerConformance):
    """The tests of the kit: whole, failed and resumed runs, and values of any name and size."""

    component = "webhook"

    def received(self, run: TrackedRun) -> Iterable[tuple[int, Mapping[str, float]]]:
        """What arrived, so that the kit can compare it with what was sent."""
        with (run.directory / "trackers" / "webhook" / "metrics.csv").open(encoding="utf-8", newline="") as file:
            return [(int(row["step"]), {row["name"]: float(row["value"])}) for row in csv.DictReader(file)]


def test_a_separator_of_two_characters_is_refused() -> None:
    with pytest.raises(ConfigError, match="one character"):
        check(WebhookOptions(separator="--"), Env(device="cpu", purpose=Purpose.TRAIN))
