"""The work of one process of a launched run: begin the run, or continue it from its newest checkpoint."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from smollm3_finetune import stopping
from smollm3_finetune.api import Observer
from smollm3_finetune.components.discovery import PluginSelection, discover
from smollm3_finetune.components.registry import Registry
from smollm3_finetune.config.load import assemble
from smollm3_finetune.files.failures import resource_error
from smollm3_finetune.launching.ended import recorded
from smollm3_finetune.launching.handover import Handover
from smollm3_finetune.progress import Silent, for_stream
from smollm3_finetune.runs.reopen import CODE_EXECUTION_OPTIONS
from smollm3_finetune.runs.rundir import RunDir
from smollm3_finetune.train import display
from smollm3_finetune.train.distributed.processes import is_main_process, world_size
from smollm3_finetune.train.save_times import OBSERVER_CODE
from smollm3_finetune.train.start import PlannedRun, plan_training


def work(run: Path, observer: Observer | None = None) -> Mapping[str, Any] | None:
    """Take this process's part in a run that was handed over; see `Launch.work`.

    Returns the report in the first process. None in the others, and in all if the observer stopped the run.
    """
    place = RunDir(Path(run))
    with recorded(place, world_size()), _resources_named():
        handover = Handover.read(place)
        with _inside(Path(handover.directory)):
            planned = plan_launched(place, handover)
            from smollm3_finetune.model_files.imports import import_for_training

            import_for_training()
            shown = display.NoDisplay() if handover.quiet else display.for_stream()
            try:
                report = planned.train(shown, observer=observer)
            except stopping.Stop as stop:
                if stop.exit_code != OBSERVER_CODE:
                    raise
                return None
        if not is_main_process():
            return None
        from smollm3_finetune.memory.predictor import remember

        remember(planned.plan, planned.registry, report)
        return report


def plan_launched(run: RunDir, handover: Handover) -> PlannedRun:
    """The run, or the rest of it if a checkpoint exists; the launching process has checked it already."""
    here = RunDir(Path(handover.run))
    place = here if here.path.absolute() == run.path.absolute() else run
    main = is_main_process()
    shown = for_stream() if main and not handover.quiet else Silent()
    begun = place.config.exists() and not place.holds_nothing()
    common: dict[str, Any] = {"find_plugins": _plugins(handover), "progress": shown, "warn": shown.say}
    common |= {"plugins": handover.plugins, "launches": False}
    if not begun:
        return plan_training(handover.settings, into=place, part_of=handover.part_of, **common)
    changes = handover.settings
    if not handover.resume:  # it was begun by an earlier attempt of the same launch
        trusted = {("loader", name) for name in CODE_EXECUTION_OPTIONS}
        changes = tuple(s for s in changes if s.key in trusted)
        configured = assemble([handover.settings]).config.plugins
        common["plugins"] = [p for p in (*configured, *handover.plugins) if not p.startswith("no:")]
    return plan_training(changes, resume=place.path, **common)


def _plugins(handover: Handover) -> Any:
    def find(names: Sequence[str]) -> Registry:
        return discover(PluginSelection.of(tuple(names), handover.no_plugins))

    return find


@contextlib.contextmanager
def _inside(directory: Path) -> Iterator[None]:
    """Inside the context, the working directory is that of the launching process, if it exists here."""
    before = Path.cwd()
    if directory.is_dir():
        os.chdir(directory)
    try:
        yield
    finally:
        os.chdir(before)


@contextlib.contextmanager
def _resources_named() -> Iterator[None]:
    """Convert an exception for a failed write or too little memory into an error that says so."""
    try:
        yield
    except Exception as e:
        if (known := resource_error(e)) is None:
            raise
        raise known from e
