"""The kit divides the layers of a quantizer among two processes, and notices a quantizer that only declares it."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pytest

from smollm3_finetune.testing.shards import ShardTests

FILE = Path(__file__).parents[1] / "out_of_tree" / "dividing_quantizer.py"


class Dividing(ShardTests):
    component = "dividing"
    plugins: ClassVar = (FILE,)
    biases = False


def failure(keeps: str, tmp_path: Path) -> str | None:
    """What the kit says of the layers, None if nothing."""
    case = type("Case", (Dividing,), {"options": {"keeps": keeps}})()
    try:
        case.test_layers_are_divided_among_processes_and_compute_the_same(tmp_path)
    except (pytest.fail.Exception, pytest.skip.Exception) as e:
        return str(e)
    return None


def test_layers_are_divided_only_if_their_tensors_are_parameters(tmp_path: Path) -> None:
    assert failure("parameters", tmp_path) is None
    assert failure("undeclared", tmp_path) == "shards is not declared"
    held_whole = failure("buffers", tmp_path)
    assert held_whole is not None and "make their large tensors Parameters with `as_shardable`" in held_whole
    kept_copy = failure("a-copy", tmp_path)
    assert kept_copy is not None and "process 0 of 2 holds" in kept_copy
