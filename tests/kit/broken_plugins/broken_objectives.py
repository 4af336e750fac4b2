"""Correct objectives, and variants of them with one fault each. `VARIANTS` names them."""

from smollm3_finetune.api import IGNORE_INDEX, NoOptions, ObjectiveSpec, flatten_rows, hookimpl, pad_rows


def spec(name, cls):
    reference = getattr(cls, "reference", "none")
    factory = f"broken_objectives:{cls.__name__}"
    return ObjectiveSpec(name=name, summary=name, factory=factory, reference=reference, api=1)


class Tokens:
    """Correct: cross-entropy over supervised tokens."""

    def __init__(self, options: NoOptions) -> None:
        pass

    def prepare(self, conversation, renderer, max_length):
        encoded = renderer.encode(conversation, max_length)
        if all(label == IGNORE_INDEX for label in encoded.labels[1:]):
            return None
        return {"input_ids": encoded.input_ids, "labels": encoded.labels}

    def collator(self, tokenizer):
        return lambda examples: pad_rows(examples, tokenizer)

    def flat_collator(self, tokenizer):
        return flatten_rows

    def summed(self, model, batch):
        import torch

        rest = {name: value for name, value in batch.items() if name != "labels"}
        logits = model(**{**rest, "use_cache": False}).logits[:, :-1]  # (B, T-1, V)
        return torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), batch["labels"][:, 1:].flatten(), ignore_index=IGNORE_INDEX, reduction="sum"
        )

    def count(self, batch):
        return int((batch["labels"][:, 1:] != IGNORE_INDEX).sum())

    def step_loss(self, trainer, model, batch, terms):
        return self.summed(model, batch) / (terms if terms is not None else self.count(batch))

    def trainer_class(self):
        from transformers import Trainer

        objective = self

        class OwnTrainer(Trainer):
            calls = 0

            def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
                return objective.step_loss(self, model, inputs, num_items_in_batch)

        return OwnTrainer

    def loss_sum(self, model, batch):
        return float(self.summed(model, batch)), self.count(batch)


class PairsCountedAsTokens(Tokens):
    """A mean over pairs without `terms`: training divides by the supervised tokens."""

    def prepare(self, conversation, renderer, max_length):
        import dataclasses

        if conversation.rejected is None:
            raise ValueError("the row has no rejected answer")
        chosen = renderer.encode(conversation, max_length)
        other = dataclasses.replace(conversation, messages=conversation.rejected, rejected=None)
        rejected = renderer.encode(other, max_length)
        if any(all(label == IGNORE_INDEX for label in e.labels[1:]) for e in (chosen, rejected)):
            return None
        return {
            "input_ids": chosen.input_ids,
            "labels": chosen.labels,
            "rejected_input_ids": rejected.input_ids,
            "rejected_labels": rejected.labels,
        }

    @staticmethod
    def split(examples):
        return [
            {"input_ids": e[f"{side}input_ids"], "labels": e[f"{side}labels"]}
            for e in examples
            for side in ("", "rejected_")
        ]

    def collator(self, tokenizer):
        return lambda examples: pad_rows(self.split(examples), tokenizer)

    def flat_collator(self, tokenizer):
        return lambda examples: flatten_rows(self.split(examples))

    def row_logps(self, model, batch):
        import torch

        rest = {name: value for name, value in batch.items() if name != "labels"}
        logps = model(**{**rest, "use_cache": False}).logits[:, :-1].log_softmax(-1)  # (B, T-1, V)
        labels = batch["labels"][:, 1:]
        each = logps.gather(-1, labels.clamp(min=0)[..., None])[..., 0] * (labels != IGNORE_INDEX)
        if "cu_seq_lens_q" not in batch:
            return each.sum(1)
        row = torch.bucketize(torch.arange(1, each.shape[1] + 1), batch["cu_seq_lens_q"][1:], right=True)
        return each.new_zeros(len(batch["cu_seq_lens_q"]) - 1).index_add(0, row, each[0])

    def pair_losses(self, model, batch):
        import torch

        chosen, rejected = self.row_logps(model, batch).view(-1, 2).unbind(1)
        return -torch.nn.functional.logsigmoid((chosen - rejected) / 10)

    def summed(self, model, batch):
        return self.pair_losses(model, batch).sum()

    def count(self, batch):
        return (len(batch["cu_seq_lens_q"]) - 1 if "cu_seq_lens_q" in batch else len(batch["input_ids"])) // 2


class Pairs(PairsCountedAsTokens):
    """Correct: a preference loss, with two rows for each example and a term for each pair."""

    def terms(self, batch):
        return self.count(batch)

    def row_losses(self, model, batch):
        import torch

        losses = self.pair_losses(model, batch)
        return losses, torch.ones(len(losses), dtype=torch.long)


class OtherTerms(Pairs):
    def terms(self, batch):
        return len(batch["input_ids"])  # rows, not pairs


class OtherRowOrder(Pairs):
    def row_losses(self, model, batch):
        losses, terms = super().row_losses(model, batch)
        return losses.flip(0), terms


class RowsNotExamples(Pairs):
    def row_losses(self, model, batch):
        import torch

        losses = -self.row_logps(model, batch)  # (2 examples,)
        return losses, torch.ones(len(losses), dtype=torch.long)


class MeanOfBatches(Tokens):
    def step_loss(self, trainer, model, batch, terms):
        return self.summed(model, batch) / self.count(batch)


class OtherHeldOut(Tokens):
    def loss_sum(self, model, batch):
        return 0.9 * float(self.summed(model, batch)), self.count(batch)


