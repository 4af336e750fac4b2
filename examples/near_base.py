"""An objective in one file: cross-entropy, and a penalty if the model moves away from its base."""

from dataclasses import dataclass

from smollm3_finetune.api import (
    IGNORE_INDEX,
    ObjectiveSpec,
    flatten_rows,
    hookimpl,
    option,
    pad_rows,
    row_sums,
    token_logps,
    without_adapter,
)


@dataclass(frozen=True, kw_only=True)
class NearBaseOptions:
    beta: float = option(0.1, "Weight of the penalty; 0 is sft.", ge=0)


@hookimpl
def smollm3_objectives():
    return [
        ObjectiveSpec(
            name="near-base",
            summary="cross-entropy, and a penalty for moving away from the base",
            factory="near_base:NearBase",
            options="near_base:NearBaseOptions",
            reference="base",
            api=2,
        )
    ]


class NearBase:
    def __init__(self, options):
        self.options = options

    def prepare(self, conversation, renderer, max_length):
        encoded = renderer.encode(conversation, max_length)
        if all(label == IGNORE_INDEX for label in encoded.labels[1:]):
            return None
        return {"input_ids": encoded.input_ids, "labels": encoded.labels}

    def collator(self, tokenizer):
        return lambda examples: pad_rows(examples, tokenizer)

    def flat_collator(self, tokenizer):
        return flatten_rows

    def token_losses(self, model, batch):
        with without_adapter(model) as base:
            reference = token_logps(base, batch)  # (B, T), 0 where a label is ignored
        logps = token_logps(model, batch)
        return -logps + self.options.beta / 2 * (logps - reference) ** 2  # (B, T)

    def trainer_class(self):
        from transformers import Trainer

        objective = self

        class NearBaseTrainer(Trainer):
            def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
                if num_items_in_batch is None:
                    num_items_in_batch = supervised_tokens(inputs)
                return objective.token_losses(model, inputs).sum() / num_items_in_batch

        return NearBaseTrainer

    def loss_sum(self, model, batch):
        return float(self.token_losses(model, batch).sum()), supervised_tokens(batch)

    def row_losses(self, model, batch):  # optional: the held-out loss of each row
        losses = row_sums(self.token_losses(model, batch), batch)  # (R,)
        return losses, row_sums(batch["labels"] != IGNORE_INDEX, batch)


def supervised_tokens(batch):
    return int((batch["labels"][:, 1:] != IGNORE_INDEX).sum())
