"""Building blocks for tests of components: a context, and a plan of loader, quantizer and adapter."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smollm3_finetune.api import BuildContext, Purpose

if TYPE_CHECKING:
    from smollm3_finetune.components.registry import Registry
    from smollm3_finetune.model.plan import ModelPlan


def context(
    cache: Path, *, purpose: Purpose = Purpose.TRAIN, device: str = "cpu", dtype: str = "float32", seed: int = 0
) -> BuildContext:
    """A context with its own cache in the directory `cache`, random calibration rows and no progress output."""
    from smollm3_finetune.cache.store import Cache
    from smollm3_finetune.model.load import build_context

    return build_context(purpose, device, dtype, seed, calibration_rows, cache=Cache(cache))


def calibration_rows() -> list[list[int]]:
    """Eight rows of 32 random token ids from the vocabulary of `small_source`."""
    from smollm3_finetune.testing.small import token_ids

    rows: list[list[int]] = token_ids(8, 32).tolist()
    return rows


def plan(
    ref: str,
    *,
    loader: str | None = None,
    loader_options: Mapping[str, Any] | None = None,
    quant: str | None = None,
    adapter: str | None = None,
    quant_options: Mapping[str, Any] | None = None,
    adapter_options: Mapping[str, Any] | None = None,
    dtype: str = "float32",
    device: str = "cpu",
    registry: Registry | None = None,
    plugins: tuple[str, ...] = (),
) -> ModelPlan:
    """The plan of `load_model` for training, for checks that build the model themselves."""
    from smollm3_finetune.components.discovery import PluginSelection, discover
    from smollm3_finetune.config.schema import ComponentConfig
    from smollm3_finetune.model.load import build_context
    from smollm3_finetune.model.plan import ModelRequest, plan_model, select_model

    request = ModelRequest(
        ref=ref,
        loader=ComponentConfig(name=loader, options=loader_options or {}),
        quant=ComponentConfig(name=quant, options=quant_options or {}),
        adapter=ComponentConfig(name=adapter, options=adapter_options or {}) if adapter else None,
        purpose=Purpose.TRAIN,
    )
    ctx = build_context(Purpose.TRAIN, device, dtype, 0, calibration_rows)
    found = registry or discover(PluginSelection.of(plugins))
    return plan_model(found, select_model(found, request), ctx)
