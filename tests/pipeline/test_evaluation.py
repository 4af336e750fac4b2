"""An eval stage measures what `smollm3 eval` measures, and its verdict is never left out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from smollm3_finetune.testing import write_small_model

ROUNDING = str(Path(__file__).parents[1] / "out_of_tree" / "rounding_quantizer.py")
Cli = Callable[..., Any]
Edit = Callable[[str, str], None]


def test_rows_of_an_eval_stage_are_read_with_the_settings_of_the_run(cli: Cli, copied: Path, edit: Edit) -> None:
    lines = Path("rows.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    Path("others.jsonl").write_text("".join(lines[:6]), encoding="utf-8")
    edit("eval: {answers: 0, null_adapter: false}", "data: {path: others.jsonl}\n    eval: {answers: 0, limit: 6}")
    result = cli("pipeline", "run", "p.yaml")
    assert result.code == 0, result.stderr
    made = json.loads((copied / "check-2/eval.json").read_text())
    by_hand = cli("eval", "pipe/more", "--data", "others.jsonl", "--limit", "6", "--answers", "0", "--json",
                  "-p", ROUNDING).report()  # fmt: skip
    assert made["rows"]["measured"] == by_hand["rows"]["measured"]
    assert (made["before"], made["after"]) == (by_hand["before"], by_hand["after"])


def test_a_verdict_of_a_plain_model_is_refused_before_anything_runs(cli: Cli, isolated: Path) -> None:
    write_small_model(Path("model"))
    Path("rows.jsonl").write_text('{"prompt": "2 + 2", "completion": "4"}\n' * 4, encoding="utf-8")
    Path("p.yaml").write_text(
        "device: cpu\nstages:\n  - {name: check, from: model, data: {path: rows.jsonl}, eval: {fail_if: worse}}\n",
        encoding="utf-8",
    )
    result = cli("pipeline", "run", "p.yaml", "--dry-run")
    assert result.code == 2, result.stderr
    assert "p.yaml:3: eval.fail_if needs a verdict, but a model without adapter has no base" in result.stderr
    assert "hint: against: MODEL in eval" in result.stderr
