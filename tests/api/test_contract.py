"""The contract between loader, quantizer and adapter, including a quantizer whose kernel is repacked permanently.

Each pair runs evaluate, train, evaluate, save, train, restore. At each step the gradients of the adapter must equal
those on the dense copy. Bounds: 1e-9 in float64 (a sum of a few thousand products, each rounded at 1e-16), 1e-5 in
float32, or the `forward_rtol` of the base if that is larger.
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
    assert result.moved > 1e-3, "the adapter must change the logits, otherwise the comparison shows nothing"
    assert list(result.gradients) == POINTS
    for point, error in (*result.gradients.items(), *result.logits.items()):
        assert error <= bound, f"{point}: {error}"
    assert all(error == 0 for error in result.weights.values()), "read_weight changed during the run"
    assert result.restored <= bound
    assert result.trained
    assert result.base_trained == []


@pytest.mark.parametrize("quant", ["none", "rows-int8"])
def test_an_out_of_tree_adapter_trains_as_on_the_dense_copy(quant: str) -> None:
    check(measured(quant, "scale", "float64"), FLOAT64)


def test_a_kernel_that_is_repacked_fails_the_same_check() -> None:
    result = measured("rows-int8-unpinned", "scale", "float64")
    assert result.logits["evaluate"] <= FLOAT64, "one evaluation alone does not show the fault"
    assert all(error == 0 for error in result.weights.values()), "reading the weights does not show it either"
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
def test_lora_and_dora_detect_a_kernel_that_is_repacked(adapter: str) -> None:
    result = measured("rows-int8-unpinned", adapter, "float64")
    assert result.logits["evaluate"] <= FLOAT64
    assert result.gradients["train"] > 0.1


@pytest.mark.plugins
@pytest.mark.parametrize("quant", ["bnb-4bit", "bnb-8bit"])
def test_an_out_of_tree_adapter_works_on_a_quantizer_that_does_not_know_it(quant: str) -> None:
    check(measured(quant, "scale", "float32"), FLOAT32)


@pytest.mark.plugins
def test_only_the_adapters_parameters_train() -> None:
    result = measured("none", "lora", "float32")
    assert all(".lora_A." in name or ".lora_B." in name for name in result.trained)
