"""AdaLoRA's ranks follow the length of the run, also after a resume with more or fewer steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from smollm3_finetune.api import IncompatibleError

OPTIONS: dict[str, Any] = {"rank": 2, "initial_rank": 6, "warmup_steps": 1, "final_steps": 2}


def take(lab: Any, adapted: Any, first: int, last: int) -> None:
    parameters = [p for p in adapted.model.parameters() if p.requires_grad]
    for step in range(first, last + 1):
        lab.gradients(adapted.model)
        torch.manual_seed(step)
        with torch.no_grad():
            for parameter in parameters:  # with noise, a singular value is zero only if it was pruned
                parameter.sub_(0.1 * parameter.grad).add_(0.01 * torch.randn_like(parameter))
        adapted.on_step(step)


def used(adapted: Any) -> tuple[int, int]:
    """How many singular values are not zero, and how many there are."""
    values = [p for n, p in adapted.model.named_parameters() if ".lora_E." in n]
    return sum(int((v != 0).sum()) for v in values), sum(v.numel() for v in values)


def attached(lab: Any, steps: int, **changes: Any) -> Any:
    adapter = lab.make_adapter("adalora", **{**OPTIONS, **changes})
    return adapter.attach(lab.make_base("none"), lab.context(), steps)


def resumed(lab: Any, path: Path, steps: int | None, **changes: Any) -> Any:
    adapter = lab.make_adapter("adalora", **{**OPTIONS, **changes})
    return adapter.restore(lab.make_base("none"), path, lab.context(), steps)


@pytest.mark.parametrize(
    ("saved_after", "before", "after"), [(3, 8, 12), (7, 8, 12), (7, 8, 9), (4, 12, 5), (5, 12, 6)]
)
def test_a_resumed_run_ends_with_the_target_rank_of_its_own_length(
    lab: Any, tmp_path: Path, saved_after: int, before: int, after: int
) -> None:
    adapted = attached(lab, before)
    take(lab, adapted, 1, saved_after)
    adapted.save(tmp_path)
    again = resumed(lab, tmp_path, after)
    config = again.model.peft_config["default"]
    assert (config.total_step, config.tinit, config.tfinal) == (after, 1, 2)
    take(lab, again, saved_after + 1, after)
    kept, total = used(again)
    assert kept == total * 2 // 6


def test_the_ranks_of_an_extended_run_fall_as_its_own_schedule_says(lab: Any, tmp_path: Path) -> None:
    """Saved before the first step, so that the run of 12 steps is the same from the start."""
    attached(lab, 6).save(tmp_path)
    again, right = resumed(lab, tmp_path, 12), attached(lab, 12)
    for step in range(1, 13):
        for one in (again, right):
            take(lab, one, step, step)
        assert used(again) == used(right)
    assert used(again)[0] < used(again)[1]


def test_without_a_length_the_saved_schedule_is_kept(lab: Any, tmp_path: Path) -> None:
    attached(lab, 8).save(tmp_path)
    config = resumed(lab, tmp_path, None).model.peft_config["default"]
    assert (config.total_step, config.tinit, config.tfinal) == (8, 1, 2)


def test_defaults_of_the_schedule_follow_the_new_length(lab: Any, tmp_path: Path) -> None:
    none = {"warmup_steps": None, "final_steps": None}
    attached(lab, 20, **none).save(tmp_path)
    config = resumed(lab, tmp_path, 100, **none).model.peft_config["default"]
    assert (config.total_step, config.tinit, config.tfinal) == (100, 10, 20)


def test_nothing_is_pruned_if_the_initial_rank_is_the_rank(lab: Any) -> None:
    adapted = attached(lab, 6, initial_rank=2)
    take(lab, adapted, 1, 6)
    kept, total = used(adapted)
    assert kept == total


def test_ranks_are_decided_where_only_the_first_step_may_reduce_them(lab: Any) -> None:
    adapted = attached(lab, 5, warmup_steps=0, final_steps=4)
    take(lab, adapted, 1, 5)
    kept, total = used(adapted)
    assert kept == total * 2 // 6


def test_a_frozen_matrix_is_an_error(lab: Any) -> None:
    adapted = attached(lab, 8)
    lab.gradients(adapted.model)
    for name, parameter in adapted.model.named_parameters():
        if ".lora_A." in name:
            parameter.requires_grad_(False)
    with pytest.raises(IncompatibleError, match="'adalora' needs the gradients of all its matrices"):
        adapted.on_step(1)
