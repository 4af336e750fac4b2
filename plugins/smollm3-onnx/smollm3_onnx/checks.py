"""The checks of an export: the graph, its weights, the files beside it, and what ONNX Runtime computes."""

from __future__ import annotations

import filecmp
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smollm3_finetune.api import Check, Exported, ModelError, evaluating, same_bits
from smollm3_onnx.graph import DATA, FILE

if TYPE_CHECKING:
    from torch import Tensor

LIMIT = 1e-5
"""The largest relative difference of logits between ONNX Runtime and transformers."""
INSTALL = "pip install onnxruntime"


def installed() -> str | None:
    """The version of ONNX Runtime; None if it is not installed."""
    try:
        return version("onnxruntime")
    except PackageNotFoundError:
        return None


def check_graph(out: Path) -> Check:
    """onnx's own checker accepts the file."""
    import onnx

    try:
        if not (out / DATA).is_file():
            return Check(name="graph", passed=False, says=f"{DATA} is missing")
        onnx.checker.check_model(str(out / FILE))
        opset = {o.domain or "ai.onnx": o.version for o in onnx.load(out / FILE, load_external_data=False).opset_import}
    except Exception as e:  # protobuf and onnx raise any for a damaged file
        return Check(name="graph", passed=False, says=f"{FILE} is not a valid ONNX file: {first_line(e)}")
    return Check(name="graph", passed=True, says=f"onnx.checker accepts it (opset {opset.get('ai.onnx')})")


def check_files(files: Sequence[Path], out: Path) -> Check:
    """Config, tokenizer and generation config have the bytes of the model's."""
    odd = [f.name for f in files if not (out / f.name).is_file() or not filecmp.cmp(f, out / f.name, shallow=False)]
    says = f"{odd[0]} is not the model's" if odd else f"{len(files)} files are the model's, byte for byte"
    return Check(name="tokenizer", passed=not odd, says=says, figures={"files": len(files)})


def stored_weights(out: Path) -> dict[str, Tensor]:
    """Name to tensor of the initializers of the graph that have several values. Raises ModelError if damaged."""
    import onnx_ir
    import torch

    try:
        graph = onnx_ir.load(out / FILE).graph
        return {
            name: torch.from_numpy(value.const_value.numpy().copy())
            for name, value in graph.initializers.items()
            if value.const_value is not None and value.const_value.size > 1
        }
    except Exception as e:  # protobuf and onnx_ir raise any for a damaged file
        raise ModelError(f"{FILE} cannot be read: {first_line(e)}") from e


def check_weights(subject: Exported, out: Path) -> Check:
    """Each parameter and buffer of the model is in the graph, bit for bit; of tied ones, one."""
    import torch

    def failed(says: str) -> Check:
        return Check(name="weights", passed=False, says=says)

    try:
        found = stored_weights(out)
    except ModelError as e:
        return failed(e.message)
    model: Any = subject.model.load(dtype=torch.float32)
    places: dict[int, list[str]] = {}
    for name, value in (*model.named_parameters(remove_duplicate=False), *model.named_buffers()):
        places.setdefault(value.data_ptr(), []).append(name)
    state = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers())
    for names in places.values():
        stored = [name for name in names if name in found]
        if not stored and isinstance(state[names[0]], torch.nn.Parameter):
            return failed(f"the graph has no weight {names[0]}")
        for name in stored:
            if not same_bits(found[name], state[name]):
                return failed(f"the values of {name} differ from the model's")
    count = sum(any(name in found for name in names) for names in places.values())
    return Check(
        name="weights",
        passed=True,
        says=f"{count} tensors equal the model's in float32, bit for bit",
        figures={"tensors": count},
    )


def check_logits(subject: Exported, out: Path) -> Check:
    """ONNX Runtime computes what transformers computes: whole rows, rows in two parts, and a padded batch of two."""
    if (ort := installed()) is None:
        return Check(name="onnxruntime", passed=None, says=f"ONNX Runtime is not installed: {INSTALL}")
    import torch

    from smollm3_onnx.runtime import Session

    rows = [list(row) for row in subject.prompts()]
    model: Any = subject.model.load(dtype=torch.float32)
    with evaluating(model), torch.no_grad():
        wanted = [model(input_ids=torch.tensor([row]), use_cache=False).logits[0] for row in rows]
    scale = torch.cat(wanted).norm()
    try:
        session = Session(out / FILE)
        alone = [session.row(row) for row in rows]
        cached = [session.row(row, first=max(1, len(row) // 2)) for row in rows]
        short, long = rows[0][: max(1, len(rows[0]) // 2)], rows[-1]  # of two lengths
        padded = session.pair(short, long)
    except Exception as e:  # ONNX Runtime raises classes of its own
        return Check(name="onnxruntime", passed=False, says=f"ONNX Runtime cannot run it: {first_line(e)}")
    pair = torch.cat([wanted[0][: len(short)], wanted[-1]])
    figures = {
        "whole rows": float((torch.cat(alone) - torch.cat(wanted)).norm() / scale),
        "with the cache": float((torch.cat(cached) - torch.cat(wanted)).norm() / scale),
        "padded batch": float((padded - pair).norm() / pair.norm()),
    }
    passed = all(value <= LIMIT for value in figures.values())
    said = ", ".join(f"{value:.1e} for {name}" for name, value in figures.items())
    return Check(
        name="onnxruntime",
        passed=passed,
        says=f"ONNX Runtime's logits differ from transformers' by {said} (limit {LIMIT:.0e})",
        figures={**figures, "limit": LIMIT, "positions": sum(map(len, rows)), "version": ort},
    )


def first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
