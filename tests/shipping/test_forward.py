"""Training what is shipped: the forward uses the rounded merged weight, the gradient is straight through."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grid_quantizers
import pytest
import torch
from shipped_models import IDS, disturb, gradients, logits, restored, trained
from torch import Tensor

pytest.importorskip("peft")

LAYER = "model.layers.1.mlp.down_proj"
METHODS = ("lora", "dora")


def merged_by_hand(layer: Any, weight: Tensor) -> Tensor:
    """W + ΔW, written out."""
    merged = weight + layer.lora_B["default"].weight @ layer.lora_A["default"].weight * layer.scaling["default"]
    if not layer.lora_magnitude_vector:
        return merged
    magnitude = layer.lora_magnitude_vector["default"].weight
    return (magnitude / merged.detach().norm(dim=1)).unsqueeze(1) * merged


@pytest.mark.parametrize("method", METHODS)
def test_a_layer_multiplies_by_the_rounded_merged_weight_and_its_gradient_is_straight_through(method: str) -> None:
    loaded = trained("grid", method, dtype="float64", biases=True)
    layer: Any = loaded.base.model.get_submodule(LAYER)
    weight = layer.base_layer.weight
    x = torch.randn(3, 5, weight.shape[1], dtype=torch.float64, requires_grad=True)
    push = torch.randn(3, 5, weight.shape[0], dtype=torch.float64)
    y = layer(x)
    merged = merged_by_hand(layer, weight)
    rounded = grid_quantizers.Rounding(grid_quantizers.GridOptions()).apply("", merged.detach().float(), {}).double()
    assert torch.equal(y, x @ rounded.T + layer.base_layer.bias)
    assert not torch.allclose(y, x @ merged.T + layer.base_layer.bias)
    trained_parameters = [p for p in layer.parameters() if p.requires_grad]
    found = torch.autograd.grad((y * push).sum(), [x, *trained_parameters])
    assert torch.allclose(found[0], push @ rounded, rtol=1e-12)
    for parameter, gradient in zip(trained_parameters, found[1:], strict=True):
        direction = torch.randn_like(parameter)
        assert float((gradient * direction).sum()) == pytest.approx(
            difference(layer, weight, x.detach(), push, parameter, direction), rel=1e-6
        )


def difference(layer: Any, weight: Tensor, x: Tensor, push: Tensor, parameter: Tensor, direction: Tensor) -> float:
    """The derivative of what is not rounded, by a central difference; DoRA's norm is a constant."""
    norm = (weight + layer.get_delta_weight("default")).detach().norm(dim=1)

    def value(step: float) -> float:
        with torch.no_grad():
            parameter.add_(step * direction)
            merged = weight + layer.get_delta_weight("default")
            if layer.lora_magnitude_vector:
                merged = (layer.lora_magnitude_vector["default"].weight / norm).unsqueeze(1) * merged
            parameter.sub_(step * direction)
            return float((x @ merged.T * push).sum())

    return (value(1e-4) - value(-1e-4)) / 2e-4


