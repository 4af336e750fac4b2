"""Tests of objectives that compare the model with a reference: its values are those of each example, and are used."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from smollm3_finetune.errors import PluginError
from smollm3_finetune.reference.computed import NAME, Values
from smollm3_finetune.reference.stored import Stored, write
from smollm3_finetune.testing.conformance import Conformance, demand, outcome, skip

if TYPE_CHECKING:
    from torch import Tensor

    from smollm3_finetune.testing.objective_runs import Lab


class ReferenceTests(Conformance):
    """The part of `ObjectiveConformance` about `reference_values`."""

    same_held_out_loss: ClassVar[bool]
    _bound: Any

    def _lab(self, flat: bool, saved: Path | None = None) -> AbstractContextManager[Lab]:
        raise NotImplementedError

    def _kinds(self) -> tuple[bool, ...]:
        raise NotImplementedError

    def test_the_reference_has_values_for_each_example(self) -> None:
        for flat in self._reference_kinds():
            with self._lab(flat) as made:
                found, error = outcome(made.reference, made.examples)
            what = error.message if isinstance(error, PluginError) else f"reference_values() raised {error!r}"
            demand(error is None, what)
            assert found is not None
            names = {tuple(sorted(values)) for values in found}
            demand(len(names) == 1, f"reference_values() returned different names for the examples: {sorted(names)}")
            demand(bool(next(iter(names))), "reference_values() returned mappings without values")

    def test_values_that_are_computed_once_give_the_same_loss(self) -> None:
        if getattr(self.choose().create(), "reference_needs_batch", False):
            skip("the values depend on the rows that share a batch, so train.reference=once is refused")
        right: Values | None = None
        for flat in self._reference_kinds():
            with self._lab(flat) as made:
                alone = [made.reference([row])[0] for row in made.examples]
                right = right or alone
                together = made.reference(made.examples)
                for n, (own, others, first) in enumerate(zip(alone, together, right, strict=True)):
                    self._check_alike(own, others, f"row {n} if other {_kind(flat)} rows share its batch")
                    self._check_alike(own, first, f"row {n} in {_kind(flat)} rows, compared with padded ones")
                losses = [made.loss(made.batch(made.examples), values) for values in (together, _stored(alone))]
            demand(
                abs(losses[0] - losses[1]) <= self._bound * max(abs(losses[0]), 1e-12),
                f"the loss is {losses[1]:.6g} with stored values, but {losses[0]:.6g} with those of the batch: "
                "compute_loss must take the values of each example from batch['reference']",
            )

    def test_the_reference_reaches_training_and_the_held_out_loss_alike(self) -> None:
        for flat in self._reference_kinds():
            with self._lab(flat) as made:
                batch = made.batch(made.examples)
                other = {**batch, NAME: [_moved(values) for values in batch[NAME]]}
                sums = [made.loss_sum(b) for b in (batch, other)]
                terms = sums[0][1]
                losses = [made.loss(b, b[NAME], terms) * terms for b in (batch, other)]
            held_out, training = sums[1][0] - sums[0][0], losses[1] - losses[0]
            for change, what in ((held_out, "loss_sum()"), (training, "compute_loss()")):
                demand(
                    abs(change) > 1e-6,
                    f"{what} gives the same loss of {_kind(flat)} rows with other values of the reference: take them "
                    "from batch['reference']",
                )
            demand(
                not self.same_held_out_loss or abs(held_out - training) <= 1e3 * self._bound * abs(training),
                f"other values of the reference change the loss of training on {_kind(flat)} rows by {training:.6g}, "
                f"but that of loss_sum() by {held_out:.6g}: both must compute the same",
            )

    def test_the_reference_does_not_follow_the_model(self) -> None:
        for flat in self._reference_kinds():
            with self._lab(flat) as made:
                before = made.reference(made.examples)
                made.step()
                after = made.reference(made.examples)
            for n, (own, later) in enumerate(zip(before, after, strict=True)):
                self._check_alike(later, own, f"row {n} after a step of training: they must depend on the reference")

    def _reference_kinds(self) -> tuple[bool, ...]:
        """Whether batches are flat; skips the test if the objective has no reference."""
        if self._reference() == "none" or not hasattr(self.choose().create(), "reference_values"):
            skip("the objective has no reference whose values it computes")
        return self._kinds()

    def _reference(self) -> str:
        """The reference of the objective with the options of the class."""
        from smollm3_finetune.api import Purpose
        from smollm3_finetune.components.negotiation import environment, refined

        found: str = refined(self.choose(), environment(self.device, Purpose.TRAIN)).reference
        return found

    def _check_alike(self, found: Mapping[str, Tensor], right: Mapping[str, Tensor], what: str) -> None:
        for name, value in right.items():
            own = found.get(name)
            shapes = tuple(value.shape), None if own is None else tuple(own.shape)
            demand(
                own is not None and shapes[0] == shapes[1],
                f"the reference value {name!r} has the shape {shapes[0]} or {shapes[1]}, depending on the batch, for "
                f"{what}",
            )
            assert own is not None
            apart = float((own.double() - value.double()).norm() / value.double().norm().clamp(min=1e-12))
            demand(
                apart <= self._bound,
                f"the reference value {name!r} changes by {apart:.2g} (limit {self._bound:.2g}) for {what}",
            )


def _stored(values: Values) -> list[dict[str, Tensor]]:
    """The values after they were written to disk and read again."""
    with tempfile.TemporaryDirectory(prefix="smollm3-kit-") as directory:
        device = next(iter(values[0].values())).device
        write(Path(directory) / "values", [[{n: v.cpu() for n, v in one.items()} for one in values]])
        stored = Stored(Path(directory) / "values")
        return [{n: v.clone().to(device) for n, v in stored[i].items()} for i in range(len(stored))]


def _moved(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Other values that are possible too: log-probabilities stay below 0, probabilities between 0 and 1."""
    generator = torch.Generator().manual_seed(0)
    found = {}
    for name, value in values.items():
        factor = torch.rand(value.shape, generator=generator, dtype=torch.float64).to(value.device) / 2
        change = factor if bool((value <= 0).all()) else -factor
        found[name] = (value * (1 + change)).to(value.dtype) if value.is_floating_point() else value
    return found


def _kind(flat: bool) -> str:
    return "flat" if flat else "padded"
