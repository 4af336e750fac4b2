"""Export stages: a run and a model of a pipeline are exported; mistakes are found in the file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from smollm3_finetune.files.json import read_json
from smollm3_finetune.pipeline.results import model_in

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


FOREIGN = """
from smollm3_finetune.api import ExporterSpec, hookimpl


@hookimpl
def smollm3_exporters():
    return [ExporterSpec(name="foreign", summary="other software", factory="x:X", api=2)]
"""
TAKES_EXPORT = """\
  - {name: again, model: {stage: shipped}, adapter: full, data: {path: rows.jsonl, max_length: 48}}
  - {name: q2, from: shipped, quantize: {name: rounding-rows, bits: 8}, data: {path: rows.jsonl, max_length: 64}}
  - {name: half, from: shipped, export: {to: safetensors, dtype: float16}}
  - {name: look, from: shipped, eval: {against: merged, answers: 0}, data: {path: rows.jsonl, max_length: 48}}
"""


@pytest.mark.long
def test_every_kind_of_stage_takes_an_exported_model(copied: Path, cli: Callable[..., Any]) -> None:
    Path("p.yaml").write_text(Path("p.yaml").read_text() + SHIPPED + TAKES_EXPORT)
    done = cli("pipeline", "run", "p.yaml", "--json")
    assert done.code == 0, done.stderr
    stages = {stage["stage"]: stage for stage in done.report()["stages"]}
    assert {stage["state"] for stage in stages.values()} == {"finished"}
    looked = read_json(copied / "look" / "eval.json")
    assert looked["after"]["held_out_loss"] == pytest.approx(looked["before"]["held_out_loss"], rel=1e-2)
    assert read_json(copied / "half" / "config.json")["dtype"] == "float16"
    assert cli("pipeline", "run", "p.yaml", "--dry-run").stdout.count("unchanged") == len(stages)


def test_stages_that_take_an_export_are_planned_with_the_model_at_its_beginning(
    copied: Path, cli: Callable[..., Any]
) -> None:
    Path("p.yaml").write_text(Path("p.yaml").read_text() + SHIPPED + TAKES_EXPORT)
    done = cli("pipeline", "run", "p.yaml", "--dry-run")
    assert done.code == 0, done.stderr
    assert done.stdout.count("that of shipped") >= 3


def test_the_file_of_an_export_is_what_a_stage_takes(tmp_path: Path) -> None:
    (tmp_path / "model.thing").write_text("weights")
    (tmp_path / "Recipe").write_text("FROM")
    (tmp_path / "export.json").write_text('{"files": {"Recipe": 4, "model.thing": 7}}')
    assert model_in(tmp_path) == tmp_path / "model.thing"
    (tmp_path / "config.json").write_text("{}")
    assert model_in(tmp_path) == tmp_path


@pytest.mark.parametrize(
    ("stage", "says", "hint"),
    [
        ("from: shipped, eval: true, data: {path: rows.jsonl}", "does not load what exporter 'foreign' writes", "more"),
        ("from: shipped, data: {path: rows.jsonl}", "'shipped' writes a model", "model: {stage: shipped}"),
        ("from: shipped, merge: true", "is not a train stage, so it has no adapter to merge", ""),
    ],
)
def test_what_cannot_begin_with_an_export_is_refused_first(
    stage: str, says: str, hint: str, copied: Path, cli: Callable[..., Any]
) -> None:
    Path("foreign.py").write_text(FOREIGN)
    of = "plugins: [foreign.py]"  # of that stage alone
    more = f"  - {{name: shipped, from: more, export: foreign, {of}}}\n  - {{name: next, {stage}}}\n"
    Path("p.yaml").write_text(Path("p.yaml").read_text() + more)
    done = cli("pipeline", "run", "p.yaml")
    assert done.code == 2 and says in done.stderr and hint in done.stderr, done.stderr
    assert not list(copied.glob("*shipped*"))
