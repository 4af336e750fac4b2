"""Objectives that compare two answers to one prompt, and one that reads labels, as small as they can be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from smollm3_finetune.api import (
    IGNORE_INDEX,
    Conversation,
    ObjectiveSpec,
    Renderer,
    branch_rows,
    branched_example,
    flatten_branches,
    flatten_rows,
    hookimpl,
    pad_rows,
    row_logps,
    row_sums,
)


class Pairs:
    """The log-probability of the rejected answer, less that of the chosen one, through a sigmoid."""

    def __init__(self, options: Any) -> None: ...

    def prepare(
        self, conversation: Conversation, renderer: Renderer, max_length: int
    ) -> Mapping[str, Sequence[int]] | None:
        rows = [renderer.encode(c, max_length) for c in (conversation, conversation.rejected_conversation())]
        if any(all(label == IGNORE_INDEX for label in row.labels[1:]) for row in rows):
            return None
        return self.example(rows)

    def example(self, rows: Sequence[Any]) -> Mapping[str, Sequence[int]]:
        return branched_example(rows)

    def rows(self, examples: Sequence[Mapping[str, Any]]) -> list[Any]:
        return list(branch_rows(examples))

    def collator(self, tokenizer: Any) -> Any:
        return lambda examples: pad_rows(self.rows(examples), tokenizer)

    def flat_collator(self, tokenizer: Any) -> Any:
        return lambda examples: flatten_rows(self.rows(examples))

    def losses(self, model: Any, batch: Mapping[str, Any]) -> Any:
        import torch

        chosen, rejected = row_logps(model, batch).view(-1, 2).unbind(1)
        return -torch.nn.functional.logsigmoid((chosen - rejected) / 10)  # (pairs,)

    def terms(self, batch: Mapping[str, Any]) -> int:
        return len(row_sums(batch["labels"], batch)) // 2

    def trainer_class(self) -> Any:
        from transformers import Trainer

        objective = self

        class PreferTrainer(Trainer):  # type: ignore[misc]
            def compute_loss(
                self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
            ) -> Any:
                losses = objective.losses(model, inputs)
                return losses.sum() / (len(losses) if num_items_in_batch is None else num_items_in_batch)

        return PreferTrainer

    def loss_sum(self, model: Any, batch: Mapping[str, Any]) -> tuple[float, int]:
        losses = self.losses(model, batch)
        return float(losses.sum()), len(losses)


class Prefer(Pairs):
    def branched_collator(self, tokenizer: Any) -> Any:
        return flatten_branches


class TwoSequences(Pairs):
    """The same with a sequence of its own for each answer."""

    def example(self, rows: Sequence[Any]) -> Mapping[str, Sequence[int]]:
        chosen, rejected = rows
        return {
            "input_ids": chosen.input_ids,
            "labels": chosen.labels,
            "rejected_input_ids": rejected.input_ids,
            "rejected_labels": rejected.labels,
        }

    def rows(self, examples: Sequence[Mapping[str, Any]]) -> list[Any]:
        return [
            {"input_ids": e[f"{side}input_ids"], "labels": e[f"{side}labels"]}
            for e in examples
            for side in ("", "rejected_")
        ]


class Whole(Prefer):
    """Leaves out pairs that do not fit."""

    def prepare(
        self, conversation: Conversation, renderer: Renderer, max_length: int
    ) -> Mapping[str, Sequence[int]] | None:
        made = super().prepare(conversation, renderer, max_length)
        if made is None or any(len(row["input_ids"]) == max_length for row in branch_rows([made])):
            return None
        return made


class Judge(Pairs):
    """Reads the label of a single answer."""

    def prepare(
        self, conversation: Conversation, renderer: Renderer, max_length: int
    ) -> Mapping[str, Sequence[int]] | None:
        assert conversation.desirable is not None
        encoded = renderer.encode(conversation, max_length)
        return {
            "input_ids": encoded.input_ids,
            "labels": encoded.labels,
            "desirable": [int(conversation.desirable)],
        }

    def rows(self, examples: Sequence[Mapping[str, Any]]) -> list[Any]:
        return [{"input_ids": e["input_ids"], "labels": e["labels"]} for e in examples]


def spec(name: str, cls: str, *fields: str) -> ObjectiveSpec:
    return ObjectiveSpec(name=name, summary=name, factory=f"pair_objectives:{cls}", fields=fields, api=2)


@hookimpl
def smollm3_objectives() -> list[ObjectiveSpec]:
    return [
        spec("prefer", "Prefer", "rejected"),
        spec("two-sequences", "TwoSequences", "rejected"),
        spec("whole", "Whole", "rejected"),
        spec("judge", "Judge", "desirable"),
    ]
