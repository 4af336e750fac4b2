"""A run imports no library that it does not use; what is deferred is there when it is used."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from smollm3_finetune.model_files import imports

UNUSED = {
    "datasets", "pandas", "scipy", "sklearn", "networkx", "torchvision", "tensorflow", "jax", "gptqmodel", "optimum",
    "deepspeed", "wandb", "mlflow", "trl", "ray", "functorch", "torch._inductor.compile_fx", "torch._inductor.lowering",
}  # fmt: skip
"""Packages and modules that a run on a CPU without `train.compile` does not need."""

TRAIN = """
import json, sys
from smollm3_finetune.main import main
try:
    main(["train", "--adapter", "full", "--max-steps", "1", "--output", sys.argv[1], "--json"])
except SystemExit as e:
    assert not e.code, e.code
print(json.dumps(sorted(sys.modules)))
"""


def run(code: str, *args: str) -> str:
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True)
    assert not done.returncode, done.stderr
    return done.stdout


def test_a_run_on_the_built_in_model_imports_no_library_that_it_does_not_use(tmp_path: Path) -> None:
    modules = set(json.loads(run(TRAIN, str(tmp_path / "run")).splitlines()[-1]))
    assert {"torch", "transformers.trainer"} <= modules
    assert not modules & UNUSED


def test_the_trainer_recognizes_a_data_set_that_is_imported_after_it() -> None:
    run("""
import sys
from smollm3_finetune.model_files.imports import import_trainer
import_trainer()
import transformers.trainer as trainer, transformers.utils
assert "datasets" not in sys.modules and not trainer.is_datasets_available()
assert transformers.utils.is_datasets_available()
import datasets
rows = datasets.Dataset.from_dict({"length": [3, 1, 2]})
assert trainer.is_datasets_available() and isinstance(rows, trainer.datasets.Dataset)
""")


@pytest.mark.long
def test_losses_of_object_detection_find_scipy_when_they_are_called() -> None:
    pytest.importorskip("scipy")
    run("""
import sys
from smollm3_finetune.model_files.imports import import_trainer
import_trainer()
from transformers.loss import loss_for_object_detection as loss
assert "scipy" not in sys.modules and loss.is_scipy_available()
rows, columns = loss.linear_sum_assignment([[2, 1], [1, 3]])
assert list(columns) == [1, 0] and "scipy" in sys.modules
""")


@pytest.mark.long
def test_model_folders_are_listed_once() -> None:
    run("""
import functools
bounded = functools.lru_cache
from smollm3_finetune.model_files.imports import import_transformers
import_transformers()
assert functools.lru_cache is bounded
from transformers.utils.import_utils import create_import_structure_from_path as listed
before = listed.cache_info()
import transformers.models
added = listed.cache_info().misses - before.misses
assert before.misses > 128 and added <= 1, (before, added)
assert transformers.models.llama.LlamaConfig and transformers.LlamaConfig
""")


def test_a_function_compiled_during_an_import_is_compiled_at_its_first_call(monkeypatch: Any) -> None:
    compiled: list[tuple[Any, dict[str, Any]]] = []

    def compile_now(model: Any = None, **options: Any) -> Any:
        compiled.append((model, options))
        return lambda *args: ("compiled", model(*args))

    monkeypatch.setattr(torch, "compile", compile_now)
    module = torch.nn.Linear(1, 1)
    with imports.quick_imports(), imports.quick_imports():

        @torch.compile(dynamic=True)
        def double(x: int) -> int:
            """Twice x."""
            return 2 * x

        assert double.__name__ == "double" and double.__doc__ == "Twice x."
        assert not compiled
        torch.compile(module)
        assert [model for model, _ in compiled] == [module]  # only functions are deferred
    assert torch.compile is compile_now
    assert double(3) == ("compiled", 6) and double(4) == ("compiled", 8)
    (_, (function, options)) = compiled
    assert options == {"dynamic": True} and function(5) == 10


def test_a_function_compiled_during_an_import_can_be_part_of_a_larger_one() -> None:
    with imports.quick_imports():

        @torch.compile(backend="eager")
        def inner(x: torch.Tensor) -> torch.Tensor:
            return x + 1

    outer = torch.compile(lambda x: inner(x) * 2, backend="eager", fullgraph=True)
    assert torch.equal(outer(torch.ones(2)), torch.full((2,), 4.0))
    assert torch.equal(inner(torch.ones(2)), torch.full((2,), 2.0))


def test_garbage_is_collected_again_after_an_import_that_fails() -> None:
    import gc

    try:
        with imports.quick_imports():
            assert not gc.isenabled()
            raise ImportError
    except ImportError:
        pass
    assert gc.isenabled()
