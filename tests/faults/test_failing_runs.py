"""Writes of a run that fail: a named error, every saved checkpoint whole, and the run continues afterwards."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from faults import environment, needs_shim

FAULTS = [(0.02, "EROFS"), (0.5, "EIO"), (0.8, "EDQUOT"), (0.97, "ENOSPC")]
"""At which part of a run's writes they begin to fail, and how."""


@needs_shim
def test_a_run_whose_writes_fail_ends_with_a_named_error_and_can_be_continued(tmp_path: Path) -> None:
    run, scratch = tmp_path / "run", tmp_path / "scratch"
    scratch.mkdir()
    program = str(Path(__file__).with_name("runs.py"))
    done = subprocess.run(
        [sys.executable, program, str(run), str(scratch / "counter"), json.dumps(FAULTS)],
        env={**os.environ, **environment(run, scratch)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found) == len(FAULTS)
    for name, about in found.items():
        assert about["code"] == 8, (name, about)
        error, hint = about["stderr"].splitlines()[-2:]
        assert f"error: '{run}" in error and " cannot be written: " in error, (name, about)
        assert hint.startswith("  hint: "), (name, about)
        if not about["saved"]:
            assert error.endswith("no step was saved") or "--output DIR" in hint, (name, about)
            assert "--resume" not in hint, (name, about)
        if about["saved"]:
            assert "is saved in" in error or "is complete" in error, (name, about)
            assert f"smollm3 train --resume {run}" in hint, (name, about)
        assert not about["damaged"], (name, about)
        assert about["complete"] or about["continued"][0] == 0, (name, about)