class CountsPerRow(Tokens):
    def loss_sum(self, model, batch):
        total, count = super().loss_sum(model, batch)
        return total, count / len(batch["input_ids"])


class Leaks(Tokens):
    def flat_collator(self, tokenizer):
        kept = ("input_ids", "labels", "use_cache")
        return lambda examples: {n: v for n, v in flatten_rows(examples).items() if n in kept}


class SupervisesMore(Tokens):
    def flat_collator(self, tokenizer):
        return lambda examples: flatten_rows([{**e, "labels": e["input_ids"]} for e in examples])


class SupervisesPadding(Tokens):
    def collator(self, tokenizer):
        def collate(examples):
            batch = pad_rows(examples, tokenizer)
            batch["labels"][batch["attention_mask"] == 0] = 2
            return batch

        return collate


class ChangesExamples(Tokens):
    def collator(self, tokenizer):
        def collate(examples):
            for e in examples:
                e["labels"][0] = IGNORE_INDEX
                e["labels"].append(IGNORE_INDEX)
                e["input_ids"].append(0)
            return pad_rows(examples, tokenizer)

        return collate


class KeepsState(Tokens):
    def step_loss(self, trainer, model, batch, terms):
        trainer.calls += 1
        return super().step_loss(trainer, model, batch, terms) * 0.5**trainer.calls


class Ragged(Tokens):
    def prepare(self, conversation, renderer, max_length):
        made = super().prepare(conversation, renderer, max_length)
        if made is not None and conversation.rejected is not None:
            made["rejected"] = [len(conversation.rejected)]
        return made


class NoRejected(Tokens):
    def prepare(self, conversation, renderer, max_length):
        len(conversation.rejected)
        return super().prepare(conversation, renderer, max_length)


class IgnoresLength(Tokens):
    def prepare(self, conversation, renderer, max_length):
        return super().prepare(conversation, renderer, 256)


class StaysInTraining(Tokens):
    def loss_sum(self, model, batch):
        found = super().loss_sum(model, batch)
        model.train()
        model.get_input_embeddings().eval()
        model.get_input_embeddings().weight.requires_grad_(True)
        return found


class Compared(Pairs):
    """Correct: pairs whose log-probabilities are compared with those of the base."""

    reference = "base"
    reference_options = ()

    def row_logps(self, model, batch):
        return super().row_logps(model, {name: v for name, v in batch.items() if name != "reference"})

    def reference_values(self, model, batch):
        return [{"logps": logps} for logps in self.row_logps(model, batch).view(-1, 2)]

    def pair_losses(self, model, batch):
        import torch

        reference = torch.stack([values["logps"] for values in batch["reference"]])
        chosen, rejected = (self.row_logps(model, batch).view(-1, 2) - reference).unbind(1)
        return -torch.nn.functional.logsigmoid((chosen - rejected) / 10)


class ComparedWithStart(Compared):
    reference = "start"


class ComparedWithModel(Compared):
    reference = "model"


class ReferenceOfRows(Compared):
    def reference_values(self, model, batch):
        return [{"logps": logps} for logps in self.row_logps(model, batch)]  # of each row, not of each pair


class ReferenceOfBatches(Compared):
    def reference_values(self, model, batch):
        values = self.row_logps(model, batch).view(-1, 2)
        return [{"logps": logps} for logps in values - values.mean()]


class HeldOutWithoutReference(Compared):
    same_held_out_loss = False

    def loss_sum(self, model, batch):
        import torch

        chosen, rejected = self.row_logps(model, batch).view(-1, 2).unbind(1)
        losses = -torch.nn.functional.logsigmoid((chosen - rejected) / 10)
        return float(losses.sum()), len(losses)


class ReferenceFollows(Compared):
    def step_loss(self, trainer, model, batch, terms):
        self.steps = getattr(self, "steps", 0) + 1
        return super().step_loss(trainer, model, batch, terms)

    def reference_values(self, model, batch):
        own = super().reference_values(model, batch)
        return [{"logps": values["logps"] * (1 + 0.1 * getattr(self, "steps", 0))} for values in own]


class MeasuresOfBatches(Compared):
    def row_measures(self, model, batch):
        losses, terms = self.row_losses(model, batch)
        return {"loss": losses, "terms": terms, "accuracy": (losses > losses.mean()).float()}


VARIANTS = {
    "tokens": Tokens, "pairs": Pairs, "pairs-as-tokens": PairsCountedAsTokens, "other-terms": OtherTerms,
    "other-row-order": OtherRowOrder, "rows-not-examples": RowsNotExamples,
    "mean-of-batches": MeanOfBatches, "other-held-out": OtherHeldOut, "counts-per-row": CountsPerRow, "leaks": Leaks,
    "supervises-more": SupervisesMore, "supervises-padding": SupervisesPadding, "changes-examples": ChangesExamples,
    "keeps-state": KeepsState, "ragged": Ragged, "no-rejected": NoRejected, "ignores-length": IgnoresLength,
    "stays-in-training": StaysInTraining, "compared": Compared, "compared-with-start": ComparedWithStart,
    "compared-with-model": ComparedWithModel, "reference-of-rows": ReferenceOfRows,
    "reference-of-batches": ReferenceOfBatches, "held-out-without-reference": HeldOutWithoutReference,
    "reference-follows": ReferenceFollows, "measures-of-batches": MeasuresOfBatches,
}  # fmt: skip


@hookimpl
def smollm3_objectives():
    return [spec(name, cls) for name, cls in VARIANTS.items()]
