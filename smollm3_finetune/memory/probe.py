"""Takes a few steps of a planned run in a temporary directory, and measures their time and their memory."""

from __future__ import annotations

import contextlib
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smollm3_finetune.errors import ConfigError
from smollm3_finetune.memory.variants import with_training
from smollm3_finetune.reference.plan import EACH_STEP
from smollm3_finetune.runs.rundir import RunDir
from smollm3_finetune.train.memory import watching

if TYPE_CHECKING:
    from smollm3_finetune.components.registry import Registry
    from smollm3_finetune.train.plan import RunPlan
    from smollm3_finetune.train.setup import Job

FEWEST = 2
"""The fewest steps from which an interval can be computed."""
MOST = 1000
T_95 = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)
"""The 95 % quantile of |t| for 1 to 9 degrees of freedom."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """A measured step."""

    seconds: float
    tokens: int


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What a few steps of a run took. The first step is not among them: libraries prepare themselves in it."""

    steps: tuple[Step, ...]
    loading: float
    """Seconds until the first step began, without reading the rows."""
    first: float
    """Seconds of the first step."""
    total_steps: int
    """The steps of the whole run."""
    tokens_per_step: float
    """The mean tokens of a step of the whole run."""
    memory: dict[str, Any]
    """As in the report of a run; without `peak` if it cannot be measured."""

    @property
    def step_seconds(self) -> float:
        return statistics.fmean(s.seconds for s in self.steps)

    @property
    def tokens_per_second(self) -> float:
        return sum(s.tokens for s in self.steps) / sum(s.seconds for s in self.steps)

    @property
    def counts_tokens(self) -> bool:
        """Whether the tokens of steps are known; an objective may have batches of other names."""
        return all(s.tokens > 0 for s in self.steps)

    @property
    def duration(self) -> tuple[float, float, float]:
        """Seconds of all steps of the run, and its 95 % interval.

        The time of a step is taken to grow with its tokens; the interval is that of the mean time of a token. If
        tokens are not counted, that of a step.
        """
        seconds = [s.seconds for s in self.steps]
        if self.counts_tokens:
            middle = self.total_steps * self.tokens_per_step / self.tokens_per_second
            margin = relative_margin(seconds, [s.tokens for s in self.steps])
        else:
            middle = self.total_steps * self.step_seconds
            margin = relative_margin(seconds, [1] * len(seconds))
        return middle, middle / (1 + margin), middle * (1 + margin)

    def as_json(self) -> dict[str, Any]:
        middle, low, high = self.duration
        return {
            "steps": [{"seconds": round(s.seconds, 3), "tokens": s.tokens} for s in self.steps],
            "seconds_per_step": round(self.step_seconds, 3),
            "tokens_per_second": round(self.tokens_per_second, 1),
            "seconds_before_training": round(self.loading, 1),
            "total_steps": self.total_steps,
            "duration": {"seconds": round(middle, 1), "low": round(low, 1), "high": round(high, 1)},
            "memory": self.memory,
        }


def relative_margin(seconds: Sequence[float], tokens: Sequence[int]) -> float:
    """Half the width of the 95 % interval of seconds per token, relative to it: that of a ratio of two sums."""
    count = len(seconds)
    rate = sum(seconds) / sum(tokens)
    rest = [s - rate * t for s, t in zip(seconds, tokens, strict=True)]
    error = math.sqrt(sum(r * r for r in rest) / (count - 1) / count)
    quantile = T_95[min(count - 1, len(T_95)) - 1]
    return quantile * error / statistics.fmean(seconds)


def check_probe(plan: RunPlan, steps: int) -> None:
    """Raises ConfigError if this run cannot be probed."""
    if not FEWEST <= steps <= MOST:
        raise ConfigError(f"--probe must be from {FEWEST} to {MOST} steps, got {steps}", hint="--probe 3")
    if plan.layout.processes != 1:
        raise ConfigError("--probe measures one process", hint="omit --launcher, torchrun or accelerate launch")
    if plan.reference.once:
        raise ConfigError(
            "--probe cannot measure train.reference=once, which evaluates all rows before the first step",
            hint=EACH_STEP,
        )
    if plan.own_base is not None:
        raise ConfigError(
            "--probe cannot measure a run that merges an adapter into its base first",
            hint="merge it yourself, and probe a run on the result: smollm3 merge RUN --output DIR",
        )


