"""Results of pairs that were run, and the files that hold them. Light: imports no torch and no plugin.

A file of results is JSON:

    {
      "format": 1,
      "results": [
        {"quantizer": "DISTRIBUTION:NAME", "adapter": "DISTRIBUTION:NAME", "purpose": "train", "merge" or "prefer",
         "device": "cpu", "date": "2026-11-22", "command": "how to measure it again",
         "versions": {"torch": "2.13.0", …}, "holds": true or false, "note": "why it does not hold, or null",
         "figures": {"gradients": 1e-7, …}, "options": {"rank": 4}}
      ]
    }

`options` (those of the adapter that differ from its defaults), `figures` and `note` are optional.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from smollm3_finetune.api import Purpose
from smollm3_finetune.files.failures import writing
from smollm3_finetune.files.limits import load_json
from smollm3_finetune.files.writing import write_text

FORMAT = 1


class Use(StrEnum):
    """What a pair is measured for; components know only its `purpose`."""

    TRAIN = "train"
    MERGE = "merge"
    PREFER = "prefer"
    """To train with pairs of answers, whose loss compares the model with a reference."""

    @property
    def purpose(self) -> Purpose:
        return Purpose.MERGE if self is Use.MERGE else Purpose.TRAIN


@dataclass(frozen=True, kw_only=True)
class Result:
    """One pair, run for one purpose on one kind of device."""

    quantizer: str
    """`distribution:name`"""
    adapter: str
    purpose: Use
    device: str
    date: str
    command: str
    versions: Mapping[str, str]
    """Version of each distribution at the time of measuring."""
    holds: bool
    """Whether every figure was within its bound."""
    note: str | None = None
    figures: Mapping[str, float | None] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the adapter that differ from its defaults."""

    @property
    def key(self) -> tuple[str, str, Use, str]:
        return self.quantizer, self.adapter, self.purpose, self.device

    def changed(self, now: Mapping[str, str | None]) -> dict[str, tuple[str, str | None]]:
        """Distributions whose version differs from the measured one: the measured version, and the version `now`.

        A build suffix such as `+cpu` does not make another version, except for plugin files, whose version consists
        of it (`0+242720f7`).
        """
        return {n: (v, now[n]) for n, v in sorted(self.versions.items()) if not _same(v, now[n])}

    def to_json(self) -> dict[str, Any]:
        about = {**vars(self), "purpose": self.purpose.value}
        return {k: v for k, v in about.items() if v or k not in ("note", "figures", "options")}


def _same(measured: str, now: str | None) -> bool:
    if now is None or measured == now:
        return measured == now
    public = measured.partition("+")[0]
    return public == now.partition("+")[0] and public != "0"


def parse(about: Any) -> Result:
    """Check one entry of `results`. Raises ValueError or TypeError, with the reason, if it is invalid."""
    if not isinstance(about, Mapping):
        raise TypeError(f"a result must be a mapping, not {about!r}")
    known = Result.__dataclass_fields__
    if unknown := sorted(set(about) - set(known)):
        raise ValueError(f"a result has the unknown field {unknown[0]!r}")
    optional = {"note", "figures", "options"}
    if missing := sorted(set(known) - optional - set(about)):
        raise ValueError(f"a result is missing the field {missing[0]!r}")
    for name in ("quantizer", "adapter", "device", "date", "command"):
        if not isinstance(about[name], str):
            raise TypeError(f"{name!r} must be text, not {about[name]!r}")
    for name in ("quantizer", "adapter"):
        if not about[name].partition(":")[2]:
            raise ValueError(f"{name!r} must be 'distribution:name', not {about[name]!r}")
    if not isinstance(about["holds"], bool):
        raise TypeError(f"'holds' must be true or false, not {about['holds']!r}")
    if about["purpose"] not in [use.value for use in Use]:
        raise ValueError(f"'purpose' must be 'train', 'merge' or 'prefer', not {about['purpose']!r}")
    if not isinstance(about.get("note"), str | None):
        raise TypeError(f"'note' must be text, not {about['note']!r}")
    kinds = {"versions": str, "figures": int | float | None, "options": object}
    for name, kind in kinds.items():
        values = about.get(name, {})
        if not isinstance(values, Mapping) or not all(isinstance(v, kind) for v in values.values()):
            raise TypeError(f"{name!r} must map names to values, not {values!r}")
    return Result(**{**about, "purpose": Use(about["purpose"])})


def read(file: Path) -> list[Result]:
    """The results in a file. Raises OSError if it cannot be read, ValueError or TypeError if it is invalid."""
    about = load_json(file)
    if not isinstance(about, Mapping) or not isinstance(about.get("results"), list):
        raise ValueError('expected {"format": 1, "results": […]}')
    if about.get("format") != FORMAT:
        raise ValueError(f"expected format {FORMAT}, found {about.get('format')!r}")
    return [parse(entry) for entry in about["results"]]


def write(file: Path, results: list[Result]) -> None:
    """Replace a file of results: sorted, one per line."""
    lines = [json.dumps(r.to_json(), ensure_ascii=False) for r in sorted(results, key=lambda r: r.key)]
    body = ",\n".join(f"    {line}" for line in lines)
    with writing(file, left="it is unchanged"):
        write_text(file, f'{{\n  "format": {FORMAT},\n  "results": [\n{body}\n  ]\n}}\n')
