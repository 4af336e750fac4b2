"""Everything that the page shows of a run, read from the files of its directory. Does not import torch."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from smollm3_finetune.data.shown_tokens import visible
from smollm3_finetune.errors import SmolLM3Error
from smollm3_finetune.files.json import json_object
from smollm3_finetune.report.metrics import HELD_OUT, Metrics, read_metrics
from smollm3_finetune.report.thinning import Points
from smollm3_finetune.report.values import count, items, mapping, number, text
from smollm3_finetune.runs.configuration import NOT_COMPARED, changed_values, configuration_of
from smollm3_finetune.runs.details import saved_warnings
from smollm3_finetune.runs.metrics import metric_rows
from smollm3_finetune.runs.rundir import RunDir
from smollm3_finetune.runs.summary import RunSummary

LONGEST = 4000
"""Characters of an answer, a prompt or a value that are shown."""
MOST_SAMPLES = 30
MOST_WARNINGS = 100
MOST_VALUES = 500
"""Values of a configuration that are shown."""


@dataclass(frozen=True)
class Shortened:
    """The beginning of a text, and how much of it is not shown. Control and direction characters are escapes."""

    text: str
    more: int = 0


def shortened(value: Any, longest: int = LONGEST) -> Shortened:
    """A value as text, without characters that change how the text around them is displayed."""
    whole = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return Shortened(visible(whole[:longest]), max(len(whole) - longest, 0))


@dataclass(frozen=True, kw_only=True)
class Value:
    """A value of the configuration."""

    key: str
    shown: str
    origin: str
    """Empty for a default, or if the origin is not known."""
    chosen: bool
    """Whether it is more than a default."""


@dataclass(frozen=True, kw_only=True)
class RunView:
    """A run as the page shows it. Parts that the run does not have are empty."""

    run: RunDir
    summary: RunSummary
    metrics: Metrics
    held_out: Points
    """The held-out loss at the steps at which it was measured, those before the first and after the last included."""
    best: int | None
    """The step of the adapter that was kept, if it is the one with the lowest held-out loss."""
    prompt: Sequence[tuple[str, Shortened]]
    """(role, content)"""
    before: Shortened | None
    """The answer before training."""
    after: Shortened | None
    samples: Sequence[tuple[int, Shortened, Shortened]]
    """(step, prompt, answer) during training."""
    report: Mapping[str, Any]
    data: Mapping[str, Any]
    """The content of data.json."""
    rows: Sequence[Mapping[str, Any]]
    """Counts by source."""
    values: Mapping[str, Any]
    """The values of run.yaml, by key."""
    config: Sequence[Value]
    has_origins: bool
    """Whether the run recorded where its values come from."""
    versions: Sequence[tuple[str, str]]
    plugin_files: Sequence[str]
    """The plugin files that the run used."""
    warnings: Sequence[str]

    @property
    def name(self) -> str:
        return visible(self.run.path.resolve().name)

    @property
    def tokens(self) -> int | None:
        """Tokens trained on, padding excluded."""
        return count(self.report.get("tokens"))

    @property
    def parameters(self) -> int | None:
        """Trained parameters."""
        return count(self.report.get("trained_parameters"))


def view_of(run: RunDir, *, ended: bool = False) -> RunView:
    """What the files of a run say. Missing and damaged files leave their part empty.

    With `ended`, the run is not shown as running although the caller still holds its lock.
    """
    summary = RunSummary.of(run)
    if ended and summary.state == "running":
        over = "failed" if summary.error else "finished" if summary.finished else "interrupted"
        summary = replace(summary, state=over)  # type: ignore[arg-type]
    report, metrics = json_object(run.report), read_metrics(run.metrics)
    before, after = mapping(report.get("before")) or json_object(run.before), mapping(report.get("after"))
    prompt = items(report.get("prompt")) or items(json_object(run.before).get("prompt"))
    data, best = json_object(run.data), count(mapping(report.get("best")).get("step"))
    values: Mapping[str, Any] = {}
    with contextlib.suppress(SmolLM3Error):
        values = configuration_of(run)
    origins, versions = json_object(run.origins), json_object(run.versions)
    return RunView(
        run=run,
        summary=summary,
        metrics=metrics,
        held_out=_held_out(metrics, before, after, best if best is not None else count(report.get("steps"))),
        best=best,
        prompt=[
            (visible(text(mapping(m).get("role")) or "message"), shortened(mapping(m).get("content")))
            for m in prompt[:20]
        ],
        before=shortened(before["sample"]) if text(before.get("sample")) is not None else None,
        after=shortened(after["sample"]) if text(after.get("sample")) is not None else None,
        samples=_samples(run),
        report=report,
        data=data,
        rows=[mapping(r) for r in items(data.get("sources")) or items(report.get("rows"))],
        values=values,
        config=_config(run, values, origins),
        has_origins=bool(origins),
        versions=_versions(versions),
        plugin_files=list(mapping(versions.get("plugin_files"))),
        warnings=[visible(w) for w in saved_warnings(run)[:MOST_WARNINGS]],
    )


def _held_out(metrics: Metrics, before: Mapping[str, Any], after: Mapping[str, Any], step: int | None) -> Points:
    """The held-out losses by step; `step` is that of the adapter that was measured after training."""
    found = {step: value for step, value in metrics.of(HELD_OUT) if value is not None}
    if (first := number(before.get(HELD_OUT))) is not None:
        found[0] = first
    if step is not None and (last := number(after.get(HELD_OUT))) is not None:
        found[step] = last
    return sorted(found.items())


def _samples(run: RunDir) -> list[tuple[int, Shortened, Shortened]]:
    """The answers in samples.jsonl: all of them, or as many evenly spaced ones as are shown."""
    found = []
    for row in metric_rows(run.samples):
        step, answer = count(row["step"]), text(row.get("answer"))
        if step is not None and answer is not None:
            found.append((step, shortened(_question(row.get("prompt"))), shortened(answer)))
    if len(found) <= MOST_SAMPLES:
        return found
    last = len(found) - 1
    return [found[i * last // (MOST_SAMPLES - 1)] for i in range(MOST_SAMPLES)]


def _question(prompt: Any) -> Any:
    """The last message of a prompt, or the prompt if it is text."""
    messages = items(prompt)
    return mapping(messages[-1]).get("content") if messages else prompt or ""


def _config(run: RunDir, values: Mapping[str, Any], origins: Mapping[str, Any]) -> list[Value]:
    """The values of run.yaml with their origins; if these are not known, those that are not defaults are marked."""
    changed = changed_values(values)
    found = []
    for key, value in list(values.items())[:MOST_VALUES]:
        if key in NOT_COMPARED:
            continue
        about = dict.fromkeys(text(o) or "" for k, o in origins.items() if k == key or k.startswith(f"{key}."))
        origin = ", ".join(about)
        found.append(
            Value(
                key=visible(key),
                shown=shown_value(value),
                origin=visible(origin),
                chosen=bool(origin) if origins else key in changed,
            )
        )
    return found


def shown_value(value: Any) -> str:
    """A value of a configuration as text."""
    return "none" if value is None else shortened(value, 400).text


def _versions(saved: Mapping[str, Any]) -> list[tuple[str, str]]:
    parts = (mapping(saved.get("plugins")), mapping(saved.get("libraries")))
    return [(visible(str(k)), visible(str(v))) for part in parts for k, v in sorted(part.items()) if v is not None]
