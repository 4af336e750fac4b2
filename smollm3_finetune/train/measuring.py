"""What a run does between steps without affecting them: measure the held-out loss, keep the best adapter, answer."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from smollm3_finetune import stopping
from smollm3_finetune.api import evaluating
from smollm3_finetune.config.schema import TrainConfig
from smollm3_finetune.errors import ModelError
from smollm3_finetune.evaluation.random_state import random_state_kept
from smollm3_finetune.evaluation.row_losses import RowLosses
from smollm3_finetune.files.json import write_json
from smollm3_finetune.files.room import check_room
from smollm3_finetune.model.load import LoadedModel
from smollm3_finetune.model_files.model_card import last_part
from smollm3_finetune.progress import Silent
from smollm3_finetune.runs.best import MEASURED
from smollm3_finetune.runs.measurements import Measurements
from smollm3_finetune.runs.metrics import rows_of
from smollm3_finetune.runs.rundir import RunDir
from smollm3_finetune.train.distributed.processes import from_main
from smollm3_finetune.train.distributed.sharding import gathered_weights, is_sharded
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
    observe: Callable[[int, Mapping[str, float]], None] = lambda step, values: None
    """Receives the held-out loss of each step that is measured; the callback of the run sets it."""
    resumed_from: int | None = None
    """The step of the checkpoint of a resumed run."""
    last: tuple[int, RowLosses] | None = None
    """The last step that this process measured, and the losses by row."""
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
        is_best = self.config.keep_best and step == self.measurements.best
        lost = is_best and from_main(self.run.saved.best.damage(step) is not None)
        if lost or (self._due(self.config.eval_every, step) and step not in self.measurements):
            self._measure(step, progress, from_main_of)
        if self._due(self.config.sample_every, step) and from_main(not self._has_line(self.samples, step, "answer")):
            self._answer(step, from_main_of)
        return self.last is not None

    @staticmethod
    def _has_line(lines: Lines, step: int, key: str) -> bool:
        return any(row["step"] == step and key in row for _, row in rows_of(lines.path))

    @staticmethod
    def _due(every: int | None, step: int) -> bool:
        return every is not None and step % every == 0

    def _unless_stopped(self, act: Callable[[], T]) -> T | None:
        """The result of the main process; None if a request to stop ended it: the run then ends after this step.

        Processes that share weights compute together, so a request does not end it: the others would wait.
        """
        if is_sharded(self.loaded.model):
            return from_main(act())
        found = None
        with contextlib.suppress(stopping.Stop), stopping.undeferred():
            found = act()
        return from_main(found)

    def _measure(self, step: int, progress: Progress, result: Callable[[Callable[[], Any]], Any]) -> None:
        with self._undisturbed():
            rows = result(lambda: self.held_out.measure_rows(progress))
            if rows is None or not rows.loss.terms:
                return
            loss = rows.loss.mean
            lowest = self.measurements.until(step - 1).added(step, loss).best == step
            if self.config.keep_best and lowest:
                sample = result(self.sample)
                if sample is None:
                    return
                self._keep(step, {**rows.report(), "sample": sample, "rows": rows.as_json()})
        self._record(step, rows)
        kept = "; its adapter is the best so far" if self.config.keep_best and lowest else ""
        self.display.say(f"held-out loss after {step} steps: {loss:.4f}{kept}")

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

    def _record(self, step: int, rows: RowLosses) -> None:
        """Record the held-out loss of a step in the metrics and the trackers, if the run measures every few steps."""
        if self.last is not None and self.last[0] == step:
            return  # recorded already
        self.last, report = (step, rows), rows.report()
        self.observe(step, {k: report[k] for k in ("held_out_loss", "perplexity") if report.get(k) is not None})
        if self.config.eval_every is None or report["held_out_loss"] is None:
            return
        self.measurements = self.measurements.added(step, report["held_out_loss"])
        self.log(logged(report))
        if self.main and not (step == self.resumed_from and self._has_line(self.metrics, step, "held_out_loss")):
            self.metrics.add({"step": step, **report})

    def record_trained(self, step: int, tokens: int, published: int | None = None) -> None:
        """Write `trained.json`: the run has taken its last `step`.

        With `keep_best` it also has the step of the adapter that is `published`, which is undecided (null) at first.
        """
        found: dict[str, Any] = {"steps": step, "tokens": tokens}
        if self.measurements.losses:
            found["measurements"] = self.measurements.as_json()
        if self.config.keep_best:
            undecided = published is None and self.has_candidate(step)
            found["published"] = None if undecided else published or step
        if self.main:
            write_json(self.run.trained, found)

    def finish(self, step: int, progress: Progress) -> tuple[dict[str, Any], RowLosses, int]:
        """Measure the weights of the last `step`, and decide which adapter is published.

        Returns its measurement, its losses by row, and its step. The measurement of an earlier step has its sample
        answer.
        """
        best = self._best_before(step) if step in self.measurements else None
        if best is None:
            measured = self.last is not None and self.last[0] == step
            rows = (
                self.last[1]
                if measured and self.last is not None
                else from_main_of(lambda: self.held_out.measure_rows(progress))
            )
            self._record(step, rows)
            best = self._best_before(step)
            if best is None:
                return rows.report(), rows, step
        found = from_main(self.run.saved.best.measured(best) if self.main else {})
        kept = RowLosses.from_json(found.pop("rows", None), self.held_out.titles)
        if kept is None:
            raise ModelError(f"{self.run.saved.best.at(best) / MEASURED} is damaged: it has no losses by row")
        return {**kept.report(), "sample": found["sample"]}, kept, best

    def has_candidate(self, step: int) -> bool:
        """Whether an earlier adapter may be published instead of that of the last `step`. `finish` decides."""
        best = self._lowest_before(step)
        return best is not None and from_main(self.run.saved.best.at(best).is_dir())

    def with_best(self, nothing: str) -> str:
        """`nothing`, which says that weights were not saved, with the place of the best adapter so far."""
        best = self.measurements.best if self.config.keep_best else None
        kept = f", but {self.run.saved.best.at(best)} has the best adapter" if best is not None else ""
        return nothing + kept

    @property
    def exhausted(self) -> bool:
        """Whether the run must end early."""
        return ends_early(self.config, self.measurements)

    def _best_before(self, step: int) -> int | None:
        """The step with a lower held-out loss than the last `step`, if its adapter is to be published."""
        best = self._lowest_before(step)
        if best is None:
            return None
        place = self.run.saved.best
        damage = from_main(place.damage(best) if self.main else None)
        if damage is not None and not self.warned:
            self.warned = True
            self.display.say(
                f"warning: {place.at(best)}, the adapter with the lowest held-out loss, cannot be used ({damage}): the "
                f"adapter of step {step} is saved"
            )
        return best if damage is None else None

    def _lowest_before(self, step: int) -> int | None:
        """The step before `step` with the lowest held-out loss, if its adapter was kept."""
        best = self.measurements.best if self.config.keep_best else None
        return best if best is not None and best < step else None

    @contextlib.contextmanager
    def _undisturbed(self) -> Iterator[None]:
        """Inside the context, modes and random numbers may change; afterwards they are as they were."""
        with evaluating(self.loaded.model), random_state_kept(self.held_out.device):
            yield


def from_main_of(act: Callable[[], T]) -> T:
    """The result of the main process."""
    return from_main(act())


ABSOLUTE = re.compile(r"[/\\~]|[A-Za-z]:[/\\]")
"""The beginning of an absolute path of any system."""


def logged(report: Mapping[str, Any]) -> dict[str, float]:
    """What trackers receive of a measurement, by the names that they expect: `eval_loss`, `eval_perplexity`, …

    Of a source that was given by an absolute path, the last part: a tracker may publish what it receives.
    """
    values = {"eval_loss": report["held_out_loss"], "eval_perplexity": report.get("perplexity")}
    values |= {f"eval_{name}": mean for name, mean in report.get("measures", {}).items()}
    for title, loss in report.get("by_source", {}).items():
        shown = last_part(title) if ABSOLUTE.match(title) else title
        source = name = re.sub("[^A-Za-z0-9_.-]+", "-", shown)
        number = 1
        while f"eval_{name}_loss" in values:
            number += 1
            name = f"{source}-{number}"
        values[f"eval_{name}_loss"] = loss
    return {name: value for name, value in values.items() if value is not None}
