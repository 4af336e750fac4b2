"""Runs on disk without training, and pages as their elements and text."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from smollm3_finetune.runs.rundir import RunDir

COMPARISON = {
    "rows": 73, "terms": 880, "before": 1.885, "after": 1.851, "difference": -0.034, "low": -0.045, "high": -0.023,
    "verdict": "better", "smallest_difference": 0.016, "rows_for_half": 292, "excluded_rows": 2,
    "by_source": {
        "chat.jsonl": {"rows": 36, "terms": 440, "before": 1.9, "after": 1.822, "difference": -0.078, "low": -0.092,
                 "high": -0.064, "verdict": "better"},
        "math.jsonl": {"rows": 37, "terms": 440, "before": 1.87, "after": 1.88, "difference": 0.01, "low": -0.007,
                 "high": 0.027, "verdict": "cannot tell"},
    },
}  # fmt: skip
ROW = {
    "source": "chat.jsonl", "where": "chat.jsonl:1", "side": "train", "why": "", "tokens": 109, "supervised": 98,
    "length": 131, "notes": ["cut"], "more_sequences": 0,
    "sequences": [{"name": "", "segments": [["user\nWhat?\n", False], ["A leaf is green.", True]], "more": 388}],
}  # fmt: skip

MakeRun = Callable[..., RunDir]


def metric_lines(steps: int, every: int = 10) -> list[dict[str, Any]]:
    """Metrics of a run whose held-out loss falls from 1.885 to 1.851, measured every few steps."""
    found: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        left = (math.exp(-3 * step / steps) - math.exp(-3)) / (1 - math.exp(-3))
        loss, held_out = 1.83 + 0.05 * left + 0.02 * math.sin(step), 1.8512 + 0.0338 * left
        norm = 31_000.0 if step == 25 else 0.5 + abs(math.sin(step))
        found.append(
            {"step": step, "epoch": 0.1, "loss": loss, "learning_rate": 2e-4 * (1 - step / (steps + 1)),
             "grad_norm": norm, "tokens_per_second": 1500.0, "memory_gb": 0.56}
        )  # fmt: skip
        if step % every == 0:
            found.append({"step": step, "held_out_loss": held_out, "perplexity": math.exp(held_out)})
    return found


def dump(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value), encoding="utf-8")


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """A finished run with everything that a page can show; `without` names files to leave out."""

    def make(name: str = "first", steps: int = 60, without: tuple[str, ...] = (), **report: Any) -> RunDir:
        run = RunDir(tmp_path / "runs" / name)
        run.path.mkdir(parents=True)
        run.config.write_text(
            "model: tiny\nloader: {name: 'smollm3-finetune:tiny'}\nquant: {name: 'smollm3-finetune:none'}\n"
            "adapter: {name: 'smollm3-finetune:full'}\nobjective: {name: 'smollm3-finetune:sft'}\n"
            f"data: {{held_out: 0.1}}\ntrain: {{learning_rate: 0.0002, max_steps: {steps}}}\nseed: 0\n",
            encoding="utf-8",
        )
        dump(run.versions, {"plugins": {"smollm3-finetune": "0.1.0"}, "libraries": {"torch": "2.13.0", "none": None},
                            "plugin_files": {}})  # fmt: skip
        run.metrics.write_text("".join(json.dumps(row) + "\n" for row in metric_lines(steps)), encoding="utf-8")
        before = {"held_out_loss": 1.885, "perplexity": 6.586, "sample": "A leaf is blue."}
        prompt = [{"role": "user", "content": "Which color has a leaf?"}]
        dump(run.before, {**before, "prompt": prompt})
        dump(run.trained, {"steps": steps, "tokens": 29_615})
        after = {"held_out_loss": 1.851, "perplexity": 6.366, "sample": "A leaf is green, see?"}
        whole = {"run": str(run.path), "adapter": str(run.adapter), "steps": steps, "tokens": 29_615,
                 "trained_parameters": 1_837_184, "prompt": prompt,
                 "before": before, "after": after, "seconds": 81.4, "comparison": COMPARISON,
                 "rows": [{"title": "chat.jsonl", "train": 160, "held_out": 37, "empty": 1, "notes": {}},
                          {"title": "math.jsonl", "train": 157, "held_out": 38, "empty": 0, "notes": {}}]}  # fmt: skip
        dump(run.report, {k: v for k, v in {**whole, **report}.items() if v is not None})
        rows = {40: 31, 50: 170, 60: 45, 70: 25, 80: 18, 90: 16, 100: 12}
        bars = [{"low": low, "high": low + 9, "rows": many} for low, many in rows.items()]
        lengths = {"train": {"min": 45, "median": 55.0, "p95": 94, "max": 109, "examples": 317, "tokens": 19_722,
                             "histogram": bars}}  # fmt: skip
        sources = [{"title": "chat.jsonl", "train": 160, "held_out": 37, "empty": 1, "notes": {"cut": 3},
                    "not_read": {"id": 198}},
                   {"title": "math.jsonl", "train": 157, "held_out": 38, "empty": 0, "notes": {"no answer": 2},
                    "not_read": {}}]  # fmt: skip
        dump(run.data, {"sources": sources, "lengths": lengths, "rows": [ROW]})
        dump(run.origins, {"train.learning_rate": "--learning-rate", "train.max_steps": "run.yaml:7"})
        warning = "the gradient norm of step 25 is 3.1e+04, 24,723 times the median of the steps before"
        run.warnings.write_text(json.dumps({"warning": warning}) + "\n", encoding="utf-8")
        samples = [{"step": s, "prompt": "Which color has a leaf?", "answer": f"answer {s}"} for s in (20, 40)]
        (run.path / "samples.jsonl").write_text("".join(json.dumps(s) + "\n" for s in samples), encoding="utf-8")
        for file in without:
            (run.path / file).unlink()
        return run

    return make


BLOCKS = {"td", "th", "dt", "dd", "div", "p", "span", "li", "h1", "h2", "h3", "summary", "text", "figcaption"}
"""Elements whose text is apart from that of the next one."""


class Page(HTMLParser):
    """Elements with their attributes, the text of each section by its heading, and the content of scripts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html = html
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.sections: dict[str, str] = {"": ""}
        self.marked: dict[str, list[str]] = {"mark": [], "del": [], "ins": []}
        self._open: list[str] = []
        self._heading = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")
        if tag == "h2":
            self._heading = "?"
        if tag in self.marked:
            self.marked[tag].append("")
        self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass
        if tag in BLOCKS:
            self.sections[self._heading] = self.sections.get(self._heading, "") + " "
        if tag == "section":
            self._heading = ""

    def handle_data(self, data: str) -> None:
        inside = set(self._open)
        if "script" in inside:
            self.scripts[-1] += data
        elif "style" not in inside:
            if "h2" in inside:
                self._heading = data.strip()
            self.sections[self._heading] = self.sections.get(self._heading, "") + data
            for tag in self.marked:
                if tag in inside:
                    self.marked[tag][-1] += data

    @property
    def text(self) -> str:
        return " ".join("".join(self.sections.values()).split())

    def section(self, heading: str) -> str:
        return " ".join(self.sections[heading].split())


@pytest.fixture
def parsed() -> Callable[[Path], Page]:
    return lambda file: Page(file.read_text(encoding="utf-8"))
