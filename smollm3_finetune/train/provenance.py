"""Where the weights of a run come from: what the report, the card and the facts of a run say about it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from smollm3_finetune.model.plan import NO_QUANTIZER
from smollm3_finetune.model.start_from import Stage, StartFrom, stages_json
from smollm3_finetune.runs.rundir import RunDir
from smollm3_finetune.train.plan import RunPlan

if TYPE_CHECKING:
    from smollm3_finetune.train.setup import Job


def chain_of(plan: RunPlan) -> str | None:
    """The objectives of the earlier runs and of this one, such as `sft → dpo`; None if it began with a new adapter."""
    return None if plan.earlier is None else plan.earlier.followed_by(plan.objective.spec.name)


def stage_of(job: Job, steps: int | None = None) -> Stage:
    """This run, as one of the stages of the adapters that it saves."""
    assert job.plan.model.adapter is not None
    return Stage(
        run=job.run.path.resolve().name,
        adapter=job.plan.model.adapter.spec.name,
        objective=job.plan.objective.spec.name,
        step=steps,
    )


def provenance(plan: RunPlan) -> dict[str, Any] | None:
    """The adapter that a run starts from and the runs before it, for its report; None if it began with a new one."""
    if (earlier := plan.earlier) is None:
        return None
    own = plan.own_base
    return {
        "path": str(earlier.path),
        "run": None if earlier.run is None else str(earlier.run),
        "objective": earlier.last.objective,
        "adapter": earlier.last.adapter,
        "step": earlier.last.step,
        "fingerprint": earlier.fingerprint,
        "base": earlier.model,
        "base_fingerprint": earlier.base_fingerprint,
        "fresh_adapter": earlier.fresh,
        "own_base": None if own is None else own.shown(),
        "chain": chain_of(plan),
        "stages": stages_json(earlier.stages),
    }


def shown_start(earlier: StartFrom) -> str:
    """The adapter that a run starts from, in a line: `runs/sft (sft, lora, step 60): it is trained further`."""
    last = earlier.last
    about = [last.objective, last.adapter, None if last.step is None else f"step {last.step:,}"]
    shown = ", ".join(text for text in about if text)
    then = "it is merged, and a new adapter is trained" if earlier.fresh else "it is trained further"
    return f"{earlier.run if _published(earlier) else earlier.path} ({shown}): {then}"


def start_lines(plan: RunPlan, run: RunDir) -> list[str]:
    """What a run starts from, the base that it makes, and the chat template that it uses, in a line each."""
    if plan.earlier is None:
        return []
    lines = [f"from     {shown_start(plan.earlier)}"]
    if plan.own_base is not None:
        lines.append(f"base     {run.base}: {plan.own_base.shown()}")
        quantizer = plan.model.quantizer.spec.name
        if plan.earlier.fresh and quantizer != NO_QUANTIZER:
            lines.append(
                f"base     quantized by {quantizer!r} again, which can lose small changes; without: --quant none"
            )
    if plan.render.template is None:
        lines.append("template that of the adapter; another one: --set data.template=FILE")
    return lines


def _published(earlier: StartFrom) -> bool:
    """Whether it is the adapter that a run published, not one of its checkpoints."""
    return earlier.run is not None and earlier.path == earlier.run / "adapter"
