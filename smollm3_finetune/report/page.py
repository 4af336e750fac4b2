"""The page of a run, and the page of several runs, as HTML. Does not import torch.

Everything that a run contains is untrusted text: the template engine escapes it, and a content security policy allows
no script but the page's own, no request and no form.
"""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smollm3_finetune.data.shown_tokens import visible
from smollm3_finetune.report import data_section
from smollm3_finetune.report.measures import measures_of
from smollm3_finetune.report.next_steps import next_steps
from smollm3_finetune.report.run_charts import charts_of, drawn_note, gaps_note, overlaid, unit_of
from smollm3_finetune.report.run_view import RunView, Shortened, shown_value
from smollm3_finetune.report.scales import shown
from smollm3_finetune.report.verdict import Verdict, verdict_of
from smollm3_finetune.report.word_diff import word_diff
from smollm3_finetune.runs.configuration import differences
from smollm3_finetune.version import __version__

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).parent / "templates"
GENERATOR = "smollm3-finetune"
"""The content of `<meta name="generator">`, by which a page that may be replaced is recognized."""


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    made = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"shown": shown, "duration": duration, "visible": lambda value: visible(str(value))}
    return made


def duration(seconds: float) -> str:
    """`42 s`, `3 min 7 s`, `1 h 2 min`"""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    hours, rest = divmod(whole, 3600)
    return f"{hours} h {rest // 60} min" if hours else f"{rest // 60} min {rest % 60} s"


def page_of_run(view: RunView) -> str:
    """The page of one run."""
    charts = charts_of(view)
    answers = None
    if view.before is not None and view.after is not None:
        answers = word_diff(view.before.text, view.after.text)
    return _rendered(
        "run.html",
        charts=charts,
        view=view,
        components=_components(view),
        verdict=(verdict := verdict_of(view.summary.comparison)),
        losses=_losses(view, verdict),
        measures=measures_of(view.report),
        notes=[n for n in (view.metrics.problem, drawn_note([view]), gaps_note([view])) if n],
        table=_table(view),
        answers=answers,
        data=data_section.of(view),
        steps=next_steps(view),
    )


def page_of_runs(views: Sequence[RunView]) -> str:
    """The page of several runs."""
    letters = [chr(ord("A") + i) for i in range(len(views))]
    verdicts = [verdict_of(view.summary.comparison) for view in views]
    return _rendered(
        "runs.html",
        charts=overlaid(views, letters),
        runs=list(zip(letters, views, strict=True)),
        verdicts=verdicts,
        unit=unit_of(views),
        losses=[_losses(view, verdict) for view, verdict in zip(views, verdicts, strict=True)],
        notes=[n for n in (drawn_note(views), gaps_note(views)) if n],
        differences=_differences(views),
        answers=_answers(views, letters),
        unanswered=[letter for letter, view in zip(letters, views, strict=True) if view.after is None],
        warnings=[(letter, w) for letter, view in zip(letters, views, strict=True) for w in view.warnings],
    )


def _rendered(template: str, **values: Any) -> str:
    script = (TEMPLATES / "script.js").read_text(encoding="utf-8").strip()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    html = (
        _environment()
        .get_template(template)
        .render(
            script=script,
            script_hash=f"sha256-{digest}",
            generator=GENERATOR,
            version=__version__,
            written=time.strftime("%Y-%m-%d %H:%M %z"),
            chart_values={chart.name: chart.values for chart in values["charts"]},
            **values,
        )
    )
    return html.encode("utf-8", "backslashreplace").decode()  # a path may hold bytes that are not text


def _components(view: RunView) -> list[str]:
    """`quantization none`, `adapter lora`, `objective sft`, as far as they are known."""
    facts = view.summary.facts
    named = (("quantization", facts.quantizer), ("adapter", facts.adapter), ("objective", facts.objective))
    return [f"{kind} {visible(name.rpartition(':')[2])}" for kind, name in named if name]


def _losses(view: RunView, verdict: Verdict | None) -> str:
    """`4.338 → 0.356`, or `4.338 before training`; empty if the run has no held-out loss."""
    if verdict is not None:
        return verdict.losses
    before, after = view.summary.before, view.summary.after
    if before is not None and after is not None:
        return f"{before:.3f} → {after:.3f}"
    if before is not None:
        return f"{before:.3f} before training"
    return f"{after:.3f} after training" if after is not None else ""


def _differences(views: Sequence[RunView]) -> list[tuple[str, list[str]]]:
    """(key, the value in each run) for the keys of the configuration whose values differ."""
    found = differences([view.values for view in views])
    return [(visible(key), [shown_value(value) for value in several]) for key, several in found.items()]


def _answers(views: Sequence[RunView], letters: Sequence[str]) -> list[tuple[str, list[tuple[str, Shortened]]]]:
    """(prompt, [(letter, the answer after training)]) for each prompt, in the order of the runs."""
    found: dict[str, list[tuple[str, Shortened]]] = {}
    for letter, view in zip(letters, views, strict=True):
        if view.after is not None:
            prompt = view.prompt[-1][1].text if view.prompt else ""
            found.setdefault(prompt, []).append((letter, view.after))
    return list(found.items())


TABLE_ROWS = 12
"""Rows of the table of values."""


def _table(view: RunView) -> Mapping[str, Any] | None:
    """A few evenly spaced steps with all values, for readers who do not see the curves."""
    curves = view.metrics.curves
    names = [n for n in ("loss", "learning_rate", "grad_norm", "tokens_per_second", "memory_gb") if n in curves]
    if not names:
        return None
    steps = [step for step, _ in curves[names[0]]]
    if len(steps) > TABLE_ROWS:
        steps = [steps[i * (len(steps) - 1) // (TABLE_ROWS - 1)] for i in range(TABLE_ROWS)]
    by_step = {name: dict(curves[name]) for name in names}
    rows = [(step, [by_step[name].get(step) for name in names]) for step in steps]
    return {"names": [n.replace("_", " ") for n in names], "rows": rows}
