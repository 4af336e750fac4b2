"""The output layer at supervised positions only: the same loss and gradients, also through wrappers of the model."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    CohereConfig,
    Gemma2Config,
    GraniteConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    SmolLM3Config,
)

from smollm3_finetune.api import Base, BuildContext, NoOptions, Purpose, row_logps
from smollm3_finetune.api.batches import has_supervised_logits
from smollm3_finetune.api.data import IGNORE_INDEX
from smollm3_finetune.batching import head
from smollm3_finetune.batching.head import LOGIT_BYTES, SupervisedForward, supervised_logits
from smollm3_finetune.builtin.sft import SupervisedFineTuning
from smollm3_finetune.components.discovery import PluginSelection, discover
from smollm3_finetune.components.kinds import ADAPTER
from smollm3_finetune.components.selection import choose
from smollm3_finetune.testing.small import SIZES, random_model

VOCABULARY = SIZES["vocab_size"]
THREE_ROWS = 3 * VOCABULARY * 8
"""Bytes of the float64 logits of three tokens."""

IDS = torch.randint(3, VOCABULARY, (3, 14), generator=torch.Generator().manual_seed(1))
LABELS = torch.where(torch.arange(14) % 3 == 1, IGNORE_INDEX, IDS).index_fill(0, torch.tensor([2]), IGNORE_INDEX)
COUNT = int((LABELS[:, 1:] != IGNORE_INDEX).sum())


def small(config: Any = None, dtype: torch.dtype = torch.float64) -> Any:
    return random_model(dtype, config)


def with_adapter(name: str, model: Any, **options: Any) -> Any:
    """The model with an adapter whose weights were moved from their initial values."""
    choice = choose(discover(PluginSelection.of([])), ADAPTER, name, options)
    none: Any = None
    context = BuildContext(purpose=Purpose.TRAIN, device="cpu", dtype="float64", seed=3, cache=none, progress=none)
    adapted = choice.create().attach(Base(model=model, fingerprint="small"), context, 20)
    torch.manual_seed(5)
    with torch.no_grad():
        for p in adapted.model.parameters():
            if p.requires_grad:
                p.add_(0.05 * torch.randn_like(p))
    return adapted.model


def by_hand(model: Any) -> Tensor:
    """The summed loss, computed from all logits."""
    logits = model(input_ids=IDS, use_cache=False).logits[:, :-1].log_softmax(-1)  # (B, T - 1, V)
    wanted = LABELS[:, 1:]
    picked = logits.gather(-1, wanted.clamp(min=0)[..., None])[..., 0]
    return -(picked * (wanted != IGNORE_INDEX)).sum()


def gradients(model: Any, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys() and a
    assert max(float((a[n] - b[n]).abs().max()) for n in a) < 1e-12


@contextmanager
def tokens_through(layer: nn.Module) -> Iterator[list[int]]:
    """The number of tokens in each call of the output layer."""
    seen: list[int] = []
    hook = layer.register_forward_hook(lambda module, args, out: seen.append(out.shape[:-1].numel()))
    try:
        yield seen
    finally:
        hook.remove()


@pytest.mark.parametrize("logit_bytes", [LOGIT_BYTES, THREE_ROWS, 1])
@pytest.mark.parametrize("tied", [True, False])
def test_loss_and_gradients_equal_those_of_all_logits(tied: bool, logit_bytes: int) -> None:
    model = small(SmolLM3Config(**SIZES, no_rope_layers=[1, 0], tie_word_embeddings=tied))
    expected = by_hand(model)
    wanted = gradients(model, expected / COUNT)
    with supervised_logits(model, logit_bytes) as on:
        assert on
        out = model(input_ids=IDS, labels=LABELS, use_cache=False)
        assert out.logits is None
        assert out.terms == COUNT
        assert out.loss.dtype == torch.float64
        assert abs(float(out.loss) * COUNT - float(expected)) < 1e-11
        same(gradients(model, out.loss), wanted)


def test_the_output_layer_gets_only_supervised_tokens_in_small_pieces() -> None:
    model = small()
    with supervised_logits(model, THREE_ROWS), torch.no_grad(), tokens_through(model.lm_head) as seen:
        model(input_ids=IDS, labels=LABELS)
    assert sum(seen) == COUNT < IDS.numel()
    assert max(seen) == 3


def test_a_frozen_output_layer_computes_no_piece_twice() -> None:
    """The gradient at the hidden states, computed in pieces, equals that of all logits and scales with the loss."""
    model = small(SmolLM3Config(**SIZES, no_rope_layers=[1, 0], tie_word_embeddings=False))
    model.lm_head.requires_grad_(False)
    wanted = gradients(model, 3 * by_hand(model) / COUNT)
    with supervised_logits(model, THREE_ROWS), tokens_through(model.lm_head) as seen:
        loss = model(input_ids=IDS, labels=LABELS, use_cache=False).loss
        same(gradients(model, 3 * loss), wanted)
    assert sum(seen) == 1 + COUNT, "the first asks whether what watches here is trained"
    assert max(seen) == 3


def test_the_mean_uses_the_count_of_the_trainer() -> None:
    model = small()
    with supervised_logits(model), torch.no_grad():
        alone = model(input_ids=IDS, labels=LABELS)
        for count in (7, torch.tensor(7)):
            out = model(input_ids=IDS, labels=LABELS, num_items_in_batch=count)
            assert abs(float(out.loss) - float(alone.loss_sum) / 7) < 1e-14


def test_half_precision_losses_are_summed_in_float32() -> None:
    model = small(dtype=torch.bfloat16)
    own = model(input_ids=IDS, labels=LABELS).loss
    for logit_bytes in (LOGIT_BYTES, THREE_ROWS):
        with supervised_logits(model, logit_bytes) as on:
            out = model(input_ids=IDS, labels=LABELS)
        assert on and out.loss.dtype == torch.float32
        assert abs(float(out.loss) - float(own)) < 1e-2


def test_other_calls_use_the_forward_of_the_model() -> None:
    model = small().eval()
    signature, own = inspect.signature(model.forward), model(input_ids=IDS, labels=LABELS, use_cache=False)
    with supervised_logits(model):
        assert has_supervised_logits(model) and has_supervised_logits(nn.Sequential(model))
        assert inspect.signature(model.forward) == signature
        assert torch.equal(model(input_ids=IDS).logits, own.logits)
        kept = model(input_ids=IDS, labels=LABELS[:, -4:], logits_to_keep=4)
        assert kept.logits.shape[1] == 4
        hidden = model(input_ids=IDS, labels=LABELS, output_hidden_states=True)
        assert hidden.logits is not None and len(hidden.hidden_states) == 3
        as_tuple = model(input_ids=IDS, labels=LABELS, return_dict=False)
        assert isinstance(as_tuple, tuple) and abs(float(as_tuple[0]) - float(own.loss)) < 1e-6
    assert not has_supervised_logits(model)
    assert torch.equal(model(input_ids=IDS, labels=LABELS).logits, own.logits)


def test_the_first_labels_of_rows_are_not_measured() -> None:
    """With or without logits; nothing precedes these labels, or only a trained prompt."""
    model, objective = small().eval(), SupervisedFineTuning(NoOptions())
    batch = {"input_ids": IDS, "labels": IDS, "attention_mask": torch.ones_like(IDS)}
    with torch.no_grad():
        plain = objective.loss_sum(model, batch)
        with supervised_logits(model):
            supervised = objective.loss_sum(model, batch)
    assert plain[1] == supervised[1] == IDS.numel() - len(IDS)
    assert abs(plain[0] - supervised[0]) < 1e-10


# -------------------------------------------------------------------------------------------------- other heads


class Loud(LlamaForCausalLM):  # type: ignore[misc]
    """A model that changes its logits without a setting in its configuration."""

    def forward(self, *args: Any, labels: Any = None, **kwargs: Any) -> Any:
        out = super().forward(*args, **kwargs)
        out.logits = out.logits * 1.01
        if labels is not None:
            out.loss = self.loss_function(logits=out.logits, labels=labels, vocab_size=VOCABULARY)
        return out


class Regular(LlamaForCausalLM):  # type: ignore[misc]
    """A model that adds something to its loss."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        out = super().forward(*args, **kwargs)
        if out.loss is not None:
            out.loss = out.loss + 0.001
        return out


