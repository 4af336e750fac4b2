"""Checkpoints of every format that is read: the weights agree with an unpacking in NumPy, and they train."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy_format import weights
from safetensors.torch import load_file, save_file
from smollm3_compressed_tensors.options import CompressedTensorsOptions
from smollm3_compressed_tensors.quantizer import CompressedTensorsQuantizer

from smollm3_finetune.api import IncompatibleError, ModelError, ModelSource, Purpose, directory_source
from smollm3_finetune.testing import context, small_source

pytestmark = pytest.mark.plugins
TOKEN = {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True, "symmetric": True}


def pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """Signed codes (rows, n) as int32 words, a bit stream in each row."""
    plain = codes.astype(np.int64) + (1 << (bits - 1))
    streams = ((plain[..., None] >> np.arange(bits)) & 1).reshape(len(plain), -1).astype(np.uint8)
    streams = np.pad(streams, ((0, 0), (0, -streams.shape[1] % 32)))
    return np.packbits(streams, axis=1, bitorder="little").view("<i4")


def integers(rng: Any, out: int, inputs: int, bits: int, group: int, *, zeros: bool, order: bool) -> dict[str, Any]:
    groups = inputs // group
    low, high = -(1 << (bits - 1)), 1 << (bits - 1)
    part: dict[str, Any] = {"weight_packed": pack(rng.integers(low, high, (out, inputs)), bits)}
    part["weight_scale"] = rng.uniform(0.5, 1.5, (out, groups)).astype(np.float32) * 0.3 / high
    part["weight_shape"] = np.array([out, inputs])
    if zeros:
        part["weight_zero_point"] = np.ascontiguousarray(pack(rng.integers(low, high, (out, groups)).T, bits).T)
    if order:
        part["weight_g_idx"] = rng.permutation(np.arange(inputs) // group).astype(np.int32)
    return part


def floats(rng: Any, out: int, inputs: int, shape: tuple[int, ...]) -> dict[str, Any]:
    bits = rng.integers(0, 256, (out, inputs)).astype(np.uint8)
    bits[(bits & 127) == 127] = 0
    codes = torch.from_numpy(bits).view(torch.float8_e4m3fn)
    return {"weight": codes, "weight_scale": rng.uniform(1e-4, 1e-3, shape).astype(np.float32)}


def nvfp4(rng: Any, out: int, inputs: int) -> dict[str, Any]:
    scale = torch.from_numpy(rng.uniform(10, 400, (out, inputs // 16)).astype(np.float32)).to(torch.float8_e4m3fn)
    packed = rng.integers(0, 256, (out, inputs // 2)).astype(np.uint8)
    return {"weight_packed": packed, "weight_scale": scale, "weight_global_scale": np.array([7e3], np.float32)}


def signed(rng: Any, out: int, inputs: int) -> dict[str, Any]:
    codes = rng.integers(-128, 128, (out, inputs)).astype(np.int8)
    return {"weight": codes, "weight_scale": rng.uniform(1e-3, 2e-3, (out, 1)).astype(np.float32)}


INT4, INT8 = {"num_bits": 4, "type": "int"}, {"num_bits": 8, "type": "int"}
FP8 = {"num_bits": 8, "type": "float"}
CASES: dict[str, tuple[str, dict[str, Any], Any]] = {
    "w4-group": ("pack-quantized", INT4, lambda r, o, i: integers(r, o, i, 4, 32, zeros=False, order=False)),
    "w4-channel": ("pack-quantized", INT4, lambda r, o, i: integers(r, o, i, 4, i, zeros=False, order=False)),
    "w4-zeros": ("pack-quantized", INT4, lambda r, o, i: integers(r, o, i, 4, 32, zeros=True, order=False)),
    "w4-act-order": ("pack-quantized", INT4, lambda r, o, i: integers(r, o, i, 4, 32, zeros=True, order=True)),
    "w8-group": ("pack-quantized", INT8, lambda r, o, i: integers(r, o, i, 8, 32, zeros=False, order=False)),
    "w8-zeros": ("pack-quantized", INT8, lambda r, o, i: integers(r, o, i, 8, 32, zeros=True, order=False)),
    "w8a8": ("int-quantized", INT8, signed),
    "fp8-tensor": ("naive-quantized", FP8, lambda r, o, i: floats(r, o, i, (1,))),
    "fp8-channel": ("float-quantized", FP8, lambda r, o, i: floats(r, o, i, (o, 1))),
    "fp8-block": (
        "float-quantized",
        {**FP8, "strategy": "block", "block_structure": [48, 48]},
        lambda r, o, i: floats(r, o, i, (-(-o // 48), -(-i // 48))),
    ),
    "nvfp4": ("nvfp4-pack-quantized", {"num_bits": 4, "type": "float", "group_size": 16}, nvfp4),
}


def make(out: Path, case: str, **about: Any) -> Path:
    """The small model with random codes, in the format of `case`."""
    form, described, layer_of = CASES[case]
    shutil.copytree(small_source().path, out)
    tensors, rng = load_file(out / "model.safetensors"), np.random.default_rng(0)
    for name in [n for n in tensors if n.endswith("_proj.weight")]:
        weight, layer = tensors.pop(name), name.removesuffix(".weight")
        for part, value in layer_of(rng, *weight.shape).items():
            tensors[f"{layer}.{part}"] = torch.from_numpy(value.copy()) if isinstance(value, np.ndarray) else value
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((out / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "compressed-tensors", "format": form, "quantization_status": "compressed",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": described}}, "ignore": ["lm_head"], **about,
    }  # fmt: skip
    (out / "config.json").write_text(json.dumps(config))
    return out


def load(path: Path, tmp_path: Path, dtype: str = "float32") -> Any:
    ctx = context(tmp_path / "cache", dtype=dtype, purpose=Purpose.TRAIN)
    return CompressedTensorsQuantizer(CompressedTensorsOptions()).load(directory_source(path, ref="stored"), ctx)


@pytest.mark.parametrize("case", CASES)
def test_weights_are_those_of_an_unpacking_in_numpy(tmp_path: Path, case: str) -> None:
    path = make(tmp_path / case, case)
    base, bits = load(path, tmp_path), CASES[case][1]["num_bits"]
    found = weights(path, bits, CASES[case][1].get("block_structure"))
    assert len(found) == 14
    for name, right in found.items():
        weight = base.ops_for(base.model.get_submodule(name)).read_weight().numpy()
        assert weight.dtype == np.float32
        np.testing.assert_array_equal(weight, right)
    for name, tensor in load_file(path / "model.safetensors").items():
        if name.endswith("bias"):
            assert torch.equal(base.model.get_parameter(name), tensor)


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_scales_are_not_rounded_to_the_dtype_of_the_run(tmp_path: Path, dtype: str) -> None:
    path = make(tmp_path / "stored", "w4-zeros")
    one, other = load(path, tmp_path), load(path, tmp_path, dtype)
    for name, layer in one.model.named_modules():
        if one.ops_for(layer) is not None:
            assert torch.equal(layer.dense(), other.model.get_submodule(name).dense())


def with_config(tmp_path: Path, case: str = "w4-group", **about: Any) -> ModelSource:
    return directory_source(make(tmp_path / "stored", case, **about), ref="stored")


def groups(weights: Any, **more: Any) -> dict[str, Any]:
    return {"config_groups": {"group_0": {"targets": ["Linear"], "weights": weights, **more}}}


@pytest.mark.parametrize(
    ("about", "reason"),
    [
        (
            {"sparsity_config": {"format": "sparse-24-bitmask"}},
            "weights are sparse, in the format sparse-24-bitmask",
        ),
        ({"format": "marlin-24"}, "the format marlin-24 is not supported"),
        ({"format": "mxfp4-pack-quantized"}, "the format mxfp4-pack-quantized is not supported"),
        (groups({"num_bits": 3, "type": "int"}), r"weights of 3 bits \(int\) in the format pack-quantized"),
        (groups(INT4, input_activations={"num_bits": 4, "type": "int"}), "it rounds activations to 4 bits"),
        ({"transform_config": {"config_groups": {"a": {}}}}, "its weights are transformed"),
        ({"config_groups": {}}, "its quantization_config has no config_groups"),
    ],
)
def test_what_is_not_read_is_refused_by_its_name(tmp_path: Path, about: dict[str, Any], reason: str) -> None:
    source = with_config(tmp_path, **about)
    with pytest.raises(IncompatibleError, match=reason) as caught:
        CompressedTensorsQuantizer(CompressedTensorsOptions()).load(source, context(tmp_path / "cache"))
    assert caught.value.hint


@pytest.mark.parametrize(
    ("about", "what"),
    [
        (groups(FP8, input_activations=TOKEN), "activations"),
        ({"kv_cache_scheme": {"num_bits": 8, "type": "float"}}, "the key-value cache"),
        ({}, None),
    ],
)
def test_one_line_says_what_is_left_out(tmp_path: Path, capsys: Any, about: dict[str, Any], what: str | None) -> None:
    path = make(tmp_path / "stored", "fp8-channel", **about)
    tensors = load_file(path / "model.safetensors")
    if what is not None:
        scales = ("model.layers.0.self_attn.k_scale", "model.layers.1.mlp.up_proj.input_scale")
        tensors |= {name: torch.ones(1) for name in scales}
        save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    said: list[str] = []
    ctx = context(tmp_path / "cache", dtype="float32")
    object.__setattr__(ctx, "progress", type("Said", (), {"say": said.append, "task": ctx.progress.task}))
    CompressedTensorsQuantizer(CompressedTensorsOptions()).load(directory_source(path, ref="stored"), ctx)
    line = f"note: stored also rounds {what}; this is left out here, only weights are rounded"
    assert said == ([] if what is None else [line])


def test_a_layer_whose_tensors_do_not_match_is_named(tmp_path: Path) -> None:
    path = make(tmp_path / "stored", "w4-group")
    tensors = load_file(path / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight_scale"] = torch.full((128, 5), 0.01)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"up_proj: 64 input features cannot be divided into 5 groups"):
        load(path, tmp_path)
