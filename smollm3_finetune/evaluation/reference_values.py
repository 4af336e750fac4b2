"""The values of the reference of an evaluation.

Losses of two models can be compared only if both have the same reference. Its values are computed once, before any
model is measured: for the base without the adapter, for a null adapter and for the model of `--against`, too. They are
in a temporary directory, because those of many rows may need more memory than a model.
"""

from __future__ import annotations

import contextlib
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from smollm3_finetune.api import Progress, ReferenceObjective
    from smollm3_finetune.evaluation.plan import PlannedEvaluation
    from smollm3_finetune.model.load import LoadedModel
    from smollm3_finetune.reference.stored import Stored


def with_values(
    planned: PlannedEvaluation, loaded: LoadedModel | None, progress: Progress, stack: contextlib.ExitStack
) -> PlannedEvaluation:
    """The evaluation with the values of its reference, which are deleted when `stack` ends.

    A reference that is another model is loaded and freed before the evaluated model, so `loaded` is None then.
    """
    if planned.reference.kind == "none" or (planned.reference.model is not None) == (loaded is not None):
        return planned
    objective = cast("ReferenceObjective", planned.make_objective())
    directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="smollm3-reference-"))) / "values"
    if loaded is None:
        values = _of_other(planned, objective, progress, directory)
    else:
        values = _of_run(planned, objective, loaded, progress, directory)
    return replace(planned, values=values)


def _of_other(planned: PlannedEvaluation, objective: ReferenceObjective, progress: Progress, directory: Path) -> Stored:
    from smollm3_finetune.model.device import free_memory
    from smollm3_finetune.reference.other_model import loaded_model

    assert planned.reference.model is not None
    tokenizer = planned.subject.renderer.tokenizer
    with loaded_model(planned.reference.model, objective, tokenizer, planned.train) as evaluated:
        found = _all(planned, evaluated, progress, directory)
        del evaluated
    free_memory()
    return found


def _of_run(
    planned: PlannedEvaluation, objective: ReferenceObjective, loaded: LoadedModel, progress: Progress, directory: Path
) -> Stored:
    from smollm3_finetune.api import without_adapter
    from smollm3_finetune.batching.strategy import batching
    from smollm3_finetune.reference.start import Start
    from smollm3_finetune.reference.start_file import read_start, start_again
    from smollm3_finetune.reference.whole import Evaluated

    context, about = without_adapter, loaded.plan.context
    if planned.reference.exchanged:
        assert planned.run is not None
        context = Start(
            loaded.model, read_start(planned.run.start, loaded.model, start_again(planned.run.path))
        ).at_start
    tokenizer = planned.subject.renderer.tokenizer
    with (
        batching(planned.train, loaded, objective, tokenizer, lambda line: None) as batches,
        context(loaded.model) as model,
    ):
        evaluated = Evaluated(
            model=model, objective=objective, batches=batches, batch_size=planned.train.batch_size,
            device=about.device, dtype=about.dtype,
        )  # fmt: skip
        return _all(planned, evaluated, progress, directory)


def _all(planned: PlannedEvaluation, evaluated: Any, progress: Progress, directory: Path) -> Stored:
    """The values of all examples, row by row, written into `directory`."""
    from smollm3_finetune.files.failures import writing
    from smollm3_finetune.reference.stored import Stored, with_room, write

    examples = [example for made in planned.subject.examples for example in made]
    with writing(directory, elsewhere="TMPDIR=DIR"), progress.task("computing the reference", len(examples)) as task:
        blocks = evaluated.blocks(examples, task.advance)
        write(directory, with_room(blocks, directory.parent, len(examples), "TMPDIR=DIR"))
    return Stored(directory)
