"""Executes a training run: compose, measure, train, save, measure again."""

from __future__ import annotations

import contextlib
import shlex
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smollm3_finetune import stopping
from smollm3_finetune.api import Observer, UnsupportedOp
from smollm3_finetune.batching.strategy import Batches, batching
from smollm3_finetune.cache.use import record_uses
from smollm3_finetune.components.negotiation import refined
from smollm3_finetune.components.registry import Registry
from smollm3_finetune.data.calibration import Calibration, calibration_ids
from smollm3_finetune.data.new_token_rows import total
from smollm3_finetune.evaluation.held_out_loss import HeldOut, with_current_titles
from smollm3_finetune.evaluation.measures import compare_measures
from smollm3_finetune.evaluation.row_losses import RowLosses
from smollm3_finetune.evaluation.saved_losses import after_json
from smollm3_finetune.evaluation.verdict import compare
from smollm3_finetune.files.failures import writing
from smollm3_finetune.files.json import write_json
from smollm3_finetune.inference.generate import answer
from smollm3_finetune.inference.precision import autocast
from smollm3_finetune.model.adapter_card import edited_card
from smollm3_finetune.model.left_alone import left_alone
from smollm3_finetune.model.load import LoadedModel, compose
from smollm3_finetune.model.saved_adapter import write_calibration
from smollm3_finetune.progress import Silent
from smollm3_finetune.runs.checkpoints import Checkpoint
from smollm3_finetune.runs.division import Division
from smollm3_finetune.runs.facts import record_facts
from smollm3_finetune.runs.failure import recorded_failure
from smollm3_finetune.runs.part_of import entry_of, parts_of
from smollm3_finetune.runs.rundir import RunDir
from smollm3_finetune.runs.trained import is_undecided, last_adapter
from smollm3_finetune.runs.versions import versions
from smollm3_finetune.train.card import training_facts
from smollm3_finetune.train.display import Display
from smollm3_finetune.train.distributed.held import held_report
from smollm3_finetune.train.distributed.sharding import gathered_weights
from smollm3_finetune.train.finite import check_losses, check_weights
from smollm3_finetune.train.health import compare_held_out
from smollm3_finetune.train.make_base import on_own_base
from smollm3_finetune.train.measuring import Measuring
from smollm3_finetune.train.memory import give_back, watching
from smollm3_finetune.train.page import KeepsWarnings, record, write_page
from smollm3_finetune.train.plan import RunPlan
from smollm3_finetune.train.provenance import chain_of, provenance, stage_of
from smollm3_finetune.train.reference import RunReference, computed_before, reference_of
from smollm3_finetune.train.setup import Job, prepare, processes, row_identity, sample_prompt
from smollm3_finetune.train.summary import summary
from smollm3_finetune.train.tracked import tracked_run
from smollm3_finetune.train.trackers import Trackers, tracking

if TYPE_CHECKING:
    from smollm3_finetune.train.loop import Trained


def train(
    plan: RunPlan,
    registry: Registry,
    run: RunDir,
    display: Display,
    checkpoint: Checkpoint | None = None,
    began: float | None = None,
    observer: Observer | None = None,
) -> dict[str, Any]:
    """Train and return the report, which is also written to `report.json`.

    Its times count from `began`, on the monotonic clock; by default from now. Raises DataError before weights are read
    if the rows have no supervised tokens. The run directory is created after the rows are tokenized. The `observer`
    receives losses and checkpoints.
    """
    display = KeepsWarnings(display)
    job = prepare(plan, run, display, checkpoint, time.monotonic() if began is None else began, observer)
    with contextlib.ExitStack() as stack:
        if job.main:
            job.run.make()
            stack.callback(job.run.remove_empty)  # runs after the lock is released
            stack.enter_context(job.run.held())
            stack.callback(write_page, job)  # runs after the error of a failed run is written
            stack.enter_context(_says_how_to_continue(job))
            if checkpoint is None:
                stack.callback(job.run.discard_unstarted)
                about = {**versions(plan.components(), registry), **row_identity(job.tokens), "asked": plan.asked}
                about |= Division.of(plan.config, processes(plan)).about()
                about |= entry_of(plan.part_of)
                if plan.earlier is not None:
                    about["from"] = plan.earlier.as_json()
                job.run.create(plan.config, about, display.say)
            else:
                job.run.write_config(plan.config)  # with the settings that were changed to continue
            stack.enter_context(recorded_failure(job.run, job.display.say))
            with _writing(job, job.run.path):
                titles = [c.title for c in job.tokens.counts]
                record_facts(job.run, plan.config, titles, job.steps, chain_of(plan))
            record(job)
            display.say(summary(plan, job.tokens, len(job.items), job.steps, job.run))
        if plan.own_base is not None:
            with _writing(job, job.run.base):
                job = on_own_base(job, registry)
        tracked = stack.enter_context(tracked_run(job)) if job.main else None
        if tracked is not None:
            job = replace(job, receive=tracked.log)
        with watching(job.plan.model.context.device) as memory:
            report = _execute(job)
            report["memory"] |= memory.so_far()
        report["seconds"] = round(time.monotonic() - job.began, 1)
        report |= parts_of(job.run)
        if job.main:
            with _writing(job, job.run.report):
                write_json(job.run.report, report)
        if tracked is not None:
            tracked.report = report
        before, after = (report[when]["held_out_loss"] for when in ("before", "after"))
        verdict = report.get("comparison", {}).get("verdict")
        compare_held_out(before, after, verdict, report["adapter"], job.display.say)
    return report


