"""The summary that a run prints before training."""

from __future__ import annotations

from smollm3_finetune.batching.strategy import lengths_of
from smollm3_finetune.data.chat_template.notes import WARNED
from smollm3_finetune.data.chat_template.undeclared import SEVERAL, undeclared_line
from smollm3_finetune.data.columns import shown
from smollm3_finetune.data.counts import counted
from smollm3_finetune.data.needs import shown as lacking
from smollm3_finetune.data.new_token_rows import rows_line, total, unused_line
from smollm3_finetune.data.tokenization import Tokens
from smollm3_finetune.model_files.dropout import described, stated_dropout
from smollm3_finetune.runs.rundir import RunDir
from smollm3_finetune.train.plan import RunPlan
from smollm3_finetune.train.provenance import start_lines


def ship_lines(plan: RunPlan) -> list[str]:
    """What the run trains for; empty if that is not a format."""
    ship = plan.model.ship
    if ship is None:
        return []
    grids = "" if ship.record is None else ", with the grids of the adapter that it starts from"
    kind = ship.chosen.component.kind.name
    lines = [f"ship as  {kind} {ship.title()}: training computes with its weights{grids}"]
    if ship.chosen.component.full_name == plan.model.quantizer.component.full_name:
        lines.append(
            f"warning  the base has the weights of {ship.name} already, and small updates are rounded back to them: "
            "train on the unquantized model instead"
        )
    return lines


def sharding_lines(plan: RunPlan) -> list[str]:
    """What the processes share; empty if each has all weights."""
    return [] if plan.sharding is None else [f"weights  {plan.sharding.line()}"]


def summary(plan: RunPlan, tokens: Tokens, items: int, steps: int, run: RunDir) -> str:
    """The model, the rows and the steps of a run, in a few lines."""
    model = plan.model
    assert model.adapter is not None
    rate = plan.config.train.learning_rate
    objective = plan.objective.component.spec.name
    optimizer = "" if plan.optimizer is None else f"{plan.optimizer.component.title}, "
    data = []
    if model.new_tokens:
        rows_of_tokens = total(c.new_tokens for c in tokens.counts)
        data.append(f"tokens   {counted(len(model.new_tokens), 'new token')}: {rows_line(rows_of_tokens)}")
        if (unused := unused_line(rows_of_tokens)) is not None:
            data.append(f"warning  {unused}")
    for c in tokens.counts:
        left_out = f", {c.empty} left out (no supervised tokens)" if c.empty else ""
        left_out += f", {c.undesirable} left out (false label)" if c.undesirable else ""
        left_out += f", {lacking(c.missing)}" if c.missing else ""
        notes = "".join(f", {n}: {times}" for n, times in sorted(c.notes.items()) if not n.startswith(SEVERAL))
        notes += f" (into {c.chunks} chunks)" if c.chunks else ""
        notes += f"; not read: {shown(c.not_read, c.rows)}" if c.not_read else ""
        missed = c.shares.sentence()
        notes += f"; {missed}" if missed and not c.shares.many else ""
        rows = f"{counted(c.train, 'training row')}, {counted(c.held_out, 'held-out row')}"
        data.append(f"data     {c.title}: {rows}{left_out}{notes}")
        data += [f"warning  {c.title}: {note}" for note in sorted(c.notes) if note.startswith(WARNED)]
        data += [f"warning  {c.title}: {missed}"] if c.shares.many else []
        several = undeclared_line(c.notes, plan.config.data.add_tokens)
        data += [f"hint     {c.title}: {several}"] if several is not None else []
    if (warning := plan.survey.overlap_warning()) is not None:
        data.append(f"warning  {warning}")
    if dropout := stated_dropout(model.source.config):
        active, stated = plan.base_dropout(), described(dropout)
        data.append(
            f"dropout  of the base: {stated}; without it: --set train.base_dropout=off"
            if active
            else f"dropout  of the base: off (its config states {stated})"
        )
    if plan.config.train.packing:
        lengths = lengths_of(tokens.train)
        room = max(plan.config.data.max_length, int(lengths.max(initial=0)))  # answers to one prompt stay together
        full = int(lengths.sum()) / (items * room)
        data.append(f"packing  {len(tokens.train)} rows in {items} sequences of at most {room} tokens, {full:.0%} full")
    return "\n".join(
        (
            f"model    {model.ref} ({model.loader.component.title}), {model.context.device}, {model.context.dtype}",
            f"method   {model.quantizer.component.title} + {model.adapter.component.title}",
            *ship_lines(plan),
            *start_lines(plan, run),
            *sharding_lines(plan),
            *data,
            f"train    {objective}, {counted(steps, 'step')}, {optimizer}learning rate {rate:g}",
            f"run      {run.path}",
        )
    )
