"""Helpers of the tests: small models that are trained as they are shipped."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from smollm3_finetune import load_model
from smollm3_finetune.model.load import LoadedModel
from smollm3_finetune.testing.parts import calibration_rows
from smollm3_finetune.testing.small import small_model_directory, token_ids

PLUGIN = str(Path(__file__).with_name("grid_quantizers.py"))
IDS = token_ids(2, 12)


def trained(
    ship_as: str | Mapping[str, Any] | None, adapter: str = "lora", *, noise: bool = True, **more: Any
) -> LoadedModel:
    """A model for training, whose adapter has random values if there is `noise`."""
    values: dict[str, Any] = {
        "adapter": {"name": adapter, "rank": 4},
        "ship_as": ship_as,
        "purpose": "train",
        "plugins": (PLUGIN,),
        "dtype": "float32",
        "calibration": calibration_rows,
        **more,
    }
    loaded = load_model(small_model_directory(biases=values.pop("biases", False)), **values)
    if noise:
        disturb(loaded)
    return loaded


def disturb(loaded: LoadedModel, seed: int = 1) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator).to(parameter)


def logits(loaded: LoadedModel) -> Tensor:
    with torch.no_grad():
        found: Tensor = loaded.model(input_ids=IDS, use_cache=False).logits
    return found


def gradients(loaded: LoadedModel) -> dict[str, Tensor]:
    """The gradient of each trained parameter for one batch."""
    loaded.model.zero_grad()
    loaded.model.train()
    out = loaded.model(input_ids=IDS, labels=IDS, use_cache=False)
    out.loss.backward()
    loaded.model.eval()
    return {n: p.grad.clone() for n, p in loaded.model.named_parameters() if p.requires_grad and p.grad is not None}


def restored(path: Path, **more: Any) -> LoadedModel:
    """The saved adapter on its base."""
    values: dict[str, Any] = {"plugins": (PLUGIN,), "dtype": "float32", **more}
    return load_model(small_model_directory(biases=False), adapter_path=path, **values)
