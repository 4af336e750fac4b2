"""Prepares everything of a run that needs no weights: tokens, steps, arguments."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from smollm3_finetune.api import Adapter, Objective, Observer, OptimizerMaker, Quantizer
from smollm3_finetune.batching.numbered import Numbered
from smollm3_finetune.batching.strategy import check_objective, training_items
from smollm3_finetune.data.chat_template.renderer import Renderer
from smollm3_finetune.data.rows import first_question
from smollm3_finetune.data.tokenization import Tokens, tokenize
from smollm3_finetune.data.vocabulary import with_usable_padding
from smollm3_finetune.errors import ConfigError
from smollm3_finetune.model.load import parts
from smollm3_finetune.model_files.imports import import_trainer
from smollm3_finetune.model_files.loading import quiet_transformers
from smollm3_finetune.runs.checkpoints import Checkpoint
from smollm3_finetune.runs.continuing import deleted_checkpoints, measurements_until
from smollm3_finetune.runs.measurements import Measurements
from smollm3_finetune.runs.rundir import RunDir
from smollm3_finetune.train.display import Display, NoDisplay
from smollm3_finetune.train.distributed.processes import connecting, is_main_process, of_main_process
from smollm3_finetune.train.early import check_judged, ends_early, rarely_measured, why_early
from smollm3_finetune.train.plan import RunPlan

if TYPE_CHECKING:
    from transformers import TrainingArguments


@dataclass(frozen=True)
class Job:
    """A prepared run, before any weights are read."""

    plan: RunPlan
    run: RunDir
    display: Display
    checkpoint: Checkpoint | None
    """The checkpoint from which a resumed run continues; None for a new run."""
    objective: Objective
    parts: tuple[Quantizer, Adapter | None]
    renderer: Renderer
    tokens: Tokens
    items: Any
    """The dataset of the Trainer."""
    steps: int
    done: bool
    """Whether a resumed run has taken all its steps or ended early; it is saved, measured and reported."""
    measurements: Measurements
    """The held-out losses of a resumed run up to its checkpoint."""
    args: TrainingArguments
    began: float
    """When the run began, on the monotonic clock."""
    main: bool
    """Whether this is the process that prints and writes files."""
    observer: Observer | None = None
    """Receives losses and checkpoints."""
    optimizer: OptimizerMaker | None = None
    """What creates the optimizer of a plugin; None: `train.optimizer`."""
    receive: Callable[[int, Mapping[str, float]], None] | None = None
    """Receives the values of each step in the main process: the tracker of the run."""


@dataclass(frozen=True)
class Checked:
    """Everything of a run that is the same in each of its processes, and that the launching process can check."""

    objective: Objective
    parts: tuple[Quantizer, Adapter | None]
    renderer: Renderer
    tokens: Tokens
    items: Any
    steps: int
    done: bool
    measurements: Measurements
    optimizer: OptimizerMaker | None


def prepare(
    plan: RunPlan,
    run: RunDir,
    display: Display,
    checkpoint: Checkpoint | None,
    began: float,
    observer: Observer | None = None,
) -> Job:
    """Tokenize the rows, check plugins and options, and connect the processes; writes to the cache only."""
    from smollm3_finetune.train.arguments import arguments

    checked = check(plan, run, display, checkpoint)
    with connecting(plan.model.context.device):
        args = arguments(plan.config, plan.model.context.device, plan.model.context.dtype, run.checkpoints)
    main = is_main_process()
    if checkpoint is None and main:
        run = run.reserved()
    run = RunDir(of_main_process(run.path))
    args.output_dir, args.run_name = str(run.checkpoints), run.path.name
    return Job(
        plan=plan,
        run=run,
        display=display if main else NoDisplay(),
        checkpoint=checkpoint,
        **{f.name: getattr(checked, f.name) for f in fields(checked)},
        args=args,
        began=began,
        main=main,
        observer=observer,
    )


def check(plan: RunPlan, run: RunDir, display: Display, checkpoint: Checkpoint | None) -> Checked:
    """Tokenize the rows and check plugins and options; writes to the cache only."""
    quiet_transformers()
    import_trainer()
    objective: Objective = plan.objective.create()
    check_objective(plan.config.train, objective, plan.objective.component.title)
    made = parts(plan.model)  # a broken plugin fails here, before anything is written
    optimizer: OptimizerMaker | None = None if plan.optimizer is None else plan.optimizer.create()
    context, embeddings = plan.model.context, plan.model.embeddings
    tokenizer = with_usable_padding(plan.tokenizer(), embeddings, display.say)
    renderer = Renderer(tokenizer, plan.render, embeddings=embeddings)
    length = plan.config.data.max_length
    chunk = plan.config.data.long_text == "chunk"
    tokens = tokenize(
        *(plan.rows, plan.survey, plan.objective, renderer, length, context.cache, context.progress),
        chunk=chunk,
        new_tokens=plan.model.new_tokens,
    )
    check_judged(plan.config.train, any(len(e) for e in tokens.held_out))
    numbered = plan.reference.once and hasattr(objective, "reference_values")
    items = training_items(plan.config, Numbered(tokens.train) if numbered else tokens.train)
    steps = total_steps(plan, len(items))
    if (problem := rarely_measured(plan.config.train, steps)) is not None:
        display.say(f"warning: {problem}")
    done = checkpoint.step if checkpoint is not None else 0
    measurements = Measurements()
    if checkpoint is not None:
        run.check_identity(row_identity(tokens))
        measurements = measurements_until(run, checkpoint)
    without = checkpoint is not None and checkpoint.only_adapter
    deleted = without and deleted_checkpoints(run)
    again = f"start a new run: smollm3 train --config {shlex.quote(str(run.config))}"
    early = ends_early(plan.config.train, measurements) and done < steps
    if early and run.report.exists():
        more = measurements.waited + (plan.config.train.stop_after or 0)
        raise ConfigError(
            f"the run {run.path} ended early after {done} of {steps} steps: {why_early(measurements)}",
            hint=again if without else f"to continue: --set train.stop_after={more}",
        )
    if done > steps or (done == steps and run.report.exists()):
        less = f"the run {run.path} has taken {done} steps, which is more than the {steps} steps that are asked for"
        finished = f"the run {run.path} has finished its {done} steps"
        raise ConfigError(
            less if done > steps else f"{finished}, and its checkpoints were deleted" if deleted else finished,
            hint=again if without else f"to continue: --max-steps {2 * done}",
        )
    if without and done < steps and not early:
        gone = ": its checkpoints were deleted" if deleted else ""
        raise ConfigError(f"the run {run.path} has no checkpoint, so it cannot take more steps{gone}", hint=again)
    prompt, mode = sample_prompt(plan, renderer)
    renderer.prompt(prompt, **mode)  # a prompt that the template rejects fails here
    return Checked(
        objective=objective,
        parts=made,
        renderer=renderer,
        tokens=tokens,
        items=items,
        steps=steps,
        done=checkpoint is not None and (done == steps or early),
        measurements=measurements,
        optimizer=optimizer,
    )


def row_identity(tokens: Tokens) -> dict[str, Any]:
    """What must not change when a run is resumed: the tokenized rows."""
    return {"rows": tokens.identity, "tokens": tokens.content}


def processes(plan: RunPlan) -> int:
    """The processes that share a batch; 1 if their number may change, which is then checked when they have started."""
    return plan.layout.processes or 1


def total_steps(plan: RunPlan, rows: int) -> int:
    """Optimizer steps of a run, for the learning rate schedule and for adapters with their own schedule.

    `rows` is the length of the Trainer's dataset.
    """
    t = plan.config.train
    if t.max_steps is not None:
        return t.max_steps
    batches = math.ceil(rows / (t.batch_size * processes(plan)))
    return max(math.ceil(t.epochs * max(math.ceil(batches / t.gradient_accumulation), 1)), 1)


def sample_prompt(plan: RunPlan, renderer: Renderer) -> tuple[Sequence[Mapping[str, Any]], dict[str, Any]]:
    """The messages that the sample answers before and after training reply to, and the template's reasoning mode."""
    text, example = plan.config.train.sample_prompt, plan.survey.example
    trained = renderer.mode(example) if example is not None else None
    mode = {} if trained is None else {"enable_thinking": trained}
    if text is None and example is not None:
        return first_question(example), mode
    return [{"role": "user", "content": text or "Hello!"}], mode
