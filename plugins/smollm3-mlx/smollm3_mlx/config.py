"""The `config.json` of an export."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from smollm3_finetune.api import IncompatibleError


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