OTHERS = {
    "softcap": lambda: small(Gemma2Config(**SIZES, head_dim=8)),
    "divided": lambda: small(GraniteConfig(**SIZES, logits_scaling=8.0)),
    "multiplied": lambda: small(CohereConfig(**SIZES, logit_scale=0.0625)),
    "router loss": lambda: small(
        MixtralConfig(**SIZES, num_local_experts=2, output_router_logits=True, router_aux_loss_coef=0.5), torch.float32
    ),
    "router loss as small as by default": lambda: small(
        MixtralConfig(**SIZES, num_local_experts=2, output_router_logits=True, router_aux_loss_coef=0.001),
        torch.float32,
    ),
    "unknown logits": lambda: Loud(LlamaConfig(**SIZES)).double(),
    "unknown loss": lambda: Regular(LlamaConfig(**SIZES)).double(),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_a_model_that_changes_logits_or_loss_keeps_its_forward(kind: str) -> None:
    model = OTHERS[kind]().eval()
    own = model(input_ids=IDS, labels=LABELS)
    with supervised_logits(model) as on:
        again = model(input_ids=IDS, labels=LABELS)
    assert not on
    assert torch.equal(again.loss, own.loss)
    assert torch.equal(again.logits, own.logits)


def test_changed_logits_are_detected_without_knowing_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "CHANGED_LOGITS", ())
    for kind in ("softcap", "divided", "multiplied"):
        assert not SupervisedForward(OTHERS[kind]()).agrees(), kind


