"""The checks of an export: tensors, files, and the logits that mlx-lm computes."""

from __future__ import annotations

import filecmp
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smollm3_finetune.api import (
    Check,
    Exported,
    MissingRequirementError,
    ModelError,
    StoredTensors,
    evaluating,
    model_files,
    open_checkpoint,
    read_json,
    same_bits,
)
from smollm3_mlx.config import mlx_config
from smollm3_mlx.installed import INSTALL, installed
from smollm3_mlx.options import MlxOptions

if TYPE_CHECKING:
    from torch import Tensor

LIMIT = 2e-5
"""The largest relative difference of logits if mlx-lm computes in float32."""
IN_DTYPE = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}
"""The same if it computes in the dtype of the files."""
SLOW = 16
"""Positions that are computed in that dtype, or quantized: mlx has no fast kernels for them on a CPU."""


def check_weights(subject: Exported, out: Path, options: MlxOptions, rounded: Callable[[str, Tensor], Tensor]) -> Check:
    """Every tensor equals the model's in the dtype, or what mlx quantizes it to, bit for bit."""

    def failed(says: str) -> Check:
        return Check(name="weights", passed=False, says=says)

    try:
        wanted, found = open_checkpoint(subject.model), StoredTensors(out)
        names, error, count = set(found), 0.0, 0
        for name in sorted(wanted):
            weight, layer = rounded(name, wanted[name]), name.removesuffix(".weight")
            if options.bits is not None and f"{layer}.scales" in found:
                from smollm3_mlx.library import dequantized, requantized

                parts = (name, f"{layer}.scales", f"{layer}.biases")
                expected = dict(zip(parts, requantized(weight, options.bits, options.group_size), strict=True))
                back = dequantized(found, name, options.bits, options.group_size)
                error = max(error, float((back - weight.float()).norm() / weight.float().norm().clamp(min=1e-30)))
                count += 1
            else:
                expected = {name: weight}
            for part, tensor in expected.items():
                if part not in found:
                    return failed(f"the files lack {part}")
                if not same_bits(found[part], tensor):
                    return failed(f"the values of {part} differ from the model's")
                names.discard(part)
    except ModelError as e:
        return failed(e.message)
    if names:
        return failed(f"the model has no tensor {min(names)}")
    if options.bits is None:
        says = f"{len(wanted)} tensors equal the model's in {options.dtype}, bit for bit"
        return Check(name="weights", passed=True, says=says, figures={"tensors": len(wanted)})
    return Check(
        name="weights",
        passed=True,
        says=f"{count} weights equal what mlx quantizes the model's to, bit for bit; the others are the model's",
        figures={"quantized": count, "largest relative error": error},
    )


def check_files(subject: Exported, out: Path, options: MlxOptions) -> Iterator[Check]:
    """The config is the model's, and the files beside it have the same bytes."""
    try:
        found = read_json(out / "config.json")
    except (ModelError, OSError) as e:
        yield Check(name="config", passed=False, says=f"config.json cannot be read: {e}")
    else:
        found = {k: v for k, v in found.items() if k not in ("quantization", "quantization_config")}
        wanted = {**mlx_config(subject.model.config), "dtype": options.dtype}
        odd = sorted(k for k in {*found, *wanted} if found.get(k) != wanted.get(k))
        says = f"{odd[0]} of config.json is not the model's" if odd else "config.json states the model's values"
        yield Check(name="config", passed=not odd, says=says)
    files = model_files(subject.model.path)
    same = [f.name for f in files if (out / f.name).is_file() and filecmp.cmp(f, out / f.name, shallow=False)]
    odd = sorted({f.name for f in files} - set(same))
    says = f"{odd[0]} is not the model's" if odd else f"{len(files)} files are the model's: {', '.join(same)}"
    yield Check(name="tokenizer", passed=not odd, says=says, figures={"files": len(files)})


def check_logits(subject: Exported, out: Path, options: MlxOptions, reload: Callable[[], Any]) -> Check:
    """mlx-lm loads the directory, and computes what transformers computes with the same weights."""
    missing = None if installed() else "mlx-lm is not installed"
    try:
        if missing is None:
            from smollm3_mlx import library
    except MissingRequirementError as e:
        missing = e.message
    if missing is not None:
        return Check(name="mlx-lm", passed=None, says=f"{missing}: {INSTALL}")
    import torch

    rows = [list(row) for row in subject.prompts()]
    few = [rows[0][:SLOW]]
    rows = rows if options.bits is None else few
    model = reload()
    with evaluating(model), torch.no_grad():
        ids = [torch.tensor([list(row)], device=model.device) for row in rows]
        wanted = torch.cat([model(input_ids=row, use_cache=False).logits[0].float().cpu() for row in ids])
    try:
        exact, served = library.logits(out, rows, exact=True), library.logits(out, few, exact=False)
    except ModelError as e:
        return Check(name="mlx-lm", passed=False, says=e.message)
    difference, in_dtype = apart(exact, wanted), apart(served, wanted[: len(served)])
    limit = IN_DTYPE[options.dtype]
    return Check(
        name="mlx-lm",
        passed=difference <= LIMIT and in_dtype <= limit,
        says=f"mlx-lm's logits differ from transformers' by {difference:.1e} in float32 (limit {LIMIT:.0e}), and by "
        f"{in_dtype:.1e} in {options.dtype} (limit {limit:.0e})",
        figures={
            "difference": difference, "limit": LIMIT, "in dtype": in_dtype, "limit in dtype": limit,
            "positions": len(wanted), "version": installed(),
        },
    )  # fmt: skip


def apart(found: Tensor, wanted: Tensor) -> float:
    """The norm of the difference, divided by the norm of the wanted values."""
    return float((found - wanted).norm() / wanted.norm())
