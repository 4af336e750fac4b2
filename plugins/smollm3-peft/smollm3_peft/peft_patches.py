"""Small contexts around PEFT: its warnings, random numbers, probing of libraries, exceptions and dtypes."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.utils import quantization_utils as backends
from safetensors import SafetensorError
from torch import nn

from smollm3_finetune.api import BuildContext, ConfigError, IncompatibleError, SmolLM3Error, is_resource_error

_PEFTS = (ValueError, TypeError, LookupError, RuntimeError, AttributeError, ImportError, OSError, SafetensorError)
"""What PEFT and safetensors raise for options and files that do not fit."""


@contextmanager
def quiet() -> Iterator[list[warnings.WarningMessage]]:
    """PEFT's warnings, kept from users, whom they tell about PEFT's inside; the caller looks at those that matter."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield caught


@contextmanager
def seeded(ctx: BuildContext) -> Iterator[None]:
    """Random numbers from the run's seed, without moving the stream of those that come after."""
    device = torch.device(ctx.device)
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.manual_seed(ctx.seed)
        yield


@contextmanager
def only_plain_backends() -> Iterator[None]:
    """PEFT's quantization backends off: no layer needs one, and asking for one imports its library.

    An optional library of the wrong version raises there, although nothing that is loaded uses it.
    """
    asking = [name for name in dir(backends) if name.startswith("is_") and name.endswith("_available")]
    own = {name: getattr(backends, name) for name in asking}
    try:
        for name in asking:
            setattr(backends, name, lambda: False)
        yield
    finally:
        for name, function in own.items():
            setattr(backends, name, function)


@contextmanager
def explained(what: str, error: type[SmolLM3Error] = ConfigError) -> Iterator[None]:
    """PEFT's exceptions as one of this project's, with PEFT's own sentence; what the machine lacks stays as it is."""
    try:
        yield
    except SmolLM3Error:
        raise
    except _PEFTS as e:
        if is_resource_error(e):
            raise
        sentence = " ".join(str(e).split())
        raise error(f"{what}: {sentence[:400]}") from e


@contextmanager
def new_tensors_in(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Tensors that PEFT adds to `model` meanwhile get `dtype` where that is float64; PEFT itself makes float32.

    In half precision the adapter stays float32, as PEFT makes it.
    """
    known = {id(tensor) for tensor in _tensors(model)}
    yield
    if dtype == torch.float64:
        to_float64(model, known)


def widen_trained(model: nn.Module, dtype: torch.dtype) -> bool:
    """Make what is trained `dtype` where it is narrower; whether anything was. PEFT copies some weights as they are."""
    narrow = [p for p in model.parameters() if p.requires_grad and p.dtype.itemsize < dtype.itemsize]
    for parameter in narrow:
        parameter.data = parameter.data.to(dtype)
    return bool(narrow)


def to_float64(model: nn.Module, but: set[int]) -> None:
    """Make every floating tensor of `model` float64 whose id is not in `but`."""
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if id(parameter) not in but and parameter.is_floating_point():
                parameter.data = parameter.data.double()
        for name, buffer in module.named_buffers(recurse=False):
            if id(buffer) not in but and buffer.is_floating_point():
                module._buffers[name] = buffer.double()


def _tensors(model: nn.Module) -> list[torch.Tensor]:
    return [*model.parameters(), *model.buffers()]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients, with every module's own mode put back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def probe(model: Any, vocabulary: int) -> torch.Tensor:
    """Logits (1, T, V) of a few random tokens, in float32 or wider."""
    ids = torch.randint(0, vocabulary, (1, 8), generator=torch.Generator().manual_seed(0))
    with evaluating(model):
        logits: torch.Tensor = model(input_ids=ids.to(next(model.parameters()).device), use_cache=False).logits
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def check_identity(before: torch.Tensor, after: torch.Tensor, tolerance: float, method: str) -> None:
    """Raises IncompatibleError when a fresh adapter changes what the model computes.

    A method whose forward goes past the quantized layer can train on a model that is not there, and its loss falls.
    """
    scale = before.norm().clamp_min(torch.finfo(before.dtype).tiny)
    distance = float((after - before).norm() / scale)
    if not distance <= tolerance:
        raise IncompatibleError(
            f"a fresh {method!r} should compute what its base computes, and its logits are {distance:.1%} off",
            hint="--adapter lora",
        )