def test_parameters_in_a_hook_of_the_output_layer_are_trained() -> None:
    """In one piece of logits and in several."""
    gradients = []
    for logit_bytes in (LOGIT_BYTES, THREE_ROWS):
        model = small()
        model.requires_grad_(False)
        model.get_input_embeddings().weight.requires_grad_(True)
        factor = torch.nn.Parameter(torch.full((SIZES["vocab_size"],), 1.5, dtype=torch.float64))
        model.get_output_embeddings().register_forward_hook(lambda layer, args, out, factor=factor: out * factor)
        with supervised_logits(model, logit_bytes) as on:
            assert on
            model(input_ids=IDS, labels=LABELS).loss.backward()
        gradients.append(factor.grad)
    assert gradients[0].abs().max() > 0
    assert torch.allclose(gradients[0], gradients[1], atol=1e-14)


class TiedByReference(nn.Module):
    """An output layer that uses a weight of another module."""

    def __init__(self, embedding: nn.Module) -> None:
        super().__init__()
        self.of = [embedding]

    def forward(self, hidden: Tensor) -> Tensor:
        return nn.functional.linear(hidden, self.of[0].weight)


def test_a_weight_of_another_module_used_by_the_output_layer_is_trained() -> None:
    """In one piece of logits and in several: its gradient is that of all logits."""
    model = small(SmolLM3Config(**SIZES))
    model.requires_grad_(False)
    weight = model.get_input_embeddings().weight.requires_grad_(True)
    model.lm_head = TiedByReference(model.get_input_embeddings())
    (wanted,) = torch.autograd.grad(model(input_ids=IDS, labels=LABELS).loss, weight)
    for logit_bytes in (LOGIT_BYTES, THREE_ROWS):
        with supervised_logits(model, logit_bytes) as on:
            assert on
            (found,) = torch.autograd.grad(model(input_ids=IDS, labels=LABELS).loss, weight)
        assert (found - wanted).norm() < 1e-6 * wanted.norm()  # transformers' own loss is in float32


@pytest.mark.parametrize("logit_bytes", [LOGIT_BYTES, THREE_ROWS])
def test_a_second_derivative_is_an_error(logit_bytes: int) -> None:
    model = small()
    model.get_output_embeddings().requires_grad_(False)
    embedded = model.get_input_embeddings()(IDS).detach().requires_grad_()
    with supervised_logits(model, logit_bytes):
        loss = model(inputs_embeds=embedded, labels=LABELS).loss
        with pytest.raises(RuntimeError, match=r"no second derivative; use train\.logits=all"):
            torch.autograd.grad(loss, embedded, create_graph=True)


def test_another_ignored_label_uses_the_forward_of_the_model() -> None:
    model = small().eval()
    labels = IDS.where(LABELS != IGNORE_INDEX, 5)
    own = model(input_ids=IDS, labels=labels, ignore_index=5)
    with supervised_logits(model):
        assert torch.equal(model(input_ids=IDS, labels=labels, ignore_index=5).loss, own.loss)
        assert model(input_ids=IDS, labels=LABELS, ignore_index=IGNORE_INDEX).logits is None


def test_tensor_arguments_use_the_forward_of_the_model() -> None:
    model = small()
    with supervised_logits(model) as on:
        assert on
        out = model(input_ids=IDS, labels=LABELS, shift_labels=LABELS.roll(-1))
    assert out.logits is not None


