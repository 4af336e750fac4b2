"""A state that is damaged, or was not written to the end, is reported, and the pipeline can be run again."""

from __future__ import annotations

import subprocess
from pathlib import Path

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
