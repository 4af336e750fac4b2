"""Everything that the files of a run say about it, for `smollm3 runs show`. Does not import torch."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from smollm3_finetune.errors import ConfigError, ModelError
from smollm3_finetune.files.json import json_object
from smollm3_finetune.files.limits import JSON_SIZE, parse_json, read_bytes
from smollm3_finetune.runs.configuration import changed_values, configuration_of
from smollm3_finetune.runs.metrics import Losses, losses_of
from smollm3_finetune.runs.rundir import RunDir
from smollm3_finetune.runs.summary import RunSummary
from smollm3_finetune.runs.trained import last_adapter


@dataclass(frozen=True, kw_only=True)
class RunDetails:
    """A run in all its values. What is missing or damaged is empty."""

    summary: RunSummary
    losses: Losses
    report: Mapping[str, Any] = field(default_factory=dict)
    """The content of report.json."""
    changed: Mapping[str, Any] = field(default_factory=dict)
    """The values of run.yaml that are not defaults, by key."""
    origins: Mapping[str, str] = field(default_factory=dict)
    """Where values of run.yaml come from, by key, as far as the run recorded it."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """The versions of plugins and libraries, by name."""
    plugin_files: Sequence[str] = ()
    """The plugin files that the run used."""
    warnings: Sequence[str] = ()
    """The warnings that the run recorded."""
    resumable: bool = False
    """See `is_resumable`."""
    start_again: str = ""
    """The command that starts the run again."""

    @classmethod
    def of(cls, run: RunDir) -> RunDetails:
        """The details of a run; nothing is raised for damaged files."""
        report, versions = json_object(run.report), json_object(run.versions)
        changed: dict[str, Any] = {}
        with contextlib.suppress(ConfigError, ModelError):
            changed = changed_values(configuration_of(run))
        origins = _texts(json_object(run.origins))
        summary = RunSummary.of(run)
        return cls(
            summary=summary,
            losses=losses_of(run),
            report=report,
            changed=changed,
            origins=origins,
            versions={**_texts(versions.get("plugins")), **_texts(versions.get("libraries"))},
            plugin_files=list(_texts(versions.get("plugin_files"))),
            warnings=saved_warnings(run),
            resumable=is_resumable(run, summary),
            start_again=run.start_again(),
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            **self.summary.as_dict(),
            "losses": {"training": self.losses.training, "held_out": self.losses.held_out},
            "configuration": dict(self.changed),
            "origins": {key: origin for key, origin in self.origins.items() if key in self.changed},
            "versions": dict(self.versions),
            "plugin_files": list(self.plugin_files),
            "warnings": list(self.warnings),
            "report": dict(self.report),
        }


def is_resumable(run: RunDir, summary: RunSummary) -> bool:
    """Whether `smollm3 train --resume` can continue a run that is not finished.

    There is a checkpoint, or all steps are done; and the run did not fail after its report, because of what is in it.
    """
    with contextlib.suppress(ModelError):
        if not run.saved.all() and last_adapter(run) is None:
            return False
    report, planned = json_object(run.report), summary.facts.steps
    ended = "stopped_early" in report or planned is None or planned == summary.steps
    return not report or not ended


def _texts(values: Any) -> dict[str, str]:
    """The entries of an object whose values are text."""
    return {k: v for k, v in values.items() if isinstance(v, str)} if isinstance(values, Mapping) else {}


def saved_warnings(run: RunDir) -> list[str]:
    """The warnings that a run printed, from warnings.jsonl, in order; each once."""
    found: dict[str, None] = {}
    with contextlib.suppress(OSError, ValueError):
        for line in read_bytes(run.warnings, JSON_SIZE).splitlines():
            with contextlib.suppress(ValueError):
                row = parse_json(line.decode("utf-8"))
                if isinstance(row, Mapping) and isinstance(row.get("warning"), str):
                    found[row["warning"]] = None
    return list(found)
