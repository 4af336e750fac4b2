"""Several runs beside each other: what differs in their configurations, and whether their losses can be compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from smollm3_finetune.errors import ConfigError, ModelError
from smollm3_finetune.files.json import read_json
from smollm3_finetune.runs.configuration import configuration_of, differences
from smollm3_finetune.runs.metrics import Losses, losses_of
from smollm3_finetune.runs.rundir import RunDir
from smollm3_finetune.runs.summary import RunSummary


@dataclass(frozen=True, kw_only=True)
class RunComparison:
    """Runs in the order in which they were named."""

    runs: Sequence[RunSummary]
    losses: Sequence[Losses]
    different: Mapping[str, Sequence[Any]]
    """The keys of the configuration, or `versions.NAME`, whose values differ, and the value of each run."""
    notes: Sequence[str]
    """Why the losses of the runs may not be comparable, as sentences."""

    @classmethod
    def of(cls, runs: Sequence[RunDir]) -> RunComparison:
        """Compare runs. Raises ModelError or ConfigError if the configuration of one is damaged."""
        summaries = [RunSummary.of(run) for run in runs]
        for summary in summaries:
            if summary.damage is not None:
                raise ModelError(
                    f"the run {summary.path} is damaged: {summary.damage}", hint="omit it, or restore the file"
                )
        versions = [read_json(run.versions) for run in runs]
        configured = differences([configuration_of(run) for run in runs])
        installed = differences([_flat_versions(saved) for saved in versions])
        installed = {key: row for key, row in installed.items() if len({v for v in row if v is not None}) > 1}
        return cls(
            runs=summaries,
            losses=[losses_of(run) for run in runs],
            different=configured | installed,
            notes=list(_notes(summaries, versions)),
        )

    @property
    def lowest(self) -> int | None:
        """The position of the run with the lowest held-out loss; None if the losses cannot be compared."""
        found = [(run.after, at) for at, run in enumerate(self.runs) if run.after is not None]
        return min(found)[1] if len(found) > 1 and not self.notes else None

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "runs": [
                {**run.as_dict(), "losses": {"training": losses.training, "held_out": losses.held_out}}
                for run, losses in zip(self.runs, self.losses, strict=True)
            ],
            "different": {key: list(values) for key, values in self.different.items()},
            "notes": list(self.notes),
            "lowest": None if self.lowest is None else str(self.runs[self.lowest].path),
        }


def check_several(runs: Sequence[RunDir]) -> None:
    """Raises ConfigError if there are fewer than two runs, or one is named twice."""
    if len(runs) < 2:
        raise ConfigError("runs compare needs at least two runs", hint="smollm3 runs compare RUN RUN")
    places = [run.path.resolve() for run in runs]
    if twice := next((run for at, run in enumerate(runs) if places[at] in places[:at]), None):
        raise ConfigError(f"the run {twice.path} is named twice", hint="name each run once")


def _flat_versions(saved: Mapping[str, Any]) -> dict[str, Any]:
    """The versions of plugins and libraries, by `versions.NAME`; a plugin that one run does not use does not count."""
    parts = (saved.get(key) for key in ("plugins", "libraries"))
    return {f"versions.{k}": v for part in parts if isinstance(part, Mapping) for k, v in part.items()}


def _notes(runs: Sequence[RunSummary], versions: Sequence[Mapping[str, Any]]) -> list[str]:
    """Why held-out losses may not be comparable."""
    tokens = {saved.get("tokens") or saved.get("rows") for saved in versions}
    objectives = {run.facts.objective for run in runs}
    notes = []
    if len(tokens) > 1:
        notes.append("the tokenized rows of the runs differ, so their held-out losses may be of different rows")
    if len(objectives) > 1:
        notes.append("the objectives of the runs differ, so their losses are different quantities")
    return notes
