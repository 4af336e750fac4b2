"""Checks the Trainer's state in a checkpoint that somebody else may have made, before the Trainer takes it over."""

from __future__ import annotations

from pathlib import Path

from smollm3_finetune.runs.checkpoints import STATE, Checkpoint

COUNTS = ("global_step", "max_steps", "num_train_epochs", "num_input_tokens_seen")
NUMBERS = ("epoch", "total_flos")
MOST = 10**15
MOST_NUMBER = 1e30


def check_state(directory: Path) -> None:
    """Raises an exception of any type, with the reason, if the Trainer could not continue from the state."""
    from transformers.trainer_callback import TrainerControl, TrainerState

    state = TrainerState.load_from_json(str(directory / STATE))
    for name in (*COUNTS, *NUMBERS):
        value = getattr(state, name)
        kinds, most = (int, MOST) if name in COUNTS else (int | float, MOST_NUMBER)
        if not isinstance(value, kinds) or isinstance(value, bool) or not 0 <= value <= most:
            raise ValueError(f"{name} in {STATE} is {value!r:.40}")
    if not isinstance(state.train_batch_size, int | None):
        raise ValueError(f"train_batch_size in {STATE} is {state.train_batch_size!r:.40}")
    named = Checkpoint.of(directory)
    if named is not None and named.step != state.global_step:
        raise ValueError(f"{STATE} is of step {state.global_step}")
    if not all(isinstance(entry, dict) for entry in state.log_history):
        raise ValueError(f"log_history in {STATE} does not consist of objects")
    TrainerControl.from_state(state.stateful_callbacks["TrainerControl"])
