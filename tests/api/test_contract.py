"""The contract between loader, quantizer and adapter, on its hard case: a checkpoint quantizer with a one-way kernel.

Each pair goes through evaluate, train, evaluate, save, train, restore; at each point the adapter's gradients must
equal those on the dense copy. Bounds: in float64 1e-9 (a sum of a few thousand products, rounded at 1e-16 each);
in float32 1e-5; or the base's own `forward_rtol` where that is larger.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from smollm3_finetune.testing import Comparison, check_composition, plan

HERE = Path(__file__).parents[1] / "out_of_tree"
FILES = tuple(str(HERE / f"{name}.py") for name in ("one_way_quantizer", "scale_adapter"))
POINTS = ["train", "train after save", "train after restore"]
FLOAT64, FLOAT32 = 1e-9, 1e-5


def measured(quant: str, adapter: str, dtype: str) -> Comparison:
    return check_composition(plan("tiny", quant=quant, adapter=adapter, dtype=dtype, plugins=FILES))


def check(result: Comparison, bound: float) -> None:
    assert result.identity <= bound
    assert result.moved > 1e-3, "an adapter that moves nothing cannot be compared"
    assert list(result.gradients) == POINTS
    for point, error in (*result.gradients.items(), *result.logits.items()):
        assert error <= bound, f"{point}: {error}"
    assert all(error == 0 for error in result.weights.values()), "read_weight changed on the way"
    assert result.restored <= bound
    assert result.trained
    assert result.base_trained == []


@pytest.mark.parametrize("quant", ["none", "rows-int8"])
def test_an_out_of_tree_adapter_trains_as_on_the_dense_copy(quant: str) -> None:
    check(measured(quant, "scale", "float64"), FLOAT64)


def test_a_one_way_kernel_that_is_not_pinned_fails_the_same_check() -> None:
    result = measured("rows-int8-unpinned", "scale", "float64")
    assert result.logits["evaluate"] <= FLOAT64, "a single evaluation shows nothing"
    assert all(error == 0 for error in result.weights.values()), "nor does reading the weights"
    assert result.gradients["train"] > 0.1
    with pytest.raises(AssertionError, match=r"^train: 0\."):
        check(result, FLOAT64)


def test_full_training_trains_the_base_itself() -> None:
    result = measured("none", "full", "float64")
    assert sorted(result.base_trained) == sorted(result.trained)
    assert max(result.gradients.values()) <= FLOAT64
    assert result.restored <= FLOAT64


@pytest.mark.plugins
@pytest.mark.parametrize("adapter", ["lora", "dora"])
@pytest.mark.parametrize(
    ("quant", "dtype", "bound"),
    [
        ("none", "float64", FLOAT64),
        ("rows-int8", "float64", FLOAT64),
        ("bnb-4bit", "float32", FLOAT32),
        ("bnb-8bit", "float32", FLOAT32),
    ],
)
def test_lora_and_dora_train_as_on_the_dense_copy(quant: str, dtype: str, bound: float, adapter: str) -> None:
    check(measured(quant, adapter, dtype), bound)


@pytest.mark.plugins
@pytest.mark.parametrize("adapter", ["lora", "dora"])
def test_lora_and_dora_show_a_kernel_that_is_not_pinned(adapter: str) -> None:
    result = measured("rows-int8-unpinned", adapter, "float64")
    assert result.logits["evaluate"] <= FLOAT64
    assert result.gradients["train"] > 0.1


@pytest.mark.plugins
@pytest.mark.parametrize("quant", ["bnb-4bit", "bnb-8bit"])
def test_an_out_of_tree_adapter_composes_with_a_quantizer_that_never_heard_of_it(quant: str) -> None:
    check(measured(quant, "scale", "float32"), FLOAT32)


@pytest.mark.plugins
def test_only_the_adapters_parameters_train() -> None:
    result = measured("none", "lora", "float32")
    assert all(".lora_A." in name or ".lora_B." in name for name in result.trained)
