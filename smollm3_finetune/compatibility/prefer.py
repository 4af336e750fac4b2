"""Trains a pair with preferences, and compares the model with its dense copy and with its reference.

The loss is -log sigmoid(β · margin). The margin of a pair is how much more than its reference the model prefers the
chosen answer, in log-probability. A reference that changes during a run, or is not the model at its start, changes
what is trained and shows in no other figure.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from smollm3_finetune.api import (
    IGNORE_INDEX,
    Adapted,
    Adapter,
    Base,
    branch_rows,
    branched_example,
    flatten_branches,
    pad_rows,
    row_logps,
    without_adapter,
)
from smollm3_finetune.components.negotiation import refined
from smollm3_finetune.model.compare import apart, descend, logits, push, relative_error
from smollm3_finetune.model.dense_copy import dense_copy
from smollm3_finetune.model.load import load_base

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

    from smollm3_finetune.model.plan import ModelPlan
    from smollm3_finetune.reference.start import Start

BETA = 0.1
LENGTHS = ((9, 6, 8), (5, 7, 4))
"""Tokens of the prompt, the chosen and the rejected answer of each pair."""
FIRST = (3, 5, 7)
"""The first tokens of each prompt, so that adapters which train the embeddings of some tokens have effects."""
TOTAL_STEPS = 20
"""Passed to `attach` and `restore` as `total_steps`, for adapters with a schedule."""


@dataclass
class Preferences:
    """The figures of a sequence with preferences; each is relative."""

    margin: float = 0.0
    """The largest margin of the fresh adapter, in units of the largest log-probability; without dropout, it is 0."""
    moved: float = 0.0
    """How far noise in the adapter moves the answers' log-probabilities from those of the reference."""
    gradients: dict[str, float] = field(default_factory=dict)
    """At each point of the sequence, the adapter's gradients compared with those on the dense copy."""
    reference: dict[str, float] = field(default_factory=dict)
    """At each point of the sequence, the values of the references compared with their first ones."""
    branches: float | None = None
    """Log-probabilities and gradients of answers that share their prompt, compared with padded rows; None if the
    adapter does not declare `packs`."""


def check_preferences(plan: ModelPlan) -> Preferences:
    """Build the model of `plan` (for training, with an adapter), run the sequence on it and return the figures.

    Only the caller compares the figures with bounds. Raises AssertionError if a trained parameter receives no gradient,
    ModelError if the restored adapter does not fit the saved start, and RowsNotApart if the base mixes branches.
    """
    import torch

    from smollm3_finetune.batching.probe import on_device
    from smollm3_finetune.reference.start import Start
    from smollm3_finetune.reference.start_file import read_start, write_start

    assert plan.adapter is not None
    traits = refined(plan.adapter, plan.env)
    adapter: Adapter = plan.adapter.create()
    base = _load(plan)
    wide = torch.float64 if plan.context.dtype == "float64" else torch.float32
    dense = Base(model=dense_copy(base, wide), fingerprint=base.fingerprint)
    pairs = _pairs(int(base.model.config.get_text_config().vocab_size))
    filler: Any = SimpleNamespace(pad_token_id=0, eos_token_id=None)
    batch = on_device(pad_rows(branch_rows(pairs), filler), base.model)

    torch.manual_seed(plan.context.seed)
    adapted = adapter.attach(base, plan.context, TOTAL_STEPS)
    side = _Side(adapted, batch, Start(_noted(adapted).model), disables=traits.disables)
    first = side.references()
    kinds = ["start", "base"] if traits.disables and traits.identity_at_start else ["start"]
    result = Preferences(margin=max(side.largest_margin(first[kind]) for kind in kinds))

    with tempfile.TemporaryDirectory() as directory:
        saved = Path(directory)
        write_start(saved / "start", side.start.values())
        push(adapted.model)
        result.moved = apart(side.policy(), first["start"])
        adapted.save(saved / "pushed")
        other = adapter.restore(dense, saved / "pushed", plan.context, TOTAL_STEPS)
        right = _Side(other, batch, Start(_noted(other).model, side.start.values()), disables=False)
        steps = 0

        def refer(point: str) -> None:
            now = side.references()
            result.reference[point] = max(apart(now[kind], first[kind]) for kind in first)

        def train(point: str) -> None:
            nonlocal steps
            steps += 1
            result.gradients[point] = relative_error(side.gradients(), right.gradients())
            for one in (side, right):
                descend(one.adapted, steps)
            refer(point)

        refer("noise")
        train("train")
        logits(adapted.model, batch["input_ids"])
        refer("evaluate")
        train("train after evaluate")
        adapted.save(saved / "saved")
        train("train after save")
        if traits.packs:
            result.branches = side.branches(on_device(flatten_branches(pairs), base.model))
            train("train after branches")
        adapted.save(saved / "last")
        restored = adapter.restore(_load(plan), saved / "last", plan.context, TOTAL_STEPS)
        start = Start(_noted(restored).model, read_start(saved / "start", restored.model, "measure the pair again"))
        side = _Side(restored, batch, start, disables=traits.disables)
        refer("restore")
        train("train after restore")
    return result


