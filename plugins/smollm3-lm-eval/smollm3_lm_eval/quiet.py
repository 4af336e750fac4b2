"""Logs, warnings and progress bars of the harness: contained, with what users must know as lines of their own."""

from __future__ import annotations

import contextlib
import importlib
import logging
import warnings
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any
from unittest import mock

from smollm3_finetune.api import Progress

LOUD = ("lm_eval", "datasets", "evaluate")
BARS = ("lm_eval.api.task", "lm_eval.api.model", "lm_eval.models.huggingface")
"""Modules that show their progress with tqdm."""
CUT = ("Combined length of context", "Left truncation applied")
"""How the harness says that a prompt is longer than the context of the model."""


class _Cut(logging.Handler):
    """Counts prompts that the harness cut."""

    count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.count += record.getMessage().startswith(CUT)


@contextlib.contextmanager
def quiet(progress: Progress) -> Iterator[None]:
    """Inside the context, progress bars of the harness are tasks of `progress`; its logs and warnings are not shown.

    Says how many prompts were cut.
    """
    import datasets

    cut = _Cut()
    bars_of_datasets = datasets.are_progress_bars_disabled()
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        for name in LOUD:
            stack.enter_context(_only(logging.getLogger(name), cut))
        datasets.disable_progress_bars()
        if not bars_of_datasets:
            stack.callback(datasets.enable_progress_bars)

        for module in BARS:
            importlib.import_module(module)
            stack.enter_context(mock.patch(f"{module}.tqdm", partial(_Bar, progress, stack), create=True))
        yield
    if cut.count:
        progress.say(f"lm-eval: {cut.count} prompts are longer than the context of the model: their beginning was cut")


@contextlib.contextmanager
def _only(logger: logging.Logger, handler: logging.Handler) -> Iterator[None]:
    """Inside the context, warnings of a logger go to one handler only."""
    level, propagate, handlers = logger.level, logger.propagate, logger.handlers
    logger.setLevel(logging.WARNING)
    logger.propagate, logger.handlers = False, [handler]
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.propagate, logger.handlers = propagate, handlers


class _Bar:
    """Does what the harness does with tqdm; the requests to the model are a task of a `Progress`.

    `stack` ends a bar that is never closed.
    """

    def __init__(
        self, progress: Progress, stack: contextlib.ExitStack, iterable: Iterable[Any] = (), **about: Any
    ) -> None:
        self.iterable, self.task = iterable, None
        self.opened = stack.enter_context(contextlib.ExitStack())
        words = str(about.get("desc"))
        if words.startswith("Running ") and not about.get("disable"):
            text = f"lm-eval: {words.removeprefix('Running ')}"
            self.task = self.opened.enter_context(progress.task(text, about.get("total")))

    def __iter__(self) -> Iterator[Any]:
        for item in self.iterable:
            yield item
            self.update()
        self.close()

    def update(self, steps: int = 1) -> None:
        if self.task is not None:
            self.task.advance(steps)

    def close(self) -> None:
        self.opened.close()
