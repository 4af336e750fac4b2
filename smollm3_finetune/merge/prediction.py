"""What quantizing a merged model costs: how well the model and its checkpoint predict the same held-out rows.

The relative difference of the logits does not say whether a checkpoint is usable: 0.18 may be harmless or not. The
perplexity on rows that were not trained on does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from smollm3_finetune.api import IGNORE_INDEX
from smollm3_finetune.components.registry import Registry
from smollm3_finetune.config.load import LoadedConfig
from smollm3_finetune.data.calibration import plan_rows
from smollm3_finetune.data.plan import select_rows
from smollm3_finetune.errors import DataError, SmolLM3Error
from smollm3_finetune.evaluation.row_losses import Loss
from smollm3_finetune.merge.gate import ROW, TEXTS
from smollm3_finetune.model.compare import logits_of_rows
from smollm3_finetune.model.plan import ModelPlan

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

ROWS = 200
"""The number of rows that are measured at most; both models are measured on the same rows, so few are enough."""
HARMLESS, CLEAR, UNUSABLE = 0.02, 0.2, 0.5
"""Limits of the increase of the loss per token, in nats, up to which a checkpoint predicts as well, slightly worse and
clearly worse; above `CLEAR` there is a warning. See docs/measurements.md, "Quantized merges"."""


@dataclass(frozen=True, kw_only=True)
class PredictedRows:
    """Rows with the tokens that a model is asked to predict."""

    title: str
    """`held-out rows of the run`, …"""
    rows: Sequence[Mapping[str, Sequence[int]]]
    """`input_ids` and `labels` of each row."""

    def loss(self, model: nn.Module) -> Loss:
        """The summed cross-entropy of the labels, and their number; each row is a separate batch."""
        import torch
        from torch.nn import functional as F

        loss = Loss()
        for row in self.rows:
            labels = torch.tensor(row["labels"])[1:]
            (logits,) = logits_of_rows(model, [row["input_ids"]])  # (T, V)
            total = F.cross_entropy(logits[:-1], labels, ignore_index=IGNORE_INDEX, reduction="sum")
            loss += Loss(float(total), int((labels != IGNORE_INDEX).sum()))
        return loss


def fixed_texts(tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> PredictedRows:
    """The texts of the merge check, for a model without a run."""
    ids = [tokenizer(text).input_ids[:ROW] for text in TEXTS]
    rows = [{"input_ids": row, "labels": row} for row in ids if len(row) > 1 and max(row) < vocabulary]
    return PredictedRows(title="fixed texts", rows=rows)


def held_out_rows(registry: Registry, loaded: LoadedConfig, plan: ModelPlan) -> PredictedRows | None:
    """The held-out rows of the run with this configuration, at most `ROWS`, evenly from all sources.

    If there are none, or they cannot be read any more, the reason is reported and None is returned.
    """
    say: Callable[[str], None] = plan.context.progress.say
    no_calibration = replace(loaded.config.calibration, path=None)  # its rows may no longer exist
    loaded = replace(loaded, config=replace(loaded.config, calibration=no_calibration))
    try:
        tokens = plan_rows(registry, select_rows(registry, loaded), loaded, plan.context.progress).tokens(plan)
        examples = [e for e in tokens.held_out if len(e)]
        if not examples:
            raise DataError("the run holds out no rows")
        share = max(ROWS // len(examples), 1)
        rows = [e[i] for e in examples for i in range(0, len(e), max(math.ceil(len(e) / share), 1))]
        if not all("labels" in row for row in rows):
            raise DataError(f"the rows of {tokens.counts[0].title} have no labels")
    except SmolLM3Error as e:
        say(f"the held-out rows of the run are not available ({e.message}): fixed texts are used instead")
        return None
    return PredictedRows(title="held-out rows of the run", rows=rows)


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
