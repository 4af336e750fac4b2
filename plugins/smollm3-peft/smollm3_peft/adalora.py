"""AdaLoRA: its schedule, and a saved form that loads back.

PEFT cuts the ranks out of the tensors when it saves (`rank_pattern` in the config) and cannot load the result: it
makes layers of the first rank, or cuts them by the pattern and then copies tensors that do not fit. Singular values
that were cut are zero, so the uncut tensors compute the same. They are what is saved here, with no `rank_pattern`,
and stock PEFT loads them. The allocator's averages go into a file of their own, for training further.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftModel
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from smollm3_finetune.api import AdapterSpec, Base, ConfigError
from smollm3_peft.adapter import Biases, PeftAdapted, PeftAdapter

ALLOCATOR_FILE = "adalora_allocator.safetensors"
_AVERAGES = ("ipt", "exp_avg_ipt", "exp_avg_unc")


class AdaLoraAdapted(PeftAdapted):
    """Moves the ranks after each step, and saves uncut tensors."""

    def __init__(self, model: PeftModel, base: Base, spec: AdapterSpec, biases: Biases) -> None:
        super().__init__(model, base, spec, biases)
        self._pattern: Any = None
        self.saver.before = self._hide_pattern
        self.saver.after = self._save_allocator

    def on_step(self, step: int) -> None:
        """Update the importance of every singular value from the gradients, and cut the least important."""
        self.model.base_model.update_and_allocate(step)

    def _hide_pattern(self) -> None:
        config = self.model.peft_config["default"]
        self._pattern, config.rank_pattern = config.rank_pattern, None

    def _save_allocator(self, path: Path) -> None:
        self.model.peft_config["default"].rank_pattern = self._pattern
        allocator = getattr(self.model.base_model, "rankallocator", None)
        if allocator is None:
            return
        tensors = {
            f"{kind}|{name}": tensor.detach().cpu().contiguous().clone()
            for kind in _AVERAGES
            for name, tensor in getattr(allocator, kind).items()
        }
        save_file(tensors, str(path / ALLOCATOR_FILE), metadata={"rank_pattern": json.dumps(self._pattern)})


class AdaLoraAdapter(PeftAdapter):
    """AdaLoRA, over the length of the run."""

    adapted_class = AdaLoraAdapted

    def schedule(self, total_steps: int | None) -> dict[str, Any]:
        """Raises ConfigError when the length is unknown or too short for the schedule."""
        if total_steps is None:
            raise ConfigError(
                "adapter 'adalora' cuts its ranks over the length of the run, which is not known here",
                hint="--max-steps 1000",
            )
        options: Any = self.options
        warmup = total_steps // 10 if options.warmup_steps is None else options.warmup_steps
        final = total_steps // 5 if options.final_steps is None else options.final_steps
        if warmup + final >= total_steps:
            raise ConfigError(
                f"adapter 'adalora': {warmup} warmup_steps and {final} final_steps leave none of {total_steps}",
                hint=f"--max-steps {warmup + final + 1}",
            )
        if options.initial_rank < options.rank:
            raise ConfigError(
                f"adapter 'adalora': initial_rank {options.initial_rank} is below rank {options.rank}",
                hint=f"--adapter-opt initial_rank={options.rank}",
            )
        return {"total_step": total_steps, "tinit": warmup, "tfinal": final}

    def adapted(self, model: PeftModel, base: Base, biases: Biases) -> PeftAdapted:
        # PEFT makes its rank counters anew when it casts them to the base's dtype, and then trains them unsaved.
        for name, parameter in model.named_parameters():
            if ".ranknum." in name:
                parameter.requires_grad_(False)
        return super().adapted(model, base, biases)

    def load(self, model: nn.Module, path: Path, config: PeftConfig, trainable: bool) -> PeftModel:
        loaded = super().load(model, path, config, trainable)
        file = path / ALLOCATOR_FILE
        if trainable and file.is_file():
            allocator = loaded.base_model.rankallocator
            with safe_open(str(file), framework="pt", device=str(next(loaded.parameters()).device)) as tensors:
                loaded.peft_config["default"].rank_pattern = json.loads(tensors.metadata()["rank_pattern"])
                for key in tensors.keys():  # noqa: SIM118  (not a mapping)
                    kind, _, name = key.partition("|")
                    getattr(allocator, kind)[name] = tensors.get_tensor(key)
        return loaded
