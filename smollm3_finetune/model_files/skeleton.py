"""A model without weights, built from its `config.json`: names and shapes of its parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def skeleton(config: Mapping[str, Any]) -> PreTrainedModel | None:
    """The architecture that a `config.json` describes, on torch's meta device: nothing is allocated.

    None if transformers does not know the architecture.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    values = {k: v for k, v in config.items() if k not in ("model_type", "quantization_config", "auto_map")}
    try:
        with torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(
                AutoConfig.for_model(str(config.get("model_type")), **values)
            )
    except Exception:  # custom code, or a config for another version
        return None
    return model


def count_parameters(config: Mapping[str, Any]) -> int | None:
    """The number of parameters of that architecture; tied ones count once. None if transformers does not know it."""
    model = skeleton(config)
    return None if model is None else sum(int(p.numel()) for p in model.parameters())
