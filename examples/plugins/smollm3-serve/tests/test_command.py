"""Tests: the promises of every command (conformance kit), and its result."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from smollm3_finetune.testing import CommandConformance, finished_run


class TestServe(CommandConformance):
    """The tests of the kit: help, unknown options, mistakes in a sentence, and calls that work."""

    component = "serve"

    def works(self, directory: Path) -> Iterable[Sequence[str]]:
        return [[str(finished_run(directory))]]

    def refused(self, directory: Path) -> Iterable[Sequence[str]]:
        return [["no-such-run"], [str(directory)]]

    def test_it_shows_the_step_with_the_lowest_loss(self, tmp_path: Path) -> None:
        run = finished_run(tmp_path)
        (run / "metrics.jsonl").write_text('{"step": 1, "loss": 2.5}\n{"step": 2, "loss": 2.25}\n', encoding="utf-8")
        assert self.call(str(run)).stdout == "step 2: loss 2.2500\n"
