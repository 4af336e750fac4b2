"""Conformance tests for `row_measures`: the loss of the row alone, and values that do not depend on other rows."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from smollm3_finetune.api import MeasuringObjective
from smollm3_finetune.api.helpers import evaluating
from smollm3_finetune.evaluation.row_measures import LOSS, TERMS, checked_measures
from smollm3_finetune.testing.conformance import Conformance, demand, outcome, skip

if TYPE_CHECKING:
    from smollm3_finetune.testing.objective_runs import Example, Lab


class MeasureTests(Conformance):
    """The part of `ObjectiveConformance` about `row_measures`."""

    _bound: Any

    def _lab(self, flat: bool, saved: Path | None = None) -> AbstractContextManager[Lab]:
        raise NotImplementedError

    def _kinds(self) -> tuple[bool, ...]:
        raise NotImplementedError

    def test_row_measures_are_those_of_single_rows(self) -> None:
        if not isinstance(self.choose().create(), MeasuringObjective):
            skip("the objective has no row_measures()")
        for flat in self._kinds():
            kind = "flat" if flat else "padded"
            with self._lab(flat) as made:
                together = self._measured(made, made.examples)
                for n, row in enumerate(made.examples):
                    alone = self._measured(made, [row])
                    total, terms = made.held_out([row])
                    demand(
                        self._close(alone[LOSS][0], total) and int(alone[TERMS][0]) == terms,
                        f"row_measures() gives the loss {alone[LOSS][0]:.6g} over {int(alone[TERMS][0])} terms for row "
                        f"{n} in {kind} rows, but loss_sum() gives {total:.6g} over {terms}: both must be the same",
                    )
                    for name, values in together.items():
                        demand(
                            name in alone and self._close(values[n], alone[name][0]),
                            f"the measure {name!r} of row {n} is {values[n]:.6g} in a batch of {kind} rows, but "
                            f"{alone.get(name, [float('nan')])[0]:.6g} alone: it must not depend on other rows",
                        )

    def _measured(self, made: Lab, rows: Sequence[Example]) -> dict[str, Any]:
        with evaluating(made.model), torch.no_grad():
            objective: Any = made.objective
            found, error = outcome(lambda: objective.row_measures(made.model, made.batch(rows)))
        demand(error is None, f"row_measures() raised {error!r}")
        checked, error = outcome(checked_measures, objective, found, len(rows))
        demand(checked is not None, str(error))
        assert checked is not None
        sums, terms, measures = checked
        return {LOSS: sums, TERMS: terms, **measures}

    def _close(self, found: float, right: float) -> bool:
        if found != found or right != right:  # nan: the row does not have the measure
            return found != found and right != right
        return bool(abs(found - right) <= self._bound * max(abs(right), 1.0))
