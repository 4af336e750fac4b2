"""From settings to a planned run: its configuration, plugins, directory and checkpoint. `smollm3 train` starts here."""

from __future__ import annotations

import shlex
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smollm3_finetune import stopping
from smollm3_finetune.api import BuildContext, Observer, Progress, Purpose
from smollm3_finetune.components.kinds import LAUNCHER
from smollm3_finetune.components.registry import Registry
from smollm3_finetune.components.selection import reasons
from smollm3_finetune.config.load import LoadedConfig, Setting, as_dict, assemble, file_settings
from smollm3_finetune.config.schema import DEFAULT_ADAPTER
from smollm3_finetune.errors import ConfigError
from smollm3_finetune.model.left_alone import planned_lines
from smollm3_finetune.model.load import build_context
from smollm3_finetune.paths import user_path
from smollm3_finetune.runs.checkpoints import Checkpoint
from smollm3_finetune.runs.continuing import last_checkpoint
from smollm3_finetune.runs.division import check_division, divided
from smollm3_finetune.runs.plugin_files import check_missing_plugin_files, check_plugin_files
from smollm3_finetune.runs.reopen import CODE_EXECUTION_OPTIONS
from smollm3_finetune.runs.resume import may_change, newest_unfinished, resumed_configuration
from smollm3_finetune.runs.rundir import RunDir
from smollm3_finetune.runs.start_from import Started, started
from smollm3_finetune.runs.versions import compare_versions
from smollm3_finetune.train.distributed.processes import check_launcher, is_main_process, world_size
from smollm3_finetune.train.launcher import device_elsewhere, is_own_process, planned_layout, select_launcher
from smollm3_finetune.train.plan import RunPlan, plan_run
from smollm3_finetune.train.provenance import provenance
from smollm3_finetune.train.starting import check_components

if TYPE_CHECKING:
    from smollm3_finetune.train.display import Display

AUTO = "auto"
"""The value of `--resume` that takes the newest unfinished run of the same configuration."""


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """A run that passed every check; no weights were read and no files were written."""

    plan: RunPlan
    registry: Registry
    run: RunDir
    checkpoint: Checkpoint | None
    """The checkpoint that a resumed run continues from."""
    plugins: tuple[str, ...]
    """The plugin files, modules and `no:NAME` entries in effect."""
    given_plugins: tuple[str, ...] = ()
    """Those of them that the configuration does not name."""
    settings: tuple[Setting, ...] = ()
    """With these settings, another process plans the same run: those of a new run, or the changes of a resumed one."""

    def summary(self) -> dict[str, Any]:
        """What `train --dry-run --json` prints.

        The directory, the resolved configuration, why components were chosen that are not named, the numbers of rows
        and turns, whether the loss compares the model with its base, the dropout of the base model, and parts of it
        that methods for linear layers leave alone.
        """
        survey, sources = self.plan.survey, self.plan.rows.sources
        rows: dict[str, Any] = {"train": sum(survey.train), "held_out": sum(survey.held_out)}
        rows["undesirable"] = sum(survey.undesirable)
        rows["missing"] = dict(sum(survey.missing, Counter[str]()))
        rows["not_read"] = {
            s.source.title: {"rows": survey.total(i), "columns": dict(survey.unread[i])}
            for i, s in enumerate(sources)
            if survey.unread[i]
        }
        rows["turns"] = {turns.title: turns.as_dict() for turns in self.plan.turns()}
        start = provenance(self.plan)
        return {
            "run": str(self.run.path),
            **({} if start is None else {"from": start}),
            "config": as_dict(self.plan.config),
            "chosen": reasons(self.plan.components()),
            "rows": rows,
            "reference": self.plan.reference.kind,
            "reference_line": self.plan.reference.line(),
            "ship_as": None if self.plan.model.ship is None else self.plan.model.ship.about(),
            "sharding": None if self.plan.sharding is None else self.plan.sharding.about(),
            "base_dropout": self.plan.base_dropout(),
            "left_alone": planned_lines(self.plan.model),
            **({"new_tokens": [t.as_json() for t in added]} if (added := self.plan.model.new_tokens) else {}),
        }

    @property
    def launches(self) -> bool:
        """Whether a launcher is to start the processes of the run; otherwise the calling process is the run."""
        return not is_own_process(self.plan.launcher)

    def train(self, display: Display, began: float | None = None, observer: Observer | None = None) -> dict[str, Any]:
        """Train in this process and return the report; see `train.run.train`."""
        from smollm3_finetune.train.run import train

        limit = self.plan.config.train.max_time
        if limit is not None:
            stopping.limit_time(limit, time.monotonic() if began is None else began)
        try:
            return train(self.plan, self.registry, self.run, display, self.checkpoint, began, observer)
        finally:
            stopping.lift_time_limit()


