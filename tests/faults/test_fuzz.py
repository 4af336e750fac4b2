"""The short form of `fuzz.py`: a few inputs of each kind, in this process. The long form is `nox -s faults`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from fuzz import KINDS, one

PLUGINS = ("adapter", "gguf")
INPUTS = {"rows.parquet": 5, "rows.arrow": 5, "model": 8, "safetensors": 8, "adapter": 8}
"""The kinds whose inputs take long; of the others there are 40."""


@pytest.mark.parametrize("kind", [pytest.param(k, marks=pytest.mark.plugins) if k in PLUGINS else k for k in KINDS])
def test_a_hostile_file_is_accepted_or_refused_by_name(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMOLLM3_MAX_SECONDS", "1")
    reader = KINDS[kind]()
    for number in range(INPUTS.get(kind, 40)):
        outcome, _, fault = one(reader, kind, 1, number)
        assert outcome in ("accepted", "refused by name"), (
            f"python tests/faults/fuzz.py --kind {kind} --seed 1 --only {number}: {fault}"
        )
