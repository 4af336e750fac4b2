"""float64: two processes have the losses, gradients, measures and adapters of one, for every objective, to 1e-9."""

from __future__ import annotations

import json
import math
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
EVEN = 24
"""Rows that two processes, which take 4 at a time, share evenly. Steps have 8 rows."""
UNEVEN = (9, 10, 11, 13, 14, 15)
"""In the last step of a pass, a process has fewer rows than the other: 1 of 2, or none in the last batch or at all."""
PASSES = 2
OUT_OF_TREE = Path(__file__).parents[1] / "out_of_tree" / "pair_objectives.py"
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
    "dpo-once": ("dpo", "train.reference=once"),
    "distill": ("distill", "teacher=teacher", "loss_weight=0.5"),
    "sft": ("sft",),
    "prefer": ("prefer",),
}
"""The objective, its options and settings of the run. `prefer` is a third party's, which knows nothing of processes."""
ALL = [(case, "full", EVEN) for case in CASES]
SHARED = ("dpo", "dpo-once", "orpo", "distill", "sft", "prefer")
VALUES = {"loss", "grad_norm", "chosen_reward", "rejected_reward", "margin", "accuracy", "kl"}


def pair(n: int) -> dict[str, Any]:
    return {"prompt": f"What is {n} + {n}?", "chosen": f"It is {2 * n}.", "rejected": f"I do not know, {n} times."}


def labeled(n: int) -> dict[str, Any]:
    """A row for KTO. All answers are alike, so that its KL term does not depend on which rows a process has.

    It depends on their number: a row that is alone in its process does not count.
    """
    return {"prompt": f"Is {n} + {n} equal to {2 * n + n % 2}?", "completion": "Yes, it is.", "label": n % 2 == 0}


def write_files() -> None:
    for name, row in (("pairs", pair), ("labeled", labeled)):
        for part, numbers in (*((n, range(n)) for n in (EVEN, *UNEVEN)), ("held_out", range(100, 106))):
            lines = "".join(json.dumps(row(n)) + "\n" for n in numbers)
            Path(f"{name}-{part}.jsonl").write_text(lines, encoding="utf-8")
    write_small_model(Path("small"), biases=False)
    write_small_model(Path("teacher"), seed=1, biases=False)


def arguments(case: str, adapter: str, count: int, side: str, batch: int) -> list[str]:
    objective, *options = CASES[case]
    rows = "labeled" if objective == "kto" else "pairs"
    settings = [a for o in options for a in ("--set" if o.startswith("train.") else "--objective-opt", o)]
    return [
        "train", "--model", "small", "--device", "cpu", "--dtype", "float64", "--adapter", adapter, "--objective",
        objective, *settings, *(("-p", str(OUT_OF_TREE)) if objective == "prefer" else ()), "--batch-size", str(batch),
        "--epochs", str(1 if count == EVEN else PASSES),
        "--data", f"{rows}-{count}.jsonl", "--validation", f"{rows}-held_out.jsonl", "--max-length", "128", "--set",
        "train.gradient_accumulation=2", "--set", "train.learning_rate=1e-3", "--set", "train.sample_tokens=1", "--set",
        "train.report=false", "--output", f"{side}/{case}-{adapter}-{count}",
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


def compare(case: str, adapter: str, count: int) -> None:
    name = f"{case}-{adapter}-{count}"
    one, two = Path("one") / name, Path("two") / name
    assert json.loads((two / "versions.json").read_text())["processes"] == 2
    steps, theirs = steps_of(one), steps_of(two)
    assert len(steps) == len(theirs) == math.ceil(count / 8) * (1 if count == EVEN else PASSES), name
    for ours, other in zip(steps, theirs, strict=True):
        assert ours.keys() & VALUES == other.keys() & VALUES
        for value in ours.keys() & VALUES:
            assert other[value] == pytest.approx(ours[value], rel=EXACT, abs=EXACT), (name, ours["step"], value)
    reports = [json.loads((side / "report.json").read_text()) for side in (one, two)]
    assert reports[0]["tokens"] == reports[1]["tokens"]
    measures = [report.get("measures", {}) for report in reports]
    assert measures[0].keys() == measures[1].keys()
    assert ("accuracy" in measures[0]) == (case not in ("distill", "sft", "prefer"))
    for measure, about in measures[0].items():
        assert measures[1][measure]["after"]["mean"] == pytest.approx(about["after"]["mean"], rel=EXACT, abs=EXACT), (
            name, measure,
        )  # fmt: skip
    tensors = [load_file(next((side / "adapter").glob("*.safetensors"))) for side in (one, two)]
    assert tensors[0].keys() == tensors[1].keys()
    for key, tensor in tensors[0].items():
        assert float((tensor.double() - tensors[1][key].double()).abs().max()) <= EXACT, (name, key, tensor.dtype)


def run_both(cases: list[tuple[str, str, int]]) -> None:
    write_files()
    exact_runs.run([arguments(*case, "one", 4) for case in cases])
    in_two_processes([arguments(*case, "two", 2) for case in cases])


@pytest.mark.parametrize(
    "cases",
    [
        pytest.param([("dpo", "full", 10)], id="one"),
        pytest.param(
            [(case, "full", 10) for case in SHARED if case != "dpo-once"], id="uneven", marks=pytest.mark.long
        ),
        pytest.param([*ALL, ("dpo", "lora", EVEN), ("apo-zero", "lora", EVEN)], id="all", marks=pytest.mark.long),
        pytest.param(
            [*((case, "full", count) for case in SHARED for count in UNEVEN), ("dpo", "lora", 11),
             *(("kto", "full", count) for count in UNEVEN if count % 4 < 3)],
            id="all-uneven", marks=pytest.mark.long,
        ),
    ],
)  # fmt: skip
def test_two_processes_are_one_to_1e_9(cases: list[tuple[str, str, int]], isolated: Path) -> None:
    run_both(cases)
    for case in cases:
        compare(*case)


@pytest.mark.long
def test_the_kl_term_of_kto_leaves_out_a_row_that_is_alone_in_its_process(isolated: Path) -> None:
    """What is not exact: 3 rows are left in the second step, so one process has one of them."""
    run_both([("kto", "full", 11)])
    (first, second, *_), (other, last, *_) = (steps_of(Path(side) / "kto-full-11") for side in ("one", "two"))
    for value in first.keys() & VALUES:
        assert other[value] == pytest.approx(first[value], rel=EXACT, abs=EXACT), value
    assert last["accuracy"] == pytest.approx(second["accuracy"], rel=EXACT)
    for value in ("chosen_reward", "rejected_reward", "margin"):  # of the model before the step, without the KL term
        assert last[value] == pytest.approx(second[value], rel=EXACT, abs=EXACT), value
    assert abs(last["kl"] - second["kl"]) > EXACT
