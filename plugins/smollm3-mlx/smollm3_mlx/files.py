"""The files of an export: config, tokenizer and tensors."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smollm3_finetune.api import IncompatibleError

if TYPE_CHECKING:
    from torch import Tensor

SHARD_BYTES = 5_000_000_000
BESIDE = re.compile(
    r"(tokenizer|special_tokens|added_tokens|vocab|merges|generation_config|chat_template)[\w.-]*"
    r"\.(json|txt|model|jinja)|(LICENSE|NOTICE)[\w.-]*"
)
"""Files that are copied unchanged, by name."""


def mlx_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with every default of transformers, and RoPE under the keys that mlx-lm reads.

    transformers 5 states RoPE in `rope_parameters`, which most models of mlx-lm do not read: they would compute with
    a base of 10000.
    """
    from transformers import AutoConfig

    given = {k: v for k, v in config.items() if k not in ("model_type", "quantization_config", "torch_dtype")}
    try:
        made = AutoConfig.for_model(str(config.get("model_type")), **given)
    except ValueError as e:
        raise IncompatibleError(
            f"transformers has no model type {config.get('model_type')!r}", hint="smollm3 export --to safetensors"
        ) from e
    # `to_dict` writes values that JSON does not have, such as infinity, as texts.
    full: dict[str, Any] = json.loads(made.to_json_string(use_diff=False))
    rope = full.get("rope_parameters")
    if isinstance(rope, dict) and "rope_theta" in rope:
        full["rope_theta"] = rope["rope_theta"]
        kind = rope.get("rope_type", "default")
        full["rope_scaling"] = None if kind == "default" else {k: v for k, v in rope.items() if k != "rope_theta"}
        if "partial_rotary_factor" in rope:
            full["partial_rotary_factor"] = rope["partial_rotary_factor"]
    return full


def write_config(out: Path, config: Mapping[str, Any]) -> None:
    """Write `config.json`."""
    (out / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def write_tensors(out: Path, tensors: Iterator[tuple[str, Tensor]], size: int = SHARD_BYTES) -> None:
    """Write tensors into safetensors files of about `size` bytes; memory holds one file."""
    from safetensors.torch import save_file

    shards: list[list[str]] = []
    part: dict[str, Tensor] = {}

    def save() -> None:
        save_file(part, out / f"{len(shards)}.partial", metadata={"format": "mlx"})
        shards.append(list(part))
        part.clear()

    total = held = 0
    for name, tensor in tensors:
        if part and held + tensor.nbytes > size:
            save()
            held = 0
        part[name] = tensor.contiguous()
        held, total = held + tensor.nbytes, total + tensor.nbytes
    save()
    if len(shards) == 1:
        (out / "0.partial").rename(out / "model.safetensors")
        return
    files = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    for i, file in enumerate(files):
        (out / f"{i}.partial").rename(out / file)
    weight_map = {name: file for names, file in zip(shards, files, strict=True) for name in names}
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    text = json.dumps(index, indent=2, sort_keys=True)
    (out / "model.safetensors.index.json").write_text(text + "\n", encoding="utf-8")


def beside(directory: Path) -> list[Path]:
    """The files of a model that are copied unchanged."""
    return sorted(f for f in directory.iterdir() if f.is_file() and BESIDE.fullmatch(f.name))


def copy_beside(source: Path, out: Path) -> None:
    """Copy tokenizer, chat template, generation config and license."""
    for file in beside(source):
        shutil.copyfile(file, out / file.name)
