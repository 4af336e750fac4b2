"""Helpers for authors of adapters: layers, blocks, saved parameters, and the ready-made `AdaptedLayers`."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from smollm3_finetune.api import (
    AdaptedLayers,
    Base,
    ConfigError,
    IncompatibleError,
    ModelError,
    Op,
    Purpose,
    file_digest,
    layers_to_adapt,
    load_parameters,
    restore_parameters,
    save_parameters,
    transformer_blocks,
)
from smollm3_finetune.model.load import build_context
from smollm3_finetune.testing import stub_base

SMALL: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 16,
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {**SMALL, "num_hidden_layers": 3},
    "smollm3": {**SMALL, "num_hidden_layers": 3, "pad_token_id": 0},
    "gpt2": {"vocab_size": 64, "n_embd": 32, "n_head": 4, "n_layer": 3},
    "opt": {**SMALL, "num_hidden_layers": 3, "ffn_dim": 16, "word_embed_proj_dim": 32},
    "falcon": {"vocab_size": 64, "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 3},
    "mixtral": {**SMALL, "num_hidden_layers": 3, "num_local_experts": 8},  # more experts than blocks
    "qwen3_next": {
        **SMALL,
        "num_hidden_layers": 4,
        "num_experts": 8,
        "moe_intermediate_size": 8,
    },  # blocks of two kinds
    "zamba2": {**SMALL, "num_hidden_layers": 3, "layers_block_type": ["mamba", "hybrid", "mamba"]},  # of two classes
    "bart": {"vocab_size": 64, "d_model": 32, "decoder_layers": 3, "encoder_layers": 5, "is_decoder": True},
    "modernbert-decoder": {**SMALL, "num_hidden_layers": 3, "pad_token_id": 0},
}
FIRST = {
    "gpt2": "transformer.h.0", "falcon": "transformer.h.0", "opt": "model.decoder.layers.0",
    "bart": "model.decoder.layers.0",
}  # fmt: skip


def meta(kind: str) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **CONFIGS[kind]))


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_blocks_of_a_decoder_are_found_in_order(kind: str) -> None:
    model = meta(kind)
    blocks = transformer_blocks(model)
    first = FIRST.get(kind, "model.layers.0")
    count = 4 if kind == "qwen3_next" else 3
    assert list(blocks) == [f"{first.rpartition('.')[0]}.{n}" for n in range(count)]
    assert all(model.get_submodule(name) is block for name, block in blocks.items())


def test_a_model_without_a_list_of_blocks_is_an_error() -> None:
    with pytest.raises(IncompatibleError, match="Linear has no list of transformer blocks"):
        transformer_blocks(nn.Linear(2, 2))
    split = nn.Module()  # as XLM
    split.attentions, split.norms = nn.ModuleList([nn.Linear(2, 2)] * 2), nn.ModuleList([nn.LayerNorm(2)] * 2)
    with pytest.raises(IncompatibleError, match="has no list of transformer blocks"):
        transformer_blocks(split)


@pytest.fixture
def base() -> Base:
    return stub_base({Op.FORWARD, Op.GRAD_INPUT}, "float64")


def context(purpose: Purpose = Purpose.TRAIN) -> Any:
    return build_context(purpose, "cpu", "float64", 0)


def test_layers_are_found_by_ending_with_their_sizes(base: Base) -> None:
    found = layers_to_adapt(base, ["o_proj", "0.mlp.down_proj"])
    assert list(found) == [
        "model.layers.0.self_attn.o_proj", "model.layers.0.mlp.down_proj", "model.layers.1.self_attn.o_proj"
    ]  # fmt: skip
    down = found["model.layers.0.mlp.down_proj"]
    assert (down.out_features, down.in_features) == (64, 128)
    assert down.ops is not None and down.module is base.model.get_submodule("model.layers.0.mlp.down_proj")
    every = layers_to_adapt(base)
    assert len(every) == 14 and "lm_head" not in every
    assert list(layers_to_adapt(base, ["lm_head"])) == ["lm_head"]
    assert layers_to_adapt(base, ["lm_head"])["lm_head"].ops is None


def test_an_ending_without_a_layer_is_an_error_with_a_hint(base: Base) -> None:
    with pytest.raises(ConfigError, match="no linear layer's name ends with 'key'") as raised:
        layers_to_adapt(base, ["o_proj", "key"], option="layers")
    assert raised.value.hint == "--adapter-opt layers=down_proj"
    with pytest.raises(IncompatibleError, match="LayerNorm has no linear layer"):
        layers_to_adapt(Base(model=nn.LayerNorm(2), fingerprint=""))


def test_layers_whose_weight_is_read_are_left_out() -> None:
    from transformers import MambaConfig, MambaForCausalLM

    config = MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=1, state_size=4)
    model = MambaForCausalLM(config)
    names = {name.rpartition(".")[2] for name in layers_to_adapt(Base(model=model, fingerprint=""))}
    assert "in_proj" in names and "dt_proj" not in names


# ------------------------------------------------------------------------------------------ saved parameters


def test_parameters_are_saved_and_restored_exactly(tmp_path: Path) -> None:
    values = {
        "b": torch.randn(2, 3), "a": torch.tensor(7), "c": torch.randn(4, 2).T, "d": torch.randn(3).bfloat16()
    }  # fmt: skip
    save_parameters(tmp_path / "new" / "one", values)
    save_parameters(tmp_path / "two", dict(reversed(values.items())))
    assert file_digest(tmp_path / "new" / "one") == file_digest(tmp_path / "two")
    assert file_digest(tmp_path / "two") == hashlib.sha256((tmp_path / "two").read_bytes()).hexdigest()
    empty = {name: torch.zeros_like(t) for name, t in values.items()}
    restore_parameters(tmp_path / "two", empty)
    assert all(torch.equal(empty[name], value) for name, value in values.items())
    assert set(load_parameters(tmp_path / "two")) == set(values)


def test_a_module_is_saved_with_its_buffers_and_restored_in_another_dtype(tmp_path: Path) -> None:
    module, other = nn.BatchNorm1d(2), nn.BatchNorm1d(2).bfloat16()
    module.running_mean.fill_(0.5)
    module.weight.data.fill_(1 / 3)
    save_parameters(tmp_path / "file", module)
    other.weight.requires_grad_(False)
    restore_parameters(tmp_path / "file", other)
    assert other.running_mean.tolist() == [0.5, 0.5]
    assert other.weight.dtype == torch.bfloat16 and not other.weight.requires_grad
    assert torch.equal(other.weight, module.weight.bfloat16())


@pytest.mark.parametrize(
    ("expected", "words"),
    [
        ({"a": (2,)}, "this model has no b"),
        ({"a": (2,), "b": (3,), "c": (1,), "d": (1,)}, "it lacks c and 1 more"),
        ({"a": (2,), "b": (4,)}, r"b has the shape \(3,\), expected \(4,\)"),
        ({"a": (2,), "b": None}, "b has the dtype float32, expected int64"),
    ],
)
def test_parameters_that_do_not_fit_are_named_and_nothing_is_copied(
    tmp_path: Path, expected: dict[str, Any], words: str
) -> None:
    save_parameters(tmp_path / "file", {"a": torch.ones(2), "b": torch.ones(3)})
    own = {n: torch.zeros(s) if s else torch.zeros(3, dtype=torch.int64) for n, s in expected.items()}
    with pytest.raises(ModelError, match=f"does not fit this model: {words}") as raised:
        restore_parameters(tmp_path / "file", own)
    assert raised.value.hint is not None
    assert not own["a"].any()


def test_a_missing_and_a_damaged_file_are_model_errors(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"contains no adapter: gone\.safetensors is missing"):
        load_parameters(tmp_path / "gone.safetensors")
    (tmp_path / "bad").write_bytes(b"no tensors")
    with pytest.raises(ModelError, match="bad is damaged"):
        restore_parameters(tmp_path / "bad", {})


# --------------------------------------------------------------------------------------------- AdaptedLayers


def doubled(base: Base) -> AdaptedLayers:
    adapted = AdaptedLayers(base)
    for name, layer in layers_to_adapt(base, ["o_proj"]).items():
        two = nn.Parameter(torch.full((layer.out_features,), 2.0, dtype=torch.float64))
        adapted.add(name, "factor", two, lambda factor, x, y: y * factor)
    return adapted


IDS = torch.arange(3, 15)[None]


def logits(model: Any) -> torch.Tensor:
    out: torch.Tensor = model(input_ids=IDS, use_cache=False).logits
    return out


def test_disabled_may_be_nested_and_ends_with_an_exception(base: Base) -> None:
    alone = logits(base.model)
    adapted = doubled(base)
    changed = logits(adapted.model)
    assert not torch.equal(changed, alone)
    with adapted.disabled():
        with adapted.disabled():
            assert torch.equal(logits(adapted.model), alone)
        assert torch.equal(logits(adapted.model), alone)
    assert torch.equal(logits(adapted.model), changed)
    with pytest.raises(KeyError), adapted.disabled():
        raise KeyError
    assert torch.equal(logits(adapted.model), changed)


def test_disabled_holds_in_a_compiled_model(base: Base) -> None:
    alone = logits(base.model)
    adapted = doubled(base)
    layer = base.model.get_submodule("model.layers.0.self_attn.o_proj")
    graphs = []
    compiled = torch.compile(layer, backend=lambda graph, inputs: graphs.append(graph) or graph.forward)
    x = torch.randn(2, 64, dtype=torch.float64)
    with adapted.disabled():
        own = compiled(x)
    assert torch.equal(compiled(x), 2 * own)
    with adapted.disabled():
        assert torch.equal(compiled(x), own)
        assert torch.equal(logits(adapted.model), alone)
    assert len(graphs) == 2


def test_disabled_holds_when_activations_are_computed_again(base: Base) -> None:
    """A loss of both forwards: its backward pass comes after the context."""
    adapted = doubled(base)
    model = adapted.model
    model.train()
    model.enable_input_require_grads()
    gradients = []
    for checkpointed in (False, True):
        if checkpointed:
            former = "gradient_checkpointing_enable"  # of transformers before 5.23
            getattr(model, "activation_checkpointing_enable", getattr(model, former))({"use_reentrant": False})
        model.zero_grad()
        with adapted.disabled():
            alone = logits(model)
        (logits(model) - alone).square().mean().backward()
        blocks = transformer_blocks(model).values()
        assert [block.gradient_checkpointing for block in blocks] == [checkpointed] * 2
        gradients.append(torch.stack([part.grad for part in adapted.parts.values()]))
    assert gradients[0].abs().min() > 0
    assert torch.equal(*gradients)


def test_parts_are_saved_under_the_names_that_they_have_in_the_model(base: Base, tmp_path: Path) -> None:
    adapted = doubled(base)
    adapted.add("lm_head", "small", nn.Linear(3, 2), lambda network, x, y: y)
    trained = {n for n, p in adapted.model.named_parameters() if p.requires_grad}
    assert set(adapted.tensors()) == trained
    adapted.save(tmp_path / "saved")
    assert set(load_parameters(tmp_path / "saved" / AdaptedLayers.FILE)) == trained
    with pytest.raises(ValueError, match="lm_head already has an attribute 'small'"):
        adapted.add("lm_head", "small", nn.Linear(3, 2), lambda network, x, y: y)


@pytest.mark.parametrize("purpose", [Purpose.TRAIN, Purpose.INFER])
def test_restored_parameters_are_trained_only_in_a_run(tmp_path: Path, purpose: Purpose) -> None:
    first, second = (doubled(stub_base({Op.FORWARD}, "float64")) for _ in range(2))
    for part in first.parts.values():
        part.data.fill_(3)
    first.save(tmp_path)
    assert second.restored(tmp_path, context(purpose)) is second
    for part in second.parts.values():
        assert part.unique().tolist() == [3]
        assert part.requires_grad == (purpose is Purpose.TRAIN)
