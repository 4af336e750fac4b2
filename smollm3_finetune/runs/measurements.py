"""The held-out losses that a run measured, and what follows from them: the best step, the measurements since."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Measurements:
    """Step and held-out loss of each measurement, in the order of the steps; a loss that is not finite is None."""

    losses: tuple[tuple[int, float | None], ...] = ()

    def added(self, step: int, loss: float | None) -> Measurements:
        """With another measurement, which replaces those of `step` and later."""
        value = loss if loss is not None and math.isfinite(loss) else None
        return Measurements((*self.until(step - 1).losses, (step, value)))

    def until(self, step: int) -> Measurements:
        """Without the measurements after `step`."""
        return Measurements(tuple(entry for entry in self.losses if entry[0] <= step))

    def of(self, step: int) -> float | None:
        """The loss of a step; None if it was not measured, or is not finite."""
        return dict(self.losses).get(step)

    def __contains__(self, step: int) -> bool:
        return any(measured == step for measured, _ in self.losses)

    @property
    def best(self) -> int | None:
        """The step with the lowest loss, the first of equal ones; None if no loss is finite."""
        finite = [(loss, step) for step, loss in self.losses if loss is not None]
        return min(finite)[1] if finite else None

    @property
    def waited(self) -> int:
        """The number of measurements since the best one."""
        best = self.best
        return sum(best is None or step > best for step, _ in self.losses)

    def as_json(self) -> list[list[Any]]:
        return [list(entry) for entry in self.losses]

    @classmethod
    def from_json(cls, found: Any) -> Measurements:
        """The value of `as_json`. Raises ValueError if it is something else."""
        if not isinstance(found, list) or not all(_is_entry(entry) for entry in found):
            raise ValueError("the measurements are not pairs of a step and a loss")
        return cls.of_pairs((step, loss) for step, loss in found)

    @classmethod
    def of_pairs(cls, pairs: Iterable[tuple[int, float | None]]) -> Measurements:
        """The measurements in the order of their steps; the last one of a step counts."""
        made = cls()
        for step, loss in sorted(dict(pairs).items()):
            made = made.added(step, loss)
        return made


def _is_entry(found: Any) -> bool:
    if not isinstance(found, list) or len(found) != 2:
        return False
    step, loss = found
    return _is_number(step, int) and step >= 0 and (loss is None or _is_number(loss, int | float))


def _is_number(found: Any, kinds: Any) -> bool:
    return isinstance(found, kinds) and not isinstance(found, bool)
