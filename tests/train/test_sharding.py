"""Weights sharded by FSDP over two processes on a CPU, without accelerate, which shards only on GPUs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from smollm3_finetune import load_model

SHARDED = """
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from smollm3_finetune import load_model
from smollm3_finetune.api import token_logps, without_adapter
from smollm3_finetune.batching.head import supervised_logits
from smollm3_finetune.train.distributed.processes import shut_down_processes
from smollm3_finetune.train.distributed.sharding import gathered_weights
from smollm3_finetune.train.finite import check_weights

dist.init_process_group("gloo")
adapter = sys.argv[1]
ids = torch.randint(5, 900, (2, 30), generator=torch.Generator().manual_seed(0))  # the same rows in both processes


def trained(*, shard):
    loaded = load_model("tiny", adapter=adapter, purpose="train")
    model = loaded.model
    with supervised_logits(loaded.base.model, 40_000) as on:  # several pieces
        assert on
        if shard:
            mesh = init_device_mesh("cpu", (2,))
            for layer in loaded.base.model.model.layers:
                fully_shard(layer, mesh=mesh)
            fully_shard(model, mesh=mesh)
            assert all(isinstance(p, DTensor) for p in model.parameters())
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
        losses, references = [], []
        for _ in range(3):
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
            if adapter != "full":  # between a forward and its backward
                with without_adapter(model) as base:
                    references.append(token_logps(base, {"input_ids": ids, "labels": ids}).sum().item())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    with gathered_weights(model):
        check_weights(loaded, 3, "nothing was saved")
        assert not any(isinstance(p, DTensor) for p in model.parameters())
        if dist.get_rank() == 0:
            loaded.save(Path("sharded" if shard else "whole"))
    assert shard == any(isinstance(p, DTensor) for p in model.parameters()), "as before"
    dist.barrier()
    model.eval()
    with torch.no_grad():
        with gathered_weights(model):
            answer = model.generate(input_ids=ids[:1, :5], max_new_tokens=4, do_sample=False)[0].tolist()
        after = model(input_ids=ids, labels=ids).loss.item()
    return losses, after, answer, references


whole, sharded = trained(shard=False), trained(shard=True)
if dist.get_rank() == 0:
    import json

    print(json.dumps([whole, sharded]))
shut_down_processes()
"""


@pytest.mark.plugins
@pytest.mark.parametrize("adapter", ["lora", pytest.param("full", marks=pytest.mark.long)])
def test_a_sharded_model_trains_answers_and_is_saved_unsharded(adapter: str) -> None:
    Path("sharded.py").write_text(SHARDED)
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    done = subprocess.run(
        [*launcher, "sharded.py", adapter],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    whole, sharded = json.loads(done.stdout.splitlines()[-1])
    assert whole[0][2] < whole[0][0], "the steps must do something"
    assert sharded[0] == pytest.approx(whole[0], rel=1e-5)
    assert sharded[1] == pytest.approx(whole[1], rel=1e-5)
    assert sharded[2] == whole[2]
    if adapter == "lora":  # the base does not move
        assert [*sharded[3], *whole[3]] == pytest.approx([-whole[0][0] * 2 * 29] * 6, rel=1e-5)
    restored = [dict(load_model("tiny", adapter_path=name).model.named_parameters()) for name in ("whole", "sharded")]
    assert restored[0].keys() == restored[1].keys()
    assert max(float((restored[0][n] - restored[1][n]).abs().max()) for n in restored[0]) < 1e-5


@pytest.mark.parametrize(
    ("settings", "code", "message"),
    [
        ({"ACCELERATE_USE_FSDP": "true"}, 3, "FSDP 1 is not supported: it wraps the model"),
        (
            {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_CPU_RAM_EFFICIENT_LOADING": "true"},
            2,
            "one process",
        ),
        ({"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}, 3, "ZeRO 3"),
        ({"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_CONFIG_FILE": "ds.json"}, 3, "ZeRO 3"),
    ],
)
def test_unsupported_combinations_are_refused_before_weights_are_read(
    cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], code: int, message: str
) -> None:
    Path("ds.json").write_text('{"zero_optimization": {"stage": 3}}')
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    result = cli("train", "--adapter", "full", "--output", "run", "--dry-run")
    assert result.code == code, result.stderr
    assert message in result.stderr
    assert "hint: accelerate launch --" in result.stderr
    assert not Path("run").exists()


def test_without_several_processes_nothing_changes() -> None:
    from smollm3_finetune.train.distributed.sharding import gathered_weights

    model = torch.nn.Linear(2, 2)
    before = dict(model.named_parameters())
    with gathered_weights(model):
        assert all(p is before[n] for n, p in model.named_parameters())
