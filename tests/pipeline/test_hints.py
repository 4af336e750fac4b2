"""Hints of errors in a pipeline name keys of its file, because its command has no options for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from smollm3_finetune.cli.commands.pipeline_hints import with_keys
from smollm3_finetune.errors import ModelError
from smollm3_finetune.pipeline import run as running

ROUNDING = str(Path(__file__).parents[1] / "out_of_tree" / "rounding_quantizer.py")


@pytest.mark.parametrize(
    ("hint", "expected"),
    [
        ("--loader-opt context=9000 (YaRN), or --max-length 64", "loader.context: 9000 (YaRN), or data.max_length: 64"),
        ("--set data.date=2026-01-01", "data.date: 2026-01-01"),
        ("omit --quant, or: --quant gptq", "omit quant, or: quant: gptq"),
        ("choose another --output, or omit it", "choose another output, or omit it"),
        ("--from RUN --fresh-adapter", "from: RUN fresh_adapter"),
        (
            "to round less: --dtype float32; to raise the limit: --max-drift X; to keep it anyway: --force",
            "to round less: merge.dtype: float32; to raise the limit: merge.max_drift: X; to keep it anyway: "
            "merge.force: true",
        ),
        ("to merge: smollm3 merge RUN --output DIR", "to merge: smollm3 merge RUN --output DIR"),
        ("use a GPU", "use a GPU"),
    ],
)
def test_options_become_keys(hint: str, expected: str) -> None:
    assert with_keys(hint) == expected


def test_an_error_of_a_stage_names_it_and_its_key(cli: Callable[..., Any], isolated: Path) -> None:
    Path("p.yaml").write_text(
        "device: cpu\nstages:\n  - {name: sft, adapter: full, data: {max_length: 100000000}}\n", encoding="utf-8"
    )
    result = cli("pipeline", "run", "p.yaml")
    assert result.code == 2
    assert "error: stage sft: data.max_length=100000000 is more than the 2048 tokens" in result.stderr
    assert "hint: data.max_length: 2048" in result.stderr


def test_a_pipeline_given_to_train_is_named(cli: Callable[..., Any], isolated: Path) -> None:
    Path("p.yaml").write_text("stages:\n  - {name: sft}\n", encoding="utf-8")
    result = cli("train", "--config", "p.yaml", "--dry-run")
    assert result.code == 2
    assert "p.yaml is a pipeline, not the configuration of a run" in result.stderr
    assert "smollm3 pipeline run p.yaml" in result.stderr


def test_commands_that_continue_a_pipeline_have_the_plugin_options(
    cli: Callable[..., Any], isolated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("p.yaml").write_text("device: cpu\nstages: [{name: sft, adapter: full}]\n", encoding="utf-8")
    given = ("-p", ROUNDING, "-p", "no:nothing", "--no-plugins")
    options = f"p.yaml -p {ROUNDING} -p no:nothing --no-plugins"

    def fails(*args: Any) -> None:
        raise ModelError("the weights are bad")

    monkeypatch.setattr(running, "_carry_out", fails)
    assert f"hint: smollm3 pipeline run {options}\n" in cli("pipeline", "resume", "p.yaml", *given).stderr
    failed = cli("pipeline", "run", "p.yaml", *given)
    assert f"after the fault is fixed: smollm3 pipeline resume {options}\n" in failed.stderr
    shown = cli("pipeline", "status", "p.yaml", *given)
    assert f"to resume it: smollm3 pipeline resume {options}\n" in shown.stdout
