"""Random numbers: kept by code that must not affect what follows it, and seeded for all libraries."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from smollm3_finetune.evaluation.random_state import random_state_kept, seeded_everywhere


def drawn() -> tuple[float, float, float]:
    return random.random(), float(np.random.random()), float(torch.rand(()))


def fail_after_drawing() -> None:
    with random_state_kept():
        drawn()
        raise ZeroDivisionError


def test_all_states_are_restored_also_after_an_error() -> None:
    with seeded_everywhere(1):
        expected = drawn()
    with seeded_everywhere(1):
        with pytest.raises(ZeroDivisionError):
            fail_after_drawing()
        with seeded_everywhere(2):
            other = drawn()
        assert drawn() == expected
    assert not set(other) & set(expected)
