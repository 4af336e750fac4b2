"""AdaLoRA: its rank schedule, and saved adapters that can be loaded again.

When PEFT saves, it truncates the tensors to the current ranks (`rank_pattern` in the config), and it cannot load the
result: it builds layers of the initial rank, or truncates them by the pattern and then copies tensors of another shape.
Pruned singular values are zero, so the untruncated tensors compute the same. This module saves the untruncated tensors
without `rank_pattern`, and stock PEFT loads them. The allocator's moving averages are saved in a separate file, so that
training can continue.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftModel
from safetensors.torch import save_file
from torch import nn

from smollm3_finetune.api import AdapterSpec, Base, ConfigError, IncompatibleError, ModelError, open_tensors
from smollm3_peft.adapter import Biases, PeftAdapted, PeftAdapter

ALLOCATOR_FILE = "adalora_allocator.safetensors"
_AVERAGES = ("ipt", "exp_avg_ipt", "exp_avg_unc")


class AdaLoraAdapted(PeftAdapted):
    """Updates the ranks after each step, and saves untruncated tensors."""

    def __init__(self, model: PeftModel, base: Base, spec: AdapterSpec, biases: Biases) -> None:
        super().__init__(model, base, spec, biases)
        self._pattern: Any = None
        self.saver.before = self._hide_pattern
        self.saver.after = self._save_allocator

    def on_step(self, step: int) -> None:
        """Update the importance of every singular value from the gradients, and prune the least important.

        PEFT decides the last ranks in the step `total_step - tfinal`, and never if a run is resumed after it with
        fewer steps. Here the averages say whether they are decided: PEFT clears them then.
        Raises IncompatibleError if the optimizer of the run freezes some of its matrices.
        """
        config, tuner = self.model.peft_config["default"], self.model.base_model
        allocator = tuner.rankallocator
        if allocator.init_bgt == allocator.target_bgt:
            return  # initial_rank equals rank: PEFT fails if there is nothing to prune
        if any(".lora_" in name and not p.requires_grad for name, p in self.model.named_parameters()):
            raise IncompatibleError(
                "adapter 'adalora' needs the gradients of all its matrices, but the optimizer freezes some of them",
                hint="--adapter lora, or another --optimizer",
            )
        if step < config.total_step - config.tfinal:
            tuner.update_and_allocate(step)
        elif allocator.ipt or config.rank_pattern is None:
            if not allocator.ipt:
                allocator.update_ipt(tuner.model)
            _, config.rank_pattern = allocator.update_and_allocate(tuner.model, step, force_mask=True)
            allocator.reset_ipt()
        else:
            allocator.mask_using_rank_pattern(tuner.model, config.rank_pattern)

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
    """AdaLoRA with a rank schedule over the length of the run."""

    adapted_class = AdaLoraAdapted

    def schedule(self, total_steps: int | None) -> dict[str, Any]:
        """The schedule arguments of PEFT's config.

        Raises ConfigError if the length is unknown or too short for the schedule.
        """
        if total_steps is None:
            raise ConfigError(
                "adapter 'adalora' needs the number of training steps for its rank schedule, but it is not known",
                hint="--max-steps 1000",
            )
        options: Any = self.options
        warmup = total_steps // 10 if options.warmup_steps is None else options.warmup_steps
        final = total_steps // 5 if options.final_steps is None else options.final_steps
        if warmup + final >= total_steps:
            raise ConfigError(
                f"adapter 'adalora': {warmup} warmup_steps and {final} final_steps leave no step of {total_steps} for "
                "reducing ranks",
                hint=f"--max-steps {warmup + final + 1}",
            )
        if options.initial_rank < options.rank:
            raise ConfigError(
                f"adapter 'adalora': initial_rank {options.initial_rank} is below rank {options.rank}",
                hint=f"--adapter-opt initial_rank={options.rank}",
            )
        return {"total_step": total_steps, "tinit": warmup, "tfinal": final}

    def adapted(self, model: PeftModel, base: Base, biases: Biases) -> PeftAdapted:
        # PEFT recreates its rank counters to cast them to the base's dtype; these would be trained, but not saved.
        for name, parameter in model.named_parameters():
            if ".ranknum." in name:
                parameter.requires_grad_(False)
        return super().adapted(model, base, biases)

    def load(self, model: nn.Module, path: Path, config: PeftConfig, trainable: bool) -> PeftModel:
        loaded = super().load(model, path, config, trainable)
        file = path / ALLOCATOR_FILE
        if trainable and file.is_file():
            allocator = loaded.base_model.rankallocator
            with open_tensors(file, str(next(loaded.parameters()).device)) as tensors:
                loaded.peft_config["default"].rank_pattern = _pattern(file, (tensors.metadata() or {}))
                for key in tensors.keys():  # noqa: SIM118  (not a mapping)
                    kind, _, name = key.partition("|")
                    if kind not in _AVERAGES:
                        raise ModelError(f"{file} is damaged: {key!r} is not a state of AdaLoRA's ranks")
                    getattr(allocator, kind)[name] = tensors.get_tensor(key)
        return loaded


def _pattern(file: Path, about: Mapping[str, str]) -> Any:
    """The rank pattern in the description of the saved state. Raises ModelError if it cannot be one."""
    try:
        pattern = json.loads(about.get("rank_pattern", "null"))
    except (ValueError, RecursionError):
        pattern = False
    if pattern is not None and not isinstance(pattern, dict):
        raise ModelError(f"{file} is damaged: its rank pattern is not an object")
    return pattern
