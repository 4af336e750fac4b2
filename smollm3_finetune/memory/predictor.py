"""Predictions that are corrected by finished runs on this machine."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from functools import cached_property
from typing import TYPE_CHECKING, Any

from smollm3_finetune import stopping
from smollm3_finetune.memory.correction import SMALLEST, Correction, correction_for
from smollm3_finetune.memory.estimate import Estimator
from smollm3_finetune.memory.memory_plan import MemoryPlan
from smollm3_finetune.memory.records import MemoryRecord, key_of, largest_batch, read_records, record_run
from smollm3_finetune.train.launcher import device_elsewhere, is_own_process
from smollm3_finetune.train.memory import device_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from smollm3_finetune.components.registry import Registry
    from smollm3_finetune.train.plan import RunPlan


log = logging.getLogger("smollm3_finetune")

SHORTEST = 60
"""Seconds. Shorter runs are not remembered: to predict one takes a few seconds."""


class Predictor:
    """Predicts the memory of a run and of variants of it, all on its device."""

    def __init__(self, plan: RunPlan, registry: Registry, *, corrects: bool = True) -> None:
        self.plan = plan
        self.registry = registry
        self.corrects = corrects
        self._last: tuple[RunPlan, Estimator] | None = None

    @cached_property
    def records(self) -> list[MemoryRecord]:
        """What finished runs took on this kind of device."""
        if not self.corrects:
            return []
        context = self.plan.model.context
        return read_records(context.cache.root, device_name(context.device))

    def uncorrected(self, plan: RunPlan, length: int, batch: int) -> MemoryPlan:
        """The prediction for a batch of `batch` rows of `length` tokens."""
        if self._last is None or self._last[0] is not plan:
            self._last = (plan, Estimator(plan, self.registry))
        return self._last[1](length=length, batch=batch)

    def correction(self, plan: RunPlan, found: MemoryPlan, length: int, batch: int) -> Correction:
        """What finished runs say about a prediction."""
        return correction_for(self.records, found, key=key_of(plan), tokens=length * batch)

    def predict(self, plan: RunPlan, length: int, batch: int) -> MemoryPlan:
        """The corrected prediction for the longest batch of a run."""
        found = self.uncorrected(plan, length, batch)
        return self.correction(plan, found, length, batch).applied(found) if self.records else found

    def own(self) -> tuple[MemoryPlan, Correction]:
        """The uncorrected prediction for the run as it is configured, and its correction."""
        length, batch = self.plan.config.data.max_length, self.plan.config.train.batch_size
        found = self.uncorrected(self.plan, length, batch)
        return found, self.correction(self.plan, found, length, batch)


def compared_with(plan: RunPlan, registry: Registry, measured: Mapping[str, Any]) -> MemoryPlan | None:
    """The uncorrected prediction for the largest batch of a run whose report has this `memory`; None without one."""
    if not measured.get("batch_tokens"):
        return None
    length, batch = largest_batch(plan, measured["batch_tokens"])
    found = Estimator(plan, registry)(length=length, batch=batch)
    return None if found.unknown else found


def remember(plan: RunPlan, registry: Registry, report: Mapping[str, Any]) -> MemoryRecord | None:
    """Add a finished run to the runs by which predictions are corrected; None if its memory is unknown.

    Left out: runs that are too small to correct others, runs so short that the prediction would delay their end, and
    runs on other machines. The run is complete, so nothing is raised and nothing is printed.
    """
    try:
        measured, seconds = report["memory"], report["seconds"]
        if measured.get("peak", 0) < SMALLEST or seconds < SHORTEST or _is_elsewhere(plan):
            return None
        with _quiet(), contextlib.suppress(stopping.Stop), stopping.deferred():
            found = compared_with(plan, registry, measured)
            return None if found is None else record_run(plan, measured, found, str(report["run"]))
    except Exception as e:
        log.debug("the memory of a finished run cannot be remembered: %s", e)
    return None


def _is_elsewhere(plan: RunPlan) -> bool:
    """Whether the launcher may start the processes of the run on other machines."""
    return not is_own_process(plan.launcher) and device_elsewhere(plan.launcher) is not None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Inside the context, libraries print nothing."""
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        yield
