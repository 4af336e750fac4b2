"""Actions between the steps of a run: the adapter's hook, measurements, metrics, the display."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from smollm3_finetune.model.load import LoadedModel
from smollm3_finetune.model.quantized_layers import forward_rtol
from smollm3_finetune.runs.checkpoints import CALLBACK
from smollm3_finetune.train.distributed.held import Held, held_by_all, shown_held
from smollm3_finetune.train.draws import Draws
from smollm3_finetune.train.finite import plain_number
from smollm3_finetune.train.health import Health, TrainedWeights
from smollm3_finetune.train.lines import Lines
from smollm3_finetune.train.measuring import logged
from smollm3_finetune.train.save_times import SaveTimes

if TYPE_CHECKING:
    from smollm3_finetune.api import Observer
    from smollm3_finetune.train.display import Display
    from smollm3_finetune.train.measuring import Measuring


class RunCallback(TrainerCallback, ExportableState):  # type: ignore[misc]
    """Calls the adapter's hook after each optimizer step, writes metrics and displays them."""

    def __init__(
        self,
        loaded: LoadedModel,
        metrics: Path,
        display: Display,
        started: float,
        save_times: SaveTimes | None = None,
        health: Health | None = None,
        measuring: Measuring | None = None,
        observer: Observer | None = None,
        receive: Callable[[int, Mapping[str, float]], None] | None = None,
    ) -> None:
        self.loaded = loaded
        self.save_times = save_times or SaveTimes(minutes=None)
        self.health = health or Health(warn=display.say)
        self.after_first_step: Callable[[], object] = lambda: None
        self.measuring = measuring
        self.observer = observer
        self.receive = receive
        if measuring is not None:
            measuring.observe = self.observe
        self.lines = measuring.metrics if measuring is not None else Lines(metrics, display.say)
        self.not_logged = False
        """Whether trackers have not received the last measurement, which was made before training began."""
        self.display = display
        self.started = started
        """When the run began, on the monotonic clock."""
        self.seconds_to_first_step: float | None = None
        """Until the end of the first step of this process."""
        self.trainer: Any = None
        self.weights: TrainedWeights | None = None
        """The trained weights before the first step of this process."""
        self.held: list[Held] | None = None
        """The weights that each process holds, if the processes share them."""
        self.draws = Draws()
        self.last_log = 0.0
        self.shown_tokens = 0

    def observe(self, step: int, values: Mapping[str, float]) -> None:
        """Tell the tracker and the observer the values of a step.

        If the observer stops the run, all processes end after their current step.
        """
        if self.receive is not None:
            self.receive(step, values)
        if self.observer is not None and not self.observer.measured(step, values):
            self.save_times.observer_stops = True

    def state(self) -> dict[str, Any]:
        """What a checkpoint saves, and `Checkpoint` reads."""
        measured = self.measuring.measurements.as_json() if self.measuring is not None else []
        about = {"measurements": measured, "draws": self.draws.found, "rounds": forward_rtol(self.loaded.base) > 0}
        if self.trainer is not None:
            about["counted"] = self.trainer.counted
        return {"args": {}, "attributes": about}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        state.logging_steps, state.save_steps = args.logging_steps, args.save_steps  # not the values of a checkpoint
        state.stateful_callbacks.setdefault(CALLBACK, self.state())  # missing in checkpoints of earlier versions
        self.trainer.tokens_before = self.shown_tokens = state.num_input_tokens_seen
        self.last_log = time.monotonic()
        if args.gradient_checkpointing and hasattr(self.loaded.base.model, "disable_input_require_grads"):
            # transformers makes the embeddings' output require a gradient, which only reentrant checkpointing needs:
            # frozen layers below the first trained one would be recomputed unnecessarily
            self.loaded.base.model.disable_input_require_grads()
        self.weights = TrainedWeights.of(self.loaded.model)
        if self.trainer.shards:
            self.held = held_by_all(self.loaded.model)
            self.display.say(shown_held(self.held))
        self.display.begin(state.max_steps, state.global_step)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Set the pass of the sampler: with several processes, accelerate wraps it and does not set the pass."""
        if self.trainer.order is not None:
            self.trainer.order.set_epoch(int(float(state.epoch or 0) + 1e-6))

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.not_logged and self.measuring is not None and self.measuring.last is not None:
            self.not_logged = False
            self.trainer.log(logged(self.measuring.last[1].report()))
        self.draws.begin()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.loaded.adapted is not None:
            self.loaded.adapted.on_step(state.global_step + 1)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.draws.end()
        if self.seconds_to_first_step is None:
            self.seconds_to_first_step = round(time.monotonic() - self.started, 1)
            self.after_first_step()
        final = state.global_step >= state.max_steps
        if self.measuring is not None:
            began, logs = time.monotonic(), control.should_log
            self.measuring.after_step(state.global_step, final)
            control.should_log = logs  # logging the held-out loss resets it
            self.save_times.step_began += time.monotonic() - began
            self.last_log += time.monotonic() - began  # exclude this time from the tokens per second
            final = final or self.measuring.exhausted
        save, stop = self.save_times.after_step(final)
        control.should_save |= save  # set by the Trainer's own callback, which runs before this one in all processes
        control.should_training_stop |= stop or final
        if control.should_save:
            state.num_input_tokens_seen = self.trainer.tokens_of_all()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if not logs:
            return
        plain = {key: plain_number(value) for key, value in logs.items()}
        logs.update(plain)  # for the trackers, whose callbacks follow this one
        if state.log_history:
            state.log_history[-1].update(plain)  # a checkpoint writes it as JSON, which cannot represent tensors
        if "loss" not in logs or "learning_rate" not in logs:  # an objective may log its own values
            return
        seen = self.trainer.tokens_of_all()
        now = time.monotonic()
        tokens = seen - self.shown_tokens
        row = {
            "step": state.global_step,
            "epoch": round(float(logs.get("epoch", 0.0)), 4),
            "loss": float(logs["loss"]),
            "learning_rate": float(logs["learning_rate"]),
            "grad_norm": float(logs["grad_norm"]) if "grad_norm" in logs else None,
            "tokens_per_second": tokens / max(now - self.last_log, 1e-9),
            "memory_gb": memory_gb(args.device),
        }
        own = {k: v for k, v in logs.items() if k not in row and isinstance(v, int | float) and not isinstance(v, bool)}
        row |= {key: float(value) for key, value in own.items()}  # what an objective added to the logs
        logs.update({key: row[key] for key in ("tokens_per_second", "memory_gb")})
        self.last_log, self.shown_tokens = now, seen
        if not self.health.logged(row):  # the same in all processes, so none waits for another
            control.should_training_stop = True
            control.should_save = False  # keep the previous checkpoints
        self.observe(state.global_step, {k: v for k, v in row.items() if isinstance(v, int | float) and k != "step"})
        if not state.is_world_process_zero:
            return
        self.lines.add(row)
        self.display.step(row)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.display.end()


def memory_gb(device: torch.device) -> float:
    """Peak memory of the run's CUDA GPU, otherwise the current memory of the process. 1 GB = 10⁹ bytes."""
    import psutil

    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device)) / 1e9
    return float(psutil.Process().memory_info().rss) / 1e9
