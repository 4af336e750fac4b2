"""Corrections of the learning rate schedules of transformers: the first step, and a schedule of another length."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any


def start_above_zero(scheduler: Any, warmup: int) -> None:
    """Make the learning rate of step N of the warmup N / (warmup + 1) of its peak, counted from 1.

    transformers starts at zero, so that the first step of a run changes nothing; later steps keep their learning rate.
    Schedules that do not start at zero, or are not functions of the step, remain unchanged.
    """
    from torch.optim.lr_scheduler import LambdaLR

    if warmup < 1 or not isinstance(scheduler, LambdaLR):
        return
    scheduler.lr_lambdas = [
        partial(_warmed_up, rest, warmup) if rest(0) == 0 else rest for rest in scheduler.lr_lambdas
    ]
    recompute(scheduler)


def _warmed_up(rest: Callable[[int], float], warmup: int, step: int) -> float:
    """The factor of the learning rate after `step` steps."""
    return (step + 1) / (warmup + 1) if step < warmup else rest(step)


def recompute(scheduler: Any) -> bool:
    """Set the optimizer's learning rates to those of the schedule at its current step.

    A checkpoint holds the learning rate of the schedule it was saved with; a run that is extended has a longer one.
    Returns False if the schedule is not a function of the step, which stays as it is.
    """
    from torch.optim.lr_scheduler import LambdaLR

    if not isinstance(scheduler, LambdaLR):
        return False
    groups = zip(scheduler.optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
    for group, rate, factor in groups:
        group["lr"] = rate * factor(scheduler.last_epoch)
    scheduler._last_lr = [group["lr"] for group in scheduler.optimizer.param_groups]
    return True
