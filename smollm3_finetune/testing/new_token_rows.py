"""The check of the trait `trains_new_tokens`: rows of new tokens are trained, saved, switched off and merged.

The base has a row of its embeddings for each new token, which its head shares.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from smollm3_finetune.api import Base, Op, Purpose
from smollm3_finetune.model.compare import apart, descend, logits, push
from smollm3_finetune.model.new_tokens import NewToken, with_new_rows
from smollm3_finetune.testing.conformance import demand

STEPS = 2


def check_new_tokens(case: Any, tmp_path: Path, total_steps: int) -> None:
    """Train, save, restore, disable and merge an adapter on a base with the rows of two new tokens.

    `case` is an instance of `AdapterConformance`.
    """
    base = case.base()
    size = int(base.model.get_input_embeddings().weight.shape[0])
    tokens = [NewToken("<one>", size, (10, 11)), NewToken("<two>", size + 1, (12, 13, 14))]
    ids = torch.tensor([[5, size, 7, size + 1, 9, 11], [size + 1, 40, size, 41, 42, 43]], device=case.device)

    def with_rows(one: Base) -> Base:
        return with_new_rows(one, tokens, "the kit")

    context = replace(case.context(tmp_path), new_tokens=(size, size + 1))
    torch.manual_seed(context.seed)
    adapted = case.create().attach(with_rows(base), context, total_steps)
    start, before = logits(adapted.model, ids), _rows(base.model)
    push(adapted.model)
    for step in range(1, STEPS + 1):
        case.gradients(adapted, ids)
        descend(adapted, step)
    after, trained = logits(adapted.model, ids), _rows(base.model)
    for token in tokens:
        demand(
            not torch.equal(trained[token.id], before[token.id]),
            "trains_new_tokens is declared, but a step does not change the embeddings of ctx.new_tokens",
        )
    if Op.GRAD_WEIGHT not in case.declared().needs:
        demand(
            torch.equal(trained[:size], before[:size]),
            "training new tokens must not change the embeddings of other tokens",
        )
    if case.declared().disables:
        with adapted.disabled():
            error = apart(logits(adapted.model, ids), start)
        demand(
            error <= case.rounding,
            f"disabled() must give new tokens the rows of the base, but the logits differ by {error:.2g}",
        )
    path = case.saved(adapted, tmp_path)
    restoring = replace(case.context(tmp_path, Purpose.INFER), new_tokens=context.new_tokens)
    restored = case.create().restore(with_rows(case.base()), path, restoring, None)
    error = apart(logits(restored.model, ids), after)
    demand(
        error <= case.rounding,
        f"after save() and restore(), the logits of rows with new tokens differ by {error:.2g}: their rows are not "
        "saved",
    )
    if case.declared().merges:
        dense = with_rows(Base(model=case.dense(), fingerprint="")).model
        merged = case.create().merge(dense, path)
        error = apart(logits(merged, ids), after)
        bound = max(case.rounding, case.merge_bound)
        demand(
            error <= bound,
            f"after merge(), the logits of rows with new tokens differ by {error:.2g} (limit {bound:.2g}): merge their "
            "rows into the embeddings, and into the head if it has a weight of its own",
        )


def _rows(model: Any) -> torch.Tensor:
    """What the embeddings give for each token."""
    layer = model.get_input_embeddings()
    size = int(model.config.get_text_config().vocab_size)
    with torch.no_grad():
        found: torch.Tensor = layer(torch.arange(size, device=model.device)[None])[0]
    return found.detach().clone()
