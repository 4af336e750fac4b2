"""`sft` and a preference objective pass the kit of objectives; each faulty objective fails the test that names it."""

from __future__ import annotations

from pathlib import Path

import pytest

from smollm3_finetune.testing import ObjectiveConformance

FILE = Path(__file__).parent / "broken_plugins" / "broken_objectives.py"


class TestSft(ObjectiveConformance):
    component = "sft"


class TestPrefer(ObjectiveConformance):
    """Two answers that share their prompt, and rows that must have both."""

    component = "prefer"
    plugins = (Path(__file__).parents[1] / "out_of_tree" / "pair_objectives.py",)


class TestPairs(ObjectiveConformance):
    """Two rows for each example, and terms that are not tokens."""

    component = "pairs"
    plugins = (FILE,)


class TestCompared(ObjectiveConformance):
    """The values of a reference."""

    component = "compared"
    plugins = (FILE,)


@pytest.mark.long
class TestComparedWithStart(ObjectiveConformance):
    component = "compared-with-start"
    plugins = (FILE,)


@pytest.mark.long
class TestComparedWithModel(ObjectiveConformance):
    component = "compared-with-model"
    plugins = (FILE,)


HELD_OUT = "test_the_held_out_loss_is_that_of_training"
ROWS = "test_row_losses_are_those_of_single_rows"
ACCUMULATED = "test_accumulated_gradients_are_those_of_one_batch"
FAULTS = [
    ("pairs-as-tokens", HELD_OUT, ["loss_sum() counts 5 terms", "define the method terms(batch)"]),
    ("other-terms", HELD_OUT, ["terms() counts 10 terms", "but loss_sum() 5"]),
    ("other-held-out", HELD_OUT, ["the loss of training on padded rows is", "same_held_out_loss = False"]),
    (
        "measures-of-batches",
        "test_row_measures_are_those_of_single_rows",
        ["the measure 'accuracy' of row", "it must not depend on other rows"],
    ),
    ("other-row-order", ROWS, ["for row 0 of 5 padded rows", "for that row alone"]),
    ("rows-not-examples", ROWS, ["returned the shapes (10,) and (10,) for 5 examples", "both must be (5,)"]),
    ("mean-of-batches", ACCUMULATED, ["in 3 batches", "divide the sum of the loss by num_items_in_batch"]),
    ("counts-per-row", "test_the_held_out_loss_is_a_sum_and_a_count", ["expected a float and an int"]),
    ("leaks", "test_flat_rows_do_not_see_each_other", ["if row 1 shares its sequence", "boundaries of flatten_rows"]),
    ("supervises-more", "test_flat_gradients_are_those_of_padded_rows", ["must supervise the same tokens"]),
    ("supervises-padding", "test_padded_rows_do_not_depend_on_each_other", ["padding must not count in the loss"]),
    ("changes-examples", "test_batches_are_tensors_of_the_rows", ["collator() changed its examples"]),
    ("keeps-state", "test_a_resumed_run_gives_the_same", ["interrupted after step 2", "self.state.global_step"]),
    ("ragged", "test_examples_have_the_same_names", ["'rejected'] for another row", "the same names"]),
    (
        "no-rejected",
        "test_prepare_raises_only_for_faults_of_the_row",
        ["TypeError", "for a row without a rejected answer", "raise ValueError with the reason"],
    ),
    ("ignores-length", "test_prepare_keeps_to_the_maximum_length", ["with max_length=24", "renderer.encode"]),
    ("stays-in-training", "test_evaluation_leaves_the_model_as_it_is", ["or other parameters trained"]),
    (
        "reference-of-rows",
        "test_the_reference_has_values_for_each_example",
        ["returned 10 mappings for a batch of 5 examples"],
    ),
    (
        "reference-of-batches",
        "test_values_that_are_computed_once_give_the_same_loss",
        ["the reference value 'logps' changes by", "if other padded rows share its batch"],
    ),
    (
        "held-out-without-reference",
        "test_the_reference_reaches_training_and_the_held_out_loss_alike",
        ["loss_sum() gives the same loss of padded rows with other values", "take them from batch['reference']"],
    ),
    (
        "reference-follows",
        "test_the_reference_does_not_follow_the_model",
        ["the reference value 'logps' changes by 0.1", "after a step of training"],
    ),
]


def class_of(name: str) -> ObjectiveConformance:
    made: type[ObjectiveConformance] = type(name, (ObjectiveConformance,), {"component": name, "plugins": (FILE,)})
    return made()


@pytest.mark.parametrize(("name", "test", "parts"), FAULTS, ids=[name for name, *_ in FAULTS])
def test_a_fault_fails_the_test_that_names_it(name: str, test: str, parts: list[str]) -> None:
    with pytest.raises(pytest.fail.Exception) as failure:
        getattr(class_of(name), test)()
    message = str(failure.value)
    assert all(part in message for part in parts), message
    assert "\n" not in message


def test_every_test_of_the_kit_has_a_fault_that_fails_it() -> None:
    tests = {name for name in dir(ObjectiveConformance) if name.startswith("test_")}
    assert {test for _, test, _ in FAULTS} == tests
