"""Every method behaves as its descriptor says, on ordinary layers and on a quantizer that PEFT does not know."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from smollm3_peft.methods import METHODS

from smollm3_finetune.api import Op, UnsupportedOp

FLOAT32_ONLY = {"psoft"}
"""PEFT refuses to initialize these in float64."""

FLOAT32_INSIDE = {"deft", "frod"}
"""PEFT keeps some fixed matrices of these in float32, whatever the model's dtype."""

CASES = [
    (spec.name, kind)
    for spec in METHODS
    for kind in ("none", "stub")
    if not (Op.DENSE in spec.needs and kind == "stub")
]


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def case(request: Any, lab: Any, tmp_path_factory: Any) -> SimpleNamespace:
    method, kind = request.param
    dtype = torch.float32 if method in FLOAT32_ONLY else torch.float64
    result = lab.run(method, kind, dtype, tmp_path_factory.mktemp(method))
    result.exact = 1e-5 if method in FLOAT32_ONLY else (2e-6 if method in FLOAT32_INSIDE else 1e-9)
    return result


def test_starts_as_its_base(case: Any) -> None:
    if case.spec.identity_at_start:
        assert case.identity <= case.exact
    else:
        assert case.identity > 0


def test_its_parameters_have_the_stated_roles(case: Any) -> None:
    assert {one.role for one in case.roles.values()} == case.spec.roles
    assert {one.layer for one in case.roles.values()} <= case.layers, "the layer of the base, or none"
    assert {name for name, one in case.roles.items() if one.decays} == case.decaying & case.roles.keys()


def test_gradients_equal_those_on_the_dense_copy_at_every_step(case: Any) -> None:
    # three training steps, then restored; on ordinary layers only the restored adapter is compared
    assert len(case.gradient) == (4 if case.kind == "stub" else 1)
    assert max(case.gradient) <= 1e-5


def test_only_the_adapter_trains_and_its_loss_falls(case: Any) -> None:
    assert not case.trains_base
    assert case.trained_dtypes == {case.dtype}
    assert case.moved >= 1e-2
    assert case.losses[-1] < case.losses[0]


def test_restores_to_the_same_logits(case: Any) -> None:
    assert {"adapter_config.json", "adapter_model.safetensors"} <= set(case.files)
    assert case.restored_infer <= case.exact
    assert case.restored_train <= case.exact
    assert case.trained_infer == 0
    assert case.trained_train == 1


def test_disabling_gives_the_base_and_is_undone_afterwards(case: Any) -> None:
    assert case.disabled == 0
    assert case.enabled == 0
    assert case.flags_kept


def test_reads_weights_only_if_declared(case: Any) -> None:
    if case.kind == "stub":
        assert (case.reads > 0) == (Op.READ_WEIGHT in case.spec.needs)


def test_packed_rows_are_separate_as_declared(case: Any) -> None:
    assert (case.leak <= 1e-12 if case.dtype == torch.float64 else case.leak <= 1e-6) == case.spec.packs


def test_merging_into_the_dense_copy_equals_the_adapter(case: Any, lab: Any) -> None:
    dense = lab.dense_copy(lab.make_base(case.kind, case.dtype).model)
    adapter = lab.make_adapter(case.method)
    if not case.spec.merges:
        with pytest.raises(UnsupportedOp, match="cannot be merged"):
            adapter.merge(dense, case.path)
        return
    merged = adapter.merge(dense, case.path)
    assert type(merged).__name__ == "SmolLM3ForCausalLM"
    assert merged.get_output_embeddings().weight is merged.get_input_embeddings().weight
    assert not any("lora" in name or "base_layer" in name for name in merged.state_dict())
    assert lab.distance(lab.logits(merged), case.after) <= max(case.exact, 2e-6)


def test_merging_in_place_is_refused_on_a_quantized_base(case: Any) -> None:
    if case.kind == "none" or not case.spec.merges or case.method in ("ln-tuning", "trainable-tokens"):
        pytest.skip("no quantized layer has an adapter")
    for merge in (case.adapted.model.merge_and_unload, case.adapted.model.merge_adapter):
        with pytest.raises(UnsupportedOp, match="would damage the model"):
            merge()
