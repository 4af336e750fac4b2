"""`smollm3 eval` of a run whose loss has a reference: the reference is the run's own, for every model."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from toy_runs import Run

LN2 = math.log(2)
FILES = ("-p", "toy_pairs.py", "-p", "scale_adapter.py")


def evaluated(cli: Any, *args: str) -> dict[str, Any]:
    found = cli("eval", *args, *FILES, "--json", "--device", "cpu", "--answers", "0")
    assert found.code == 0, found.stderr
    report: dict[str, Any] = json.loads(found.stdout)
    return report


@pytest.mark.parametrize(
    ("adapter", "reference"),
    [
        pytest.param("scale", "base", id="base"),
        pytest.param("full", "start", id="start", marks=pytest.mark.long),
        pytest.param("scale", "model", id="model", marks=pytest.mark.long),
    ],
)
def test_the_base_is_compared_with_itself_and_the_adapter_with_the_base(
    run: Run, toy: ModuleType, cli: Any, adapter: str, reference: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The values of the reference are on disk, until the evaluation ends."""
    from smollm3_finetune.evaluation import run as module

    directories: list[Path] = []
    look_up = module.looked_up

    def noted(values: Any, first: int = 0) -> Any:
        assert values.directory.is_dir()
        directories.append(values.directory)
        return look_up(values, first)

    monkeypatch.setattr(module, "looked_up", noted)
    trained = run("run", adapter, reference=reference, learning_rate=1e-3 if adapter == "full" else 0.01)
    report = evaluated(cli, "run")
    assert report["before"]["held_out_loss"] == pytest.approx(LN2, abs=1e-5)
    assert report["after"]["held_out_loss"] == pytest.approx(trained["after"]["held_out_loss"], rel=1e-4)
    assert report["comparison"]["verdict"] is not None
    assert report["null_adapter"]["comparison"]["rows"] == report["comparison"]["rows"]
    assert len(directories) == 3, "of the adapter, of the base and of a null adapter"
    assert len(set(directories)) == 1 and not directories[0].exists()


@pytest.mark.long
def test_two_runs_have_the_reference_of_the_first(run: Run, toy: ModuleType, cli: Any) -> None:
    run("one", max_steps=2)
    other = run("two", "full", reference="start", max_steps=2, learning_rate=1e-3)
    report = evaluated(cli, "one", "--against", "two")
    assert report["before"]["held_out_loss"] == pytest.approx(other["after"]["held_out_loss"], rel=1e-4)
    base = evaluated(cli, "one", "--against", "tiny")
    assert base["before"]["held_out_loss"] == pytest.approx(LN2, abs=1e-5)


@pytest.mark.long
def test_a_missing_start_is_refused_in_one_sentence(run: Run, toy: ModuleType, cli: Any) -> None:
    run("run", "full", reference="start", max_steps=1)
    Path("run/start/trained.safetensors").unlink()
    refused = cli("eval", "run", *FILES, "--device", "cpu")
    assert refused.code != 0
    assert (
        "the reference of the run, its weights before the first step (run/start/trained.safetensors), is missing"
        in (refused.stderr)
    )
