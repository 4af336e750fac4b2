"""The training section of an adapter's model card: data, hyperparameters and losses, without local paths."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from smollm3_finetune.data.rows import FormattedSource
from smollm3_finetune.data.sources import EMBEDDED, EMBEDDED_NAME, Source
from smollm3_finetune.evaluation.line import measure_values
from smollm3_finetune.model.adapter_card import Training
from smollm3_finetune.model_files.model_card import ABSOLUTE, is_on_hub, last_part, shown_ref
from smollm3_finetune.runs.metrics import losses_of
from smollm3_finetune.runs.part_of import PARTS, parts_of
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
    compared: Mapping[str, Any] | None = None,
) -> Training:
    """What the card says about a run; without `after`, the held-out loss after training is not known yet.

    `published` is the step of the adapter, if it is not that of the last step.
    `compared` has `comparison` and `measures` of the report: differences, their intervals and the verdict.
    """
    sources = job.plan.rows.sources
    found = {"loss": (after or {}).get("held_out_loss"), "perplexity": (after or {}).get("perplexity")}
    return Training(
        datasets=[s.source.hub for s in sources if s.source.hub is not None and is_on_hub(s.source.hub)],
        sources=[
            (_shown(s.source), c.train, c.held_out, _content(s))
            for s, c in zip(sources, job.tokens.counts, strict=True)
        ],
        settings=list(_settings(job, steps, published or steps)),
        results=list(_results(job, tokens, before, after or {}, compared or {})),
        losses={name: value for name, value in found.items() if value is not None},
    )


def _shown(source: Source) -> str:
    """A source of rows: a link for a Hub dataset, the path of a file as it was typed, without parts of this machine."""
    if source.hub is not None:
        parts = [source.config.subset, source.config.split, (source.config.revision or "")[:12]]
        return f"[{source.hub}](https://huggingface.co/datasets/{source.hub}) ({', '.join(filter(None, parts))})"
    if source.files == (EMBEDDED,):
        return EMBEDDED_NAME
    name = _public_path(source.config.path).replace("`", "'").replace("|", "\\|")  # of a Markdown table
    return f"`{name}`"


def _public_path(path: str) -> str:
    """A path as it was typed if it is below the working directory, otherwise its last part.

    Only its kind is named if it contains the name of the home directory, which is usually that of the user.
    """
    user = Path.home().name
    inside = not ABSOLUTE.match(path) and ".." not in Path(path).parts
    shown = path.removeprefix("./") if inside else last_part(path)
    for text in (shown, last_part(path)):
        if not user or user not in re.split(r"[/\\]", text):
            return text
    return "local files"


def _content(source: FormattedSource) -> str:
    """What identifies the rows of a source: the SHA-256 of its file or files, or the commit of a Hub dataset."""
    if source.source.hub is not None:
        revision = source.source.config.revision
        return f"commit `{revision[:12]}`" if revision else ""
    if len(source.contents) == 1:
        return f"SHA-256 `{source.contents[0][:16]}`"
    together = hashlib.sha256("".join(sorted(source.contents)).encode()).hexdigest()
    return f"SHA-256 of the {len(source.contents)} files' SHA-256, sorted: `{together[:16]}`"


def _settings(job: Job, steps: int, published: int) -> Iterator[tuple[str, str]]:
    from smollm3_finetune.train.distributed.processes import world_size

    config, train = job.plan.config, job.plan.config.train
    rows = train.batch_size * train.gradient_accumulation * world_size()
    what = "packed sequences" if train.packing else "rows"
    yield "objective", f"`{job.plan.objective.component.spec.name}`"
    if (reference := _reference(job)) is not None:
        yield "reference of the loss", reference
    if (earlier := job.plan.earlier) is not None:
        step = f", step {earlier.last.step:,}" if earlier.last.step is not None else ""
        then = "merged into the base" if earlier.fresh else "trained further"
        yield "starts from", f"the adapter of `{earlier.last.run}`{step}, {then}; weights `{earlier.fingerprint[:16]}`"
        yield "runs", earlier.followed_by(job.plan.objective.component.spec.name)
    best = f"; the adapter is that of step {published:,}, with the lowest held-out loss" if published != steps else ""
    yield "optimizer steps", f"{steps:,}{best}"
    yield f"{what} in each step", f"{rows:,}"
    yield "longest row, in tokens", f"{config.data.max_length:,}"
    for name in LISTED:
        value = _optimizer(job) if name == "optimizer" else getattr(train, name)
        yield f"`{name}`", f"{value:g}" if isinstance(value, float) else str(value)
    yield "`seed`", str(config.seed)
    for whole, about in parts_of(job.run).items():
        yield whole, f"{PARTS[whole]} `{about[PARTS[whole]]}` of `{about[whole]}`"


def _optimizer(job: Job) -> str:
    """The name of the optimizer; that of a plugin with its distribution, version and changed options."""
    chosen = job.plan.optimizer
    if chosen is None:
        return job.plan.config.train.optimizer
    component = chosen.component
    options = "".join(f", {name} {value}" for name, value in chosen.changed_options().items())
    return f"{component.spec.name} ({component.distribution} {component.version}){options}"


def _reference(job: Job) -> str | None:
    """The model that the loss compares the trained one with; None if it compares with none."""
    plan = job.plan.reference
    if plan.model is not None:
        return "the base before it is quantized" if plan.own else f"`{shown_ref(plan.model.ref)}`"
    if plan.kind == "none":
        return None
    return "the model before the first step" if plan.exchanged else "the base"


def _results(
    job: Job, tokens: int, before: Mapping[str, Any], after: Mapping[str, Any], compared: Mapping[str, Any]
) -> Iterator[tuple[str, str]]:
    yield "tokens trained on", f"{tokens:,}"
    if (loss := _last_loss(job)) is not None:
        yield "training loss in the last logged step", f"{loss:.4f}"
    for when, found in (("before", before), ("after", after)):
        if found.get("held_out_loss") is not None:
            perplexity = f" (perplexity {found['perplexity']:.4g})" if found.get("perplexity") is not None else ""
            yield f"held-out loss {when} training", f"{found['held_out_loss']:.4f}{perplexity}"
    if compared.get("comparison") is not None:
        yield from comparison_rows(compared["comparison"])
    yield from measure_rows(compared.get("measures", {}))


def measure_rows(measures: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The rows of the card for `measures` of a report."""
    for name, about in measures.items():
        yield f"held-out {name.replace('_', ' ')} before → after training", measure_values(about)


def comparison_rows(comparison: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The rows of the card for `comparison` of a report."""
    numbers = [comparison.get(name) for name in ("difference", "low", "high")]
    if all(isinstance(n, int | float) for n in numbers):
        difference, low, high = (f"{n:+.4f}" for n in numbers)
        yield "difference of the held-out losses", f"{difference}, 95 % interval from {low} to {high}"
    if comparison.get("verdict"):
        rows = comparison.get("rows")
        yield "verdict", f"{comparison['verdict']}" + (f", on {rows:,} held-out rows" if isinstance(rows, int) else "")


def _last_loss(job: Job) -> float | None:
    """The last training loss in `metrics.jsonl`; None if there is none."""
    training = losses_of(job.run).training
    return training[-1][1] if training else None
