"""The mean of LoRA adapters, by stacking their factors.

Adapter i changes a weight by s_i B_i A_i. The mean of the changes is B A with A = [A_1; A_2; ...] and
B = [s_1 B_1, s_2 B_2, ...] / n, which has the sum of the ranks. The mean of the factors would be another matrix:
(B_1 + B_2)(A_1 + A_2) / 4 also has the products B_1 A_2 and B_2 A_1.
"""

from __future__ import annotations

import json
import math
import shutil
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smollm3_finetune.api import IncompatibleError, ModelError, load_parameters, read_json, save_parameters

if TYPE_CHECKING:
    from torch import Tensor

CONFIG, WEIGHTS, ABOUT = "adapter_config.json", "adapter_model.safetensors", "smollm3.json"
NOT_COPIED = (CONFIG, WEIGHTS, ABOUT, "README.md", "checksums.json")
METHODS = ("lora", "rslora")
A, B = ".lora_A.weight", ".lora_B.weight"
MORE_THAN_FACTORS = (
    "use_dora", "modules_to_save", "trainable_token_indices", "target_parameters", "rank_pattern", "alpha_pattern",
    "lora_bias", "layer_replication", "alora_invocation_tokens",
)  # fmt: skip
"""Fields of PEFT's config with which an adapter is more than a pair of factors for each layer."""
CHANGE_THE_BASE = ("pissa", "olora", "loftq", "eva", "corda", "lora_ga")
"""Initializations after which an adapter is not a change of the base as it was published."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """A saved LoRA adapter."""

    path: Path
    config: dict[str, Any]
    about: dict[str, Any]
    tensors: dict[str, Tensor]

    @property
    def layers(self) -> list[str]:
        return sorted(name.removesuffix(A) for name in self.tensors if name.endswith(A))

    @property
    def scale(self) -> float:
        rank = int(self.config["r"])
        return float(self.config["lora_alpha"]) / (math.sqrt(rank) if self.config.get("use_rslora") else rank)


def read(path: Path) -> Part:
    """Raises ModelError for a damaged adapter, IncompatibleError for one that has no exact mean of this form."""
    about, config = read_json(path / ABOUT), read_json(path / CONFIG)
    method = str((about.get("adapter") or {}).get("name")).rpartition(":")[2]
    if method not in METHODS:
        raise IncompatibleError(
            f"{path} is an adapter {method!r}, whose mean is not an adapter of the same form",
            hint="train the runs with smollm3 train --adapter lora",
        )
    fields = [name for name in MORE_THAN_FACTORS if config.get(name)]
    fields += ["bias"] if config.get("bias", "none") != "none" else []
    init = str(config.get("init_lora_weights")).lower()
    fields += [f"init_lora_weights={init}"] if init.startswith(CHANGE_THE_BASE) else []
    if fields:
        raise IncompatibleError(
            f"{path} has {', '.join(fields)}, with which its change of the base is more than a product of two factors",
            hint="train the runs without it",
        )
    part = Part(path=path, config=config, about=about, tensors=load_parameters(path / WEIGHTS))
    if {*part.tensors} != {f"{layer}{end}" for layer in part.layers for end in (A, B)}:
        raise ModelError(f"{path / WEIGHTS} has tensors that are not factors of linear layers")
    return part


def check_alike(parts: Sequence[Part]) -> None:
    """Raises IncompatibleError unless all adapters change the same layers of the same weights."""
    first = parts[0]
    for part in parts[1:]:
        if part.about.get("base_fingerprint") != first.about.get("base_fingerprint"):
            raise IncompatibleError(f"{part.path} and {first.path} were trained on different weights",
                                    hint="use runs of one model and one quantizer")  # fmt: skip
        if part.layers != first.layers:
            raise IncompatibleError(f"{part.path} and {first.path} change different layers",
                                    hint="use runs with the same target_modules")  # fmt: skip


def write_mean(parts: Sequence[Part], output: Path, advance: Callable[[], None]) -> int:
    """Write the adapter, all files or none, and return its rank."""
    import torch

    first, rank = parts[0], sum(int(part.config["r"]) for part in parts)
    mean: dict[str, Tensor] = {}
    for layer in first.layers:
        mean[layer + A] = torch.cat([part.tensors[layer + A].float() for part in parts], dim=0)
        scaled = [part.tensors[layer + B].float() * (part.scale / len(parts)) for part in parts]
        mean[layer + B] = torch.cat(scaled, dim=1)
        advance()
    name = first.about["adapter"]["name"].rpartition(":")[0] + ":lora"
    options = {**first.about["adapter"], "name": name, "rank": rank, "alpha": float(rank)}
    given = {**first.about.get("given", {}), "adapter": ["alpha", "rank"]}
    config = {**first.config, "r": rank, "lora_alpha": rank, "use_rslora": False}
    partial = output.with_name(f"{output.name}.partial-{uuid.uuid4().hex[:8]}")
    try:
        partial.mkdir(parents=True)
        for file in first.path.iterdir():
            if file.is_file() and file.name not in NOT_COPIED:
                shutil.copy2(file, partial / file.name)
        save_parameters(partial / WEIGHTS, mean)
        _write(partial / CONFIG, config)
        _write(partial / ABOUT, {**first.about, "adapter": options, "given": given, "stages": []})
        sources = "\n".join(f"* {part.path.parent.name}: rank {part.config['r']}" for part in parts)
        text = f"# {output.name}\n\nThe mean of {len(parts)} LoRA adapters, made by smollm3-soup:\n\n{sources}\n"
        (partial / "README.md").write_text(text, encoding="utf-8")
        partial.rename(output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return rank


def _write(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
