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
from functools import cached_property
from pathlib import Path
from typing import Any

from smollm3_finetune.api import ConfigError, IncompatibleError, ModelError, ModelSource, given, open_tensors, read_json
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
    bias: bool
    """Whether the layer has a nonzero bias; AutoGPTQ writes zeros for layers without bias."""


@dataclass(frozen=True)
class Checkpoint:
    """A GPTQ checkpoint on disk."""

    directory: Path
    description: Mapping[str, Any]
    zeros_less_one: bool
    files: tuple[Path, ...]

    def layers(self) -> dict[str, Layer]:
        """The quantized layers by name, from the headers of the files. Raises ModelError if one is incomplete."""
        shapes: dict[str, list[int]] = {}
        biased: set[str] = set()
        for file in self.files:
            with open_tensors(file) as tensors:
                names = list(tensors.keys())
                quantized = {n.removesuffix(".qweight") for n in names if n.endswith(".qweight")}
                for name in names:
                    layer, _, part = name.rpartition(".")
                    if part in PARTS:
                        shapes[name] = tensors.get_slice(name).get_shape()
                    elif part == "bias" and layer in quantized and bool(tensors.get_tensor(name).any()):
                        biased.add(layer)
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
            found[layer] = Layer(in_features, out_features, width, layer in biased)
        if not found:
            raise ModelError(f"{self.directory} is described as a GPTQ checkpoint, but contains no quantized layer")
        return found

    def tensors(self, layer: str) -> dict[str, Any]:
        """The tensors of one quantized layer by part; g_idx is generated if it is not stored."""
        import torch

        parts = {part: t for part in PARTS if (t := self._tensor(f"{layer}.{part}")) is not None}
        if "g_idx" not in parts:
            size = int(self.description["group_size"])
            features = len(parts["qweight"]) * WORD // int(self.description["bits"])
            parts["g_idx"] = torch.arange(features, dtype=torch.int32) // (size if size > 0 else features)
        return parts

    def bias(self, layer: str) -> Any:
        """The bias of one quantized layer, or None."""
        return self._tensor(f"{layer}.bias")

    def _tensor(self, name: str) -> Any:
        file = self._file_of.get(name)
        if file is None:
            return None
        with open_tensors(file) as tensors:
            return tensors.get_tensor(name)

    @cached_property
    def _file_of(self) -> dict[str, Path]:
        found = {}
        for file in self.files:
            with open_tensors(file) as tensors:
                found.update(dict.fromkeys(tensors.keys(), file))
        return found


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
    return Checkpoint(directory, description, FORMATS[_layout(description)], _weight_files(directory))


def _weight_files(directory: Path) -> tuple[Path, ...]:
    """The weight files of the checkpoint: the files in its index, its numbered parts, or a single file.

    Raises ModelError if there are none, if a file in the index is missing, or if there are several sets of files.
    """
    files = tuple(sorted(directory.glob("*.safetensors")))
    if not files:
        raise ModelError(
            f"{directory} contains no weights (*.safetensors)",
            hint="convert pickled weights (.bin or .pt) to safetensors first",
        )
    indexes = sorted(directory.glob("*.safetensors.index.json"))
    if len(indexes) == 1:
        named = {directory / name for name in _weight_map(indexes[0]).values()}
        if missing := sorted(f.name for f in named if not f.is_file()):
            raise ModelError(f"{indexes[0]} names {missing[0]}, which does not exist", hint="copy or download it again")
        return tuple(sorted(named))
    sets = {PART.sub("", f.name) for f in files}
    if len(sets) > 1 or len(indexes) > 1:
        names = ", ".join(f.name for f in (indexes or files)[:4])
        raise ModelError(
            f"{directory} contains more than one set of weights: {names}",
            hint="move all but one of them out of the directory",
        )
    return files


def _weight_map(index: Path) -> dict[str, str]:
    """The map from tensor to file in the index of a checkpoint. Raises ModelError if the index is invalid."""
    stated = read_json(index).get("weight_map")
    if not isinstance(stated, dict) or not all(isinstance(v, str) and Path(v).name == v for v in stated.values()):
        raise ModelError(f"{index} has no weight_map from tensors to files", hint="copy or download it again")
    return stated


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
        for file in checkpoint.files:
            (shown / _usual_name(file.name)).symlink_to(file.resolve())
        for index in original.glob("*.safetensors.index.json"):
            (shown / index.name).unlink(missing_ok=True)
            weight_map = {k: _usual_name(v) for k, v in _weight_map(index).items()}
            target = shown / "model.safetensors.index.json"
            target.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}), encoding="utf-8")
        yield shown


def _usual_name(file: str) -> str:
    """The name that transformers expects for a weight file."""
    part = PART.search(file)
    return f"model{part[0]}" if part else "model.safetensors"