def test_the_check_restores_mode_and_random_state() -> None:
    model = small().train()
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    with supervised_logits(model):
        assert model.training
    assert torch.equal(torch.rand(3), expected)


# ----------------------------------------------------------------------------------------------- adapters on it


@pytest.mark.plugins
@pytest.mark.parametrize("logit_bytes", [LOGIT_BYTES, THREE_ROWS])
@pytest.mark.parametrize(
    "options",
    [{"target_modules": ("q_proj", "lm_head")}, {"target_modules": ("q_proj",), "modules_to_save": ("lm_head",)}],
    ids=["lora on the head", "a head of its own"],
)
def test_an_adapter_on_the_output_layer_is_trained(options: dict[str, Any], logit_bytes: int) -> None:
    base = small(SmolLM3Config(**SIZES, no_rope_layers=[1, 0], tie_word_embeddings=False))
    model = with_adapter("lora", base, rank=4, **options)
    expected = by_hand(model)
    wanted = gradients(model, expected / COUNT)
    assert any("lm_head" in name for name in wanted)
    with supervised_logits(base, logit_bytes) as on:
        out = model(input_ids=IDS, labels=LABELS, use_cache=False)
        assert on and out.logits is None
        assert abs(float(out.loss) * COUNT - float(expected)) < 1e-11
        same(gradients(model, out.loss), wanted)


@pytest.mark.plugins
def test_recomputed_logits_use_the_same_dropout(monkeypatch: pytest.MonkeyPatch) -> None:
    base = small(SmolLM3Config(**SIZES, no_rope_layers=[1, 0], tie_word_embeddings=False))
    model = with_adapter("lora", base, rank=4, dropout=0.5, target_modules=("lm_head",)).train()
    found = []
    for call in (head.checkpoint, lambda function, *args, **kwargs: function(*args)):
        monkeypatch.setattr(head, "checkpoint", call)
        with supervised_logits(base, THREE_ROWS):
            torch.manual_seed(2)
            found.append(gradients(model, model(input_ids=IDS, labels=LABELS).loss))
    same(*found)


@pytest.mark.plugins
def test_a_loss_term_of_an_adapter_is_trained_but_not_reported() -> None:
    base = small()
    model = with_adapter("adalora", base, rank=2, initial_rank=4, warmup_steps=0, final_steps=2)
    own = model(input_ids=IDS, labels=LABELS)
    expected = by_hand(model)
    with supervised_logits(base):
        out = model(input_ids=IDS, labels=LABELS)
        batch = {"input_ids": IDS, "labels": LABELS}
        measured, terms = SupervisedFineTuning(NoOptions()).loss_sum(model, batch)
    assert abs(float(out.loss) - float(own.loss)) < 1e-6  # transformers' own loss is in float32
    assert float(out.loss) > float(expected) / COUNT + 1e-2
    assert terms == COUNT and abs(measured - float(expected)) < 1e-10


def test_a_wrapper_with_fixed_arguments_gets_the_logits_of_the_model() -> None:
    """A forward with named arguments only: the labels do not reach the model, so it must return logits."""
    base = small()

    class Narrow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inside = base

        def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Any:
            return SimpleNamespace(logits=self.inside(input_ids=input_ids, attention_mask=attention_mask).logits)

    with supervised_logits(base), torch.no_grad():
        assert Narrow()(IDS).logits.shape == (*IDS.shape, VOCABULARY)


@pytest.mark.plugins
@pytest.mark.parametrize(
    ("adapter", "options"), [("lora", {"target_modules": ("lm_head", "q_proj")}), ("prompt-tuning", {})]
)
def test_log_probabilities_of_rows_pass_through_wrappers(adapter: str, options: dict[str, Any]) -> None:
    """A trained output layer is computed in pieces, and tokens of prompt tuning before the row are left out."""
    model = small()
    wrapped = with_adapter(adapter, model, **options)
    batch = {"input_ids": IDS, "labels": LABELS, "attention_mask": torch.ones_like(IDS)}
    wanted = row_logps(wrapped, batch)
    expected = gradients(wrapped, (wanted**2).sum())
    with supervised_logits(model, THREE_ROWS) as on:
        assert on
        found = row_logps(wrapped, batch)
        same(gradients(wrapped, (found**2).sum()), expected)
    assert found.shape == (len(IDS),)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=0)
