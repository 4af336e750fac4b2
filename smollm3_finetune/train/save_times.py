"""When a run saves a checkpoint, and when it stops early: the same decision in all processes."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from smollm3_finetune import stopping

SHARE = 0.01
"""Largest share of the time of a run that checkpoints by time may take."""


OBSERVER_CODE = 1
"""Exit code of a request by the observer of the run; smaller than those of all other requests, which precede it."""


@dataclass
class SaveTimes:
    """The decision after each step."""

    minutes: float | None
    """Minutes between checkpoints; None: none are saved by time, and none after the last step."""
    last: float = field(default_factory=time.monotonic)
    """When the last checkpoint was written, or when training began, on the monotonic clock."""
    cost: float = 0.0
    """Seconds that the slowest checkpoint took."""
    count: int = 0
    """Checkpoints that this process has saved."""
    spent: float = 0.0
    """Seconds that they took together."""
    slowest_step: float = 0.0
    step_began: float = field(default_factory=time.monotonic)
    stopped_by: stopping.Stop | None = None
    observer_stops: bool = False
    """Whether the observer of the run asked to stop."""

    def saved(self, began: float) -> None:
        """Record a checkpoint that was begun at `began`."""
        self.last = self.step_began = time.monotonic()
        self.cost = max(self.cost, self.last - began)
        self.count, self.spent = self.count + 1, self.spent + self.last - began

    def after_step(self, final: bool) -> tuple[bool, bool]:
        """Whether to save a checkpoint now, and whether to stop after it; `final` is the last step of the run.

        Every process must call this: if one must save or stop, all do.
        """
        now = time.monotonic()
        self.slowest_step = max(self.slowest_step, now - self.step_began)
        self.step_began = now
        stop = stopping.requested(reserve=self.slowest_step + self.cost)
        if stop is None and self.observer_stops and not final:
            stop = stopping.Stop("the observer of the run", OBSERVER_CODE)
        due = self.minutes is not None and (final or now - self.last >= max(60 * self.minutes, self.cost / SHARE))
        save, code = _largest(int(due), stop.exit_code if stop is not None else 0)
        if code:
            self.stopped_by = stop or stopping.Stop("a request to another process", code)
        return bool(save or code), bool(code)


def _largest(*values: int) -> list[int]:
    """The largest value over all processes, for each position."""
    import torch
    import torch.distributed as dist

    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return list(values)
    device = "cpu" if dist.get_backend() == "gloo" else torch.device("cuda", torch.cuda.current_device())
    tensor = torch.tensor(values, device=device)
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return [int(v) for v in tensor.tolist()]
