"""What users type wrongly is answered with the command that they meant; the JSON schema knows the keys of a sweep."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_sweep import SWEEP

from smollm3_finetune.sweep.file import KEYS, NOT_SWEPT

Cli = Callable[..., Any]


@pytest.mark.parametrize(
    ("command", "hint"),
    [
        (("sweep", "s.yaml"), "smollm3 sweep run s.yaml"),
        (("sweep", "rum", "s.yaml"), "did you mean 'run'?"),
        (("pipeline", "s.yaml"), "smollm3 pipeline run s.yaml"),
        (("config", "s.yaml"), "smollm3 config validate --config s.yaml"),
        (("data", "my rows.jsonl"), "smollm3 data stats --data 'my rows.jsonl'"),
        (("data", "previw"), "did you mean 'preview'?"),
        (("runs", "runs/gone"), "smollm3 runs show runs/gone"),
        (("plugins", "mine.py"), "smollm3 plugins check mine.py"),
        (("train", "--config", "s.yaml"), "smollm3 sweep run s.yaml"),
        (("pipeline", "run", "s.yaml"), "smollm3 train --config s.yaml"),
        (("sweep", "run", "t.yaml"), "YAML files in the current directory: s.yaml"),
    ],
)
def test_another_command_says_which_one_is_meant(cli: Cli, isolated: Path, command: tuple[str, ...], hint: str) -> None:
    Path("s.yaml").write_text(SWEEP, encoding="utf-8")
    refused = cli(*command)
    assert refused.code == 2
    assert f"hint: {hint}" in refused.stderr


def test_the_schema_has_the_keys_of_the_file_and_of_every_component(cli: Cli) -> None:
    schema = json.loads(cli("config", "schema", "--sweep").stdout)
    keys = schema["properties"]
    assert set(keys) == set(KEYS) and schema["additionalProperties"] is False
    grid, drawn = keys["grid"]["properties"], keys["random"]["properties"]
    listed = keys["trials"]["anyOf"][1]["items"]["properties"]
    assert set(grid) == set(drawn) == set(listed)
    assert {"adapter", "adapter.rank", "quant.name", "train.learning_rate", "data", "data.seed", "seed"} <= set(grid)
    assert not any(key.partition(".")[0] in NOT_SWEPT for key in grid)
    rate = listed["train.learning_rate"]
    assert rate["exclusiveMinimum"] == 0 and grid["train.learning_rate"]["items"] == rate
    kinds = [next(iter(one["properties"])) for one in drawn["train.learning_rate"]["anyOf"][1:]]
    assert kinds == ["choice", "uniform", "log_uniform", "integer"]
    assert keys["run"]["anyOf"][0]["properties"]["output"] == {"type": "null"}
