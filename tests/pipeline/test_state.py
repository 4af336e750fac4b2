"""A state that is damaged, or was not written to the end, is reported, and the pipeline can be run again."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from smollm3_finetune.errors import ConfigError, ModelError
from smollm3_finetune.pipeline.file import read_pipeline
from smollm3_finetune.pipeline.layout import PipelineDir
from smollm3_finetune.pipeline.stage import PipelineFile
from smollm3_finetune.pipeline.state import State, read_state


@pytest.fixture
def pipeline(isolated: Path) -> PipelineFile:
    Path("p.yaml").write_text("output: pipe\nstages: [{name: sft}]\n", encoding="utf-8")
    Path("pipe").mkdir()
    return read_pipeline("p.yaml")


def test_a_state_that_was_not_written_to_the_end_leaves_the_directory_usable(pipeline: PipelineFile) -> None:
    Path("pipe/.partial-pipeline.json.0000-1-00000000").write_text("{", encoding="utf-8")
    assert read_state(PipelineDir.of(pipeline)) == State()
    Path("pipe/sft").mkdir()
    with pytest.raises(ConfigError, match="the directory pipe is not empty, and holds no pipeline"):
        PipelineDir.of(pipeline)


@pytest.mark.parametrize("text", ["{", '{"version": 0}', "[]"])
def test_the_hint_for_a_damaged_state_makes_the_directory_usable(pipeline: PipelineFile, text: str) -> None:
    Path("pipe/pipeline.json").write_text(text, encoding="utf-8")
    Path("pipe/sft").mkdir()
    with pytest.raises(ModelError, match=r"pipe/pipeline\.json") as caught:
        read_state(PipelineDir.of(pipeline))
    command = (caught.value.hint or "").removeprefix("to run every stage again, in new directories: ")
    subprocess.run(command, shell=True, check=True)
    place = PipelineDir.of(pipeline)
    assert read_state(place) == State()
    assert place.vacant("sft", ()) == "sft-2"


RECORD = {
    "kind": "train", "directory": "sft", "inputs": {"rows": "1f"}, "state": "finished", "began": "2026-11-29T10:00:00",
    "seconds": 1.5, "figures": {"before": 2.0, "after": None, "verdict": "better", "steps": 3},
    "result": {"adapter/model.safetensors": [10, 20, "ab"]}, "error": None, "former": ["sft-2"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("result", {"a": None}), ("result", {"a": [1, 2]}), ("result", {"a": ["1", 2, "x"]}), ("result", []),
        ("figures", []), ("figures", {"before": "2.0"}), ("figures", {"verdict": 3}), ("figures", {"after": {}}),
        ("error", 3), ("former", "sft"), ("state", "lost"), ("seconds", True), ("inputs", {"rows": 1}),
    ],
)  # fmt: skip
def test_a_record_of_another_form_is_a_damaged_state(
    cli: Callable[..., Any], pipeline: PipelineFile, key: str, value: Any
) -> None:
    place = PipelineDir.of(pipeline)
    place.state.write_text(json.dumps({"version": 1, "stages": {"sft": RECORD}}), encoding="utf-8")
    assert read_state(place).records["sft"].result == RECORD["result"]
    place.state.write_text(json.dumps({"version": 1, "stages": {"sft": {**RECORD, key: value}}}), encoding="utf-8")
    result = cli("pipeline", "status", "p.yaml")
    assert result.code == 6
    assert "pipe/pipeline.json is damaged: " in result.stderr
