"""What a run does between steps without affecting them: measure the held-out loss, keep the best adapter, answer."""

from __future__ import annotations

import contextlib
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from smollm3_finetune import stopping
from smollm3_finetune.api.modes import evaluating
from smollm3_finetune.config.schema import TrainConfig
from smollm3_finetune.files.room import check_room
from smollm3_finetune.model.load import LoadedModel
from smollm3_finetune.progress import Silent
from smollm3_finetune.runs.measurements import Measurements
from smollm3_finetune.runs.rundir import RunDir, rows_of
from smollm3_finetune.train.distributed.processes import from_main
from smollm3_finetune.train.distributed.sharding import gathered_weights
from smollm3_finetune.train.early import ends_early
from smollm3_finetune.train.lines import Lines

if TYPE_CHECKING:
    from smollm3_finetune.api import Progress
    from smollm3_finetune.evaluation.held_out_loss import HeldOut
    from smollm3_finetune.train.display import Display

T = TypeVar("T")


@dataclass(kw_only=True)
class Measuring:
    """The measurements of a run. Every process must call its methods: all of them take the main process's results."""

    loaded: LoadedModel
    held_out: HeldOut
    sample: Callable[[], str]
    """Answers the sample prompt."""
    prompt: Sequence[Mapping[str, Any]]
    run: RunDir
    display: Display
    config: TrainConfig
    main: bool
    """Whether this is the process that writes files."""
    measurements: Measurements = field(default_factory=Measurements)
    log: Callable[[dict[str, float]], None] = lambda values: None
    """`Trainer.log`, which passes values to trackers."""
    last: tuple[int, dict[str, Any]] | None = None
    """The last step that this process measured, and the measurement."""
    warned: bool = False
    """Whether a damaged best adapter was reported."""

    def __post_init__(self) -> None:
        self.metrics = Lines(self.run.metrics, self.display.say)
        self.samples = Lines(self.run.samples, self.display.say)

    def after_step(self, step: int, final: bool) -> None:
        """Do what is due after a step; the held-out loss after the final step is measured when the adapter is saved."""
        if self._due(self.config.eval_every, step) and not final:
            self._measure(step, Silent(), self._unless_stopped)
        if self._due(self.config.sample_every, step):
            self._answer(step, self._unless_stopped)

    def catch_up(self, step: int, progress: Progress) -> bool:
        """Do what was due after the step of a checkpoint and is missing, because a request to stop ended it.

        Returns whether something was logged, which trackers have not received yet.
        """
        best = self.config.keep_best and step == self.measurements.best and self.run.saved.best.damage(step) is not None
        if from_main((self._due(self.config.eval_every, step) and step not in self.measurements) or best):
            self._measure(step, progress, from_main_of)
        answered = any(row["step"] == step for _, row in rows_of(self.samples.path))
        if from_main(self._due(self.config.sample_every, step) and not answered):
            self._answer(step, from_main_of)
        return self.last is not None

    @staticmethod
    def _due(every: int | None, step: int) -> bool:
        return every is not None and step % every == 0

    @staticmethod
    def _unless_stopped(act: Callable[[], T]) -> T | None:
        """The result of the main process; None if a request to stop ended it: the run then ends after this step."""
        found = None
        with contextlib.suppress(stopping.Stop), stopping.undeferred():
            found = act()
        return from_main(found)

    def _measure(self, step: int, progress: Progress, result: Callable[[Callable[[], Any]], Any]) -> None:
        with self._undisturbed():
            report = result(lambda: self.held_out.measure(progress))
            if report is None or report["held_out_loss"] is None:
                return
            lowest = self.measurements.until(step - 1).added(step, report["held_out_loss"]).best == step
            if self.config.keep_best and lowest:
                sample = result(self.sample)
                if sample is None:
                    return
                self._keep(step, {**report, "sample": sample})
        self.record(step, report)
        kept = "; its adapter is the best so far" if self.config.keep_best and lowest else ""
        self.display.say(f"held-out loss after {step} steps: {report['held_out_loss']:.4f}{kept}")

    def _answer(self, step: int, result: Callable[[Callable[[], Any]], Any]) -> None:
        with self._undisturbed():
            answer = result(self.sample)
        if answer is None:
            return
        if self.main:
            self.samples.add({"step": step, "prompt": list(self.prompt), "answer": answer})
        self.display.say(f"sample after {step} steps: {' '.join(answer.split())}")

    def _keep(self, step: int, measured: Mapping[str, Any]) -> None:
        """Save the adapter as the best one."""
        model, place = self.loaded.model, self.run.saved
        needed = 4 * sum(p.numel() for p in model.parameters() if p.requires_grad)
        with gathered_weights(model):
            if self.main:
                check_room(place.path, needed, "the best adapter so far")
                with stopping.deferred():
                    place.best.save(step, self.loaded.write, measured)
                    place.prune_best(step)

    def record(self, step: int, report: dict[str, Any]) -> None:
        """Record the held-out loss of a step in the metrics and the trackers, if the run measures every few steps."""
        if self.last is not None and self.last[0] == step:
            return  # recorded already
        self.last = (step, report)
        if self.config.eval_every is None or report["held_out_loss"] is None:
            return
        self.measurements = self.measurements.added(step, report["held_out_loss"])
        self.log(logged(report))
        if self.main and not any(r["step"] == step and "held_out_loss" in r for _, r in rows_of(self.metrics.path)):
            self.metrics.add({"step": step, **{k: v for k, v in report.items() if k != "sample"}})

    def finish(self, step: int, progress: Progress) -> tuple[dict[str, Any], int]:
        """Measure the weights of the last `step`; returns the measurement of the adapter to publish, and its step.

        The measurement of an earlier step has its sample answer.
        """
        best = self._best_before(step) if step in self.measurements else None
        report: dict[str, Any] = {}
        if best is None:
            known = self.last is not None and self.last[0] == step
            report = dict(self.last[1]) if known and self.last is not None else self.held_out.measure(progress)
            self.record(step, report)
            best = self._best_before(step)
        if best is None:
            return report, step
        return from_main(self.run.saved.best.measured(best) if self.main else {}), best

    @property
    def exhausted(self) -> bool:
        """Whether the run must end early."""
        return ends_early(self.config, self.measurements)

    def _best_before(self, step: int) -> int | None:
        """The step with a lower held-out loss than the last `step`, if its adapter is to be published."""
        best = self.measurements.best if self.config.keep_best else None
        if best is None or best >= step:
            return None
        place = self.run.saved.best
        damage = from_main(place.damage(best) if self.main else None)
        if damage is not None and not self.warned:
            self.warned = True
            self.display.say(
                f"warning: {place.at(best)}, the adapter with the lowest held-out loss, cannot be used ({damage}): the "
                f"adapter of step {step} is published"
            )
        return best if damage is None else None

    @contextlib.contextmanager
    def _undisturbed(self) -> Iterator[None]:
        """Inside the context, modes and random numbers may change; afterwards they are as they were."""
        with evaluating(self.loaded.model), random_state_kept(self.held_out.device):
            yield


def from_main_of(act: Callable[[], T]) -> T:
    """The result of the main process."""
    return from_main(act())


def logged(report: Mapping[str, Any]) -> dict[str, float]:
    """What trackers receive of a measurement, by the names that they expect: `eval_loss`, `eval_perplexity`, …"""
    values = {"eval_loss": report["held_out_loss"], "eval_perplexity": report.get("perplexity")}
    for title, loss in report.get("by_source", {}).items():
        values[f"eval_{re.sub('[^A-Za-z0-9_.-]+', '-', title)}_loss"] = loss
    return {name: value for name, value in values.items() if value is not None}


@contextlib.contextmanager
def random_state_kept(device: str) -> Iterator[None]:
    """Restore the state of the random generators of Python, NumPy and torch at the end of the context."""
    import numpy as np
    import torch

    on = torch.device(device)
    others: dict[str, Any] = {"devices": []}
    if on.type != "cpu":
        others = {"devices": [on.index or 0], "device_type": on.type}
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(**others):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
