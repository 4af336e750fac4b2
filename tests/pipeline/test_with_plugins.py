"""The chain SFT, APO, merge, GPTQ with real methods, each step of the other side in a process of its own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from smollm3_finetune.files.json import file_sha256

ROWS = Path(__file__).parents[2] / "smollm3_finetune" / "builtin" / "chat.jsonl"
EXAMPLE = Path(__file__).parents[2] / "examples" / "sft-apo-gptq.yaml"
CHAIN = """\
output: pipe
device: cpu
train: {max_steps: 3, batch_size: 4, sample_tokens: 2}
stages:
  - name: sft
    quant: bnb-4bit
    adapter: {name: lora, rank: 4, dropout: 0.1}
    data: {path: rows.jsonl, max_length: 64}
  - name: apo
    from: sft
    objective: apo-zero
    data: {path: pairs.jsonl, max_length: 64}
    train: {learning_rate: 1e-4}
  - name: merged
    from: apo
    merge: true
  - name: gptq
    from: merged
    quantize: {name: gptq, bits: 4, group_size: 32}
    data: {path: rows.jsonl, max_length: 64}
    calibration: {rows: 8}
"""


def hashes(directory: Path) -> dict[str, str]:
    files = [*directory.glob("*.safetensors"), *directory.glob("*config.json")]
    return {f.name: file_sha256(f) for f in sorted(files)}


@pytest.mark.plugins
@pytest.mark.long
def test_sft_apo_merge_and_gptq_equal_commands_in_processes_of_their_own(
    run_cli: Callable[..., Any], isolated: Path
) -> None:
    lines = ROWS.read_text(encoding="utf-8").splitlines(keepends=True)
    Path("rows.jsonl").write_text("".join(lines[:24]), encoding="utf-8")
    shutil.copy(EXAMPLE.with_name("pairs.jsonl"), "pairs.jsonl")
    Path("p.yaml").write_text(CHAIN, encoding="utf-8")
    rows = ("--data", "rows.jsonl", "--device", "cpu", "--max-length")
    train = ("--max-steps", "3", "--batch-size", "4", "--set", "train.sample_tokens=2")
    for command in (
        ("train", "--quant", "bnb-4bit", "--adapter", "lora", "--adapter-opt", "rank=4", "--adapter-opt", "dropout=0.1",
         *rows, "64", *train, "--output", "sft"),
        ("train", "--from", "sft", "--objective", "apo-zero", "--data", "pairs.jsonl", "--device", "cpu",
         "--max-length", "64", *train, "--lr", "1e-4", "--output", "apo"),
        ("merge", "apo", "--device", "cpu", "--output", "merged"),
        ("quantize", "merged", "--quant", "gptq", "--quant-opt", "group_size=32", "--set", "calibration.rows=8",
         *rows, "64", "--output", "gptq"),
        ("pipeline", "run", "p.yaml"),
    ):  # fmt: skip
        result = run_cli(*command, OMP_NUM_THREADS="1", PYTHONHASHSEED="0")  # the order of sets in configs of PEFT
        assert result.code == 0, result.stderr
    for name in ("sft/adapter", "apo/adapter", "merged", "gptq"):
        made = hashes(Path("pipe") / name)
        assert made == hashes(Path(name)), name
        assert any(file.endswith(".safetensors") for file in made)
    assert json.loads(Path("pipe/gptq/quantize_config.json").read_text())["bits"] == 4


@pytest.mark.plugins
def test_the_example_is_a_valid_pipeline(cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(EXAMPLE.parents[1])
    plan = cli("pipeline", "run", "examples/sft-apo-gptq.yaml", "--dry-run", "--json").report()
    assert [(s["stage"], s["kind"]) for s in plan["stages"]] == [
        ("sft", "train"), ("apo", "train"), ("merged", "merge"), ("gptq", "quantize"), ("check", "eval"),
    ]  # fmt: skip
    assert plan["stages"][1]["objective"] == "apo-zero"
    assert [s["reason"] for s in plan["stages"]] == ["new", "after sft", "after apo", "after merged", "after apo, sft"]
