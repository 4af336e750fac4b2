"""float64: two processes have the losses, gradients, measures and adapters of one, for every objective, to 1e-9."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import exact_runs
import pytest
from safetensors.torch import load_file

from smollm3_finetune.testing.small import write_small_model

pytestmark = pytest.mark.plugins

EXACT = 1e-9
"""Relative, and absolute for values below 1. The same float64 terms are summed in another order: at most 1.5e-15 was
seen in losses, gradient norms and measures, and 3.2e-15 in weights after three steps."""
ROWS = 24
"""Three steps of 8. If the rows were not a multiple of the 4 that two processes take at a time, accelerate would repeat
rows at the end of a pass: objectives with `terms` get no filler examples."""
CASES: dict[str, tuple[str, ...]] = {
    "dpo": ("dpo",),
    "dpo-conservative": ("dpo", "label_smoothing=0.1"),
    "dpo-sft": ("dpo", "sft_weight=0.4"),
    "dpo-norm": ("dpo", "loss_type=sigmoid_norm"),
    "dpo-hinge": ("dpo", "loss_type=hinge"),
    "dpo-ipo": ("dpo", "loss_type=ipo"),
    "dpo-robust": ("dpo", "loss_type=robust", "label_smoothing=0.1"),
    "apo-zero": ("apo-zero",),
    "apo-down": ("apo-down",),
    "kto": ("kto", "desirable_weight=1.5"),
    "orpo": ("orpo",),
    "simpo": ("simpo",),
    "cpo": ("cpo",),
    "cpo-hinge": ("cpo", "loss_type=hinge"),
    "cpo-ipo": ("cpo", "loss_type=ipo"),
}
VALUES = {"loss", "grad_norm", "chosen_reward", "rejected_reward", "margin", "accuracy", "kl"}


def pair(n: int) -> dict[str, Any]:
    return {"prompt": f"What is {n} + {n}?", "chosen": f"It is {2 * n}.", "rejected": f"I do not know, {n} times."}


def labeled(n: int) -> dict[str, Any]:
    """A row for KTO. All answers are alike, so that the KL term does not depend on which rows a process has."""
    return {"prompt": f"Is {n} + {n} equal to {2 * n + n % 2}?", "completion": "Yes, it is.", "label": n % 2 == 0}


def write_files() -> None:
    for name, row in (("pairs", pair), ("labeled", labeled)):
        for part, numbers in (("train", range(ROWS)), ("held_out", range(100, 106))):
            lines = "".join(json.dumps(row(n)) + "\n" for n in numbers)
            Path(f"{name}-{part}.jsonl").write_text(lines, encoding="utf-8")
    write_small_model(Path("small"), biases=False)


def arguments(case: str, adapter: str, side: str, batch: int) -> list[str]:
    objective, *options = CASES[case]
    rows = "labeled" if objective == "kto" else "pairs"
    return [
        "train", "--model", "small", "--device", "cpu", "--dtype", "float64", "--adapter", adapter, "--objective",
        objective, *(a for option in options for a in ("--objective-opt", option)), "--batch-size", str(batch),
        "--data", f"{rows}-train.jsonl", "--validation", f"{rows}-held_out.jsonl", "--max-length", "128", "--set",
        "train.gradient_accumulation=2", "--set", "train.learning_rate=1e-3", "--set", "train.sample_tokens=1", "--set",
        "train.report=false", "--output", f"{side}/{case}-{adapter}",
    ]  # fmt: skip


def in_two_processes(runs: list[list[str]]) -> None:
    """All runs in one launch, as the start of two processes takes longer than a run."""
    Path("runs.json").write_text(json.dumps(runs), encoding="utf-8")
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    done = subprocess.run(
        [*launcher, exact_runs.__file__, "runs.json"],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def steps_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def compare(name: str) -> None:
    one, two = Path("one") / name, Path("two") / name
    assert json.loads((two / "versions.json").read_text())["processes"] == 2
    steps, theirs = steps_of(one), steps_of(two)
    assert len(steps) == len(theirs) == 3, name
    for ours, other in zip(steps, theirs, strict=True):
        assert ours.keys() & VALUES == other.keys() & VALUES
        for value in ours.keys() & VALUES:
            assert other[value] == pytest.approx(ours[value], rel=EXACT, abs=EXACT), (name, ours["step"], value)
    reports = [json.loads((side / "report.json").read_text()) for side in (one, two)]
    assert reports[0]["measures"].keys() == reports[1]["measures"].keys() >= {"accuracy"}
    for measure, about in reports[0]["measures"].items():
        assert reports[1]["measures"][measure]["after"]["mean"] == pytest.approx(
            about["after"]["mean"], rel=EXACT, abs=EXACT
        ), (name, measure)
    tensors = [load_file(next((side / "adapter").glob("*.safetensors"))) for side in (one, two)]
    assert tensors[0].keys() == tensors[1].keys()
    for key, tensor in tensors[0].items():
        assert float((tensor.double() - tensors[1][key].double()).abs().max()) <= EXACT, (name, key, tensor.dtype)


@pytest.mark.parametrize(
    "cases",
    [
        pytest.param([("dpo", "full")], id="dpo"),
        pytest.param([*((case, "full") for case in CASES), ("dpo", "lora"), ("apo-zero", "lora")],
                     id="all", marks=pytest.mark.long),
    ],
)  # fmt: skip
def test_two_processes_are_one_to_1e_9(cases: list[tuple[str, str]], isolated: Path) -> None:
    write_files()
    exact_runs.run([arguments(*case, "one", 4) for case in cases])
    in_two_processes([arguments(*case, "two", 2) for case in cases])
    for case, adapter in cases:
        compare(f"{case}-{adapter}")
