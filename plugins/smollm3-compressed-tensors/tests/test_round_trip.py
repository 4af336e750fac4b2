"""The round trip of training is bit for bit what a written checkpoint dequantizes to, whoever unpacks it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from smollm3_compressed_tensors.options import CompressedTensorsOptions
from smollm3_compressed_tensors.quantizer import CompressedTensorsQuantizer

from smollm3_finetune.api import IncompatibleError, ModelSource, Purpose, RoundTripMaker, directory_source
from smollm3_finetune.testing import context, small_source

pytestmark = pytest.mark.plugins
SCHEMES = ("W4A16", "W4A16_ASYM", "W8A16", "FP8A16")


def mixture(out: Path) -> ModelSource:
    """A random Mixtral of two layers with four experts in each."""
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=32, num_local_experts=4, num_experts_per_tok=2, bos_token_id=0, eos_token_id=4,
    )  # fmt: skip
    MixtralForCausalLM(config).save_pretrained(out)
    return directory_source(out, ref="mixture")


def saved_in(dtype: str, out: Path) -> Path:
    """The small model in `dtype`, with values that are exactly between two codes, and a group of zeros."""
    shutil.copytree(small_source().path, out)
    tensors = load_file(out / "model.safetensors")
    up = tensors["model.layers.0.mlp.up_proj.weight"]
    up[0] = torch.arange(-32, 32) * 0.5
    up[1] = 0.0
    up[2] = -up[0].abs() / 64
    save_file({n: t.to(getattr(torch, dtype)) for n, t in tensors.items()}, out / "model.safetensors", {"format": "pt"})
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**config, "dtype": dtype}))
    return out


@pytest.mark.parametrize(
    ("scheme", "dtype"),
    [*((scheme, "bfloat16") for scheme in SCHEMES), ("W4A16", "float32"), ("W4A16_ASYM", "float16")],
)
def test_it_is_what_the_written_checkpoint_dequantizes_to(
    tmp_path: Path, numpy_format: Any, scheme: str, dtype: str
) -> None:
    source = directory_source(saved_in(dtype, tmp_path / "dense"), ref="dense")
    quantizer = CompressedTensorsQuantizer(CompressedTensorsOptions(scheme=scheme))
    assert isinstance(quantizer, RoundTripMaker)
    ctx = context(tmp_path / "cache", dtype="float32", purpose=Purpose.QUANTIZE)
    out = tmp_path / "written"
    out.mkdir()
    quantizer.write(source, out, ctx)
    base = quantizer.load(directory_source(out, ref="written"), ctx)
    dense = source.load(dtype=torch.float32)
    trip = quantizer.round_trip(source, ctx)
    names = trip.layers(dense)
    assert quantizer.round_trip(directory_source(out, ref="written"), ctx).layers(dense) == names  # of a quantized base
    unpacked = numpy_format.weights(out, 8 if scheme == "W8A16" else 4)
    assert len(names) == 14
    assert set(names) == set(unpacked)
    for name in names:
        weight = dense.get_submodule(name).weight
        before = weight.detach().clone()
        assert trip.grid(name, weight) == {}
        found = trip.apply(name, weight, {})
        assert torch.equal(weight, before)
        assert found.dtype == torch.float32
        read = base.ops_for(base.model.get_submodule(name)).read_weight()
        assert found.numpy().tobytes() == read.numpy().tobytes()  # the signs of zeros, too
        np.testing.assert_array_equal(found.numpy(), unpacked[name])


def test_a_layer_rounded_while_loading_is_what_is_written(tmp_path: Path) -> None:
    quantizer = CompressedTensorsQuantizer(CompressedTensorsOptions(scheme="W4A16_ASYM", group_size=16))
    ctx = context(tmp_path / "cache", dtype="float32", purpose=Purpose.QUANTIZE)
    out = tmp_path / "written"
    out.mkdir()
    for source in (small_source(), mixture(tmp_path / "mixture")):
        shutil.rmtree(out)
        out.mkdir()
        quantizer.write(source, out, ctx)
        loaded, read = quantizer.load(source, ctx), quantizer.load(directory_source(out, ref="written"), ctx)
        ids = torch.arange(5, 17)[None]
        with torch.no_grad():
            assert torch.equal(loaded.model(ids).logits, read.model(ids).logits)


def test_layers_to_skip_are_written_as_they_are(tmp_path: Path) -> None:
    quantizer = CompressedTensorsQuantizer(CompressedTensorsOptions(skip_modules=("down_proj", "layers.1")))
    ctx = context(tmp_path / "cache", dtype="float32", purpose=Purpose.QUANTIZE)
    out = tmp_path / "written"
    out.mkdir()
    quantizer.write(small_source(), out, ctx)
    about = json.loads((out / "config.json").read_text())["quantization_config"]
    assert {"lm_head", "model.layers.0.mlp.down_proj", "model.layers.1.mlp.up_proj"} <= set(about["ignore"])
    assert "model.layers.0.mlp.up_proj" not in about["ignore"]
    assert about["config_groups"]["group_0"]["weights"]["group_size"] == 64
    assert len([n for n in load_file(out / "model.safetensors") if n.endswith("weight_packed")]) == 6


def test_a_round_trip_of_stacked_experts_is_refused(tmp_path: Path) -> None:
    quantizer = CompressedTensorsQuantizer(CompressedTensorsOptions())
    with pytest.raises(IncompatibleError, match="which training cannot round") as caught:
        quantizer.round_trip(mixture(tmp_path / "mixture"), context(tmp_path / "cache", dtype="float32"))
    assert caught.value.hint == "leave --ship-as out"
