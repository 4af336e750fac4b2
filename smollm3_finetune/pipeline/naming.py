"""Errors of a stage name it, unless they name a line of the file."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from smollm3_finetune.errors import Problems, SmolLM3Error
from smollm3_finetune.pipeline.stage import PipelineFile, Stage


@contextlib.contextmanager
def named_errors(pipeline: PipelineFile, stage: Stage) -> Iterator[None]:
    """Put the name of the stage before the message of an error."""
    try:
        yield
    except SmolLM3Error as e:
        for one in e.problems if isinstance(e, Problems) else (e,):
            name_stage(one, pipeline, stage)
        raise


def name_stage(error: SmolLM3Error, pipeline: PipelineFile, stage: Stage) -> None:
    """Put the name of the stage before the message of one error."""
    if not error.message.startswith((f"stage {stage.name}: ", f"{pipeline.path}:")):
        error.message = f"stage {stage.name}: {error.message}"
