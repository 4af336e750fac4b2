"""What a user asks to evaluate: a model, and rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from smollm3_finetune.config.load import GIVEN, LoadedConfig, Setting, assemble
from smollm3_finetune.model.plan import ModelRequest
from smollm3_finetune.runs.rundir import RunDir

OF_TRAINING_ROWS = {("data", "path"), ("data", "validation"), ("data", "held_out"), ("data", "limit")}
"""Keys of a run that are about its own rows, and do not apply to others."""
ABOUT_ROWS = ("formatter", "calibration")
"""Sections of a run that are about its own rows."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model to evaluate, as it was named."""

    title: str
    request: ModelRequest
    device: str
    dtype: str
    run: RunDir | None = None
    loaded: LoadedConfig | None = None
    """The configuration of the run."""
    check_base: bool = True
    """Refuse an adapter that was trained on other weights."""


def rows_configuration(settings: Sequence[Setting], run: LoadedConfig | None = None) -> LoadedConfig:
    """The configuration of separate rows: their `settings`, over those of a run that are not about its own rows."""
    kept = [s for s in run.settings if s.key[:2] not in OF_TRAINING_ROWS and s.key[0] not in ABOUT_ROWS] if run else []
    kept = [_without_own(s) if s.key == GIVEN else s for s in kept]
    return assemble([kept, settings])


def _without_own(given: Setting) -> Setting:
    """The names of the options that were set, without those of sections that are left out."""
    return replace(given, value=[name for name in given.value if name.partition(".")[0] not in ABOUT_ROWS])
