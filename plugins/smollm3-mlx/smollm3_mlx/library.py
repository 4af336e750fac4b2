"""Calls of mlx and mlx-lm. Imported only if they are installed."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from smollm3_finetune.api import MissingRequirementError, ModelError
from smollm3_mlx.installed import INSTALL

try:
    import mlx.core as mx
    from mlx.utils import tree_flatten
    from mlx_lm.utils import load_model, quantize_model
except (ImportError, OSError, ValueError) as e:
    raise MissingRequirementError(f"mlx-lm cannot be imported: {e}", hint=INSTALL) from e


@contextlib.contextmanager
def quiet_cpu() -> Iterator[None]:
    """Compute on the CPU, and print nothing."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()), mx.stream(mx.cpu):
        yield


def quantized(dense: Path, config: dict[str, Any], bits: int, group_size: int) -> tuple[dict[str, Tensor], Any]:
    """The tensors and the config of the model in `dense`, quantized by mlx-lm.

    Raises ModelError if mlx-lm cannot load it.
    """
    with quiet_cpu():
        try:
            model, _ = load_model(dense)
            model, config = quantize_model(model, config, group_size, bits)
        except Exception as e:  # mlx-lm and its models raise any
            raise ModelError(f"mlx-lm cannot quantize the model: {first_line(e)}") from e
        pairs: Any = tree_flatten(model.parameters())
        return {name: to_torch(array) for name, array in pairs}, config


def requantized(weight: Tensor, bits: int, group_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, scales and biases that mlx finds for a weight."""
    with quiet_cpu():
        codes, scales, biases = mx.quantize(to_mlx(weight), group_size=group_size, bits=bits)
        return to_torch(codes), to_torch(scales), to_torch(biases)


def dequantized(stored: Mapping[str, Tensor], name: str, bits: int, group_size: int) -> Tensor:
    """The weight `name` of an export in float32: dequantized if it has scales."""
    layer, tensor = name.removesuffix(".weight"), stored[name]
    if f"{layer}.scales" not in stored:
        return tensor.float()
    with quiet_cpu():
        scales, biases = (to_mlx(stored[f"{layer}.{part}"].float()) for part in ("scales", "biases"))
        return to_torch(mx.dequantize(to_mlx(tensor), scales, biases, group_size=group_size, bits=bits))


def logits(directory: Path, rows: Sequence[Sequence[int]], *, exact: bool) -> Tensor:
    """The logits that mlx-lm computes, (positions, V), float32: in the model's dtype, or with `exact` in float32.

    Raises ModelError if mlx-lm does not load the directory.
    """
    with quiet_cpu():
        try:
            model, _ = load_model(directory)
            if exact:
                model.set_dtype(mx.float32)
            found = [to_torch(model(mx.array([list(row)]))[0].astype(mx.float32)) for row in rows]
        except Exception as e:  # mlx-lm and its models raise any
            raise ModelError(f"mlx-lm cannot compute the model: {first_line(e)}") from e
    return torch.cat(found)


def to_torch(array: Any) -> Tensor:
    import numpy as np

    if array.dtype == mx.bfloat16:
        return torch.from_numpy(np.array(array.view(mx.uint16))).view(torch.bfloat16)
    return torch.from_numpy(np.array(array))


def to_mlx(tensor: Tensor) -> Any:
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        return mx.array(tensor.view(torch.uint16).numpy()).view(mx.bfloat16)
    return mx.array(tensor.numpy())


def first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