@pytest.mark.parametrize("method", METHODS)
def test_without_rounding_it_is_the_plain_adapter(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = trained(None, method)
    expected, slopes = logits(plain), gradients(plain)
    monkeypatch.setattr(grid_quantizers.Rounding, "apply", lambda self, layer, weight, grid: weight.clone())
    shipped = trained("grid", method)
    assert torch.allclose(logits(shipped), expected, rtol=1e-4, atol=1e-4)
    found = gradients(shipped)
    assert found.keys() == slopes.keys() and len(found) > 20
    for name, slope in slopes.items():
        assert float((found[name] - slope).norm()) <= 1e-4 * float(slope.norm()), name


def test_disabled_is_the_base_alone_and_rounds_nothing() -> None:
    base, shipped = trained(None), trained({"name": "grid", "bits": 2, "embeddings": True})
    with base.disabled():
        expected = logits(base)
    with shipped.disabled():
        assert torch.equal(logits(shipped), expected)
        with shipped.disabled():
            assert torch.equal(logits(shipped), expected)
    assert not torch.allclose(logits(shipped), expected)


@pytest.mark.parametrize("quant", ["none", "grid"])
def test_weights_that_are_kept_and_computed_anew_give_the_same_bits(quant: str) -> None:
    loaded = trained({"name": "grid", "bits": 3, "embeddings": True}, "dora", quant=quant)
    shipping = loaded.adapted._shipping  # type: ignore[union-attr]
    assert shipping.keep
    kept = logits(loaded), gradients(loaded)
    shipping.keep = False
    anew = logits(loaded), gradients(loaded)
    assert torch.equal(kept[0], anew[0])
    assert all(torch.equal(kept[1][name], value) for name, value in anew[1].items())


def test_activation_checkpointing_gives_the_same_gradients() -> None:
    loaded = trained("grid")
    expected = gradients(loaded)
    model, former = loaded.base.model, "gradient_checkpointing_enable"  # of transformers before 5.23
    getattr(model, "activation_checkpointing_enable", getattr(model, former))({"use_reentrant": False})
    found = gradients(loaded)
    assert all(torch.allclose(found[name], value, rtol=1e-5, atol=1e-7) for name, value in expected.items())


def test_under_autocast_the_same_weights_are_shipped() -> None:
    loaded = trained("grid")
    alone = loaded.adapted.digests()  # type: ignore[union-attr]
    with torch.autocast("cpu", torch.bfloat16):
        assert loaded.adapted.digests() == alone  # type: ignore[union-attr]
        y = loaded.base.model.get_submodule(LAYER)(torch.randn(2, 128))
        slopes = gradients(loaded)
    assert y.dtype == torch.bfloat16
    assert all(bool(g.isfinite().all()) for g in slopes.values())


def test_a_kept_weight_follows_every_change_of_the_adapter() -> None:
    loaded = trained("grid")
    before = logits(loaded)
    parameter = next(p for n, p in loaded.model.named_parameters() if "down_proj.lora_B" in n)
    values = parameter.data.clone()
    parameter.data.copy_(values + 0.5)  # changes no version
    assert not torch.equal(logits(loaded), before)
    parameter.data.copy_(values)
    assert torch.equal(logits(loaded), before)


@pytest.mark.parametrize("ship_as", ["grid-rows", {"name": "grid-file", "bits": 3, "embeddings": True}])
def test_a_saved_adapter_computes_as_shipped_again(
    ship_as: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = trained(ship_as)
    expected, slopes = logits(loaded), gradients(loaded)
    digests = loaded.adapted.digests()  # type: ignore[union-attr]
    loaded.save(tmp_path / "adapter")

    def refuse(self: Any, layer: str, weight: Tensor) -> Any:
        raise AssertionError("grids are made again")

    monkeypatch.setattr(grid_quantizers.Rounding, "grid", refuse)
    again = restored(tmp_path / "adapter")
    assert torch.equal(logits(again), expected)
    assert again.adapted.digests() == digests  # type: ignore[union-attr]
    further = restored(tmp_path / "adapter", purpose="train", ship_as=ship_as)
    assert all(torch.equal(gradients(further)[name], value) for name, value in slopes.items())
    inherited = restored(tmp_path / "adapter", purpose="train")
    assert torch.equal(logits(inherited), expected)


def test_tied_embeddings_are_rounded_for_the_head_too() -> None:
    loaded = trained({"name": "grid", "bits": 2, "embeddings": True})
    with torch.no_grad():
        loaded.base.model.eval()
        hidden = loaded.base.model.model(input_ids=IDS, use_cache=False).last_hidden_state
        weight = loaded.base.model.get_input_embeddings().weight
        rounding = grid_quantizers.Rounding(grid_quantizers.GridOptions(bits=2))
        expected = hidden @ rounding.apply("", weight, {}).T
    assert torch.allclose(logits(loaded), expected, atol=1e-5)


def test_a_step_changes_what_is_computed() -> None:
    loaded = trained("grid", noise=False)
    before = logits(loaded)
    disturb(loaded)
    assert not torch.equal(logits(loaded), before)
