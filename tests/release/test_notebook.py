"""The notebook in examples/ runs from the first cell to the last. `nox -s notebook` runs it in a real kernel."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).parents[2] / "examples" / "first_run.ipynb"


def cells() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return found


def test_the_stored_outputs_are_those_of_one_run() -> None:
    code = [cell for cell in cells() if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert outputs
    assert {output["output_type"] for output in outputs} <= {"stream", "execute_result"}
    assert all(output.get("name", "stdout") == "stdout" for output in outputs)


@pytest.mark.plugins
def test_every_cell_runs(isolated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    for cell in cells():
        if cell["cell_type"] == "code":
            source = "".join(cell["source"])
            if source.startswith("STEPS = "):
                source = "STEPS = 1"
            exec(compile(source, cell["id"], "exec"), names)
    printed = capsys.readouterr().out
    assert printed.count("held-out loss") == 3
    assert names["report"]["after"]["held_out_loss"] < names["report"]["before"]["held_out_loss"]
    assert names["quantized"]["after"]["held_out_loss"] != names["report"]["after"]["held_out_loss"]
    assert (isolated / "runs" / "notebook" / "report.html").exists()
