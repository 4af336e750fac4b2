"""Resumes a run on disk: which configuration it has, and which run `auto` finds."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from smollm3_finetune.cache.fingerprint import fingerprint
from smollm3_finetune.config.load import LoadedConfig, Setting, as_dict, assemble
from smollm3_finetune.config.schema import RunConfig
from smollm3_finetune.errors import ConfigError, ModelError
from smollm3_finetune.paths import user_path
from smollm3_finetune.runs.division import KEYS as DIVISION
from smollm3_finetune.runs.plugin_files import check_plugin_files
from smollm3_finetune.runs.reopen import saved_configuration
from smollm3_finetune.runs.rundir import RUNS, RunDir
from smollm3_finetune.runs.versions import saved_versions

MAY_CHANGE = {
    ("train", "max_steps"), ("train", "epochs"), ("train", "max_time"), ("train", "save_every"),
    ("train", "save_minutes"), ("train", "keep_checkpoints"), ("train", "log_every"), ("train", "stop_after"),
    ("train", "sample_every"), ("train", "report"), ("device",),
}  # fmt: skip
"""Keys that do not affect the steps already taken."""
FREE_SECTIONS = ("launcher", "tracker")
"""Sections of which every key may change."""
ENDS = {("train", "max_steps"), ("train", "epochs"), ("train", "stop_after")}
"""Those of them that decide how many steps a run takes."""


def may_change(key: tuple[str, ...]) -> bool:
    """Whether a resumed run may have another value for this key."""
    return key in MAY_CHANGE or key[0] in FREE_SECTIONS


def decisive(values: dict[str, Any]) -> dict[str, Any]:
    """The values of a configuration, as `as_dict` returns them, that decide the result of a run."""
    for section, *rest in MAY_CHANGE - ENDS - {("device",)}:
        del values[section][rest[0]]
    if values.get("given"):
        values["given"] = [name for name in values["given"] if name.partition(".")[0] not in FREE_SECTIONS]
    return {section: value for section, value in values.items() if section not in FREE_SECTIONS}


def resumed_configuration(run: RunDir, changes: Sequence[Setting], plugins: Iterable[str]) -> LoadedConfig:
    """The saved configuration with the changes that a resumed run allows. Raises ConfigError for other changes.

    `plugins` are the plugin files named on the command line.
    """
    check_plugin_files(run, plugins)
    saved = saved_configuration(run, {s.key[1]: s.value for s in changes if s.key[0] == "loader"})
    changes = [s for s in changes if s.key[0] != "loader" or s.value != saved.config.loader.options.get(s.key[1])]
    for setting in changes:
        if not may_change(setting.key) and setting.key not in DIVISION:
            allowed = ", ".join([*(".".join(k) for k in sorted(MAY_CHANGE | DIVISION)), *FREE_SECTIONS])
            key = ".".join(setting.key)
            what = "the run continues in its own directory" if key == "output" else f"the run uses its saved {key}"
            flag = setting.origin.startswith("-")
            given, resume = (setting.origin, "--resume") if flag else (f"{setting.origin}: {key}", "resume")
            raise ConfigError(
                f"{given} cannot be used with {resume}: {what}",
                hint=f"omit {setting.origin if flag else key}; a resumed run can change: {allowed}",
            )
    return assemble([saved.settings, changes])


def identity(config: RunConfig) -> str:
    """A hash of a configuration as the user gave it, without the output directory and what does not affect the result.

    `--resume auto` finds the runs of the same command by it. Values that are the defaults are left out, so that a new
    option of a later version does not change the identity of an earlier run.
    """
    values, defaults = decisive(as_dict(replace(config, output=None))), as_dict(RunConfig())
    return fingerprint(differing(values, defaults))


def differing(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The values that differ from the defaults, at each level."""
    changed: dict[str, Any] = {}
    for name, value in values.items():
        default = defaults.get(name)
        if isinstance(value, Mapping) and isinstance(default, Mapping):
            if inner := differing(value, default):
                changed[name] = inner
        elif name not in defaults or value != default:
            changed[name] = value
    return changed


def newest_unfinished(config: RunConfig) -> RunDir | None:
    """The newest run without a report that was started with this configuration; None if there is none.

    It is looked for in `runs/`, or in the directory of `output` alone.
    """
    if config.output is not None:
        places: Iterable[Path] = [user_path(config.output, "--output")]
    else:
        places = RUNS.iterdir() if RUNS.is_dir() else []
    wanted, found = identity(config), []
    for path in places:
        run = RunDir(path)
        if run.config.is_file() and run.versions.is_file() and not run.report.exists():
            with contextlib.suppress(ModelError):
                if saved_versions(run).get("asked") == wanted:
                    found.append((run.versions.stat().st_mtime_ns, run))
    return max(found, key=lambda item: item[0])[1] if found else None
