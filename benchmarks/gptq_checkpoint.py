"""Converts a dense checkpoint to a GPTQ checkpoint, in NumPy, by rounding to nearest: takes a second, no gptqmodel.

The compatibility figures compare computations on the same weights, so the quality of the weights does not matter.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

BITS, GROUP = 4, 32
MIDDLE = 2 ** (BITS - 1)


def pack(codes: np.ndarray) -> np.ndarray:
    """Pack codes (n, m) into int32 (BITS n / 32, m), low bits first."""
    stream = np.stack([(codes >> k) & 1 for k in range(BITS)], axis=1).reshape(-1, codes.shape[1])
    as_bytes = np.packbits(stream.T.astype(np.uint8), axis=1, bitorder="little")
    return np.ascontiguousarray(np.ascontiguousarray(as_bytes).view("<i4").T)


def write_checkpoint(dense: Path, out: Path) -> Path:
    """Write the quantized checkpoint of the model in `dense`, including the tokenizer, into `out`."""
    shutil.copytree(dense, out, dirs_exist_ok=True)
    tensors = load_file(out / "model.safetensors")
    for name in [n for n in tensors if n.endswith("_proj.weight")]:
        weight = tensors.pop(name).astype(np.float32).T  # (in, out)
        rows, columns = weight.shape
        groups = weight.reshape(-1, GROUP, columns)
        scales = (np.abs(groups).max(axis=1) / (MIDDLE - 1)).astype(np.float16)  # (groups, out)
        index = np.arange(rows) // GROUP
        codes = np.clip(np.round(weight / scales[index].astype(np.float32)) + MIDDLE, 0, 2**BITS - 1).astype(np.int64)
        zeros = np.full(scales.shape, MIDDLE - 1)  # the layout `gptq` stores each zero point minus one
        layer = name.removesuffix(".weight")
        tensors[f"{layer}.qweight"] = pack(codes)
        tensors[f"{layer}.qzeros"] = np.ascontiguousarray(pack(zeros.T).T)
        tensors[f"{layer}.scales"] = scales
        tensors[f"{layer}.g_idx"] = index.astype(np.int32)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    about = json.loads((out / "config.json").read_text(encoding="utf-8"))
    about["quantization_config"] = {
        "quant_method": "gptq", "bits": BITS, "group_size": GROUP, "desc_act": False, "sym": True,
        "checkpoint_format": "gptq",
    }  # fmt: skip
    (out / "config.json").write_text(json.dumps(about), encoding="utf-8")
    return out
