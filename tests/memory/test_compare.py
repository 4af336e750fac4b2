"""Ways to train, ranked by memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from smollm3_finetune.cli.output.plan_compare import shown_comparison
from smollm3_finetune.components.discovery import PluginSelection, discover
from smollm3_finetune.components.kinds import QUANTIZER
from smollm3_finetune.config.load import assignment
from smollm3_finetune.memory.compare import compare
from smollm3_finetune.memory.memory_plan import MemoryPlan
from smollm3_finetune.progress import Silent
from smollm3_finetune.train.plan import RunPlan
from smollm3_finetune.train.start import PlannedRun, plan_training

MB = 10**6
PLUGIN = """
from dataclasses import dataclass
from smollm3_finetune.api import AdapterSpec, Op, QuantizerSpec, Requires, hookimpl, option

@dataclass(frozen=True, kw_only=True)
class Options:
    rank: int = option(4, "Rank.")

@hookimpl
def smollm3_quantizers():
    return [
        QuantizerSpec(name="codes", summary="Codes.", api=2, factory="x:Y", provides={Op.FORWARD, Op.GRAD_INPUT}),
        QuantizerSpec(name="absent", summary="Absent.", api=2, factory="x:Y", provides={Op.FORWARD, Op.GRAD_INPUT},
                      requires=Requires(distributions=("not-installed-anywhere>=1",))),
    ]

@hookimpl
def smollm3_adapters():
    return [AdapterSpec(name="small", summary="Small.", api=2, factory="x:Y", options="plug:Options",
                        needs={Op.FORWARD, Op.GRAD_INPUT}, identity_at_start=True, packs=True)]
"""


def planned(tmp_path: Path, **settings: Any) -> PlannedRun:
    (tmp_path / "plug.py").write_text(PLUGIN)
    about = {"adapter.name": "small", "data.limit": 20, "device": "cpu", **settings}
    return plan_training(
        [assignment(f"{key}={value}", "the test") for key, value in about.items()],
        plugins=[str(tmp_path / "plug.py")],
        find_plugins=lambda names: discover(PluginSelection.of(tuple(names), no_plugins=True)),
        progress=Silent(),
        warn=print,
    )


def predict(plan: RunPlan, length: int, batch: int) -> MemoryPlan:
    """Memory that grows with the tokens; of the quantizer `codes` with this adapter, it is unknown."""
    assert plan.model.adapter is not None
    name = plan.model.quantizer.component.spec.name
    unknown = ("it does not state its bytes",) if name == "codes" else ()
    trained = 400 * MB if plan.model.adapter.component.spec.name == "full" else 0
    each = 1000 if plan.config.train.gradient_checkpointing else 10_000
    peak = 100 * MB + trained + each * length * batch
    parts = {} if unknown else {"weights": peak}
    return MemoryPlan(device="cpu", length=length, batch=batch, parts=parts, low=peak, high=peak, unknown=unknown)


def test_ranks_what_pairs_and_names_the_reason_for_the_rest(tmp_path: Path) -> None:
    run = planned(tmp_path, **{"train.batch_size": 2, "adapter.rank": 16})
    found = compare(run.plan, run.registry, predict)
    highs = [c.memory.high for c in found.ranked]
    assert highs == sorted(highs)
    assert {(c.quantizer, c.adapter) for c in found.ranked} == {("none", "small"), ("none", "full")}
    assert {c.batch for c in found.ranked} == {1, 2, 4, 16}
    own = [c for c in found.ranked if c.own]
    assert [(c.adapter, c.batch, c.checkpointing) for c in own] == [("small", 2, False)]
    reasons = {(c.quantizer, c.adapter): (c.unknown, c.reason) for c in found.left}
    assert reasons["codes", "small"] == (True, "it does not state its bytes")
    assert reasons["codes", "full"] == (False, "the quantizer does not provide dense, grad-weight"), "not unknown"
    assert "not-installed-anywhere" in reasons["absent", "small"][1]


def test_the_runs_own_components_keep_their_options(tmp_path: Path) -> None:
    run = planned(tmp_path, **{"adapter.rank": 16})
    seen = []

    def remember(plan: RunPlan, length: int, batch: int) -> MemoryPlan:
        assert plan.model.adapter is not None
        if plan.model.adapter.component.spec.name == "small":
            seen.append(plan.model.adapter.options.rank)
        return predict(plan, length, batch)

    compare(run.plan, run.registry, remember)
    assert set(seen) == {16}


def test_text(tmp_path: Path) -> None:
    run = planned(tmp_path)
    only = [q for q in run.registry.of(QUANTIZER) if q.spec.name != "absent"]
    text = shown_comparison(compare(run.plan, run.registry, predict, quantizers=only), budget=200 * MB)
    lines = text.splitlines()
    assert lines[2].split() == ["peak", "at", "most", "quantizer", "adapter", "checkpointing", "batch", "fits"]
    assert lines[3].split() == ["1", "101", "MB", "101", "MB", "none", "small", "yes", "1", "yes"]
    assert "  codes + small: it does not state its bytes" in lines
    assert any(line.startswith("*") and " no " in line for line in lines)


@pytest.mark.parametrize("adapters", [[], None])
def test_no_pairs(tmp_path: Path, adapters: list[Any] | None) -> None:
    run = planned(tmp_path)
    found = compare(run.plan, run.registry, predict, quantizers=[], adapters=adapters)
    assert found.as_json() == {"length": 1024, "ranked": [], "unknown": [], "refused": []}