@contextlib.contextmanager
def _says_how_to_continue(job: Job) -> Iterator[None]:
    """Add to a request to stop what was saved and how to continue."""
    resume = _resume_command(job)
    try:
        yield
    except stopping.Stop as stop:
        saved = job.run.saved.all()
        if job.run.trained.exists():
            stop.message += " after the last step"
            stop.hint = f"to finish the run: {resume}"
        elif saved:
            stop.message += f"; step {saved[-1].step} is saved in {saved[-1].path}"
            stop.hint = f"to continue: {resume}"
        else:
            stop.message += " before the first step was saved"
            stop.hint = "run the same command again"
        raise


def _resume_command(job: Job) -> str:
    return f"smollm3 train --resume {shlex.quote(str(job.run.path))}"


def _writing(job: Job, path: Path) -> contextlib.AbstractContextManager[None]:
    """Convert a failed write of a run into a WriteError that says what was saved and how to continue."""

    def again() -> str:
        return _resume_command(job) if job.run.saved.all() else "run the same command again"

    return writing(path, left=lambda: _saved(job), again=again)


def _saved(job: Job) -> str:
    """What a run has saved, as a clause."""
    if job.run.trained.exists() and job.run.adapter.is_dir() and not is_undecided(job.run):
        return f"the trained adapter in {job.run.adapter} is complete"
    saved = job.run.saved.all()
    return f"step {saved[-1].step} is saved in {saved[-1].path}" if saved else "no step was saved"


def _execute(job: Job) -> dict[str, Any]:
    """Compose the model, train and measure; returns the report."""
    import transformers

    stopping.check()  # in case a library swallowed the request
    model, calibration = job.plan.model, None
    kept = job.plan.kept_calibration
    if job.checkpoint is None and kept is None:  # a resumed run uses its saved calibration, from the plan
        plan, tokens, renderer = job.plan, job.tokens, job.renderer
        calibration = Calibration(
            lambda: calibration_ids(plan.config, plan.calibration, renderer, lambda: tokens.train)
        )
        model = replace(model, context=replace(model.context, calibration=calibration))
    before = computed_before(job)
    transformers.set_seed(job.plan.config.seed)
    off = job.plan.config.train.base_dropout == "off"
    loaded = compose(model, made=job.parts, total_steps=job.steps, without_dropout=off)
    loaded.stage = stage_of(job)
    if job.plan.start_from is not None:
        _ = loaded.tokenizer  # read now: the adapter that it was saved with may be deleted later
    alone = left_alone(loaded)
    for part in alone:
        job.display.say(part.line)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_writing(job, job.run.path))
        if job.main:
            if calibration is not None and calibration.used is not None:
                write_calibration(calibration.used, job.run.path)
            elif kept is not None:
                write_calibration(kept, job.run.path)
            record_uses(job.run.path, model.context.cache)
        with autocast(model.context.device, model.context.dtype):  # measure with the precision of training
            settings, tokenizer = job.plan.config.train, job.renderer.tokenizer
            collate = stack.enter_context(batching(settings, loaded, job.objective, tokenizer, job.display.say))
            trackers = stack.enter_context(tracking(settings, job.run.tensorboard, job.display.say))
            reference = reference_of(job, loaded, collate, before)
        return {
            **_train_and_measure(job, loaded, collate, trackers, reference),
            "left_alone": [part.about() for part in alone],
        }


