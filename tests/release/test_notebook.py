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


def run(count: int | None) -> dict[str, Any]:
    """The names that the first `count` code cells define, with runs of one step."""
    names: dict[str, Any] = {}
    code = [cell for cell in cells() if cell["cell_type"] == "code"]
    assert code[0]["source"][0].startswith("STEPS = ")
    exec("STEPS = 1", names)
    for cell in code[1:count]:
        exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
    return names


@pytest.mark.plugins
def test_the_cells_up_to_the_answers_run(isolated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = run(-1)
    assert names["report"]["after"]["held_out_loss"] < names["report"]["before"]["held_out_loss"]
    printed = capsys.readouterr().out
    assert "held-out loss before" in printed
    assert "before: The capital" in printed
    assert (isolated / "runs" / "notebook" / "report.html").exists()


@pytest.mark.plugins
@pytest.mark.long
def test_every_cell_runs(isolated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = run(None)
    assert capsys.readouterr().out.count("held-out loss") == 3
    assert names["quantized"]["after"]["held_out_loss"] != names["report"]["after"]["held_out_loss"]
