"""The part of the Trainer that concerns processes which share the weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

from smollm3_finetune.errors import IncompatibleError, SmolLM3Error, first_line, is_resource_error
from smollm3_finetune.model.load import LoadedModel
from smollm3_finetune.train.distributed.fsdp import use_fsdp
from smollm3_finetune.train.distributed.optimizer_state import load_whole_state, whole_state
from smollm3_finetune.train.distributed.sharding import WITHOUT_FSDP, is_requested
from smollm3_finetune.train.distributed.unused import routes


class ShardedTrainer:
    """A mixin for a Trainer. Without FSDP it changes nothing."""

    loaded: LoadedModel
    computed: bool = False
    """Whether this process has computed a batch."""

    @property
    def shards(self) -> bool:
        """Whether the processes share the weights."""
        return bool(self.is_fsdp_enabled)

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()  # type: ignore[misc]
        if is_requested():
            use_fsdp(self.accelerator, self.loaded)  # type: ignore[attr-defined]
            self.is_fsdp_enabled = self.accelerator.distributed_type == "FSDP"  # type: ignore[attr-defined]

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        with self._attributed_to_sharding():
            prepared = super()._prepare_for_training(*args, **kwargs)  # type: ignore[misc]
        if self.shards and routes(self.loaded.base.model.config.to_dict()):
            # a process whose batch does not use an expert must take part in the sum of its gradients too
            self.model.set_reduce_scatter_unused_params(True)  # type: ignore[attr-defined]
        return prepared

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        if self.computed:
            return super().training_step(*args, **kwargs)  # type: ignore[misc]
        with self._attributed_to_sharding():
            loss = super().training_step(*args, **kwargs)  # type: ignore[misc]
        self.computed = True
        return loss

    @contextlib.contextmanager
    def _attributed_to_sharding(self) -> Iterator[None]:
        """Convert an error of a model whose weights are shared into one that says so: it works in one process."""
        try:
            yield
        except Exception as e:
            if not self.shards or isinstance(e, SmolLM3Error) or is_resource_error(e):
                raise
            plan = self.loaded.plan
            assert plan.adapter is not None
            raise IncompatibleError(
                f"{plan.adapter.component.title} with {plan.quantizer.component.title} does not work with FSDP: "
                f"{type(e).__name__}: {first_line(e)}",
                hint=WITHOUT_FSDP,
            ) from e

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.shards:
            super()._save_optimizer_and_scheduler(output_dir)  # type: ignore[misc]
            return
        import torch

        state = whole_state(self.optimizer)  # type: ignore[attr-defined]
        if self.args.should_save:  # type: ignore[attr-defined]
            torch.save(state, Path(output_dir, OPTIMIZER_NAME))
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir, SCHEDULER_NAME))  # type: ignore[attr-defined]

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None and self.shards:
            self._load_whole(Path(checkpoint))
        else:
            super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[misc]

    def _load_whole(self, checkpoint: Path) -> None:
        """Load the state of the optimizer, of which each process keeps its part, and that of the schedule."""
        import torch

        def read(name: str) -> Any:
            return torch.load(checkpoint / name, map_location="cpu", weights_only=True)

        load_whole_state(self.optimizer, read(OPTIMIZER_NAME))  # type: ignore[attr-defined]
        self.lr_scheduler.load_state_dict(read(SCHEDULER_NAME))  # type: ignore[attr-defined]
