"""The state and the facts of runs: from their files alone, whatever state the files are in."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from smollm3_finetune import stopping
from smollm3_finetune.cli.commands import runs_list
from smollm3_finetune.config.yaml12 import read_yaml
from smollm3_finetune.errors import SmolLM3Error, WriteError
from smollm3_finetune.runs.continuing import forget_after
from smollm3_finetune.runs.facts import facts_of
from smollm3_finetune.runs.failure import recorded_failure
from smollm3_finetune.runs.find import find_runs
from smollm3_finetune.runs.metrics import metric_rows
from smollm3_finetune.runs.rundir import RunDir
from smollm3_finetune.runs.summary import STATES, RunSummary

Make = Callable[..., Path]


def test_help_offers_every_state() -> None:
    assert runs_list.STATES == STATES


def state(path: Path) -> str:
    return RunSummary.of(RunDir(path)).state


def test_the_state_follows_from_lock_report_and_error(make_run: Make) -> None:
    assert state(make_run("runs/a")) == "finished"
    assert state(make_run("runs/b", after=None, checkpoints=(2,))) == "interrupted"
    failed = make_run("runs/c", after=None, error={"message": "out of memory", "hint": "--batch-size 1"})
    assert state(failed) == "failed"
    with RunDir(failed).held():
        assert state(failed) == "running"
    assert state(failed) == "failed"
    (make_run("runs/e", after=None) / ".smollm3-lock").write_text("{}\n")  # left by a killed process
    assert state(Path("runs/e")) == "interrupted"
    assert state(make_run("runs/d", error={"message": "the adapter is not usable"})) == "failed", "despite its report"


def test_a_summary_has_the_values_of_all_files(make_run: Make) -> None:
    run = make_run(
        "runs/a", {"model": "org/m"}, verdict="better", checkpoints=(2, 4), started="2026-01-02T03:04:05+0000"
    )
    about = RunSummary.of(RunDir(run)).as_dict()
    assert {k: about[k] for k in ("model", "quantizer", "adapter", "objective", "data", "steps", "planned_steps")} == {
        "model": "org/m", "quantizer": "smollm3-finetune:none", "adapter": "acme:lora",
        "objective": "smollm3-finetune:sft", "data": ["rows.jsonl"], "steps": 4, "planned_steps": 4,
    }  # fmt: skip
    assert (about["before"], about["after"], about["verdict"], about["seconds"]) == (3.0, 2.0, "better", 12.5)
    assert about["started"] == "2026-01-02T03:04:05+00:00"
    files = [p for p in run.rglob("*") if p.is_file()]
    assert about["bytes"] == sum(p.stat().st_size for p in files)
    assert about["checkpoint_bytes"] == sum(p.stat().st_size for p in files if "checkpoints" in p.parts) > 0


def test_an_unfinished_run_has_the_steps_of_its_last_whole_line(make_run: Make) -> None:
    run = make_run("runs/a", after=None, steps=3)
    with (run / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 4, "lo')
    summary = RunSummary.of(RunDir(run))
    assert (summary.steps, summary.facts.steps, summary.before, summary.after) == (3, 4, 3.0, None)


def test_a_resumed_run_keeps_answers_with_unusual_line_separators(make_run: Make) -> None:
    run = RunDir(make_run("runs/a", after=None))
    lines = [json.dumps({"step": s, "answer": "one\u2028two\x85three"}, ensure_ascii=False) for s in (2, 4)]
    run.samples.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    assert [row["step"] for row in metric_rows(run.samples)] == [2, 4]
    forget_after(run, 2)
    assert run.samples.read_text(encoding="utf-8") == f"{lines[0]}\n"


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("versions.json", "{", "versions.json cannot be read as JSON"),
        ("versions.json", None, "versions.json is missing"),
        ("run.yaml", None, "run.yaml is missing"),
        ("run.yaml", "a: [", "not valid YAML"),
        ("run.yaml", "model: [1]\n", "run.yaml is damaged: model must be text"),
        ("report.json", "[]", "report.json must hold a JSON object"),
        ("report.json", '{"before": {}, "after": {}}', "steps must be a whole number"),
        (
            "report.json",
            '{"before": {}, "after": {"held_out_loss": "x"}, "steps": 1}',
            "held_out_loss must be a number",
        ),
        ("report.json", '{"before": {}, "after": {}, "steps": 1, "comparison": {"verdict": 3}}', "high and a verdict"),
        (
            "report.json",
            '{"before": {}, "after": {}, "steps": 1, "comparison": {"verdict": "x"}}',
            "high and a verdict",
        ),
        ("error.json", "nothing", "error.json cannot be read as JSON"),
    ],
)
def test_a_damaged_run_says_which_file_is_damaged(make_run: Make, name: str, content: str | None, reason: str) -> None:
    run = make_run("runs/a")
    (run / name).unlink(missing_ok=True)
    if content is not None:
        (run / name).write_text(content)
    (found,) = (RunSummary.of(r) for r in find_runs(Path("runs")))
    assert found.state == "damaged"
    assert reason in str(found.damage)


def test_the_facts_are_read_from_json_until_somebody_edits_run_yaml(
    make_run: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run("runs/a")
    expected = facts_of(RunDir(run))
    with monkeypatch.context() as patch:
        patch.setattr("smollm3_finetune.config.yaml12.read_yaml", lambda path: pytest.fail("run.yaml was parsed"))
        assert facts_of(RunDir(run)) == expected
    config = run / "run.yaml"
    assert read_yaml(config)[0]["model"] == "tiny"
    config.write_text(
        config.read_text().replace("model: tiny", "model: other").replace("max_steps: null", "max_steps: 9")
    )
    found = facts_of(RunDir(run))
    assert (found.model, found.steps, found.adapter, found.data) == ("other", 9, "acme:lora", ("rows.jsonl",))


def test_runs_are_found_at_any_depth_and_through_links_once(make_run: Make, tmp_path: Path) -> None:
    make_run("runs/a")
    make_run("runs/sweep/b")
    make_run("runs/sweep/b/adapter/inside")  # what is in a run is not searched
    make_run(tmp_path / "elsewhere" / "c")
    make_run("runs/.hidden/d")
    Path("runs/link").symlink_to(tmp_path / "elsewhere")
    Path("runs/sweep/up").symlink_to(Path("runs").resolve())
    Path("runs/notes").mkdir()
    Path("runs/notes/run.yaml").write_text("model: tiny\n")  # a configuration of the user
    assert sorted(str(run.path) for run in find_runs(Path("runs"))) == ["runs/a", "runs/link/c", "runs/sweep/b"]
    assert [run.path for run in find_runs(Path("runs/a"))] == [Path("runs/a")]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root reads every directory")
def test_a_directory_that_cannot_be_read_is_skipped(make_run: Make) -> None:
    make_run("runs/a")
    make_run("runs/closed/b")
    Path("runs/closed").chmod(0)
    assert [run.path.name for run in find_runs(Path("runs"))] == ["a"]
    Path("runs/closed").chmod(0o700)


# ---------------------------------------------------------------------------------------------- error.json


def test_an_error_is_recorded_and_forgotten_when_the_run_is_resumed(make_run: Make) -> None:
    run = RunDir(make_run("runs/a", after=None))
    with pytest.raises(SmolLM3Error), recorded_failure(run, print):
        raise SmolLM3Error("the loss became nan", hint="--learning-rate 1e-5")
    assert json.loads(run.error.read_text()) == {"message": "the loss became nan", "hint": "--learning-rate 1e-5"}
    with recorded_failure(run, print):
        assert not run.error.exists()
    with pytest.raises(ZeroDivisionError), recorded_failure(run, print):
        raise ZeroDivisionError("division by zero")
    assert json.loads(run.error.read_text()) == {"message": "unexpected ZeroDivisionError: division by zero"}
    with pytest.raises(MemoryError), recorded_failure(run, print):
        raise MemoryError
    assert "out of memory" in json.loads(run.error.read_text())["message"]


def test_a_request_to_stop_is_not_a_failure(make_run: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDir(make_run("runs/a", after=None))
    with pytest.raises(stopping.Stop), recorded_failure(run, print):
        raise stopping.Stop("SIGTERM", 143)
    with pytest.raises(KeyboardInterrupt), recorded_failure(run, print):
        raise KeyboardInterrupt
    monkeypatch.setattr(stopping, "delivered", lambda: stopping.Stop("SIGTERM", 143))
    with pytest.raises(RuntimeError), recorded_failure(run, print):
        raise RuntimeError("what a library made of the request")
    assert state(run.path) == "interrupted"
    with pytest.raises(WriteError), recorded_failure(run, print):
        raise WriteError("the disk is full")
    assert state(run.path) == "failed"


def test_a_failure_that_cannot_be_recorded_hides_nothing(make_run: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDir(make_run("runs/a", after=None))

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("smollm3_finetune.runs.failure.write_json", full)
    with pytest.raises(WriteError, match="the disk is full"), recorded_failure(run, print):
        raise WriteError("the disk is full")


def test_a_failed_run_without_a_checkpoint_may_be_started_again(make_run: Make) -> None:
    failed = RunDir(make_run("runs/a", after=None, error={"message": "x"}))
    assert failed.holds_nothing()
    assert RunDir.fresh("runs/a", "title").path == failed.path