def plan_training(
    settings: Sequence[Setting],
    *,
    config_file: str | Path | None = None,
    resume: str | Path | None = None,
    plugins: Sequence[str] = (),
    below: Sequence[Sequence[Setting]] = (),
    part_of: Mapping[str, str] | None = None,
    into: RunDir | None = None,
    launches: bool = True,
    find_plugins: Callable[[Sequence[str]], Registry],
    progress: Progress,
    warn: Callable[[str], None],
) -> PlannedRun:
    """Plan a new run, or with `resume` the rest of the run in that directory; `auto` finds the run.

    `settings` override those of `config_file`; a resumed run has its saved configuration instead of a file.
    The layers `below` are under both. `part_of` names the pipeline and the stage, or the sweep and the trial, that a
    new run is. `into` is the directory of a new run that was handed over. `launches`: see `plan_run`.
    `find_plugins` is called with `plugins` and the plugins of the configuration. Raises a SmolLM3Error for everything
    that can be checked before weights are read.
    """
    check_launcher()
    loaded = None
    if resume == AUTO or resume is None:
        file = file_settings(user_path(config_file, "--config")) if config_file is not None else []
        loaded = assemble([*below, file, settings])
    elif config_file is not None:
        raise ConfigError(
            "--resume uses the configuration of the run, so --config cannot be used",
            hint=f"omit --config, or start a new run: smollm3 train --config {shlex.quote(str(config_file))}",
        )
    elif stated := next((s for s in settings if s.key in (("from",), ("fresh_adapter",))), None):
        raise ConfigError(
            f"{stated.origin} starts a new run, so it cannot be used with --resume, which continues one",
            hint=f"omit {stated.origin}, or start a new run: smollm3 train --from {shlex.quote(str(resume))}",
        )
    resumed, fresh, begins = None, None, ""
    if loaded is not None and resume == AUTO:
        found = newest_unfinished(loaded.config)
        if found is None:
            begins = "no unfinished run has this configuration: a new run is started"
        elif found.holds_nothing():
            fresh = found
        else:
            progress.say(f"the run {found.path} is resumed")
            given_again = {("loader", name) for name in CODE_EXECUTION_OPTIONS}
            resumed, settings = found, [s for s in settings if s.key in given_again or may_change(s.key)]
    elif resume is not None:
        resumed = RunDir.existing(resume)
    if resumed is not None:
        loaded = resumed_configuration(resumed, settings, plugins)
    assert loaded is not None
    again = tuple(settings) if resumed is not None else loaded.settings
    if resumed is not None and world_size() > 1 and not any(s.key[0] == LAUNCHER.section for s in settings):
        launches = False  # the run had a launcher, and now another one has started this process
    start = started(loaded) if resumed is None else None
    loaded = loaded if start is None else start.loaded
    named = (*_saved_plugins(loaded, resumed is not None), *plugins)
    if start is not None and start.run is not None:
        check_plugin_files(start.run, named)
    registry = find_plugins(named)
    if start is not None:
        check_components(registry, start, named)
    if resumed is not None:
        check_missing_plugin_files(resumed, plugins, registry)
        for warning in compare_versions(resumed, registry):
            warn(warning)
        layout = planned_layout(select_launcher(registry, loaded), launches=launches)
        if layout.processes is not None:  # otherwise the processes find out when they have started
            loaded = divided(resumed, loaded, settings, layout.processes)
    asked = loaded.config
    run = resumed or fresh or into
    if run is None:
        run = RunDir.fresh(asked.output, _title(loaded), must_be_empty=is_main_process())
    if start is not None:
        _check_apart(start, run)
    if begins:
        progress.say(begins)

    def make_context() -> BuildContext:
        elsewhere = device_elsewhere(select_launcher(registry, loaded)) if launches else None
        about = (Purpose.TRAIN, asked.device, asked.dtype, asked.seed)
        return build_context(*about, progress=progress, elsewhere=elsewhere)

    checkpoint = last_checkpoint(run, warn) if resumed is not None else None
    path = checkpoint.path if checkpoint is not None else None
    plan = plan_run(registry, loaded, make_context, path, start=start, run=run, launches=launches)
    if checkpoint is not None and plan.layout.processes is not None:
        line = check_division(run, plan.config, plan.layout.processes, checkpoint, plan.batch_term())
        if line is not None:
            progress.say(line)
    return PlannedRun(
        plan=replace(plan, part_of=part_of),
        registry=registry,
        run=run,
        checkpoint=checkpoint,
        plugins=named,
        given_plugins=tuple(plugins),
        settings=again,
    )


def _check_apart(start: Started, run: RunDir) -> None:
    """Raises ConfigError if the adapter that a new run starts from is among the files that the run replaces."""
    if start.earlier.path.resolve().is_relative_to(run.path.resolve()):
        raise ConfigError(
            f"--from {start.title} is inside the directory of the new run, {run.path}, whose files are replaced",
            hint=f"--output {shlex.quote(f'{run.path}-2')}",
        )


def _title(loaded: LoadedConfig) -> str:
    """The part of a generated directory's name after the time: model, quantizer and adapter."""
    config = loaded.config
    parts = (config.quant.name, config.adapter.name or DEFAULT_ADAPTER)
    return f"{config.model.rpartition('/')[2]}-{'-'.join(p.rpartition(':')[2] for p in parts if p)}"


def _saved_plugins(loaded: LoadedConfig, resuming: bool) -> tuple[str, ...]:
    """The `plugins` of a configuration. A resumed run keeps only its `no:NAME` entries: `-p` must name files again."""
    return tuple(p for p in loaded.config.plugins if not resuming or p.startswith("no:"))
