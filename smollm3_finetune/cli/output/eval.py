"""The report of an evaluation, in a few lines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from smollm3_finetune.cli.output.merge import shown_perplexity
from smollm3_finetune.data.counts import counted
from smollm3_finetune.data.sources import EMBEDDED, EMBEDDED_NAME
from smollm3_finetune.evaluation.line import measure_lines

WIDTH = 14
"""Columns of the names of the lines."""


def shown_evaluation(report: Mapping[str, Any]) -> str:
    """The report of `evaluation.run.evaluate` as human-readable text."""
    comparison = report["comparison"]
    lines = [("model", _model(report))]
    if report["rows"]["measured"]:
        lines += _on_rows(report)
    lines += [("" if n else "tasks", task["line"]) for n, task in enumerate(report["tasks"])]
    if comparison is not None:
        lines.append(("verdict", _verdict(report)))
    lines.append(("took", f"{report['seconds']} s"))
    return "\n".join(["", *(f"{name:<{WIDTH}} {text}" for name, text in lines)])


def _on_rows(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What was measured on held-out rows."""
    comparison = report["comparison"]
    lines = [("rows", _rows(report))]
    lines += [("", text) for text in _left_out(report)]
    if report["line"] is not None:
        name, _, rest = report["line"].partition(" loss ")
        lines.append((f"{name} loss", rest))
        lines += [("", text) for text in _power(comparison)]
    else:
        loss = report["after"]["held_out_loss"]
        lines.append(("held-out loss", "the rows have no supervised tokens" if loss is None else f"{loss:.4f}"))
    if report["per_token"]:
        lines.append(("perplexity", _arrow(report, shown_perplexity, "perplexity")))
    lines += [("" if n else "measures", text) for n, text in enumerate(measure_lines(report["measures"]))]
    if len(report["after"]["by_source"]) > 1:
        lines += [("", text) for text in _by_source(report)]
    lines += _answers(report)
    if (null := report["null_adapter"]) is not None:
        lines.append(("null adapter", null.get("line") or f"not measured: {null['unavailable']}"))
    return lines


def _verdict(report: Mapping[str, Any]) -> str:
    verdict, other = report["comparison"]["verdict"], report["against"]
    if verdict == "cannot tell":
        return f"cannot tell whether it is better than {other}"
    return f"{verdict} than {other}"


def _model(report: Mapping[str, Any]) -> str:
    parts = [report["quantizer"], *([report["adapter"]] if report["adapter"] else [])]
    about = f"{' + '.join(parts)}, {report['device']}, {report['dtype']}"
    name = report["model"] if report["model"] == report["base"] else f"{report['model']}: {report['base']}"
    return f"{name} ({about})"


def _rows(report: Mapping[str, Any]) -> str:
    rows = report["rows"]
    text = f"{counted(rows['measured'], 'held-out row')}{' of the run' if rows['own'] else ''}"
    if rows["limit"] is not None and rows["limit"] < rows["found"]:
        text += f", a sample of {rows['found']:,} (--limit {rows['limit']}, seed {rows['seed']})"
    if rows["empty"]:
        text += f"; {rows['empty']} without supervised tokens left out"
    return text


def _left_out(report: Mapping[str, Any]) -> list[str]:
    """How many held-out rows are also training rows, with the first pair."""
    exact, near = (len(report["overlap"][kind]) for kind in ("exact", "near"))
    if not exact + near:
        return []
    found = exact + near
    if exact and near:
        kind = f"copies ({exact}) or near duplicates ({near})"
    elif found == 1:
        kind = "a copy" if exact else "a near duplicate"
    else:
        kind = "copies" if exact else "near duplicates"
    be = "is" if found == 1 else "are"
    what = f"{be} {kind} of {'a training row' if found == 1 else 'training rows'} and {be} left out"
    first = (report["overlap"]["exact"] or report["overlap"]["near"])[0]
    where = f"{first['row']} and {first['training_row']}{', …' if found > 1 else ''}"
    where = where.replace(str(EMBEDDED), EMBEDDED_NAME)
    return [f"{found} of {report['rows']['measured']:,} held-out rows {what}: {where}"]


def _power(comparison: Mapping[str, Any]) -> list[str]:
    """The smallest difference that so many rows can show."""
    smallest, needed = comparison["smallest_difference"], comparison["rows_for_half"]
    if smallest is None:
        return []
    return [f"{comparison['rows']:,} rows can show a difference of {smallest:.2g}; half of it needs {needed:,} rows"]


def _arrow(report: Mapping[str, Any], show: Any, key: str) -> str:
    before, after = report["before"], report["after"]
    return show(after[key]) if before is None else f"{show(before[key])} → {show(after[key])}"


def _by_source(report: Mapping[str, Any]) -> list[str]:
    """Loss, perplexity and verdict of each source."""
    found = []
    for title, after in report["after"]["by_source"].items():
        before = None if report["before"] is None else report["before"]["by_source"][title]
        about = {"before": before, "after": after}
        loss = _arrow(about, lambda value: "none" if value is None else f"{value:.4f}", "held_out_loss")
        part = (report["comparison"] or {}).get("by_source", {}).get(title)
        verdict = f", {part['verdict']}" if part is not None else ""
        perplexity = f", perplexity {_arrow(about, shown_perplexity, 'perplexity')}" if report["per_token"] else ""
        found.append(f"{title}: {counted(after['rows'], 'row')}, loss {loss}{perplexity}{verdict}")
    return found


def _answers(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The shares of answers that ended, that loop and that are empty."""
    found = report["answers"]
    if found is None:
        return []
    limit = f"{counted(found['prompts'], 'answer')} of at most {found['max_new_tokens']} tokens: "
    shown = [f"{name} {_arrow(found, lambda share: f'{share:.0%}', key)}" for name, key in SHARES]
    return [("answers", limit + ", ".join(shown))]


SHARES = (("ended", "ended"), ("in a loop", "loops"), ("empty", "empty"))
