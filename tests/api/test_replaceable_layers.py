"""Which linear layers of a model a quantizer may replace: those that are called, and compute x Wᵀ + b."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from smollm3_finetune.api import IncompatibleError, layers_to_quantize, linear_layers, load_layerwise, stack_ops_for
from smollm3_finetune.testing import context, small_source
from smollm3_finetune.testing.small import mixture_source

SIZES: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 1, "vocab_size": 96}


class Half(nn.Linear):  # type: ignore[misc]
    """Not x Wᵀ + b."""

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * super().forward(x)


class Pair(nn.Linear):  # type: ignore[misc]
    def forward(self, x: Tensor) -> Any:
        y = super().forward(x)
        return y, y.softmax(-1)


class Spelled(nn.Linear):  # type: ignore[misc]
    """x Wᵀ + b, in other words."""

    def forward(self, x: Tensor) -> Tensor:
        y = x @ self.weight.T
        return y if self.bias is None else y + self.bias


class Layers(nn.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        for name, cls in {
            "plain": nn.Linear,
            "half": Half,
            "pair": Pair,
            "spelled": Spelled,
            "read": nn.Linear,
        }.items():
            setattr(self, name, cls(8, 4))
        self.attention = nn.MultiheadAttention(8, 2)
        self.inner = nn.ModuleDict({"deep": nn.Linear(8, 4)})

    def forward(self, x: Tensor) -> Tensor:
        return self.plain(x) @ self.read.weight + self.inner.deep.weight.sum()


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_layers_are_tried_and_the_code_is_read(device: str) -> None:
    torch.manual_seed(0)
    with torch.device(device):
        layers, read = linear_layers(Layers())
    wrong = {"half"} if device == "meta" else set()  # only its values show it
    assert set(layers) == {"plain", "spelled"} | wrong
    assert set(read) == {"read", "inner.deep", "attention.out_proj"}


def test_models_that_read_weights() -> None:
    mamba = transformers.MambaForCausalLM(transformers.MambaConfig(**SIZES, state_size=4))
    layers, read = linear_layers(mamba)
    assert {n.rpartition(".")[2] for n in read} == {"x_proj", "dt_proj", "out_proj"}
    assert {n.rpartition(".")[2] for n in layers} == {"in_proj"}


def test_a_model_that_rescales_weights_between_modes() -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 96, "attention_hidden_size": 32}
    layers, read = linear_layers(transformers.RwkvForCausalLM(transformers.RwkvConfig(**sizes)))
    assert set(read) == {f"rwkv.blocks.{i}.{end}" for i in (0, 1) for end in ("attention.output", "feed_forward.value")}
    assert {f"rwkv.blocks.0.attention.{end}" for end in ("key", "value", "receptance")} <= set(layers)


def test_linear_layers_of_a_subclass() -> None:
    falcon = transformers.FalconForCausalLM(transformers.FalconConfig(**SIZES, num_attention_heads=2))
    layers, read = linear_layers(falcon)
    assert {n.rpartition(".")[2] for n in layers} == {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"}
    assert read == []


def test_smollm3_reads_no_weight() -> None:
    model = small_source().load(dtype=torch.float32)
    layers, read = linear_layers(model)
    assert read == [] and len(layers) == 14
    assert layers.keys() == layers_to_quantize(model, "q", small_source()).keys()


def test_experts_can_be_left_out_by_name(tmp_path: Any) -> None:
    def load(**more: Any) -> Any:
        return load_layerwise(
            mixture_source(), context(tmp_path), name="q", replace=lambda linear: linear, ops=lambda layer: None,
            identity=(), **more,
        )  # fmt: skip

    base = load(skip_modules=("experts",))
    assert not any(stack_ops_for(m) is not None for m in base.model.modules())
    with pytest.raises(IncompatibleError, match="finds no linear layer to quantize"):
        load(skip_modules=("experts", "self_attn"))
