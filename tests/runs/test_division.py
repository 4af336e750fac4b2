"""A resumed run with another number of processes, or another batch size: allowed if its steps stay the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from smollm3_finetune.config.load import LoadedConfig, Setting, assemble
from smollm3_finetune.errors import ConfigError, IncompatibleError
from smollm3_finetune.runs.checkpoints import STATE, Checkpoint
from smollm3_finetune.runs.division import Division, check_division, divided
from smollm3_finetune.runs.rundir import RunDir
from smollm3_finetune.testing.commands import Result

START = (
    *("train", "--adapter", "full", "--max-length", "64", "--max-steps", "2", "--output", "run", "--batch-size", "2"),
    *("--set", "train.gradient_accumulation=2", "--set", "train.save_every=1", "--set", "data.limit=20"),
    *("--set", "train.sample_tokens=1", "--set", "train.report=false", "--set", "train.schedule=constant"),
)


def settings(**values: Any) -> list[Setting]:
    return [Setting(key=("train", name), value=value, origin=f"--set train.{name}") for name, value in values.items()]


def began(start: Division, **values: Any) -> tuple[RunDir, LoadedConfig]:
    """A run directory with the versions.json of a run, and the configuration of its run.yaml."""
    run = RunDir(Path("run"))
    run.path.mkdir(exist_ok=True)
    run.versions.write_text(json.dumps(start.about()))
    own = {"batch_size": start.batch_size, "gradient_accumulation": start.gradient_accumulation, **values}
    return run, assemble([settings(**own)])


@pytest.mark.parametrize(
    ("start", "own", "changes", "processes", "expected"),
    [
        ((4, 2, 1), {}, {}, 1, (4, 2)),
        ((4, 2, 1), {}, {}, 2, (4, 1)),
        ((4, 1, 1), {}, {}, 2, (2, 1)),
        ((4, 1, 1), {}, {}, 4, (1, 1)),
        ((6, 1, 1), {}, {}, 2, (3, 1)),
        ((4, 3, 1), {}, {}, 2, (3, 2)),
        ((2, 1, 2), {}, {}, 1, (2, 2)),
        ((2, 1, 4), {}, {}, 3, None),
        ((4, 1, 1), {"batch_size": 2}, {}, 2, (2, 1)),
        ((4, 1, 1), {"batch_size": 2}, {}, 1, (4, 1)),
        ((4, 1, 1), {"batch_size": 1, "gradient_accumulation": 4}, {}, 1, (1, 4)),
        ((4, 1, 1), {}, {"batch_size": 1}, 1, (1, 4)),
        ((4, 1, 1), {}, {"batch_size": 1}, 2, (1, 2)),
        ((4, 1, 1), {}, {"gradient_accumulation": 2}, 2, (1, 2)),
        ((4, 1, 1), {}, {"batch_size": 3}, 1, ConfigError),
        ((4, 1, 1), {}, {"batch_size": 8}, 1, ConfigError),
        ((4, 1, 1), {}, {"batch_size": 4}, 2, ConfigError),
        ((4, 1, 1), {}, {"gradient_accumulation": 9}, 1, ConfigError),
        ((4, 1, 1), {}, {"batch_size": 4, "gradient_accumulation": 2}, 1, ConfigError),
        ((4, 3, 1), {"group_by_length": True}, {}, 2, (2, 3)),
        ((3, 2, 1), {"group_by_length": True}, {}, 2, None),
    ],
)
def test_rows_are_divided(
    isolated: Path,
    start: tuple[int, int, int],
    own: dict[str, Any],
    changes: dict[str, int],
    processes: int,
    expected: Any,
) -> None:
    run, loaded = began(Division(*start), **own)
    given = settings(**changes)
    loaded = assemble([loaded.settings, given])
    if expected is None or isinstance(expected, type):
        with pytest.raises(expected or IncompatibleError) as caught:
            divided(run, loaded, given, processes)
        if changes:
            assert caught.value.hint == f"omit {' and '.join(f'--set train.{name}' for name in changes)}"
        else:
            assert "cannot be divided evenly" in str(caught.value)
            assert caught.value.hint is not None and "train --resume run" in caught.value.hint
        return
    found = Division.of(divided(run, loaded, given, processes).config, processes)
    assert (found.batch_size, found.gradient_accumulation) == expected
    assert found.rows == Division(*start).rows


def test_a_run_of_an_earlier_version_began_with_its_own_settings(isolated: Path) -> None:
    run, loaded = began(Division(4, 2, 2))
    run.versions.write_text('{"processes": 2}')
    assert Division.at_start(run, loaded.config) == Division(4, 2, 2)
    for damaged in ("[]", '{"processes": true}', '{"processes": 0}', '{"processes": "2"}', "{"):
        run.versions.write_text(damaged)
        assert Division.at_start(run, loaded.config) == Division(4, 2, 1), damaged


def saved(**flags: Any) -> Checkpoint:
    path = Path("run/checkpoints/checkpoint-3")
    path.mkdir(parents=True, exist_ok=True)
    state = {"stateful_callbacks": {"RunCallback": {"args": {}, "attributes": flags}}}
    (path / STATE).write_text(json.dumps(state))
    return Checkpoint(path, 3)


EXACT = {"draws": False, "counted": True, "rounds": False}


@pytest.mark.parametrize(
    ("flags", "own", "term", "reason"),
    [
        (EXACT, {}, None, None),
        ({**EXACT, "draws": True}, {}, None, "draw random numbers, as dropout does, and each process draws its own"),
        ({**EXACT, "counted": False}, {}, None, "not divided by the number of terms in a step"),
        ({**EXACT, "rounds": True}, {}, None, None),
        ({**EXACT, "rounds": True}, {"batch_size": 2}, None, "quantized layers round activations"),
        ({}, {}, None, "does not state whether its steps draw random numbers"),
        ({**EXACT, "draws": 1}, {}, None, "does not state whether its steps draw random numbers"),
        (EXACT, {}, "the KL term", "the KL term depends on which rows share a batch"),
        (EXACT, {"group_by_length": True}, None, "train.group_by_length sorts 4 rows at a time"),
    ],
)
def test_a_run_is_refused_with_the_reason(
    isolated: Path, flags: dict[str, Any], own: dict[str, Any], term: str | None, reason: str | None
) -> None:
    """Four rows at a time in one process, two times; now in two processes."""
    run, loaded = began(Division(4, 2, 1), gradient_accumulation=2 if "batch_size" in own else 1, **own)
    if reason is None:
        line = check_division(run, loaded.config, 2, saved(**flags), term)
        assert line is not None and "each step has the same 8 rows" in line
        return
    with pytest.raises(IncompatibleError) as caught:
        check_division(run, loaded.config, 2, saved(**flags), term)
    assert "can only be resumed with 1 process, as it began" in str(caught.value) and reason in str(caught.value)
    assert caught.value.hint == "smollm3 train --resume run"


def test_the_hint_names_the_former_number_of_processes(isolated: Path) -> None:
    run, loaded = began(Division(2, 1, 2), gradient_accumulation=2)
    with pytest.raises(IncompatibleError) as caught:
        check_division(run, loaded.config, 1, saved(draws=True), None)
    assert caught.value.hint == "torchrun --nproc-per-node 2 -m smollm3_finetune.main train --resume run"


def test_a_run_without_more_steps_needs_no_division(isolated: Path) -> None:
    run, loaded = began(Division(2, 1, 2), gradient_accumulation=2)
    adapter = Checkpoint(Path("run/adapter"), 3)
    Path("run/adapter").mkdir()
    assert check_division(run, loaded.config, 1, adapter, "the KL term") is None


def processes(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """As torchrun sets the environment of the first process."""
    about = {"WORLD_SIZE": count, "RANK": 0, "LOCAL_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 29500}
    for name, value in about.items():
        monkeypatch.setenv(name, str(value))


def resumed(cli: Callable[..., Result], *more: str) -> Result:
    return cli("train", "--resume", "run", "--max-steps", "4", "--dry-run", "--json", *more)


def losses(run: str) -> list[float]:
    return [json.loads(line)["loss"] for line in Path(run, "metrics.jsonl").read_text().splitlines()]


def test_a_run_without_random_numbers_continues_with_another_division(
    cli: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planned for two processes; and executed by one, with smaller batches: the same losses except for rounding."""
    assert cli(*START).code == 0
    assert cli(*START, "--max-steps", "4", "--output", "whole").code == 0
    with monkeypatch.context() as patched:
        processes(patched, 2)
        both = resumed(cli)
    assert both.code == 0, both.stderr
    train = json.loads(both.stdout)["config"]["train"]
    assert (train["batch_size"], train["gradient_accumulation"]) == (2, 1)
    assert (
        "the run began with train.batch_size=2, train.gradient_accumulation=2 and 1 process; it continues with "
        "train.batch_size=2, train.gradient_accumulation=1 and 2 processes: each step has the same 4 rows"
    ) in both.stderr
    refused = cli("train", "--resume", "run", "--max-steps", "4", "--batch-size", "3")
    assert refused.code == 2
    assert "train.batch_size=3 and 1 process do not give the 4 rows of each step" in refused.stderr
    done = cli("train", "--resume", "run", "--max-steps", "4", "--batch-size", "1")
    assert done.code == 0, done.stderr
    assert "it continues with train.batch_size=1, train.gradient_accumulation=4 and 1 process" in done.stderr
    assert losses("run") == pytest.approx(losses("whole"), rel=1e-6)
    ours, theirs = (load_file(f"{run}/adapter/model.safetensors") for run in ("run", "whole"))
    for name, tensor in ours.items():
        assert float((tensor - theirs[name]).abs().max()) < 1e-6, name


@pytest.mark.plugins
@pytest.mark.parametrize("objective", ["sft", "kto"])
def test_dropout_and_kto_are_refused(
    cli: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, objective: str
) -> None:
    rows = [{"prompt": f"{n}?", "completion": "Yes.", "label": n % 2 == 0} for n in range(20)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    more = ("--objective", "kto") if objective == "kto" else ("--adapter-opt", "dropout=0.1")
    made = cli(*START, "--adapter", "lora", "--data", "rows.jsonl", *more)
    assert made.code == 0, made.stderr
    processes(monkeypatch, 2)
    refused = resumed(cli)
    assert refused.code == 3
    reason = "the KL term depends on" if objective == "kto" else "draw random numbers"
    assert reason in refused.stderr
    assert "hint: smollm3 train --resume run" in refused.stderr
