"""Write an AWQ checkpoint of a dense model in NumPy: rounded to the nearest code, in AutoAWQ's layout `gemm`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

GROUP, TOP = 32, 15
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""The outputs in a 32-bit word, from its lowest bits."""


def pack(codes: np.ndarray) -> np.ndarray:
    """Codes (n, m · 8) as int32 words (n, m)."""
    eights = codes.reshape(len(codes), -1, 8).astype(np.uint32)
    words = sum(eights[:, :, column] << np.uint32(4 * place) for place, column in enumerate(ORDER))
    return np.ascontiguousarray(words, np.uint32).view(np.int32)


def write_checkpoint(dense: Path, out: Path) -> Path:
    """Write the quantized checkpoint of the model in `dense`, including the tokenizer, into `out`."""
    shutil.copytree(dense, out, dirs_exist_ok=True)
    tensors = load_file(out / "model.safetensors")
    for name in [n for n in tensors if n.endswith("_proj.weight")]:
        weight = tensors.pop(name).astype(np.float32).T  # (in, out)
        groups = weight.reshape(-1, GROUP, weight.shape[1])
        low, high = groups.min(axis=1).clip(max=0), groups.max(axis=1).clip(min=0)
        scales = ((high - low) / TOP).astype(np.float16)  # (groups, out)
        zeros = np.rint(-low / scales.astype(np.float32)).clip(0, TOP)
        index = np.arange(len(weight)) // GROUP
        codes = np.rint(weight / scales[index].astype(np.float32) + zeros[index]).clip(0, TOP)
        layer = name.removesuffix(".weight")
        tensors |= {f"{layer}.qweight": pack(codes), f"{layer}.qzeros": pack(zeros), f"{layer}.scales": scales}
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    about = json.loads((out / "config.json").read_text(encoding="utf-8"))
    about["quantization_config"] = {
        "quant_method": "awq", "version": "gemm", "bits": 4, "group_size": GROUP, "zero_point": True,
    }  # fmt: skip
    (out / "config.json").write_text(json.dumps(about), encoding="utf-8")
    return out
