"""LoRA on quantized stacks of experts: the update goes through the quantized layers, and no expert becomes dense."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft.tuners.lora.layer import ParamWrapper

from smollm3_finetune.api import (
    Base,
    BuildContext,
    ModelSource,
    UnsupportedOp,
    directory_source,
    load_layerwise,
    ops_for_layers,
    stack_ops_for,
)

SIZES: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 128, "num_local_experts": 4, "num_experts_per_tok": 2,
}  # fmt: skip
MODELS = {
    "mixtral": lambda: transformers.MixtralForCausalLM(transformers.MixtralConfig(**SIZES)),
    "gpt-oss": lambda: transformers.GptOssForCausalLM(transformers.GptOssConfig(**SIZES, head_dim=16)),
    "granite": lambda: transformers.GraniteMoeForCausalLM(transformers.GraniteMoeConfig(**SIZES)),
}
"""Experts (E, out, in), (E, in, out) with biases, and (E, out, in)."""


@pytest.fixture(params=MODELS)
def source(request: pytest.FixtureRequest, tmp_path: Path) -> ModelSource:
    torch.manual_seed(0)
    model = MODELS[request.param]()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.08)
    model.save_pretrained(tmp_path / "model")
    return directory_source(tmp_path / "model", ref=request.param)


def quantized(lab: Any, source: ModelSource) -> Base:
    layer = lab.StubLinear
    ops = ops_for_layers(Sized, Sized.dense, torch.float64)
    return load_layerwise(source, context(lab), name="stub", replace=lambda linear: Sized(layer(linear)), ops=ops,
                          identity=())  # fmt: skip


class Silent:
    """Shows no progress."""

    def task(self, description: str, total: int | None = None) -> Any:
        return contextlib.nullcontext(self)

    def advance(self, steps: int = 1) -> None: ...

    def say(self, message: str) -> None: ...


def context(lab: Any) -> BuildContext:
    return dataclasses.replace(lab.context(), progress=Silent())


def dense_model(base: Base, source: ModelSource) -> Any:
    """transformers' own model in float64, with the weights that the quantized layers and stacks say they have."""
    model = source.load(dtype=torch.float64)
    model.config._experts_implementation = "eager"  # the default has no float64
    with torch.no_grad():
        for name, module in base.model.named_modules():
            if (ops := base.ops_for(module)) is not None:
                model.get_parameter(f"{name}.weight").copy_(ops.read_weight())
            if (stack := stack_ops_for(module)) is not None:
                weights = torch.stack([stack.read_expert(e) for e in range(stack.sizes[0])])
                model.get_parameter(name).copy_(weights.transpose(1, 2) if stack.transposed else weights)
    return model.requires_grad_(False)


class Sized(torch.nn.Module):
    """A stub layer with the attributes that `ops_for_layers` needs."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer
        self.out_features, self.in_features = layer.codes.shape
        self.bias = layer.bias

    def dense(self) -> torch.Tensor:
        return self.layer.dense()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


def moved(adapted: Any) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in adapted.model.named_parameters():
            if parameter.requires_grad:
                values = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.add_((0.1 if "experts" in name else 0.02) * values)


def test_quantized_experts_are_trained_restored_and_merged(lab: Any, source: ModelSource, tmp_path: Path) -> None:
    base = quantized(lab, source)
    stacks = [m for m in base.model.modules() if stack_ops_for(m) is not None]
    assert len(stacks) == 4
    before, dense = lab.logits(base.model), dense_model(base, source)
    assert lab.distance(lab.logits(dense), before) <= 1e-9
    adapter = lab.make_adapter("lora", target_parameters=("all-experts",))
    adapted = adapter.attach(base, context(lab), None)
    assert [m for m in base.model.modules() if stack_ops_for(m) is not None] == stacks
    assert sum(isinstance(m, ParamWrapper) for m in adapted.model.modules()) == 4
    moved(adapted)
    after = lab.logits(adapted.model)
    assert lab.distance(after, before) > 1e-2
    with adapted.disabled():
        assert lab.distance(lab.logits(adapted.model), before) == 0
    adapted.save(tmp_path / "adapter")
    on_dense = adapter.restore(Base(model=dense, fingerprint=""), tmp_path / "adapter", context(lab), None)
    assert lab.distance(lab.logits(on_dense.model), after) <= 1e-9
    assert_same_gradients(lab, adapted, on_dense)
    restored = adapter.restore(quantized(lab, source), tmp_path / "adapter", context(lab), None)
    assert lab.distance(lab.logits(restored.model), after) == 0
    merged = adapter.merge(dense_model(quantized(lab, source), source), tmp_path / "adapter")
    assert lab.distance(lab.logits(merged), after) <= 1e-9


def assert_same_gradients(lab: Any, one: Any, other: Any) -> None:
    found = []
    for adapted in (one, other):
        for parameter in adapted.model.parameters():
            parameter.requires_grad_(False)
        for name, parameter in adapted.model.named_parameters():
            parameter.requires_grad_("lora_" in name)
        _, gradients = lab.gradients(adapted.model)
        found.append({n: g for n, g in gradients.items() if "lora_" in n})
    assert found[0].keys() == found[1].keys()
    for name, right in found[1].items():
        assert (found[0][name] - right).norm() <= 1e-9 * right.norm() + 1e-15, name


def test_no_expert_becomes_dense_in_a_step(lab: Any, source: ModelSource, monkeypatch: pytest.MonkeyPatch) -> None:
    base = quantized(lab, source)
    stack = next(m for m in base.model.modules() if stack_ops_for(m) is not None)
    adapted = lab.make_adapter("lora", target_parameters=("all-experts",)).attach(base, context(lab), None)
    used: list[str] = []
    for cls in (type(stack), type(stack[0])):
        monkeypatch.setattr(cls, "dense", lambda self: used.append("dense"))
    lab.gradients(adapted.model)
    assert used == []


def test_merging_into_quantized_experts_in_place_is_refused(lab: Any, source: ModelSource) -> None:
    base = quantized(lab, source)
    options = {"target_parameters": ("all-experts",), "target_modules": ()}
    adapted = lab.make_adapter("lora", **options).attach(base, context(lab), None)
    wrappers = [m for m in adapted.model.modules() if isinstance(m, ParamWrapper)]
    assert len(wrappers) == 4
    for wrapper in wrappers:
        with pytest.raises(UnsupportedOp, match="is quantized, and merging the adapter into it in place"):
            wrapper.merge()


def test_an_adapter_without_the_option_leaves_quantized_experts_alone(lab: Any, source: ModelSource) -> None:
    base = quantized(lab, source)
    adapted = lab.make_adapter("lora").attach(base, context(lab), None)
    assert not any(isinstance(m, ParamWrapper) for m in adapted.model.modules())
    assert sum(stack_ops_for(m) is not None for m in base.model.modules()) == 4
