"""The pipeline or the sweep that a run is a part of, in versions.json and in reports."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from smollm3_finetune.files.json import json_object
from smollm3_finetune.runs.rundir import RunDir

PARTS = {"pipeline": "stage", "sweep": "trial"}
"""What a run can be a part of, and what it is there; keys of versions.json and of reports."""


def entry_of(part_of: Mapping[str, str] | None) -> dict[str, dict[str, str]]:
    """The entry of versions.json for `pipeline` and `stage`, or `sweep` and `trial`; empty for any other run."""
    return {} if part_of is None else {whole: dict(part_of) for whole in PARTS if whole in part_of}


def parts_of(run: RunDir) -> dict[str, dict[str, str]]:
    """The entries of a run: `{"sweep": {"sweep": NAME, "trial": NAME}}`; empty for a run that is not a part."""
    return parts_in(json_object(run.versions))


def parts_in(saved: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """The entries in versions.json; one of another form is left out."""
    found = {}
    for whole, part in PARTS.items():
        about = saved.get(whole)
        if isinstance(about, dict) and all(isinstance(about.get(key), str) for key in (whole, part)):
            found[whole] = {key: about[key] for key in (whole, part)}
    return found
