"""Takes the steps of a run: the Trainer, its checkpoints, and requests to stop."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from smollm3_finetune import stopping
from smollm3_finetune.batching.strategy import Batches, lengths_of
from smollm3_finetune.model.load import LoadedModel
from smollm3_finetune.runs.continuing import forget_after
from smollm3_finetune.runs.trained import trained_count
from smollm3_finetune.train.callback import RunCallback
from smollm3_finetune.train.distributed.processes import from_main
from smollm3_finetune.train.early import why_early
from smollm3_finetune.train.health import Health, TrainedWeights
from smollm3_finetune.train.measuring import Measuring
from smollm3_finetune.train.plugin_optimizer import PluginOptimizer, optimizer_of
from smollm3_finetune.train.reference import RunReference
from smollm3_finetune.train.save_times import SaveTimes
from smollm3_finetune.train.setup import Job
from smollm3_finetune.train.trackers import Trackers
from smollm3_finetune.train.trainer import make_trainer, trained_dtypes


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A run whose steps are done."""

    steps: int
    tokens: int
    seconds_to_first_step: float | None
    """Of this process; None if it took no step."""
    callback: RunCallback
    largest: int | None = None
    """The tokens of the largest batch of this process, with padding; None if it took no step."""
    optimizer: PluginOptimizer | None = None
    """The optimizer of a plugin."""
    stopped_early: str | None = None
    """Why the run ended before its last step, as a clause; None if it took all steps."""


def take_steps(
    job: Job,
    loaded: LoadedModel,
    collate: Batches,
    measuring: Measuring,
    trackers: Trackers,
    reference: RunReference,
) -> Trained:
    """Train until the last step, save the checkpoints and write `trained.json`.

    Does nothing but read that file if the steps are done already. Raises `Stop` after a checkpoint if the run is asked
    to stop, and SmolLM3Error if the loss, the gradients or the weights are not finite.
    """
    config, run, checkpoint = job.plan.config.train, job.run, job.checkpoint
    health = Health(warn=job.display.say)
    about = (job.began, SaveTimes(config.save_minutes), health, measuring, job.observer, job.receive)
    callback = RunCallback(loaded, run.metrics, job.display, *about)
    lengths = lengths_of(job.tokens.train) if config.group_by_length else None
    saved_steps = checkpoint.planned_steps if checkpoint is not None else None
    dtypes, optimizer = trained_dtypes(loaded), optimizer_of(job, loaded)
    trainer = make_trainer(
        *(loaded, job.objective, job.items, reference.in_training(collate), job.args, callback),
        keep=config.keep_checkpoints,
        saved_steps=saved_steps,
        lengths=lengths,
        refer=reference.in_step,
        optimizer=optimizer,
    )
    if job.done:
        return _taken_before(job, callback, measuring, optimizer)
    if trained_dtypes(loaded) != dtypes:
        job.display.say(f"weights are trained in float32, not in {' and '.join(sorted(dtypes))}: FSDP 2 needs it")
    if "bfloat16" in trained_dtypes(loaded):
        job.display.say("weights are trained in bfloat16: steps of less than 1/256 of a weight are rounded away")
    loaded.model.train()
    if job.main and checkpoint is not None:
        forget_after(run, checkpoint.step)
        run.saved.set_aside_after(checkpoint.step)
        if saved_steps not in (None, job.steps):
            job.display.say(f"the learning rate follows the schedule of {job.steps} steps instead of {saved_steps}")
    if checkpoint is not None:
        callback.not_logged = measuring.catch_up(checkpoint.step, job.plan.model.context.progress)
        if measuring.exhausted:
            return _taken_before(job, callback, measuring, optimizer)
    trackers.add_to(trainer)
    measuring.log = trainer.log
    try:
        with contextlib.ExitStack() as stack:
            # until the first step ends there is nothing to save, and a request stops the run at once
            callback.after_first_step = lambda: stack.enter_context(stopping.deferred())
            trainer.train(resume_from_checkpoint=str(checkpoint.path) if checkpoint is not None else None)
            if callback.save_times.stopped_by is not None:
                raise callback.save_times.stopped_by
    finally:
        job.display.end()
    health.check_end(measuring.with_best(f"no adapter was saved in {run.path}"))
    if callback.weights == TrainedWeights.of(loaded.model):
        job.display.say(
            f"warning: no trained weight has changed in {trainer.state.global_step} steps: the learning rate "
            f"{config.learning_rate:g} is too low for the dtype of the weights, or the rows give no gradient"
        )
    steps = trainer.state.global_step
    early = _why_early(job, measuring, steps)
    if early is not None:
        job.display.say(f"training ends after {steps} of {job.steps} steps: {early}")
    trained = Trained(
        steps=steps,
        tokens=trainer.tokens_of_all(),
        seconds_to_first_step=callback.seconds_to_first_step,
        callback=callback,
        largest=trainer.largest or None,
        optimizer=optimizer,
        stopped_early=early,
    )
    measuring.record_trained(trained.steps, trained.tokens)
    return trained


def _why_early(job: Job, measuring: Measuring, steps: int) -> str | None:
    """Why a run that took `steps` steps does not take the others; None if it took all."""
    return why_early(measuring.measurements) if steps < job.steps else None


def _taken_before(job: Job, callback: RunCallback, measuring: Measuring, optimizer: PluginOptimizer | None) -> Trained:
    """The steps that an earlier process took."""
    assert job.checkpoint is not None
    steps = job.checkpoint.step
    early = _why_early(job, measuring, steps)
    done = f"all {steps} steps are done" if early is None else f"training ended after {steps} of {job.steps} steps"
    job.display.say(f"{done}{f' ({early})' if early else ''}: the adapter is saved and measured")
    tokens = trained_count(job.run, "tokens")
    if tokens is None:  # the process ended after the last checkpoint
        tokens = job.checkpoint.tokens
    if from_main(not job.run.trained.exists()):
        measuring.record_trained(steps, tokens)
    return Trained(
        steps=steps,
        tokens=tokens,
        seconds_to_first_step=None,
        callback=callback,
        optimizer=optimizer,
        stopped_early=early,
    )
