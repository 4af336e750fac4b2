"""Context managers around PEFT for warnings, random numbers, optional libraries, exceptions and dtypes."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import quantization_utils as backends
from peft.utils import transformers_weight_conversion
from safetensors import SafetensorError
from torch import nn

from smollm3_finetune.api import (
    BuildContext,
    ConfigError,
    IncompatibleError,
    SmolLM3Error,
    evaluating,
    is_resource_error,
)

_PEFT_ERRORS = (ValueError, TypeError, LookupError, RuntimeError, AttributeError, ImportError, OSError, SafetensorError,
                re.error, RecursionError, AssertionError)  # fmt: skip
"""Exceptions that PEFT and safetensors raise if options or files do not fit."""

_SINGLE_EXPERT = re.compile(r"\.experts\.\d+\.")


@contextmanager
def quiet() -> Iterator[list[warnings.WarningMessage]]:
    """Hide PEFT's warnings, which are about its internals, from users; yields the list of them."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield caught


@contextmanager
def seeded(ctx: BuildContext) -> Iterator[None]:
    """Use random numbers from the run's seed inside the context; the state of the generators is restored afterwards."""
    device = torch.device(ctx.device)
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.manual_seed(ctx.seed)
        yield


@contextmanager
def only_plain_backends() -> Iterator[None]:
    """Turn off PEFT's quantization backends: no layer needs one, and the check for one imports its library.

    An optional library of the wrong version raises an error in this check, even if no loaded model uses it.
    """
    checks = [name for name in dir(backends) if name.startswith("is_") and name.endswith("_available")]
    originals = {name: getattr(backends, name) for name in checks}
    try:
        for name in checks:
            setattr(backends, name, lambda: False)
        yield
    finally:
        for name, function in originals.items():
            setattr(backends, name, function)


@contextmanager
def named_targets(saved: Iterable[str] = ()) -> Iterator[None]:
    """Inside the context, PEFT adapts exactly the modules that a config names.

    For mixtures of experts, PEFT takes `gate_proj`, `up_proj` and `down_proj` for the names that single experts had
    before transformers 5: it leaves out the linear layers of these names (of shared experts and dense layers), and
    adapts the stacked experts, at a higher rank. That is right only for an adapter whose tensors, named `saved`, are
    those of single experts.
    """
    if any(_SINGLE_EXPERT.search(name) for name in saved):
        yield
        return
    original = transformers_weight_conversion.convert_peft_config_for_transformers
    transformers_weight_conversion.convert_peft_config_for_transformers = lambda *args, **kwargs: None
    try:
        yield
    finally:
        transformers_weight_conversion.convert_peft_config_for_transformers = original


def moves_targets(config: PeftConfig, model: nn.Module) -> bool:
    """Whether PEFT by itself would adapt other modules than those that `config` names; see `named_targets`."""
    if getattr(config, "target_modules", None) is None:  # a learned prompt
        return False
    changed = copy.deepcopy(config)
    try:
        transformers_weight_conversion.convert_peft_config_for_transformers(changed, model, None)
    except ValueError:
        return True
    return bool(changed.target_modules != config.target_modules)


@contextmanager
def explained(what: str, error: type[SmolLM3Error] = ConfigError) -> Iterator[None]:
    """Turn PEFT's exceptions into `error`, with PEFT's message; resource errors are raised unchanged."""
    try:
        yield
    except SmolLM3Error:
        raise
    except _PEFT_ERRORS as e:
        if is_resource_error(e):
            raise
        message = " ".join(str(e).split())
        raise error(f"{what}: {message[:400]}") from e


@contextmanager
def new_tensors_in(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """If `dtype` is float64, convert the tensors that PEFT adds to `model` inside the context; PEFT creates float32.

    In half precision the adapter stays float32, as PEFT creates it.
    """
    known = {id(tensor) for tensor in _tensors(model)}
    yield
    if dtype == torch.float64:
        to_float64(model, known)


def widen_trained(model: nn.Module, dtype: torch.dtype) -> bool:
    """Convert trainable parameters that are narrower than `dtype`; returns whether there were any.

    PEFT copies some weights in the base's dtype.
    """
    narrow = [p for p in model.parameters() if p.requires_grad and p.dtype.itemsize < dtype.itemsize]
    for parameter in narrow:
        parameter.data = parameter.data.to(dtype)
    return bool(narrow)


def to_float64(model: nn.Module, excluded: set[int]) -> None:
    """Convert every floating-point tensor of `model` to float64, except those whose id is in `excluded`."""
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if id(parameter) not in excluded and parameter.is_floating_point():
                parameter.data = parameter.data.double()
        for name, buffer in module.named_buffers(recurse=False):
            if id(buffer) not in excluded and buffer.is_floating_point():
                module._buffers[name] = buffer.double()


def _tensors(model: nn.Module) -> list[torch.Tensor]:
    return [*model.parameters(), *model.buffers()]


def refuses(method_type: str, model: nn.Module, name: str) -> bool:
    """Whether PEFT refuses to adapt modules of this name in `model`; its list depends on the architecture."""
    about: Any = SimpleNamespace(peft_type=method_type)
    try:
        BaseTuner._check_target_module_compatiblity(about, about, model, name)
    except ValueError:
        return True
    return False


def probe(model: Any, vocabulary: int) -> torch.Tensor:
    """Logits (1, T, V) of a few random tokens, in float32 or wider."""
    ids = torch.randint(0, vocabulary, (1, 8), generator=torch.Generator().manual_seed(0))
    with evaluating(model), torch.no_grad():
        logits: torch.Tensor = model(input_ids=ids.to(next(model.parameters()).device), use_cache=False).logits
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def check_identity(before: torch.Tensor, after: torch.Tensor, tolerance: float, method: str) -> None:
    """Raises IncompatibleError if a new adapter changes the output of the model.

    If the forward of a method bypasses the quantized layer, it trains on a wrong base, and its loss still falls.
    """
    scale = before.norm().clamp_min(torch.finfo(before.dtype).tiny)
    if bool(before.isfinite().all()) and not bool(after.isfinite().all()):
        raise IncompatibleError(
            f"with a new {method!r} adapter, the logits are not finite numbers: a method that divides by the norms of "
            "weights cannot adapt a layer with rows of zeros",
            hint="--adapter lora",
        )
    distance = float((after - before).norm() / scale)
    if not distance <= tolerance:
        raise IncompatibleError(
            f"a new {method!r} adapter should not change the output of its base, but the logits differ by "
            f"{distance:.1%}",
            hint="--adapter lora",
        )
