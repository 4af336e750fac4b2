"""A plugin file: pairs of answers compared with a reference, as direct preference optimization compares them."""

import dataclasses
from dataclasses import dataclass
from typing import Literal

from smollm3_finetune.api import (
    ObjectiveSpec,
    branch_rows,
    branched_example,
    flatten_branches,
    flatten_rows,
    hookimpl,
    option,
    pad_rows,
    row_logps,
)


@dataclass(frozen=True, kw_only=True)
class PairOptions:
    reference: Literal["none", "base", "start", "model"] = option("base", "The reference.")
    model: str | None = option(None, "The reference model.")
    beta: float = option(0.5, "Scale of the margin.", gt=0)


def _refine(spec, options, env):
    return dataclasses.replace(spec, reference=options.reference, reference_model=options.model)


@hookimpl
def smollm3_objectives():
    return [
        ObjectiveSpec(
            name="toy-pairs",
            summary="pairs of answers, for tests",
            factory=f"{__name__}:Pairs",
            options=f"{__name__}:PairOptions",
            reference="base",
            refine=_refine,
            api=2,
        )
    ]


forwards = []
"""The numbers of pairs of which the reference was computed, call by call."""
stop_before = [None]
"""The batch, counted from 1, before which training is killed; None: it is not."""
seen = []
"""Whether the model was trained, the margins without `beta`, and the reference, of each batch."""


class PairExamples:
    def prepare(self, conversation, renderer, max_length):
        both = (conversation, conversation.rejected_conversation())
        return branched_example([renderer.encode(one, max_length) for one in both])

    def collator(self, tokenizer):
        return lambda pairs: pad_rows(branch_rows(pairs), tokenizer)

    def flat_collator(self, tokenizer):
        return lambda pairs: flatten_rows(branch_rows(pairs))

    def branched_collator(self, tokenizer):
        return flatten_branches


class Pairs(PairExamples):
    reference_options = ()

    def __init__(self, options):
        self.options = options

    def reference_values(self, model, batch):
        values = row_logps(model, batch).view(-1, 2)
        forwards.append(len(values))
        return [{"logps": logps} for logps in values]

    def row_losses(self, model, batch):
        import torch

        logps = row_logps(model, batch).view(-1, 2)  # (pairs, 2)
        if self.options.reference != "none":
            reference = torch.stack([values["logps"] for values in batch["reference"]])
            logps = logps - reference
            seen.append((model.training, (logps[:, 0] - logps[:, 1]).detach(), reference))
        losses = -torch.nn.functional.logsigmoid(self.options.beta * (logps[:, 0] - logps[:, 1]))
        return losses, torch.ones_like(losses, dtype=torch.long)

    def loss_sum(self, model, batch):
        losses, terms = self.row_losses(model, batch)
        return float(losses.sum()), int(terms.sum())

    def terms(self, batch):
        if "segment_parents" in batch:
            return len(batch["segment_parents"]) // 3
        return (len(batch["cu_seq_lens_q"]) - 1 if "cu_seq_lens_q" in batch else len(batch["input_ids"])) // 2

    def trainer_class(self):
        from transformers import Trainer

        objective = self

        class PairsTrainer(Trainer):
            def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
                if len([1 for training, *_ in seen if training]) + 1 == stop_before[0]:
                    raise RuntimeError("killed")
                losses, _ = objective.row_losses(model, inputs)
                return losses.sum() / (len(losses) if num_items_in_batch is None else num_items_in_batch)

        return PairsTrainer
