"""The memory of a finished run corrects later plans, however the run was started."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from smollm3_finetune import finetune
from smollm3_finetune.cli.tools import Tools
from smollm3_finetune.memory import predictor

INSIDE = str(Path(__file__).parents[1] / "out_of_tree" / "inside_launcher.py")
Cli = Callable[..., Any]
SETTINGS: dict[str, Any] = {
    "data": {"limit": 20, "max_length": 64}, "adapter": "full", "device": "cpu",
    "train": {"max_steps": 1, "batch_size": 1, "sample_tokens": 1, "report": False},
}  # fmt: skip


def by_function(cli: Cli) -> None:
    finetune(output="run", quiet=True, **SETTINGS)


def by_command(cli: Cli) -> None:
    Path("run.yaml").write_text(json.dumps(SETTINGS))
    assert cli("train", "--config", "run.yaml").code == 0


def by_command_of_a_plugin(cli: Cli) -> None:
    Tools("mine").train(SETTINGS)


def by_stage(cli: Cli) -> None:
    Path("stages.yaml").write_text(json.dumps({"output": "out", "stages": [{"name": "first", **SETTINGS}]}))
    assert cli("pipeline", "run", "stages.yaml").code == 0


def by_launcher(cli: Cli) -> None:
    Path("run.yaml").write_text(json.dumps(SETTINGS))
    assert cli("train", "--config", "run.yaml", "-p", INSIDE, "--launcher", "inside").code == 0


@pytest.mark.skipif(sys.platform != "linux", reason="anonymous memory is measured on Linux")
@pytest.mark.parametrize(
    "start",
    [
        by_function,
        by_launcher,
        *(pytest.param(f, marks=pytest.mark.long) for f in (by_command, by_command_of_a_plugin, by_stage)),
    ],
)
def test_a_finished_run_is_remembered_once(
    cli: Cli, start: Callable[[Cli], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SHORTEST", "SMALLEST"):
        monkeypatch.setattr(predictor, name, 0)
    start(cli)
    (line,) = Path(os.environ["SMOLLM3_CACHE"], "memory", "runs.jsonl").read_text().splitlines()
    about = json.loads(line)
    assert about["device"] == "cpu" and about["tokens"] <= 64
    assert about["measured"] > 0 and about["predicted"] > 0
