"""Read the description and the tensors of GPTQ checkpoints, of formats v1 and v2, by gptqmodel, AutoGPTQ or optimum.

Checkpoints written by AutoGPTQ have their description in `quantize_config.json`, or weights with a name such as
`gptq_model-4bit-128g.safetensors`; neither transformers nor gptqmodel can load these. `view` presents any checkpoint
under the names that transformers expects, with links in a temporary directory. The original is not changed.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smollm3_finetune.api import (
    ConfigError,
    IncompatibleError,
    ModelError,
    ModelSource,
    StoredTensors,
    given,
    read_json,
)
from smollm3_gptq.options import GPTQOptions

DESCRIPTION = "quantize_config.json"
PARTS = ("qweight", "qzeros", "scales", "g_idx")
FORMATS = {"gptq": True, "gptq_v2": False}
"""Name of a format to whether it stores each zero point minus one."""
WORD = 32
PART = re.compile(r"-\d{5}-of-\d{5}\.safetensors$")
"""The end of the name of a weight file that is one of several."""


@dataclass(frozen=True)
class Layer:
    """One quantized layer of a checkpoint."""

    in_features: int
    out_features: int
    bits: int


@dataclass(frozen=True)
class Checkpoint:
    """A GPTQ checkpoint on disk."""

    stored: StoredTensors
    description: Mapping[str, Any]
    zeros_less_one: bool

    @property
    def directory(self) -> Path:
        return self.stored.directory

    def layers(self) -> dict[str, Layer]:
        """The quantized layers by name, from the headers of the files. Raises ModelError if one is incomplete."""
        shapes = {name: list(header.shape) for name, header in self.stored.headers.items()}
        found = {}
        for layer in sorted(n.removesuffix(".qweight") for n in shapes if n.endswith(".qweight")):
            missing = [p for p in PARTS[:3] if f"{layer}.{p}" not in shapes]
            if missing:
                raise ModelError(f"{self.directory}: the quantized layer {layer} has no {', '.join(missing)}")
            if any(len(shapes[f"{layer}.{p}"]) != 2 for p in PARTS[:3]):
                raise ModelError(
                    f"{self.directory}: the quantized layer {layer} contains tensors that are not matrices"
                )
            words, out_features = shapes[f"{layer}.qweight"]
            bits = int(self.description["bits"])
            in_features = shapes[f"{layer}.g_idx"][0] if f"{layer}.g_idx" in shapes else words * WORD // bits
            width = words * WORD // in_features if in_features else 0
            groups = shapes[f"{layer}.scales"][0]
            wanted = {"scales": [groups, out_features], "qzeros": [groups, -(-out_features * width // WORD)]}
            for part, shape in wanted.items():
                if shapes[f"{layer}.{part}"] != shape:
                    has = " by ".join(map(str, shapes[f"{layer}.{part}"]))
                    raise ModelError(
                        f"{self.directory}: {part} of {layer} is {has}, but must be {' by '.join(map(str, shape))}"
                    )
            found[layer] = Layer(in_features, out_features, width)
        if not found:
            raise ModelError(f"{self.directory} is described as a GPTQ checkpoint, but contains no quantized layer")
        return found

    def tensors(self, stored: Mapping[str, Any]) -> dict[str, Any]:
        """The tensors of one quantized layer by part, of those that are `stored`; g_idx is generated if it is not."""
        import torch

        parts = {part: stored[part] for part in PARTS if part in stored}
        if "g_idx" not in parts:
            size = int(self.description["group_size"])
            features = len(parts["qweight"]) * WORD // int(self.description["bits"])
            parts["g_idx"] = torch.arange(features, dtype=torch.int32) // (size if size > 0 else features)
        return parts


def described(source: ModelSource) -> Mapping[str, Any] | None:
    """The quantization config of a checkpoint; None if the checkpoint is full-precision. Reads no weights.

    Raises IncompatibleError if another method quantized it, or if it is packed for one kernel.
    """
    stored = source.config.get("quantization_config")
    if stored is None and source.has_file(DESCRIPTION):
        stored = read_json(source.path / DESCRIPTION)
    if stored is None:
        return None
    method = stored.get("quant_method", "gptq") if isinstance(stored, Mapping) else None
    if not isinstance(stored, Mapping) or method != "gptq":
        raise IncompatibleError(
            f"gptq cannot load {source.ref!r}: its weights are already quantized by {method}",
            hint="leave --quant out to load it as it is, or use a full-precision checkpoint",
        )
    layout = _layout(stored)
    if stored.get("is_marlin_format") or layout not in FORMATS:
        packing = layout if layout not in FORMATS else "marlin"
        raise IncompatibleError(
            f"gptq cannot load {source.ref!r}: its weights are packed as {packing}, which only one kernel can read",
            hint="use the checkpoint of format gptq from which it was converted",
        )
    if (packed := str(stored.get("pack_dtype", "int32"))) != "int32":
        raise IncompatibleError(f"gptq cannot load {source.ref!r}: its codes are packed in {packed}, not in int32")
    wrong = [_wrong_number(key, stored) for key in ("bits", "group_size")]
    if not any(wrong) and stored["bits"] not in (2, 3, 4, 8):
        wrong = [f"bits is {stored['bits']}, not 2, 3, 4 or 8"]
    if not any(wrong) and (stored["group_size"] == 0 or stored["group_size"] < -1):
        wrong = [f"group_size is {stored['group_size']}, neither -1 nor a number of features"]
    if what := next(filter(None, wrong), None):
        raise ModelError(f"gptq cannot load {source.ref!r}: in its quantization config, {what}")
    return stored


def _wrong_number(key: str, stored: Mapping[str, Any]) -> str | None:
    if stored.get(key) is None:
        return f"{key} is missing"
    if not isinstance(stored[key], int) or isinstance(stored[key], bool):
        return f"{key} is {json.dumps(stored[key])}, not an integer"
    return None


def _layout(stored: Mapping[str, Any]) -> str:
    """The name of the format; early AutoGPTQ checkpoints do not state it."""
    return str(stored.get("checkpoint_format") or stored.get("format") or "gptq")


def refuse_contradictions(source: ModelSource, stored: Mapping[str, Any], options: GPTQOptions) -> None:
    """Raises ConfigError if an option that was set contradicts the quantized checkpoint."""
    defaults = {"desc_act": False, "sym": True}
    wrong = []
    for key in ("bits", "group_size", "desc_act", "sym"):
        asked, has = getattr(options, key), stored.get(key, defaults.get(key))
        if key in given(options) and asked is not None and asked != has:
            wrong.append(f"{key} is {json.dumps(asked)}, but the checkpoint has {json.dumps(has)}")
    if wrong:
        raise ConfigError(
            f"gptq: {source.ref!r} is already quantized and cannot be quantized again: {'; '.join(wrong)}",
            hint="leave the option out, or use a full-precision checkpoint",
        )


def open_checkpoint(directory: Path, description: Mapping[str, Any]) -> Checkpoint:
    """The checkpoint in a directory. Raises ModelError if it contains no weights in safetensors files."""
    return Checkpoint(StoredTensors(directory), description, FORMATS[_layout(description)])


@contextmanager
def view(checkpoint: Checkpoint, quantization_config: Mapping[str, Any]) -> Iterator[Path]:
    """A directory that presents the checkpoint under transformers' names, with another `quantization_config`."""
    with tempfile.TemporaryDirectory(prefix="smollm3-gptq-") as name:
        shown = Path(name)
        original = checkpoint.directory.resolve()
        for file in original.iterdir():
            if file.suffix in (".json", ".jinja", ".model", ".txt", ".py") and file.name != "config.json":
                (shown / file.name).symlink_to(file)
        config = read_json(original / "config.json")
        config["quantization_config"] = dict(quantization_config)
        (shown / "config.json").write_text(json.dumps(config), encoding="utf-8")
        for file in checkpoint.stored.files:
            (shown / _usual_name(file.name)).symlink_to(file.resolve())
        for index in shown.glob("*.safetensors.index.json"):
            index.unlink()
        if len(checkpoint.stored.files) > 1:
            files = {name: _usual_name(header.file.name) for name, header in checkpoint.stored.headers.items()}
            target = shown / "model.safetensors.index.json"
            target.write_text(json.dumps({"metadata": {}, "weight_map": files}), encoding="utf-8")
        yield shown


def _usual_name(file: str) -> str:
    """The name that transformers expects for a weight file."""
    part = PART.search(file)
    return f"model{part[0]}" if part else "model.safetensors"
