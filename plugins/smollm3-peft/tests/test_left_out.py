"""Layers that no adapter can train, or that text does not reach, are left out by what they do; stacked experts."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft.utils import transformers_weight_conversion
from safetensors.torch import load_file
from smollm3_peft import peft_patches
from smollm3_peft.unsuited import is_plain, observe
from torch import Tensor, nn

from smollm3_finetune.api import Base, ConfigError

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
         "num_key_value_heads": 1, "head_dim": 16, "vocab_size": 128, "max_position_embeddings": 64,
         "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip


class Recorder:
    """The progress of a context; keeps the lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


def ready(model: Any) -> Any:
    """`model` with weights that are finite and different, as a frozen float64 base."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = 0.05 * torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise if parameter.ndim > 1 else 1 + noise)
    model = model.double().eval()
    model.requires_grad_(False)
    return model


def llama4() -> Any:
    config = transformers.Llama4TextConfig(
        num_local_experts=2, num_experts_per_tok=1, intermediate_size_mlp=64, **SIZES
    )
    return ready(transformers.Llama4ForCausalLM(config))


def mixtral() -> Any:
    config = transformers.MixtralConfig(
        num_local_experts=4, num_experts_per_tok=2, experts_implementation="eager", **SIZES
    )
    return ready(transformers.MixtralForCausalLM(config))


def mamba2() -> Any:
    sizes = {name: SIZES[name] for name in ("hidden_size", "num_hidden_layers", "vocab_size")}
    config = transformers.Mamba2Config(state_size=8, num_heads=4, head_dim=16, n_groups=1, **sizes)
    return ready(transformers.Mamba2ForCausalLM(config))


def gemma3() -> Any:
    config = transformers.Gemma3Config(
        text_config={"sliding_window": 16, "query_pre_attn_scalar": 16, **SIZES},
        vision_config={"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
                       "image_size": 28, "patch_size": 14},
        mm_tokens_per_image=4, image_token_index=127, boi_token_index=126, eoi_token_index=125,
    )  # fmt: skip
    return ready(transformers.Gemma3ForConditionalGeneration(config))


class Routed(nn.Module):
    """Two experts as separate layers, of which the probe reaches one."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.experts = nn.ModuleList([inner, nn.Linear(64, 32, bias=False)])
        self.spare = nn.Linear(64, 32, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.experts[0](x) + 0 * nn.functional.linear(x, self.spare.weight)


def routed(lab: Any) -> Any:
    model = lab.tiny(hidden_size=32, intermediate_size=64)
    for layer in model.model.layers:
        layer.mlp.down_proj = Routed(layer.mlp.down_proj).double()
    model.requires_grad_(False)
    return model


def attached(lab: Any, model: Any, method: str = "lora", **options: Any) -> tuple[Any, list[str], set[str]]:
    """The adapted model, the lines that were said, and the names of the layers with an adapter."""
    recorder = Recorder()
    context = dataclasses.replace(lab.context(), progress=recorder)
    adapted = lab.make_adapter(method, **options).attach(Base(model=model, fingerprint=""), context, None)
    names = {n.partition(".lora_")[0].partition("base_model.model.")[2] for n, p in adapted.model.named_parameters()
             if p.requires_grad}  # fmt: skip
    return adapted, recorder.lines, names


def ends(names: set[str]) -> set[str]:
    return {name.rpartition(".")[2] for name in names}


ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
MLP = {"gate_proj", "up_proj", "down_proj"}


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_a_router_that_returns_two_tensors_is_left_out(lab: Any, method: str) -> None:
    adapted, lines, names = attached(lab, llama4(), method)
    assert ends(names) == ATTENTION | MLP
    assert f"adapter {method!r} leaves out 2 linear layers named router: its forward is not a plain linear map" in lines
    _, gradients = lab.gradients(adapted.model)
    assert gradients


def test_a_router_that_is_named_is_refused(lab: Any) -> None:
    with pytest.raises(ConfigError) as e:
        attached(lab, llama4(), target_modules=("router",))
    assert e.value.message == (
        "target_modules names 'router', but the forward of model.layers.0.feed_forward.router is not a plain linear map"
    )


def test_layers_that_peft_refuses_are_left_out(lab: Any) -> None:
    adapted, lines, names = attached(lab, mamba2())
    assert ends(names) == {"in_proj"}
    assert lines == [
        "adapter 'lora' leaves out 2 linear layers named out_proj: PEFT does not support it in this architecture"
    ]
    assert lab.gradients(adapted.model)[1]
    _, lines, names = attached(lab, mamba2(), "loha")  # PEFT refuses nothing here
    assert lines == [] and any(".out_proj." in name for name in names)


def test_layers_that_text_does_not_reach_are_left_out(lab: Any) -> None:
    _, lines, names = attached(lab, gemma3())
    assert lines == ["adapter 'lora' leaves out 9 linear layers in model.vision_tower: text does not reach it"]
    assert len(names) == 14 and all(name.startswith("model.language_model.layers.") for name in names)
    _, lines, names = attached(lab, gemma3(), target_modules=("q_proj",), layers=(1,))
    assert names == {"model.language_model.layers.1.self_attn.q_proj"}
    assert lines == ["adapter 'lora' leaves out 1 linear layer in model.vision_tower: text does not reach it"]


def test_a_vision_tower_gets_an_adapter_if_it_is_named(lab: Any) -> None:
    name = "vision_tower.encoder.layers.0.self_attn.q_proj"
    _, lines, names = attached(lab, gemma3(), target_modules=("v_proj", "fc1", name))
    assert {n for n in names if "vision" in n} == {f"model.{name}", *(n for n in names if n.endswith("fc1"))}
    assert sum(n.endswith("fc1") for n in names) == 2
    assert sum("language_model" in n for n in names) == 2
    assert lines == ["adapter 'lora' leaves out 1 linear layer in model.vision_tower: text does not reach it"]


def test_an_expert_that_the_probe_did_not_reach_is_kept_and_a_weight_that_is_only_read_is_not(lab: Any) -> None:
    _, lines, names = attached(lab, routed(lab))
    experts = {name for name in names if ".experts." in name}
    assert {name.rpartition(".")[2] for name in experts} == {"0", "1"} and len(experts) == 4
    assert not any("spare" in name for name in names)
    assert lines == [
        "adapter 'lora' leaves out 2 linear layers named spare: the model reads the weight without calling the layer"
    ]


def test_a_subclass_with_a_forward_of_its_own_is_tried() -> None:
    class Same(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return x @ self.weight.T + self.bias

    class Scaled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    class Demanding(nn.Linear):
        def forward(self, x: Tensor, ids: Tensor) -> Tensor:
            return super().forward(x)

    assert [is_plain(kind(8, 4)) for kind in (nn.Linear, Same, Scaled, Demanding)] == [True, True, False, False]


def test_nothing_is_said_about_an_ordinary_model(lab: Any) -> None:
    adapted, lines, names = attached(lab, lab.tiny())
    assert adapted.loads_alone
    assert lines == [] and ends(names) == ATTENTION | MLP
    model = lab.tiny()
    assert observe(model).unreached(model) == {}


@pytest.mark.parametrize("make", [mixtral, llama4])
@pytest.mark.parametrize("method", ["lora", "rslora"])
def test_stacked_experts_are_trained_restored_and_merged(lab: Any, tmp_path: Path, make: Any, method: str) -> None:
    """Experts (E, out, in) as in Mixtral, and (E, in, out) as in Llama 4."""
    model = make()
    before = lab.logits(model)
    adapted, lines, _ = attached(lab, model, method, target_parameters=("all-experts",))
    assert not any("experts" in line for line in lines)
    trained = [p for n, p in adapted.model.named_parameters() if p.requires_grad and ".experts." in n]
    assert len(trained) == 8, "A and B of two stacks in two layers"
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trained:
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    after = lab.logits(adapted.model)
    assert lab.distance(after, before) > 1e-3
    with adapted.disabled():
        assert lab.distance(lab.logits(adapted.model), before) == 0
    adapted.save(tmp_path)
    assert any(".experts." in name for name in load_file(str(tmp_path / "adapter_model.safetensors")))
    adapter = lab.make_adapter(method)
    restored = adapter.restore(Base(model=make(), fingerprint=""), tmp_path, lab.context(), None)
    assert lab.distance(lab.logits(restored.model), after) <= 1e-9
    merged = adapter.merge(make(), tmp_path)
    assert lab.distance(lab.logits(merged), after) <= 2e-6
    assert [n for n, _ in merged.named_parameters()] == [n for n, _ in make().named_parameters()]


def test_stacked_experts_can_be_the_only_targets(lab: Any) -> None:
    _, _, names = attached(lab, mixtral(), target_parameters=("down_proj",), target_modules=(), layers=(1,))
    assert {n.replace(".base_layer", "") for n in names} == {"model.layers.1.mlp.experts"}


@pytest.mark.parametrize(
    ("options", "message", "hint"),
    [
        ({"dropout": 0.1}, "target_parameters needs dropout 0, found 0.1", "--adapter-opt dropout=0"),
        ({"init": "pissa"}, "target_parameters cannot be initialized with 'pissa'", "--adapter-opt init=default"),
        (
            {"target_parameters": ("experts.gate_proj",)},
            "target_parameters names 'experts.gate_proj', but the model has no such stacked weight of experts",
            "did you mean 'experts.gate_up_proj'?",
        ),
        ({"layers": (5,)}, "layers names 5, but the model has layers 0 to 1", "--adapter-opt layers=0,1"),
    ],
)
def test_options_that_exclude_stacked_experts_are_refused(
    lab: Any, options: dict[str, Any], message: str, hint: str
) -> None:
    with pytest.raises(ConfigError) as e:
        attached(lab, mixtral(), **{"target_parameters": ("all-experts",), **options})
    assert e.value.message.startswith(message)
    assert e.value.hint == hint


def test_a_model_without_stacked_experts_is_named(lab: Any) -> None:
    with pytest.raises(ConfigError, match="the model has no stacked weights of experts"):
        attached(lab, lab.tiny(), target_parameters=("all-experts",))


def test_experts_without_an_adapter_are_said_with_the_option(lab: Any) -> None:
    _, lines, _ = attached(lab, mixtral())
    assert lines == [
        "adapter 'lora' leaves out the stacked weights of experts: to train them too, "
        "--adapter-opt target_parameters=all-experts"
    ]


def glm4_moe() -> Any:
    config = transformers.Glm4MoeConfig(
        n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, first_k_dense_replace=1, **SIZES
    )
    config._experts_implementation = "eager"
    return ready(transformers.Glm4MoeForCausalLM(config))


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_dense_layers_named_as_experts_once_were_keep_their_adapter(lab: Any, tmp_path: Path, method: str) -> None:
    """PEFT by itself takes `gate_proj` of a mixture for the experts, and leaves out the layers of that name."""
    adapted, lines, names = attached(lab, glm4_moe(), method)
    assert any("PEFT without smollm3 cannot load this adapter" in line for line in lines)
    assert not adapted.loads_alone
    layers = {n.partition(".")[2] for n in names}
    assert {f"layers.0.mlp.{n}" for n in MLP} <= layers
    assert {f"layers.1.mlp.shared_experts.{n}" for n in MLP} <= layers
    assert not any(".mlp.experts" in n for n in layers)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapted.model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    after = lab.logits(adapted.model)
    adapted.save(tmp_path)
    adapter = lab.make_adapter(method)
    restored = adapter.restore(Base(model=glm4_moe(), fingerprint=""), tmp_path, lab.context(), None)
    assert lab.distance(lab.logits(restored.model), after) <= 1e-9
    assert lab.distance(lab.logits(adapter.merge(glm4_moe(), tmp_path)), after) <= 2e-6


def test_peft_converts_only_adapters_of_single_experts() -> None:
    original = transformers_weight_conversion.convert_peft_config_for_transformers

    def current() -> Any:
        return transformers_weight_conversion.convert_peft_config_for_transformers

    with peft_patches.named_targets(["model.layers.0.mlp.experts.3.up_proj.lora_A.weight"]):
        assert current() is original
    for saved in ([], ["model.layers.0.mlp.experts.lora_A.weight"], ["model.layers.0.mlp.up_proj.lora_A.weight"]):
        with peft_patches.named_targets(saved):
            assert current() is not original
    assert current() is original


def test_a_layer_named_layer_gets_its_adapter_on_a_quantized_base(lab: Any) -> None:
    """The gates of JetMoE are linear layers named `layer`, a name that a view of a quantized layer must not use."""
    config = transformers.JetMoeConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, kv_channels=16,
        intermediate_size=64, num_local_experts=4, num_experts_per_tok=2, vocab_size=128,
    )  # fmt: skip
    base = lab.make_base("quantized", model=ready(transformers.JetMoeForCausalLM(config)))
    adapted = lab.make_adapter("lora").attach(base, dataclasses.replace(lab.context(), progress=Recorder()), None)
    trained = [n for n, p in adapted.model.named_parameters() if p.requires_grad]
    assert any(".layer.lora_A" in n for n in trained)
