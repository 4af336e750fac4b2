"""What quantizing a merged model costs: how well the model and its checkpoint predict the same held-out rows.

The relative difference of the logits does not say whether a checkpoint is usable: 0.18 may be harmless or not. The
perplexity on rows that were not trained on does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from smollm3_finetune.api import IGNORE_INDEX, Progress
from smollm3_finetune.components.registry import Registry
from smollm3_finetune.config.load import LoadedConfig
from smollm3_finetune.data.calibration import PlannedRows, plan_rows
from smollm3_finetune.data.plan import select_rows
from smollm3_finetune.data.tokenization import Tokens
from smollm3_finetune.errors import DataError, SmolLM3Error
from smollm3_finetune.evaluation.row_losses import Loss, RowLosses
from smollm3_finetune.merge.gate import ROW, TEXTS
from smollm3_finetune.model.compare import logits_of_rows
from smollm3_finetune.model.plan import ModelPlan
from smollm3_finetune.runs.rundir import RunDir

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

ROWS = 200
"""The number of rows that are measured at most; both models are measured on the same rows, so few are enough."""
HARMLESS, CLEAR, UNUSABLE = 0.02, 0.2, 0.5
"""Limits of the increase of the loss per token, in nats, up to which a checkpoint predicts as well, slightly worse and
clearly worse; above `CLEAR` there is a warning. See docs/measurements.md, "Quantized merges"."""
SAME = 1e-3
"""The largest relative difference between a loss that the run measured and the same loss measured again."""
CHECKED = 2
"""Rows whose stored losses are measured again before the others are used."""


@dataclass(frozen=True, kw_only=True)
class PredictedRows:
    """Rows with the tokens that a model is asked to predict."""

    title: str
    """`held-out rows of the run`, …"""
    rows: Sequence[Mapping[str, Sequence[int]]]
    """`input_ids` and `labels` of each row."""

    sources: Sequence[int] = ()
    """The index of the source of each row."""
    not_learned: str | None = "there are no held-out rows of a run"
    """Why they do not show what training gained; None: they are held-out rows of the run, with the loss of tokens."""
    before: RowLosses | None = None
    """The losses of these rows that the run measured before its first step, if it stored them."""

    def losses(self, model: nn.Module) -> RowLosses:
        """The summed cross-entropy of the labels of each row, and their number; each row is a separate batch."""
        return self._measured(model, range(len(self.rows)))

    def base_losses(self, base: nn.Module) -> RowLosses:
        """`losses` of the base: those that the run stored, if measuring the first rows again gives the same."""
        if self.before is not None:
            first = range(min(CHECKED, len(self.rows)))
            again = self._measured(base, first)
            stored = self.before.sums[list(first)]
            if np.all(np.abs(again.sums - stored) <= SAME * np.maximum(np.abs(stored), 1.0)):
                return self.before
        return self.losses(base)

    def _measured(self, model: nn.Module, chosen: Sequence[int]) -> RowLosses:
        import torch
        from torch.nn import functional as F

        sums, terms = np.zeros(len(chosen)), np.zeros(len(chosen), dtype=np.int64)
        for at, i in enumerate(chosen):
            row = self.rows[i]
            labels = torch.tensor(row["labels"])[1:]
            (logits,) = logits_of_rows(model, [row["input_ids"]])  # (T, V)
            sums[at] = float(F.cross_entropy(logits[:-1], labels, ignore_index=IGNORE_INDEX, reduction="sum"))
            terms[at] = int((labels != IGNORE_INDEX).sum())
        sources = np.array([self.sources[i] for i in chosen] if self.sources else [0] * len(chosen), dtype=np.int64)
        titles = (self.title,) * (int(sources.max(initial=0)) + 1)
        return RowLosses(sums=sums, terms=terms, sources=sources, titles=titles)


def fixed_texts(tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> PredictedRows:
    """The texts of the merge check, for a model without a run."""
    ids = [tokenizer(text).input_ids[:ROW] for text in TEXTS]
    rows = [{"input_ids": row, "labels": row} for row in ids if len(row) > 1 and max(row) < vocabulary]
    return PredictedRows(title="fixed texts", rows=rows)


def held_out_rows(
    registry: Registry, loaded: LoadedConfig, plan: ModelPlan, run: RunDir | None = None
) -> PredictedRows | None:
    """The `predicted_rows` of the run with this configuration.

    If there are none, or they cannot be read any more, the reason is reported and None is returned.
    """
    try:
        return predicted_rows(rows_of_run(registry, loaded, plan.context.progress), plan, run)
    except SmolLM3Error as e:
        plan.context.progress.say(
            f"the held-out rows of the run are not available ({e.message}): fixed texts are used instead"
        )
        return None


def rows_of_run(registry: Registry, loaded: LoadedConfig, progress: Progress) -> PlannedRows:
    """The rows of a run with this configuration. Raises DataError if they cannot be read any more."""
    no_calibration = replace(loaded.config.calibration, path=None)  # its rows may no longer exist
    loaded = replace(loaded, config=replace(loaded.config, calibration=no_calibration))
    return plan_rows(registry, select_rows(registry, loaded), loaded, progress)


def predicted_rows(planned: PlannedRows, plan: ModelPlan, run: RunDir | None) -> PredictedRows:
    """The held-out rows of a run, at most `ROWS`, evenly from all sources; with `run`, also the losses that it stored.

    Raises DataError if there are none, or if they have no labels.
    """
    tokens = planned.tokens(plan)
    sources = [e for e in tokens.held_out if len(e)]
    if not sources:
        raise DataError("the run holds out no rows")
    share = max(ROWS // len(sources), 1)
    chosen = [
        (source, i)
        for source, e in enumerate(tokens.held_out)
        for i in range(0, len(e), max(math.ceil(len(e) / share), 1))
    ]
    rows = [tokens.held_out[source][i] for source, i in chosen]
    if not all("labels" in row for row in rows):
        raise DataError(f"the rows of {tokens.counts[0].title} have no labels")
    other = next((name for row in rows for name in row if name not in ("input_ids", "labels")), None)
    return PredictedRows(
        title="held-out rows of the run",
        rows=rows,
        sources=[source for source, _ in chosen],
        not_learned=None if other is None else f"the loss of the run is not that of single tokens: rows have {other}",
        before=None if run is None or other is not None else _stored(run, tokens, rows, chosen),
    )


def _stored(
    run: RunDir, tokens: Tokens, rows: Sequence[Mapping[str, Sequence[int]]], chosen: Sequence[tuple[int, int]]
) -> RowLosses | None:
    """The losses of the chosen examples before the first step, if the run stored one for each."""
    if any(count != 1 for counts in tokens.held_out_rows for count in counts):
        return None  # rows of several examples have one loss
    found = RowLosses.from_json((run.measured_before() or {}).get("rows"), [c.title for c in tokens.counts])
    sizes = [len(e) for e in tokens.held_out]
    if found is None or not found.per_token or np.bincount(found.sources, minlength=len(sizes)).tolist() != sizes:
        return None
    places = [sum(sizes[:source]) + i for source, i in chosen]
    terms = [sum(label != IGNORE_INDEX for label in row["labels"][1:]) for row in rows]
    if found.terms[places].tolist() != terms:
        return None
    return replace(
        found, sums=found.sums[places], terms=found.terms[places], sources=found.sources[places], measures={}
    )


def predictions(rows: PredictedRows, merged: Loss, quantized: Loss) -> dict[str, Any]:
    """The part of `merge.json` about the two losses, and a sentence that says what they mean."""
    increase = quantized.mean - merged.mean
    before, after = (loss.perplexity if math.isfinite(loss.mean) else None for loss in (merged, quantized))
    shown = [_shown(before), _shown(after)]
    if not merged.terms:
        meaning = "no token could be predicted, so nothing is known about the quality of the checkpoint"
    elif increase <= HARMLESS:
        meaning = "the checkpoint predicts these rows as well as the merged model"
    elif increase <= CLEAR:
        meaning = "the checkpoint predicts these rows slightly worse than the merged model"
    elif increase <= UNUSABLE:
        meaning = "the checkpoint predicts these rows clearly worse than the merged model"
    else:
        meaning = "the checkpoint predicts these rows much worse than the merged model: its answers may be unusable"
    return {
        "rows": rows.title,
        "row_count": len(rows.rows),
        "tokens": merged.terms,
        "loss_before": _finite(merged.mean),
        "loss_after": _finite(quantized.mean),
        "perplexity_before": before,
        "perplexity_after": after,
        "meaning": meaning,
        "warning": None
        if not merged.terms or increase <= CLEAR
        else f"{meaning} (perplexity {shown[1]} instead of {shown[0]} on {rows.title}); "
        "quantize to more bits, or use the merged model without --requantize",
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _shown(value: float | None) -> str:
    return "too large to state" if value is None else f"{value:.4g}"
