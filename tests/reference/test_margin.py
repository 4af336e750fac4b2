"""At the first step the policy is its reference: the margin is 0, for every kind of adapter and of weights."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
from toy_runs import Run

MOVED = 1e-4
PLUGINS = pytest.mark.plugins
LONG = [pytest.mark.plugins, pytest.mark.long]


@pytest.mark.parametrize(
    ("quant", "adapter", "reference"),
    [
        pytest.param("none", "full", "start", id="full"),
        pytest.param("none", "scale", "start", id="scale", marks=LONG),
        pytest.param("none", "lora", "base", id="lora", marks=LONG),
        pytest.param("none", "dora", "base", id="dora", marks=LONG),
        pytest.param("none", {"name": "lora", "init": "pissa"}, "start", id="pissa", marks=LONG),
        pytest.param("bnb-4bit", "lora", "base", id="4bit-lora", marks=LONG),
        pytest.param("bnb-4bit", "dora", "base", id="4bit-dora", marks=PLUGINS),
        pytest.param("bnb-4bit", "scale", "base", id="4bit-scale", marks=LONG),
        pytest.param("hqq", "lora", "base", id="hqq-lora", marks=LONG),
        pytest.param("hqq", "scale", "start", id="hqq-scale", marks=LONG),
        pytest.param("bnb-8bit", "lora", "base", id="8bit-lora", marks=LONG),
    ],
)
def test_the_margin_is_zero_in_the_first_step(
    run: Run, toy: ModuleType, quant: str, adapter: Any, reference: str
) -> None:
    run("run", adapter, quant=quant, reference=reference, max_steps=1, gradient_accumulation=2)
    before = [float(margin.abs().max()) for _, margin, _ in toy.seen[:-2]]
    trained = [float(margin.abs().max()) for training, margin, _ in toy.seen if training]
    assert len(trained) == 2 and max(before) == 0.0, max(before)
    after = [float(margin.abs().max()) for training, margin, _ in toy.seen[-2:] if not training]
    assert max(after) > MOVED
