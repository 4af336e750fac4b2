"""What tests of components are built from: a context, and a plan of loader, quantizer and adapter."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smollm3_finetune.api import BuildContext, Purpose

if TYPE_CHECKING:
    from smollm3_finetune.plan import ModelPlan
    from smollm3_finetune.registry import Registry


def context(
    cache: Path, *, purpose: Purpose = Purpose.TRAIN, device: str = "cpu", dtype: str = "float32", seed: int = 0
) -> BuildContext:
    """A context with a cache of its own in the directory `cache`, showing nothing."""
    from smollm3_finetune.cache.store import Cache
    from smollm3_finetune.model import build_context

    return build_context(purpose, device, dtype, seed, cache=Cache(cache))


def plan(
    ref: str,
    *,
    quant: str | None = None,
    adapter: str | None = None,
    quant_options: Mapping[str, Any] | None = None,
    adapter_options: Mapping[str, Any] | None = None,
    dtype: str = "float32",
    device: str = "cpu",
    registry: Registry | None = None,
    plugins: tuple[str, ...] = (),
) -> ModelPlan:
    """What `load_model` would do for training, as a plan that the checks carry out themselves."""
    from smollm3_finetune.config.schema import ComponentConfig
    from smollm3_finetune.discovery import Wanted, discover
    from smollm3_finetune.model import build_context
    from smollm3_finetune.plan import ModelRequest, plan_model

    request = ModelRequest(
        ref=ref,
        quant=ComponentConfig(name=quant, options=quant_options or {}),
        adapter=ComponentConfig(name=adapter, options=adapter_options or {}) if adapter else None,
        purpose=Purpose.TRAIN,
    )
    context = build_context(Purpose.TRAIN, device, dtype, seed=0)
    return plan_model(registry or discover(Wanted.of(plugins)), request, context)
