"""The time of a step that trains what is shipped, beside a plain one: interleaved in one process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from shipping_cells import RANK, Setting, Target

from smollm3_finetune.api import pad_rows
from smollm3_finetune.model.load import LoadedModel, load_model


def times(setting: Setting, adapter: str, targets: Mapping[str, Target], steps: int) -> dict[str, Any]:
    """The median time of a step of each target, and its ratio to that of a plain step of the same round.

    Every round takes one step of each variant on the same batch. `cpu` is the time of the process on all its cores,
    which other processes on the machine disturb less than `wall`.
    """
    variants: dict[str, Target | None] = {"plain": None, **targets}
    models = {name: _loaded(setting, adapter, target) for name, target in variants.items()}
    trained = {n: [p for p in m.model.parameters() if p.requires_grad] for n, m in models.items()}
    optimizers = {name: torch.optim.AdamW(parameters, lr=setting.rate) for name, parameters in trained.items()}
    tokenizer = models["plain"].tokenizer
    examples = setting.examples(tokenizer)
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in variants}
    for step in range(steps + 1):
        rows = [examples[(step * setting.batch + i) % len(examples)] for i in range(setting.batch)]
        batch = dict(pad_rows(rows, tokenizer))
        for name, loaded in models.items():
            began = time.perf_counter(), time.process_time()
            _step(loaded, optimizers[name], batch, step)
            if step:  # the first step of each variant warms up
                taken[name].append((time.perf_counter() - began[0], time.process_time() - began[1]))
    plain = taken["plain"]
    found: dict[str, Any] = {"steps": steps, "threads": torch.get_num_threads(), "batch": setting.batch}
    found["plain"] = _medians(plain)
    for name in targets:
        ratios = [[own / base for own, base in zip(mine, other, strict=True)] for mine, other in zip(
            taken[name], plain, strict=True
        )]  # fmt: skip
        wall, cpu = (statistics.median(r[i] for r in ratios) for i in (0, 1))
        found[name] = {**_medians(taken[name]), "ratio_wall": round(wall, 3), "ratio_cpu": round(cpu, 3)}
    return found


def _medians(taken: Sequence[tuple[float, float]]) -> dict[str, float]:
    return {
        "wall": round(statistics.median(t[0] for t in taken), 3),
        "cpu": round(statistics.median(t[1] for t in taken), 3),
    }


def _loaded(setting: Setting, adapter: str, target: Target | None) -> LoadedModel:
    how: dict[str, Any] = {} if target is None else {"ship_as": {"name": target.name, **target.options}}
    loaded = load_model(
        setting.model,
        adapter={"name": adapter, "rank": RANK},
        purpose="train",
        device="cpu",
        dtype="float32",
        total_steps=setting.steps,
        **how,
    )
    loaded.model.train()
    return loaded


def _step(loaded: LoadedModel, optimizer: torch.optim.Optimizer, batch: Mapping[str, Any], step: int) -> None:
    loaded.model(**batch, use_cache=False).loss.backward()
    optimizer.step()
    assert loaded.adapted is not None
    loaded.adapted.on_step(step + 1)
    optimizer.zero_grad(set_to_none=True)