@dataclass
class _Side:
    """A model with an adapter, its batch and its references."""

    adapted: Adapted
    batch: Mapping[str, Any]
    start: Start
    disables: bool
    """Whether the base is a reference too."""

    def policy(self) -> Tensor:
        """(R,), in evaluation mode and without gradients."""
        import torch

        with _mode(self.adapted.model, training=False), torch.no_grad():
            return row_logps(self.adapted.model, self.batch)

    def references(self) -> dict[str, Tensor]:
        """The log-probabilities of the answers (R,) of each reference, computed as in a training step."""
        self.adapted.model.train()
        with self.start.at_start(self.adapted.model) as model:
            found = {"start": row_logps(model, self.batch)}
        if self.disables:
            with without_adapter(self.adapted.model) as model:
                found["base"] = row_logps(model, self.batch)
        return found

    def largest_margin(self, reference: Tensor) -> float:
        """In training mode without dropout."""
        from torch import nn

        model = self.adapted.model
        with _mode(model, training=True):
            for module in model.modules():
                if isinstance(module, nn.Dropout):
                    module.eval()
            margin = _margins(row_logps(model, self.batch), reference)
        return float(margin.detach().abs().max() / reference.abs().max())

    def gradients(self) -> dict[str, Tensor]:
        """The gradients of a training step, which stay on the parameters; the reference is computed just before."""
        import torch

        model = self.adapted.model
        reference = self.references()["start"]
        torch.manual_seed(7)  # for dropout
        return _gradients(model, row_logps(model, self.batch), reference)

    def branches(self, branched: Mapping[str, Any]) -> float:
        """The largest error of answers that share their prompt, in evaluation mode: of values and of gradients."""
        from smollm3_finetune.batching.attention import attention_within_rows

        model: Any = self.adapted.model
        reference = self.references()["start"]
        with _mode(model, training=False):
            padded = row_logps(model, self.batch)
            wanted = _gradients(model, padded, reference)
            with attention_within_rows(self.adapted.base.model, branches=True):
                found = row_logps(model, branched)
                gradients = _gradients(model, found, reference)
        return max(apart(found.detach(), padded.detach()), relative_error(gradients, wanted))


def _margins(policy: Tensor, reference: Tensor) -> Tensor:
    """(R,) and (R,), the chosen answer of each pair before the rejected one; returns (R / 2,)."""
    gained = (policy - reference.to(policy)).view(-1, 2)
    return gained[:, 0] - gained[:, 1]


def _gradients(model: nn.Module, policy: Tensor, reference: Tensor) -> dict[str, Tensor]:
    """The gradient of the paired loss for each trained parameter. Raises AssertionError if a parameter gets none."""
    from torch.nn import functional as F

    for parameter in model.parameters():
        parameter.grad = None
    (-F.logsigmoid(BETA * _margins(policy, reference))).mean().backward()
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    if lost := [n for n, p in trained.items() if p.grad is None]:
        raise AssertionError(f"no gradient reached {lost[0]} and {len(lost) - 1} more")
    return {n: p.grad.detach().clone() for n, p in trained.items() if p.grad is not None}


def _pairs(vocabulary: int) -> list[dict[str, list[int]]]:
    """Pairs of nearly random tokens; each answer is supervised."""
    import torch

    generator = torch.Generator().manual_seed(0)

    def drawn(count: int) -> list[int]:
        return [int(i) for i in torch.randint(3, vocabulary, (count,), generator=generator)]

    def row(prompt: list[int], answer: list[int]) -> Any:
        return SimpleNamespace(input_ids=[*prompt, *answer], labels=[*[IGNORE_INDEX] * len(prompt), *answer])

    examples = []
    for prompt_length, *lengths in LENGTHS:
        prompt = [*FIRST, *drawn(prompt_length - len(FIRST))]
        examples.append(branched_example([row(prompt, drawn(length)) for length in lengths]))
    return examples


def _load(plan: ModelPlan) -> Base:
    return load_base(plan.quantizer, plan.quantizer.create(), plan.source, plan.context)


def _noted(adapted: Adapted) -> Adapted:
    """The same; its model knows its adapter, as in a run, so that references find it."""
    from smollm3_finetune.api.adapter_switch import note_adapter

    note_adapter(adapted)
    return adapted


@contextmanager
def _mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Inside the context, every module is in training or in evaluation mode."""
    before = model.training
    model.train(training)
    try:
        yield
    finally:
        model.train(before)
