"""AWQ of the version gemm in NumPy, from its description: no code of the plugin.

Source: AutoAWQ's `WQLinear_GEMM`. `qweight` int32 (in, out / 8), `qzeros` int32 (groups, out / 8), `scales` float16
(groups, out). A word holds the codes of eight neighboring outputs, four bits each, from the lowest bits: the outputs
0, 2, 4, 6, 1, 3, 5, 7. The weight of output o and input i in group g is scales[g, o] · (code − zero).
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

ORDER = [0, 2, 4, 6, 1, 3, 5, 7]


def pack(codes: np.ndarray) -> np.ndarray:
    """Codes (n, m · 8) to int32 words (n, m)."""
    eights = codes.reshape(len(codes), -1, 8).astype(np.uint32)
    words = np.zeros(eights.shape[:2], np.uint32)
    for place, column in enumerate(ORDER):
        words |= eights[:, :, column] << np.uint32(4 * place)
    return words.view(np.int32)


def unpack(words: np.ndarray) -> np.ndarray:
    """The inverse of `pack`, by the bits of each byte."""
    halves = np.ascontiguousarray(words).astype("<i4").view(np.uint8)
    places = np.stack([halves & 15, halves >> 4], -1).reshape(*words.shape, 8)
    codes = np.empty_like(places)
    codes[:, :, ORDER] = places
    return codes.reshape(len(words), -1)


def weights(directory: Path) -> dict[str, np.ndarray]:
    """The weight (out, in) of each quantized layer in float32, read only from the files."""
    tensors = {n: t for file in directory.glob("*.safetensors") for n, t in load_file(file).items()}
    found = {}
    for layer in [n.removesuffix(".qweight") for n in tensors if n.endswith(".qweight")]:
        codes = unpack(tensors[f"{layer}.qweight"]).astype(np.float32)  # (in, out)
        scales, zeros = tensors[f"{layer}.scales"].astype(np.float32), unpack(tensors[f"{layer}.qzeros"])
        size = len(codes) // len(scales)
        for i in range(len(codes)):
            codes[i] = (codes[i] - zeros[i // size]) * scales[i // size]
        found[layer] = codes.T
    return found


def rounded_checkpoint(out: Path, dense: Path, group: int = 32, **about: Any) -> Path:
    """The model in `dense` with its linear layers rounded to the nearest of 16 codes in each group."""
    shutil.copytree(dense, out)
    tensors = load_file(out / "model.safetensors")
    for name in [n for n in tensors if n.endswith("_proj.weight")]:
        groups = tensors.pop(name)
        groups = groups.reshape(len(groups), -1, group)  # (out, groups, size)
        low, high = groups.min(-1).clip(max=0), groups.max(-1).clip(min=0)
        scales = ((high - low) / 15).astype(np.float16)
        steps = scales.astype(np.float32)
        zeros = np.rint(-low / steps).clip(0, 15)
        codes = np.rint(groups / steps[..., None] + zeros[..., None]).clip(0, 15).reshape(len(groups), -1)
        layer = name.removesuffix(".weight")
        tensors[f"{layer}.qweight"] = pack(codes.T.astype(np.int64))
        tensors[f"{layer}.qzeros"] = pack(zeros.T.astype(np.int64))
        tensors[f"{layer}.scales"] = np.ascontiguousarray(scales.T)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((out / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "awq", "version": "gemm", "bits": 4, "group_size": group, "zero_point": True, **about,
    }  # fmt: skip
    (out / "config.json").write_text(json.dumps(config))
    return out