def _train_and_measure(
    job: Job, loaded: LoadedModel, collate: Batches, trackers: Trackers, reference: RunReference
) -> dict[str, Any]:
    """Measure, train, save and measure again; returns the report."""
    from smollm3_finetune.train.loop import take_steps

    stopping.check()
    config, tokens, renderer, run = job.plan.config.train, job.tokens, job.renderer, job.run
    context = job.plan.model.context
    prompt, mode = sample_prompt(job.plan, renderer)

    held_out = HeldOut(
        examples=tokens.held_out,
        rows=tokens.held_out_rows,
        titles=[c.title for c in tokens.counts],
        model=loaded.model,
        objective=job.objective,
        collate=collate,
        batch_size=config.batch_size,
        device=context.device,
        dtype=context.dtype,
        refer=reference.held_out,
    )
    progress = context.progress if job.main else Silent()

    def sample() -> str:
        limit = config.sample_tokens
        with autocast(context.device, context.dtype):
            return answer(
                loaded.model, renderer.tokenizer, prompt, max_new_tokens=limit, renderer=renderer, template_kwargs=mode
            )

    with _before_training(loaded) as alone:
        before = run.measured_before() if job.checkpoint is not None else None
        rows_before = None if before is None else RowLosses.from_json(before.pop("rows", None), held_out.titles)
        if before is None:
            rows_before = held_out.measure_rows(progress)
            before = rows_before.report()
            check_losses([before["held_out_loss"] or 0.0], 0, "nothing was trained")
            if not alone:  # otherwise it is generated after training, so that the first step comes sooner
                before["sample"] = sample()
            if job.main:
                write_json(run.before, {**before, "prompt": list(prompt), "rows": rows_before.as_json()})
    if before["held_out_loss"] is not None:
        job.display.say(f"held-out loss before: {before['held_out_loss']:.4f}")
    loaded.stop_at(renderer.end_of_turn_ids())  # saved with the checkpoints
    if job.plan.render.template is not None:
        loaded.tokenizer.chat_template = job.plan.render.template
    measuring = Measuring(
        loaded=loaded,
        held_out=held_out,
        sample=sample,
        prompt=prompt,
        run=run,
        display=job.display,
        config=config,
        main=job.main,
        measurements=job.measurements,
        resumed_from=job.checkpoint.step if job.checkpoint is not None else None,
    )
    give_back()
    trained = take_steps(job, loaded, collate, measuring, trackers, reference)
    loaded.stage = stage_of(job, trained.steps)
    with gathered_weights(loaded.model):
        check_weights(loaded, trained.steps, measuring.with_best(f"no adapter was saved in {run.path}"))
        undecided = measuring.has_candidate(trained.steps)
        if job.main:  # before anything else can fail
            with stopping.deferred(), _writing(job, run.adapter):
                if undecided:
                    _keep_last(run, trained.steps, loaded)
                else:
                    loaded.publish(run.adapter, training_facts(job, trained.steps, trained.tokens, before))
    after, rows_after, published = measuring.finish(trained.steps, progress)
    check_losses([after["held_out_loss"] or 0.0], trained.steps, f"the adapter in {run.adapter} is not usable")
    comparison = _comparison(rows_before, rows_after, job.plan.config.seed)
    if job.main:
        write_json(run.after, after_json(rows_after, tokens.held_out_content()))
    loaded.stage = stage_of(job, published)
    with gathered_weights(loaded.model) if undecided else contextlib.nullcontext():
        if job.main:
            known = training_facts(job, trained.steps, trained.tokens, before, after, published, comparison)
            with stopping.deferred(), _writing(job, run.adapter):
                if published != trained.steps:
                    loaded.publish(run.adapter, known, run.saved.best.files(published))
                elif undecided:
                    loaded.publish(run.adapter, known)
                else:
                    loaded.write_card(run.adapter, known, edited_card(run.adapter))
                if config.keep_best:
                    measuring.record_trained(trained.steps, trained.tokens, published)
                    run.saved.last.delete()
    if "sample" not in after:
        after["sample"] = sample()
    if alone and "sample" not in before:
        with _before_training(loaded):
            before["sample"] = sample()
    saves = trained.callback.save_times
    return {
        "run": str(run.path),
        "adapter": str(run.adapter),
        **_from(job.plan),
        "steps": trained.steps,
        **_chosen(job, trained, before, after, published),
        "tokens": trained.tokens,
        **({} if job.plan.reference.kind == "none" else {"reference": job.plan.reference.about()}),
        "batches": {"padded": collate.padded, "logits": collate.logits},
        "memory": {"batch_tokens": trained.largest},
        **({} if (ship := job.plan.model.ship) is None else {"ship_as": {**ship.about(), "command": ship.command()}}),
        "base_dropout": job.plan.base_dropout(),
        "seconds_to_first_step": trained.seconds_to_first_step,
        **({} if (held := trained.callback.held) is None else {"weights_held": held_report(held)}),
        "checkpoints": {"saved": saves.count, "seconds": round(saves.spent, 3)},
        "optimizer": {"name": config.optimizer} if trained.optimizer is None else trained.optimizer.about(),
        "trained_parameters": sum(p.numel() for p in loaded.model.parameters() if p.requires_grad),
        "rows": [asdict(c) for c in tokens.counts],
        **({"new_tokens": total(c.new_tokens for c in tokens.counts)} if job.plan.model.new_tokens else {}),
        "prompt": list(prompt),
        "enable_thinking": mode.get("enable_thinking"),
        "before": with_current_titles(before, after),
        "after": after,
        **comparison,
    }


