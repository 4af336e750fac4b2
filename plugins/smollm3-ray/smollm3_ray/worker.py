"""What runs in each worker of Ray Train: the run, whose metrics and checkpoints are reported to Ray."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smollm3_finetune.api import Launch, SmolLM3Error
from smollm3_ray.errors import portable
from smollm3_ray.folder import RunFolder

HELD_OUT = "held_out_loss"
AGAIN = 0.1
"""Seconds between two looks at a file."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a worker receives."""

    launch: Launch
    report_every: int
    links: str | None
    """A folder of Ray's storage for hard links to checkpoints; None: Ray copies them."""
    waits: bool = False
    """Whether a measurement is followed by a decision about the trial."""


def work(config: Mapping[str, Any]) -> None:
    """Execute the run as one of the processes of Ray Train."""
    import ray.train

    work: Work = config["work"]
    first = ray.train.get_context().get_world_rank() == 0
    folder = RunFolder(work.launch.run)
    observer = RayObserver(work, folder, first, ray.train.report)
    with output_to(folder) if first else contextlib.nullcontext():
        try:
            work.launch.work(observer)
        except KeyboardInterrupt:  # the time limit of the run, which reaches every worker after the same step
            pass
        except SmolLM3Error as e:
            raise portable(e) from None
    observer.report()


class RayObserver:
    """Reports the progress of a run to Ray, and requests to stop to the run.

    A report waits for the reports of all workers. So each of them reports after the same steps, and a checkpoint, which
    only the first one writes, is attached to its next report.
    """

    def __init__(self, work: Work, folder: RunFolder, first: bool, send: Callable[..., None]) -> None:
        self.work, self.folder, self.first, self.send = work, folder, first, send
        self.values: dict[str, float] = {}
        self.checkpoint: Path | None = None
        self.stepped = False

    def measured(self, step: int, values: Mapping[str, float]) -> bool:
        self.values |= {"step": step, **values}
        if self.first and step and not self.stepped:
            self.folder.stepped()
            self.stepped = True
        if HELD_OUT in values or step % self.work.report_every == 0:
            self.report()
        if self.first and HELD_OUT in values:
            number = self.folder.measured(step, {HELD_OUT: float(values[HELD_OUT])})
            if self.work.waits:
                _wait_for_answer(self.folder, number)
        return not self.folder.stop_asked()

    def saved(self, step: int, checkpoint: Path) -> None:
        self.checkpoint = checkpoint

    def report(self) -> None:
        """Report the newest values, and the checkpoint that was not reported yet."""
        checkpoint, self.checkpoint = self.checkpoint, None
        if checkpoint is None or not checkpoint.is_dir():
            self.send(self.values)
            return
        from ray.train import Checkpoint

        more = {} if self.work.links is None else {"checkpoint_upload_fn": self._link}
        self.send(self.values, checkpoint=Checkpoint.from_directory(checkpoint), **more)

    def _link(self, checkpoint: Any, name: str) -> Any:
        """Put a checkpoint into Ray's storage without a second copy of its bytes."""
        from ray.train import Checkpoint

        assert self.work.links is not None
        target = Path(self.work.links) / name
        shutil.copytree(checkpoint.path, target, copy_function=_link_or_copy)
        return Checkpoint.from_directory(target)


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _wait_for_answer(folder: RunFolder, number: int) -> None:
    """Wait until the process of the trial knows whether the trial continues after this measurement."""
    while folder.path.is_dir() and folder.answered() < number and not folder.stop_asked():
        time.sleep(AGAIN)


@contextlib.contextmanager
def output_to(folder: RunFolder) -> Iterator[None]:
    """Inside the context, what the process prints goes to the folder of the run, which the launching process shows."""
    with folder.output.open("a", buffering=1) as file, _logs_to_files():
        before = sys.stdout, sys.stderr
        sys.stdout = sys.stderr = file
        try:
            yield
        finally:
            sys.stdout, sys.stderr = before


@contextlib.contextmanager
def _logs_to_files() -> Iterator[None]:
    """Inside the context, log records go to Ray's files only: Ray prints those of all libraries, from INFO."""
    loggers = [logging.getLogger(), *(logging.getLogger(name) for name in ("ray", "ray.train", "ray.tune"))]
    before = [logger.handlers for logger in loggers]
    for logger in loggers:
        logger.handlers = [h for h in logger.handlers if hasattr(h, "baseFilename") or h.name != "console"]
    try:
        yield
    finally:
        for logger, handlers in zip(loggers, before, strict=True):
            logger.handlers = handlers
