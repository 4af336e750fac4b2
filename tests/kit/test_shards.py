"""The kit divides the layers of a quantizer among two processes, compares their memory with what is stated, and
notices a quantizer that only declares it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import pytest

from smollm3_finetune.testing.layer_memory import LayerMemoryTests
from smollm3_finetune.testing.shards import ShardTests

FILE = Path(__file__).parents[1] / "out_of_tree" / "dividing_quantizer.py"


class Dividing(ShardTests, LayerMemoryTests):
    component = "dividing"
    plugins: ClassVar = (FILE,)
    biases = False
    dtype = "float32"


def failure(keeps: str, tmp_path: Path) -> str | None:
    """What the kit says of the layers, None if nothing."""
    case = type("Case", (Dividing,), {"options": {"keeps": keeps}})()
    return outcome(case.test_layers_are_divided_among_processes_and_compute_the_same, tmp_path)


def outcome(test: Callable[[Path], None], tmp_path: Path) -> str | None:
    try:
        test(tmp_path)
    except (pytest.fail.Exception, pytest.skip.Exception) as e:
        return str(e)
    return None


def test_layers_are_divided_only_if_their_tensors_are_parameters(tmp_path: Path) -> None:
    assert failure("parameters", tmp_path) is None
    assert failure("undeclared", tmp_path) == "shards is not declared"
    held_whole = failure("buffers", tmp_path)
    assert held_whole is not None and "hold their large tensors as `FrozenTensor`" in held_whole
    kept_copy = failure("a-copy", tmp_path)
    assert kept_copy is not None and "process 0 of 2 holds" in kept_copy
    changed = failure("changing", tmp_path)
    assert changed is not None and "differ by" in changed and "once the layers are divided" in changed


def test_stated_bytes_are_those_of_a_layer(tmp_path: Path) -> None:
    def stated(**options: object) -> str | None:
        case = type("Case", (Dividing,), {"options": options})()
        return outcome(case.test_bytes_for_states_what_a_layer_keeps, tmp_path)

    assert stated() is None
    assert "which FSDP 2 divides 4352, but bytes_for() states 4351 and 4351" in str(stated(unstated=1))
    assert "of which FSDP 2 divides 0, but" in str(stated(keeps="buffers"))
    assert "keeps 8448 bytes" in str(stated(keeps="a-copy"))


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_bytes_are_stated_for_the_dtype_in_which_the_layers_are_loaded(dtype: str, tmp_path: Path) -> None:
    """The scales have the dtype of the run, so the bytes for another dtype would be wrong."""
    case = type("Case", (Dividing,), {"dtype": dtype})()
    assert outcome(case.test_bytes_for_states_what_a_layer_keeps, tmp_path) is None
    wrong = type("Case", (Dividing,), {"dtype": dtype, "options": {"unstated": 1}})()
    assert f"for env.dtype='{dtype}'" in str(outcome(wrong.test_bytes_for_states_what_a_layer_keeps, tmp_path))
