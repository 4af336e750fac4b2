"""What a `quantization_config` of compressed-tensors says, and which of it is read and written. Light: no torch.

Source: compressed-tensors 0.20 (`QuantizationConfig`, `QuantizationScheme`, `QuantizationArgs`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from smollm3_compressed_tensors.options import CompressedTensorsOptions
from smollm3_finetune.api import ConfigError, IncompatibleError, ModelSource, check_group_size, given, refuse_quantized

NAME = "compressed-tensors"
READ = {
    "pack-quantized": {("int", 4), ("int", 8)},
    "int-quantized": {("int", 8)},
    "naive-quantized": {("int", 8), ("float", 8)},
    "float-quantized": {("float", 8)},
    "nvfp4-pack-quantized": {("float", 4)},
}
"""Format to the types and bits of weights that are read."""
GROUP_SIZES = (128, 64, 32)
FORMATS = {"W4A16": 4, "W4A16_ASYM": 4, "W8A16": 8, "FP8A16": None, "FP8_DYNAMIC": None}
"""Scheme to the bits of its integers; None: 8-bit floats."""
EIGHT = 8
"""Bits of activations whose rounding is left out; with fewer bits, the model computes something else without it."""
LEFT_OUT = ("input", "output", "q", "k", "v")
"""Activations whose scales a checkpoint may hold."""
IGNORED = tuple(f"*.{name}_{part}" for name in LEFT_OUT for part in ("scale", "zero_point", "global_scale"))


def described(source: ModelSource) -> Mapping[str, Any] | None:
    """The `quantization_config` of a checkpoint that can be read; None if the source is of full precision.

    Raises IncompatibleError for another method, and for what this plugin does not read.
    """
    stored = source.config.get("quantization_config")
    if stored is None:
        return None
    if stored.get("quant_method") != NAME:
        refuse_quantized(NAME, source, hint="leave --quant out to load it as it is, or use a full-precision checkpoint")
    groups = [g for g in (stored.get("config_groups") or {}).values() if isinstance(g, Mapping)]
    if reason := next(filter(None, _reasons(stored, groups)), None):
        raise IncompatibleError(
            f"{NAME} cannot load {source.ref!r}: {reason}", hint="use the full-precision checkpoint it was made from"
        )
    return stored


def _reasons(stored: Mapping[str, Any], groups: list[Mapping[str, Any]]) -> Iterable[str | None]:
    sparsity = (stored.get("sparsity_config") or {}).get("format") or "dense"
    yield f"its weights are sparse, in the format {sparsity}" if sparsity != "dense" else None
    yield "some of its experts were removed" if stored.get("moe_sparsity_config") else None
    yield "its weights are transformed (transform_config)" if stored.get("transform_config") else None
    yield "its quantization_config has no config_groups" if not groups else None
    for group in groups:
        weights, form = group.get("weights"), group.get("format") or stored.get("format")
        if isinstance(weights, Mapping):
            kind = weights.get("type", "int"), weights.get("num_bits", EIGHT)
            if form not in READ:
                yield f"the format {form} is not supported"
            elif kind not in READ[form]:
                yield f"weights of {kind[1]} bits ({kind[0]}) in the format {form} are not supported"
        for values in ("input_activations", "output_activations"):
            bits = (group.get(values) or {}).get("num_bits", EIGHT)
            if bits < EIGHT:
                yield f"it rounds activations to {bits} bits, which training would leave out"


def left_out(stored: Mapping[str, Any]) -> str | None:
    """What a checkpoint rounds beside its weights, which is not done here; None if there is nothing."""
    groups = [g for g in stored["config_groups"].values() if isinstance(g, Mapping)]
    rounds = any(group.get(values) for group in groups for values in ("input_activations", "output_activations"))
    found = {"activations": rounds, "the key-value cache": bool(stored.get("kv_cache_scheme"))}
    return " and ".join(name for name, rounded in found.items() if rounded) or None


def check(options: CompressedTensorsOptions, source: ModelSource) -> None:
    """The `check` of the descriptor."""
    if described(source) is not None:
        if wrong := sorted(given(options)):
            raise ConfigError(
                f"{NAME}: {source.ref!r} is already quantized, so it takes no {', '.join(wrong)}",
                hint="leave the option out, or use a full-precision checkpoint",
            )
        return
    size = options.group_size
    if size == 0:
        raise ConfigError(f"{NAME}: a group needs at least one input feature", hint="--quant-opt group_size=-1")
    if FORMATS[options.scheme] is None and size not in (None, -1):
        raise ConfigError(f"{NAME}: {options.scheme} has a scale per row, and no groups", hint="leave group_size out")
    check_group_size(NAME, source, None if size == -1 else size, skip_modules=options.skip_modules)


def quantization(scheme: str, group_size: int | None, ignore: Iterable[str]) -> dict[str, Any]:
    """The `quantization_config` of a checkpoint that is written; `group_size` None: whole rows."""
    bits = FORMATS[scheme]
    form = "pack-quantized" if bits else "naive-quantized" if scheme == "FP8A16" else "float-quantized"
    weights = {
        "num_bits": bits or EIGHT,
        "type": "int" if bits else "float",
        "symmetric": scheme != "W4A16_ASYM",
        "strategy": "channel" if group_size is None else "group",
        "group_size": group_size,
        "dynamic": False,
    }
    token = {"num_bits": EIGHT, "type": "float", "symmetric": True, "strategy": "token", "dynamic": True}
    activations = token if scheme == "FP8_DYNAMIC" else None
    group = {"targets": ["Linear"], "weights": weights, "input_activations": activations, "format": form}
    return {
        "quant_method": NAME,
        "format": form,
        "quantization_status": "compressed",
        "config_groups": {"group_0": {**group, "output_activations": None}},
        "ignore": sorted(ignore),
        "kv_cache_scheme": None,
    }