def _keep_last(run: RunDir, step: int, loaded: LoadedModel) -> None:
    """Save the adapter of the last step, unless a checkpoint has it or it was saved before."""
    if not run.saved.at(step).is_dir() and last_adapter(run) is None:
        run.saved.last.save(step, loaded.write)


def _comparison(before: RowLosses | None, after: RowLosses, seed: int) -> dict[str, Any]:
    """The verdict for the report, and the measures if the objective has some.

    Empty if there are no held-out rows, or if `before.json` has no losses of rows.
    """
    if before is None or not before.has_rows_of(after):
        return {}
    found, measures = compare(before, after, seed=seed), compare_measures(before, after, seed=seed)
    about: dict[str, Any] = {} if found is None else {"comparison": found.as_json()}
    return about | ({"measures": {n: m.as_json() for n, m in measures.items()}} if measures else {})


def _from(plan: RunPlan) -> dict[str, Any]:
    """What the run started from; empty if it began with a new adapter."""
    about = provenance(plan)
    return {} if about is None else {"from": about}


def _chosen(
    job: Job, trained: Trained, before: dict[str, Any], after: dict[str, Any], published: int
) -> dict[str, Any]:
    """Why the run ended early, and which step the published adapter is of, if the run decided this."""
    found: dict[str, Any] = {}
    if trained.stopped_early is not None:
        found["stopped_early"] = {"planned_steps": job.steps, "reason": trained.stopped_early}
    if job.plan.config.train.keep_best:
        loss = after["held_out_loss"]
        lower = None in (loss, before["held_out_loss"]) or loss < before["held_out_loss"]
        found["best"] = {"step": published, "held_out_loss": loss, "below_base": lower}
        if published != trained.steps:
            job.display.say(f"the adapter of step {published} is saved: its held-out loss is the lowest")
        if not lower:
            job.display.say("no measurement was below the held-out loss before training, which is not a candidate")
    return found


@contextlib.contextmanager
def _before_training(loaded: LoadedModel) -> Iterator[bool]:
    """The model before the run: without its new adapter if that can be disabled, otherwise unchanged.

    Yields whether the adapter is disabled. An existing adapter that is trained further is part of the model.
    """
    assert loaded.plan.adapter is not None
    with contextlib.ExitStack() as stack:
        alone = loaded.plan.start_from is None and refined(loaded.plan.adapter, loaded.plan.env).disables
        if alone:
            try:
                stack.enter_context(loaded.disabled())
            except UnsupportedOp:
                alone = False
        yield alone
