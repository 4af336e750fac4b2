"""The directory of a sweep.

sweep.json    the state of each trial
NAME/         the run of the trial NAME
NAME-2/       the run of a trial with the same name whose configuration, rows or model have changed
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from smollm3_finetune.pipeline.layout import StateDir


@dataclass(frozen=True)
class SweepDir(StateDir):
    what: ClassVar[str] = "sweep"
    part: ClassVar[str] = "trial"
