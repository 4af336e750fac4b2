"""The training section of an adapter's model card: data, hyperparameters and losses, without local paths."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from smollm3_finetune.data.sources import EMBEDDED, EMBEDDED_NAME, Source
from smollm3_finetune.model.adapter_card import Training
from smollm3_finetune.model_files.model_card import is_on_hub, last_part
from smollm3_finetune.train.setup import Job

LISTED = (
    "learning_rate", "schedule", "min_learning_rate", "warmup", "weight_decay", "max_grad_norm", "optimizer",
    "packing",
)  # fmt: skip
"""The keys of `train` that the card lists by name."""


def training_facts(
    job: Job,
    steps: int,
    tokens: int,
    before: Mapping[str, Any],
    after: Mapping[str, Any] | None = None,
    published: int | None = None,
) -> Training:
    """What the card says about a run; without `after`, the held-out loss after training is not known yet.

    `published` is the step of the adapter, if it is not that of the last step.
    """
    sources = [s.source for s in job.plan.rows.sources]
    return Training(
        datasets=[s.hub for s in sources if s.hub is not None and is_on_hub(s.hub)],
        sources=[(_shown(s), c.train, c.held_out) for s, c in zip(sources, job.tokens.counts, strict=True)],
        settings=list(_settings(job, steps, published or steps)),
        results=list(_results(job, tokens, before, after or {})),
    )


def _shown(source: Source) -> str:
    """A source of rows: a link for a Hub dataset, the last part of the path of a file."""
    if source.hub is not None:
        parts = [source.config.subset, source.config.split, (source.config.revision or "")[:12]]
        return f"[{source.hub}](https://huggingface.co/datasets/{source.hub}) ({', '.join(filter(None, parts))})"
    if source.files == (EMBEDDED,):
        return EMBEDDED_NAME
    return f"`{last_part(source.config.path)}`"


def _settings(job: Job, steps: int, published: int) -> Iterator[tuple[str, str]]:
    from smollm3_finetune.train.distributed.processes import world_size

    config, train = job.plan.config, job.plan.config.train
    rows = train.batch_size * train.gradient_accumulation * world_size()
    what = "packed sequences" if train.packing else "rows"
    yield "objective", f"`{job.plan.objective.component.spec.name}`"
    best = f"; the adapter is that of step {published:,}, with the lowest held-out loss" if published != steps else ""
    yield "optimizer steps", f"{steps:,}{best}"
    yield f"{what} in each step", f"{rows:,}"
    yield "longest row, in tokens", f"{config.data.max_length:,}"
    for name in LISTED:
        value = getattr(train, name)
        yield f"`{name}`", f"{value:g}" if isinstance(value, float) else str(value)
    yield "`seed`", str(config.seed)


def _results(job: Job, tokens: int, before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "tokens trained on", f"{tokens:,}"
    if (loss := _last_loss(job)) is not None:
        yield "training loss in the last logged step", f"{loss:.4f}"
    for when, found in (("before", before), ("after", after)):
        if found.get("held_out_loss") is not None:
            perplexity = f" (perplexity {found['perplexity']:.4g})" if found.get("perplexity") is not None else ""
            yield f"held-out loss {when} training", f"{found['held_out_loss']:.4f}{perplexity}"


def _last_loss(job: Job) -> float | None:
    """The last training loss in `metrics.jsonl`; None if there is none."""
    try:
        rows = [json.loads(line) for line in job.run.metrics.read_text(encoding="utf-8").splitlines()]
        return next((float(row["loss"]) for row in reversed(rows) if "loss" in row), None)
    except (OSError, ValueError, TypeError, RecursionError):
        return None
