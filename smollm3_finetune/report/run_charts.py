"""Which charts a page has, for one run and for several."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from smollm3_finetune.data.shown_tokens import visible
from smollm3_finetune.report.charts import Chart, Curve, chart
from smollm3_finetune.report.metrics import HELD_OUT, Metrics
from smollm3_finetune.report.run_view import RunView
from smollm3_finetune.report.thinning import BUCKETS, DENSE, SMOOTHED_FROM, Points, smoothed, window

RATE = "learning_rate"
LOSS, LOSS_OF_TERMS = "nats per supervised token", "per term"
CHARTS = (
    (RATE, "Learning rate", "", True),
    ("grad_norm", "Gradient norm", "before clipping", False),
    ("tokens_per_second", "Speed", "tokens per second", True),
    ("memory_gb", "Memory", "GB: peak GPU memory, or process memory without a GPU", True),
)
"""Name in metrics.jsonl, title, unit, and whether the axis begins at zero."""
KNOWN = {"loss", HELD_OUT, "perplexity", *(name for name, *_ in CHARTS)}
MOST_OWN = 12
"""Charts of values that the objective logged."""


def unit_of(views: Sequence[RunView]) -> str:
    """The unit of the losses: that of tokens, unless a run counts other terms, such as pairs."""
    tokens = all((view.summary.comparison or {}).get("per_token") is not False for view in views)
    return LOSS if tokens else LOSS_OF_TERMS


def charts_of(view: RunView) -> list[Chart]:
    """The charts of one run."""
    metrics, last = view.metrics, _last_step([view])
    losses = _with_mean("training loss", metrics.of("loss"), SMOOTHED_FROM)
    found = [
        chart(
            "loss", "Loss", unit_of([view]), [*losses, Curve("held-out loss", view.held_out, "second", "diamond")], last
        )
    ]
    for name, title, unit, from_zero in CHARTS:
        curves = _with_mean(title.lower(), metrics.of(name), DENSE)
        if name == RATE:
            others = ((visible(own.removeprefix(f"{RATE}_")[:80]), own) for own in _other_rates(metrics))
            curves += [Curve(label, metrics.of(own), "second") for label, own in others]
        log = name == "grad_norm"
        found.append(chart(name, title, unit, curves, last, may_be_log=log, from_zero=from_zero))
    for i, name in enumerate(_own(metrics)):
        shown = visible(name[:80])
        curves = _with_mean(shown, metrics.of(name), DENSE)
        found.append(chart(f"own-{i}", shown, "logged by the objective", curves, last))
    return [c for c in found if c is not None]


def _with_mean(label: str, points: Points, least: int) -> list[Curve]:
    """A curve; from `least` values on, also the mean over neighbors, unless the values hardly differ from it."""
    if (number := _finite(points)) < least:
        return [Curve(label, points, "first")]
    mean = smoothed(points)
    finite = [value for _, value in points if value is not None]
    noise = max(abs(value - one) for value, (_, one) in zip(finite, mean, strict=True) if one is not None)
    if noise <= 0.02 * (max(finite) - min(finite)):
        return [Curve(label, points, "first")]
    return [Curve(label, points, "raw"), Curve(f"{label}, mean of {window(number):,} logged values", mean, "first")]


def overlaid(views: Sequence[RunView], letters: Sequence[str]) -> list[Chart]:
    """The charts of several runs, a curve for each run."""
    last = _last_step(views)

    def curves(points: Sequence[Points], mark: str = "") -> Iterator[Curve]:
        for i, (view, letter, one) in enumerate(zip(views, letters, points, strict=True)):
            yield Curve(f"{letter} {view.name}", one, f"run{i}", mark=mark, letter=letter)

    losses = [v.metrics.of("loss") for v in views]
    smooth = [smoothed(loss) if len(loss) >= SMOOTHED_FROM else loss for loss in losses]
    how = ", mean over neighboring steps" if any(len(loss) >= SMOOTHED_FROM for loss in losses) else ""
    found = [
        chart("held_out", "Held-out loss", unit_of(views), list(curves([v.held_out for v in views], "dot")), last),
        chart("loss", "Training loss", f"{unit_of(views)}{how}", list(curves(smooth)), last),
    ]
    for name, title, unit, from_zero in CHARTS:
        several = list(curves([v.metrics.of(name) for v in views]))
        noisy = name == "grad_norm"
        found.append(chart(name, title, unit, several, last, may_be_log=noisy, from_zero=from_zero, noisy=noisy))
    return [c for c in found if c is not None]


def drawn_note(views: Sequence[RunView]) -> str:
    """What is left out of long curves, as a sentence; empty if nothing is."""
    lines = max((view.metrics.lines for view in views), default=0)
    if lines <= 4 * BUCKETS:
        return ""
    return (
        f"{lines:,} logged steps are drawn as at most {4 * BUCKETS} points for each curve: the first, smallest, "
        f"largest and last value of every {-(-lines // BUCKETS):,} logged steps. metrics.jsonl has all of them."
    )


def gaps_note(views: Sequence[RunView]) -> str:
    """How many values are not finite, as a sentence; empty if all are."""
    curves = [points for view in views for points in view.metrics.curves.values()]
    gaps = sum(len(points) - _finite(points) for points in curves if _finite(points))  # a norm may never be logged
    return f"{gaps:,} logged values are missing or not finite; curves are interrupted there." if gaps else ""


def _own(metrics: Metrics) -> list[str]:
    rates = _other_rates(metrics)
    return [name for name in metrics.curves if name not in KNOWN and name not in rates][:MOST_OWN]


def _other_rates(metrics: Metrics) -> list[str]:
    """The learning rates of other groups of the optimizer, such as `learning_rate_up`."""
    return [name for name in metrics.curves if name.startswith(f"{RATE}_")][:MOST_OWN]


def _finite(points: Points) -> int:
    return sum(value is not None for _, value in points)


def _last_step(views: Sequence[RunView]) -> int:
    steps = [view.metrics.last_step or 0 for view in views]
    steps += [view.held_out[-1][0] for view in views if view.held_out]
    return max(steps, default=0)