def probe(plan: RunPlan, registry: Registry, steps: int, say: Callable[[str], None]) -> Probe:
    """Take one step, and then `steps` more that are measured, on the run's own rows in its own order.

    Nothing is kept but what a run keeps in the cache: tokens, and a quantized base.
    """
    from smollm3_finetune.train.display import NoDisplay
    from smollm3_finetune.train.setup import prepare, total_steps

    check_probe(plan, steps)
    short = with_training(
        plan, max_steps=steps + 1, save_minutes=None, save_every=None, eval_every=None, sample_every=None,
        keep_best=False, stop_after=None, report_to=(), max_time=None, log_every=1,
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="smollm3-probe-") as directory:
        job = prepare(short, RunDir(Path(directory) / "run"), NoDisplay(), None, time.monotonic())
        job.run.path.mkdir(exist_ok=True)
        say(f"taking {steps + 1} steps")
        took = _take_steps(job)
    lengths = _tokens_of(job)
    per_step = plan.config.train.batch_size * plan.config.train.gradient_accumulation
    return Probe(
        **took,
        total_steps=total_steps(plan, len(job.items)),
        tokens_per_step=lengths / len(job.items) * min(per_step, len(job.items)),
    )


def _tokens_of(job: Job) -> int:
    """The tokens of all training rows."""
    from smollm3_finetune.batching.strategy import lengths_of

    return int(lengths_of(job.tokens.train).sum())


def _take_steps(job: Job) -> dict[str, Any]:
    """Compose the model and train. Returns the measurements."""
    import transformers

    from smollm3_finetune.batching.strategy import batching, lengths_of
    from smollm3_finetune.data.calibration import Calibration, calibration_ids
    from smollm3_finetune.inference.precision import autocast
    from smollm3_finetune.model.load import compose
    from smollm3_finetune.train.callback import RunCallback
    from smollm3_finetune.train.plugin_optimizer import optimizer_of
    from smollm3_finetune.train.reference import computed_before, reference_of
    from smollm3_finetune.train.trainer import make_trainer

    class Timing(transformers.TrainerCallback):  # type: ignore[misc]
        """When each step ends."""

        def __init__(self) -> None:
            self.began = 0.0
            self.ends: list[tuple[float, int]] = []

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.began = time.monotonic()

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if "loss" in (logs or {}):  # its value was read, so the device has finished the step
                self.ends.append((time.monotonic(), int(trainer.tokens_seen)))

    plan, config, began = job.plan, job.plan.config.train, time.monotonic()
    context = plan.model.context
    calibration = Calibration(
        lambda: calibration_ids(plan.config, plan.calibration, job.renderer, lambda: job.tokens.train)
    )
    if plan.kept_calibration is None:
        context = replace(context, calibration=calibration)
    with watching(context.device) as memory, contextlib.ExitStack() as stack:
        before = computed_before(job)
        transformers.set_seed(plan.config.seed)
        loaded = compose(
            replace(plan.model, context=context), made=job.parts, total_steps=job.steps,
            without_dropout=config.base_dropout == "off",
        )  # fmt: skip
        stack.enter_context(autocast(context.device, context.dtype))
        tokenizer = job.renderer.tokenizer
        collate = stack.enter_context(batching(config, loaded, job.objective, tokenizer, job.display.say))
        reference = reference_of(job, loaded, collate, before)
        callback = RunCallback(loaded, job.run.metrics, job.display, began)
        trainer: Any = make_trainer(
            *(loaded, job.objective, job.items, reference.in_training(collate), job.args, callback),
            lengths=lengths_of(job.tokens.train) if config.group_by_length else None,
            refer=reference.in_step,
            optimizer=optimizer_of(job, loaded),
        )
        timing = Timing()
        trainer.add_callback(timing)
        loaded.model.train()
        trainer.train()
        if callback.save_times.stopped_by is not None:
            raise callback.save_times.stopped_by
        found = {**memory.so_far(), "batch_tokens": trainer.largest or None}
    steps = tuple(
        Step(seconds=end - start, tokens=after - so_far)
        for (start, so_far), (end, after) in zip(timing.ends, timing.ends[1:], strict=False)
    )
    return {
        "steps": steps,
        "loading": timing.began - began,
        "first": timing.ends[0][0] - timing.began,
        "memory": found,
    }
