"""Merged weights of LoRA, DoRA and rsLoRA: PEFT's own merge bit for bit, on ordinary and on quantized bases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from smollm3_peft.merged import layers

from smollm3_finetune.api import Base, IncompatibleError
from smollm3_finetune.testing import AdapterConformance, stub_base, stub_dense

METHODS = ("lora", "rslora", "dora")
TESTS = ("test_a_merged_weight_is_what_a_merge_writes", "test_a_merged_weight_has_the_gradient_of_the_adapter")


def case(method: str, dtype: str, **options: Any) -> Any:
    found = {"rank": 4, **options}
    return type("Case", (AdapterConformance,), {"component": method, "options": found, "dtype": dtype})()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("method", METHODS)
def test_merged_weights_are_those_of_peft(method: str, dtype: str, tmp_path: Path) -> None:
    for at, name in enumerate(TESTS):
        (tmp_path / str(at)).mkdir()
        getattr(case(method, dtype), name)(tmp_path / str(at))


@pytest.mark.parametrize("method", METHODS)
def test_they_equal_merge_and_unload_on_a_float32_model(method: str, tmp_path: Path) -> None:
    tests = case(method, "float32")
    base = stub_base(tests.declared().needs, "float32")  # its layers are views of quantized ones
    adapted = tests.attach(tmp_path, base, pushed=True)
    found = adapted.merged_layers()
    dense = stub_dense("float32")
    weights = {name: dense.get_submodule(name).weight.detach().clone() for name in found}
    other = tests.attach(tmp_path, Base(model=dense, fingerprint="x"), pushed=True)
    merged = other.model.merge_and_unload()
    assert len(found) == 14
    for name, layer in found.items():
        assert base.ops_for(layer.base) is not None
        with torch.no_grad():
            value = layer.merged(weights[name])
        assert torch.equal(value, merged.get_submodule(name).weight), name
        assert not torch.equal(value, weights[name]), name


@pytest.mark.parametrize(
    ("method", "options", "says"),
    [
        ("lora", {"modules_to_save": ["lm_head"]}, "embed_tokens"),  # tied to it
        ("lora", {"target_modules": ["q_proj", "embed_tokens"]}, "embed_tokens"),
        ("lora", {"init": "mica"}, "q_proj"),
        ("dora", {"dropout": 0.1}, "q_proj"),
    ],
)
def test_other_changes_have_no_merged_weight(method: str, options: dict[str, Any], says: str, tmp_path: Path) -> None:
    tests = case(method, "float32", **options)
    assert not tests.declared().ships or "embed_tokens" in str(options)
    adapted = tests.attach(tmp_path, Base(model=stub_dense("float32"), fingerprint="x"))
    with pytest.raises(IncompatibleError, match=says):
        layers(adapted.model, method)
