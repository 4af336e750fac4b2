"""Helpers of `smollm3_finetune.api` for quantizers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from smollm3_finetune.api import (
    ConfigError,
    DequantizingOps,
    IncompatibleError,
    Op,
    architecture_of,
    group_size_error,
    layers_to_quantize,
    refuse_quantized,
    rounding_dtype,
)

LLAMA = {
    "model_type": "llama", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 2, "vocab_size": 32,
}  # fmt: skip
PROJECTIONS = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def source(**config: Any) -> Any:
    return SimpleNamespace(ref="some-model", config=config)


# ------------------------------------------------------------------------------------------------- which layers


def test_the_architecture_has_no_weights_and_ignores_a_quantization() -> None:
    model = architecture_of(source(**LLAMA, quantization_config={"quant_method": "gptq", "bits": 4}))
    assert model is not None
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert model.config.num_hidden_layers == 2


def test_custom_code_has_no_architecture() -> None:
    assert architecture_of(source(model_type="nobodys", hidden_size=16)) is None


def test_all_linear_layers_except_the_head_are_quantized() -> None:
    model = architecture_of(source(**LLAMA))
    assert model is not None
    found = layers_to_quantize(model, "mine", source())
    assert {name.rsplit(".", 1)[-1] for name in found} == PROJECTIONS
    assert len(found) == 14
    assert all(model.get_submodule(name) is layer for name, layer in found.items())


@pytest.mark.parametrize(
    ("skip", "left"),
    [(("k_proj",), 12), (("layers.0",), 7), (("layers.0.mlp", "k_proj"), 9), (("model.layers.1.mlp.up_proj",), 13)],
)
def test_skip_modules_match_whole_parts_of_names(skip: tuple[str, ...], left: int) -> None:
    model = architecture_of(source(**LLAMA))
    assert model is not None
    assert len(layers_to_quantize(model, "mine", source(), skip)) == left


def test_an_unknown_skip_module_lists_the_linear_layers() -> None:
    model = architecture_of(source(**LLAMA))
    assert model is not None
    with pytest.raises(
        ConfigError, match="mine: skip_modules names 'proj', and 'some-model' has no linear layer"
    ) as caught:
        layers_to_quantize(model, "mine", source(), ("proj",))
    assert "down_proj, gate_proj, k_proj" in str(caught.value.hint)


def test_skipping_every_layer_is_refused() -> None:
    model = architecture_of(source(**LLAMA))
    assert model is not None
    with pytest.raises(IncompatibleError, match="mine finds no linear layer to quantize in 'some-model'"):
        layers_to_quantize(model, "mine", source(), ("layers",))


# -------------------------------------------------------------------------------------------- what is refused


def test_a_quantized_checkpoint_is_refused_with_its_method() -> None:
    refuse_quantized("mine", source())
    with pytest.raises(IncompatibleError, match=r"mine cannot load 'some-model': .* already quantized by awq"):
        refuse_quantized("mine", source(quantization_config={"quant_method": "awq"}))
    with pytest.raises(IncompatibleError, match="already quantized by another method"):
        refuse_quantized("mine", source(quantization_config={}))


def test_a_group_size_that_fits_is_suggested() -> None:
    error = group_size_error("mine", 100, "the 576 in_features of q_proj", [576, 1536])
    assert error.message == "mine: groups of 100 do not divide the 576 in_features of q_proj"
    assert error.hint == "--quant-opt group_size=64"
    assert "group_size=none" in str(group_size_error("mine", 2, "the 7 features", [7]).hint)


@pytest.mark.parametrize(
    ("checkpoint", "run", "rounded"),
    [
        ("bfloat16", "bfloat16", None), ("bfloat16", "float32", None), ("bfloat16", "float16", "float16"),
        ("float16", "bfloat16", "bfloat16"), ("float32", "float64", None), ("float32", "bfloat16", "bfloat16"),
        ("float64", "float32", "float32"), ("float8_e4m3fn", "bfloat16", "bfloat16"),
    ],
)  # fmt: skip
def test_the_dtype_counts_only_if_it_rounds_the_checkpoint(checkpoint: str, run: str, rounded: str | None) -> None:
    context: Any = SimpleNamespace(dtype=run)
    assert rounding_dtype(source(dtype=checkpoint), context) == rounded
    assert rounding_dtype(source(torch_dtype=f"torch.{checkpoint}"), context) == rounded


@pytest.mark.parametrize(
    ("checkpoint", "run", "rounded"),
    [
        ("float64", "float32", None), ("float64", "float64", None), ("float8_e4m3fn", "float32", None),
        ("float32", "bfloat16", "bfloat16"), ("bfloat16", "bfloat16", None), ("bfloat16", "float16", "float16"),
    ],
)  # fmt: skip
def test_a_method_that_reads_float32_values_ignores_wider_dtypes(
    checkpoint: str, run: str, rounded: str | None
) -> None:
    context: Any = SimpleNamespace(dtype=run)
    assert rounding_dtype(source(dtype=checkpoint), context, seen_in="float32") == rounded


# --------------------------------------------------------------------------------------------------- DequantizingOps


@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16, torch.float64])
def test_read_weight_rounds_as_the_forward_does(compute: torch.dtype) -> None:
    layer = nn.Linear(3, 2)
    held = layer.weight
    view = DequantizingOps(layer, lambda one: one.weight * 1, compute)
    assert view.ops == {Op.FORWARD, Op.GRAD_INPUT, Op.READ_WEIGHT}
    assert view.shape == (2, 3)
    assert view.forward_rtol == 0
    weight = view.read_weight()
    assert weight.dtype == torch.float32
    assert not weight.requires_grad
    assert torch.equal(weight, held.detach().to(compute).float())
    weight.zero_()
    assert held.abs().sum() > 0


def test_a_float64_weight_stays_float64() -> None:
    layer = nn.Linear(3, 2, dtype=torch.float64)
    weight = DequantizingOps(layer, lambda one: one.weight * 1, torch.float64).read_weight()
    assert weight.dtype == torch.float64
    assert torch.equal(weight, layer.weight)
