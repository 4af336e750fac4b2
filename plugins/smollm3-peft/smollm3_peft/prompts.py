"""Prompt methods, which replace no module of the base.

PEFT saves only the prompt, which cannot be trained further. This module also saves the network that computes it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import nn

from smollm3_finetune.api import AdapterSpec, Base, ModelError
from smollm3_peft.adapter import Biases, PeftAdapted, PeftAdapter
from smollm3_peft.saved_config import WEIGHTS_FILE

ENCODER_FILE = "prompt_encoder.safetensors"


class PromptAdapted(PeftAdapted):
    """Saves the network that computes the prompt, in addition to the prompt."""

    def __init__(self, model: PeftModel, base: Base, spec: AdapterSpec, biases: Biases) -> None:
        super().__init__(model, base, spec, biases)
        self.saver.after = self._save_encoder

    def _save_encoder(self, path: Path) -> None:
        if not self.model.peft_config["default"].inference_mode:
            save_file(_encoder_state(self.model), str(path / ENCODER_FILE))


class PromptAdapter(PeftAdapter):
    """Prompt tuning, p-tuning and prefix tuning."""

    adapted_class = PromptAdapted

    def adapted(self, model: PeftModel, base: Base, biases: Biases) -> PeftAdapted:
        _match_float64(model)
        return super().adapted(model, base, biases)

    def load(self, model: nn.Module, path: Path, config: PeftConfig, trainable: bool) -> PeftModel:
        """Load with PEFT for inference. PEFT refuses to load for training: then load the saved network."""
        if not trainable:
            loaded = super().load(model, path, config, trainable)
            if _match_float64(loaded):
                set_peft_model_state_dict(loaded, load_file(str(path / WEIGHTS_FILE)))
            return loaded
        file = path / ENCODER_FILE
        if not file.is_file():
            raise ModelError(
                f"the adapter in {path} cannot be trained further: {ENCODER_FILE} is missing",
                hint="train a new adapter; without this file the prompt can only be used for inference",
            )
        config.inference_mode = False
        loaded = get_peft_model(model, config)
        _match_float64(loaded)
        loaded.prompt_encoder.load_state_dict(load_file(str(file)))
        return loaded


def _match_float64(model: PeftModel) -> bool:
    """Convert the prompt to float64 if the base is float64; returns whether it is. PEFT creates float32 prompts."""
    wide = bool(model.base_model.dtype == torch.float64)
    if wide:
        model.prompt_encoder.double()
    return wide


def _encoder_state(model: Any) -> dict[str, torch.Tensor]:
    state = model.prompt_encoder.state_dict()
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
