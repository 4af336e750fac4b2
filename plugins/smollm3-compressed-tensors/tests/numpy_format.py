"""The format compressed-tensors in NumPy, from its description: no code of the plugin, and no torch but to read files.

Source: https://github.com/vllm-project/compressed-tensors, and the tensors of its checkpoints:

* `pack-quantized`: `weight_packed` int32 (out, words): a row of codes as one bit stream, low bits first; a code is the
  integer plus half of its range. `weight_shape`, `weight_scale` (out, groups), and with zero points `weight_zero_point`
  int32 (words, groups), a stream down each column. `weight_g_idx` (in,) names the group of each column.
* `int-quantized`, `float-quantized`, `naive-quantized`: `weight` int8 or FP8 (out, in), and `weight_scale` (1,),
  (out, 1) or blocks.
* `nvfp4-pack-quantized`: `weight_packed` uint8 (out, in / 2), the low half first; `weight_scale` FP8 (out, in / 16),
  divided by `weight_global_scale` (1,).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

HALVES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)


def fp8(bits: np.ndarray) -> np.ndarray:
    """The values of FP8 E4M3: a sign, four bits of exponent with bias 7, three of fraction; 0x7f is not a number."""
    exponent, fraction = (bits >> 3) & 15, (bits & 7).astype(np.float64)
    value = np.where(exponent == 0, fraction / 8 * 2.0**-6, (1 + fraction / 8) * 2.0 ** (exponent.astype(int) - 7))
    assert not ((bits & 127) == 127).any()
    return np.where(bits & 128, -value, value).astype(np.float32)


def stream(words: np.ndarray, bits: int, count: int) -> np.ndarray:
    """Codes (rows, count) from the bit streams in the rows of `words`."""
    as_bits = np.unpackbits(np.ascontiguousarray(words).astype("<i4").view(np.uint8), axis=1, bitorder="little")
    pieces = as_bits[:, : count * bits].reshape(len(words), count, bits)
    return (pieces * (1 << np.arange(bits))).sum(-1) - (1 << (bits - 1))


def arrays(directory: Path) -> dict[str, np.ndarray]:
    """Every tensor; FP8 as its bytes, bfloat16 as float32."""
    found = {}
    for file in directory.glob("*.safetensors"):
        for name, tensor in load_file(file).items():
            if tensor.dtype == torch.float8_e4m3fn:
                tensor = tensor.view(torch.uint8)
            found[name] = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return found


def weights(directory: Path, bits: int, block: tuple[int, int] | None = None) -> dict[str, np.ndarray]:
    """The weight (out, in) of each quantized layer in float32, read only from the files."""
    tensors, found = arrays(directory), {}
    for layer in sorted(n.removesuffix(".weight_scale") for n in tensors if n.endswith(".weight_scale")):
        part = {n.removeprefix(f"{layer}."): t for n, t in tensors.items() if n.startswith(f"{layer}.")}
        scale, zero, packed = part["weight_scale"], part.get("weight_zero_point"), part.get("weight_packed")
        if packed is not None and packed.dtype == np.int32:
            out, inputs = part["weight_shape"].tolist()
            codes = stream(packed, bits, inputs)
            if zero is not None:
                zero = stream(np.ascontiguousarray(zero.T), bits, out).T
        elif packed is not None:
            nibbles = np.stack([packed & 15, packed >> 4], -1).reshape(len(packed), -1)
            codes = np.where(nibbles & 8, -HALVES[nibbles & 7], HALVES[nibbles & 7])
            scale = fp8(scale) / part["weight_global_scale"].astype(np.float32)
        else:
            codes = part["weight"] if part["weight"].dtype == np.int8 else fp8(part["weight"])
        index = part.get("weight_g_idx")
        scale = scale.reshape(-1, 1) if scale.ndim < 2 else scale
        rows = np.arange(len(codes)) // block[0] if block else np.arange(len(codes)) * (len(scale) > 1)
        columns = np.arange(codes.shape[1])
        group = index if index is not None else columns // (block[1] if block else codes.shape[1] // scale.shape[1])
        less = 0 if zero is None else zero.astype(np.float32)[np.ix_(rows, group)]
        found[layer] = (codes.astype(np.float32) - less) * scale.astype(np.float32)[np.ix_(rows, group)]
    return found
