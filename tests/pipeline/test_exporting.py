"""Export stages: a run and a model of a pipeline are exported; mistakes are found in the file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from smollm3_finetune.files.json import read_json

SHIPPED = """\
  - name: shipped
    from: more
    export: {to: safetensors, dtype: bfloat16}
"""


def test_a_run_of_a_pipeline_is_exported_and_kept(copied: Path, cli: Callable[..., Any]) -> None:
    file = Path("p.yaml")
    file.write_text(file.read_text() + SHIPPED)
    planned = cli("pipeline", "run", file, "--dry-run")
    assert planned.code == 0, planned.stderr
    assert "shipped: export, " in planned.stdout and "export     safetensors" in planned.stdout
    done = cli("pipeline", "run", file)
    assert done.code == 0, done.stderr
    (out,) = copied.glob("*shipped*")
    about = read_json(out / "export.json")
    assert about["pipeline"] == {"pipeline": "p", "stage": "shipped"} and about["options"] == {"dtype": "bfloat16"}
    assert "stage `shipped` of `p`" in (out / "README.md").read_text()
    again = cli("pipeline", "status", file)
    assert again.code == 0 and "shipped" in again.stdout and "export" in again.stdout
    file.write_text(file.read_text().replace("bfloat16", "float16"))
    changed = cli("pipeline", "run", file, "--dry-run")
    assert "shipped: export, run" in changed.stdout, changed.stdout


@pytest.mark.parametrize(
    ("stage", "says"),
    [
        ("from: more, merge: true, export: safetensors", "a stage cannot merge and export"),
        ("from: more, eval: true, export: safetensors", "a stage cannot export and eval"),
        ("export: safetensors", "needs from, the stage whose result it takes"),
        ("from: more, export: {dtype: float16}", "export must be an exporter, or a mapping with to and options"),
        ("from: more, export: safetensor", "did you mean 'safetensors'?"),
        ("from: more, export: {to: safetensors, dtype: int3}", "expected float64|float32|bfloat16|float16"),
        ("from: merged, export: peft", "writes an adapter alone, but the stage 'merged' writes a model"),
        ("from: more, export: safetensors, train: {max_steps: 3}", "has no key 'train'"),
    ],
)
def test_mistakes_are_found_before_anything_runs(stage: str, says: str, copied: Path, cli: Callable[..., Any]) -> None:
    Path("p.yaml").write_text(Path("p.yaml").read_text() + f"  - {{name: shipped, {stage}}}\n")
    done = cli("pipeline", "run", "p.yaml")
    assert done.code not in (0, 1) and says in done.stderr, done.stderr
    assert not list(copied.glob("*shipped*"))


def test_no_stage_begins_with_an_export(copied: Path, cli: Callable[..., Any]) -> None:
    more = "  - {name: again, from: shipped, merge: true}\n"
    Path("p.yaml").write_text(Path("p.yaml").read_text() + SHIPPED + more)
    done = cli("pipeline", "run", "p.yaml", "--dry-run")
    assert done.code == 2 and "exports for other software, and no stage can begin with that" in done.stderr
