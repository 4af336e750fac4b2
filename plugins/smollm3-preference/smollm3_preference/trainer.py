"""The Trainer of the objectives: the mean loss of a step, and the means of the measures in its log."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from transformers import Trainer

if TYPE_CHECKING:
    from torch import Tensor

    from smollm3_preference.objective import PreferenceObjective


class StepMeans:
    """Means of measures over all examples since the last call of `take`, also of other processes."""

    def __init__(self) -> None:
        self.totals: dict[str, Tensor] = {}
        """The sum of each measure and the number of its values. (2,)"""

    def add(self, measures: Mapping[str, Tensor]) -> None:
        for name, values in measures.items():
            wide = values.detach().float() if values.dtype != torch.float64 else values.detach()
            total = torch.stack([wide.nansum(), (~wide.isnan()).sum().to(wide)])
            self.totals[name] = self.totals[name] + total if name in self.totals else total

    def take(self, accelerator: Any) -> dict[str, float]:
        """The means; measures that no example had are left out. Every process must call this.

        Without a margin of each example, as with single answers, `margin` is the difference of the mean rewards.
        """
        if not self.totals:
            return {}
        names = list(self.totals)
        sums = accelerator.reduce(torch.stack([self.totals[name] for name in names])).tolist()
        self.totals = {}
        means = {name: total / count for name, (total, count) in zip(names, sums, strict=True) if count}
        if "margin" not in means and {"chosen_reward", "rejected_reward"} <= means.keys():
            means["margin"] = means["chosen_reward"] - means["rejected_reward"]
        return means


def preference_trainer(objective: PreferenceObjective) -> type[Trainer]:
    """The Trainer class of an objective."""

    class PreferenceTrainer(Trainer):  # type: ignore[misc]
        idle = False
        """Set by core."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self.step_means = StepMeans()
            super().__init__(*args, **kwargs)

        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Tensor:
            found = objective.training_outcome(model, inputs, self)
            if num_items_in_batch is None:  # not a step
                return found.losses.mean()
            self.step_means.add({n: v[:0] if self.idle else v for n, v in found.measures.items()})
            return found.losses.sum() / num_items_in_batch

        def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
            if "loss" in logs:
                logs = {**logs, **self.step_means.take(self.accelerator)}
            super().log(logs, *args, **kwargs)

    return PreferenceTrainer
