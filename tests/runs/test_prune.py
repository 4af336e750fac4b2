"""`smollm3 runs prune`: deletes checkpoints and empty runs only, shows them first, and never touches a running run."""

from __future__ import annotations

import io
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from smollm3_finetune.cache.store import Cache
from smollm3_finetune.cache.use import keeping, record_uses, runs_file
from smollm3_finetune.runs.prune import prunable, remove
from smollm3_finetune.runs.rundir import RunDir
from smollm3_finetune.runs.summary import RunSummary

Cli = Callable[..., Any]
Make = Callable[..., Path]


@pytest.fixture
def several(make_run: Make) -> None:
    make_run("runs/finished", checkpoints=(2, 4))
    make_run("runs/resumable", after=None, checkpoints=(2,))
    make_run("runs/interrupted", after=None)
    make_run("runs/failed", after=None, error={"message": "out of memory"})


def files(folder: str = "runs") -> set[str]:
    return {str(p.relative_to(folder)) for p in Path(folder).rglob("*") if p.is_file()}


def test_prune_shows_what_it_would_delete_and_deletes_nothing_without_confirmation(cli: Cli, several: None) -> None:
    before = files()
    dry = cli("runs", "prune", "--dry-run")
    assert dry.code == 0, dry.stderr
    lines = dry.stdout.splitlines()
    assert [line.split()[0] for line in lines[1:4]] == ["runs/failed", "runs/finished", "runs/interrupted"]
    assert "checkpoint-2, checkpoint-4" in lines[2]
    assert "the whole run: failed before its first checkpoint" in lines[1]
    assert "kept: runs/resumable: it was interrupted, and can be resumed" in lines
    assert lines[-1].startswith("would delete ")
    refused = cli("runs", "prune")  # no terminal can answer
    assert (refused.code, "hint: pass --yes" in refused.stderr) == (2, True)
    assert cli("runs", "prune", "--json").code == 2
    assert files() == before


def test_prune_asks_on_a_terminal(cli: Cli, several: None, monkeypatch: pytest.MonkeyPatch) -> None:
    before = files()
    for answer, code in (("n\n", 130), ("y\n", 0)):
        terminal = io.StringIO(answer)
        monkeypatch.setattr(terminal, "isatty", lambda: True)
        monkeypatch.setattr(sys, "stdin", terminal)
        result = cli("runs", "prune")
        assert result.code == code
        assert result.stdout.startswith("would delete:\n")
        assert (files() == before) == bool(code)
        assert "of 3 runs? [y/N]" in result.stdout + result.stderr


def test_prune_keeps_adapters_reports_metrics_and_configurations(cli: Cli, several: None) -> None:
    before = files()
    report = cli("runs", "prune", "--yes", "--json").report()
    assert {Path(d["run"]).name: d["state"] for d in report["deleted"]} == {
        "failed": "failed", "finished": "finished", "interrupted": "interrupted",
    }  # fmt: skip
    assert report["bytes"] == sum(d["bytes"] for d in report["deleted"]) > 0
    gone = {f for f in before if f.startswith(("failed/", "interrupted/", "finished/checkpoints/"))}
    assert files() == before - gone
    assert not Path("runs/failed").exists() and not Path("runs/finished/checkpoints").exists()
    assert RunSummary.of(RunDir(Path("runs/finished"))).state == "finished"


def test_prune_keeps_the_newest_checkpoints(cli: Cli, several: None) -> None:
    Path("runs/finished/checkpoints/damaged-checkpoint-3").mkdir()
    Path("runs/finished/checkpoints/best-2").mkdir()
    cli("runs", "prune", "--yes", "--keep-checkpoints", "1", "--json").report()
    assert sorted(p.name for p in Path("runs/finished/checkpoints").iterdir()) == ["best-2", "checkpoint-4"]
    cli("runs", "prune", "--yes", "--json").report()
    assert not Path("runs/finished/checkpoints").exists()


def test_prune_keeps_the_best_adapter_of_a_run_without_checkpoints(cli: Cli, several: None) -> None:
    for name in ("failed", "interrupted"):
        Path(f"runs/{name}/checkpoints/best-2").mkdir(parents=True)
    about = cli("runs", "prune", "--yes", "--json").report()
    reasons = {Path(k["run"]).name: k["reason"] for k in about["kept"]}
    assert reasons["failed"] == "it failed, and runs/failed/checkpoints/best-2 is its best adapter"
    assert all(Path(f"runs/{name}/checkpoints/best-2").is_dir() for name in ("failed", "interrupted"))


def test_prune_is_limited_by_state_filter_and_age(cli: Cli, several: None) -> None:
    def chosen(*arguments: str) -> list[str]:
        about = cli("runs", "prune", "--dry-run", "--json", *arguments).report()
        return [Path(d["run"]).name for d in about["deleted"]]

    assert chosen("--state", "failed") == ["failed"]
    assert chosen("--filter", "name=f*") == ["failed", "finished"]
    assert chosen("--older-than", "30d") == []
    old = time.time() - 31 * 86400
    for path in Path("runs/finished").iterdir():
        os.utime(path, (old, old))
    assert chosen("--older-than", "30d") == ["finished"]
    wrong = cli("runs", "prune", "--older-than", "30 days")
    assert (wrong.code, "--older-than: '30 days' is not a duration" in wrong.stderr) == (2, True)


def test_prune_leaves_running_and_damaged_runs(cli: Cli, several: None) -> None:
    Path("runs/interrupted/versions.json").write_text("{")
    with RunDir(Path("runs/finished")).held():
        about = cli("runs", "prune", "--yes", "--json", "--state", "running", "--state", "damaged").report()
    reasons = {Path(k["run"]).name: k["reason"] for k in about["kept"]}
    assert reasons["finished"] == "it is being trained"
    assert reasons["interrupted"].startswith("it is damaged: ")
    assert about["deleted"] == []


def test_a_run_that_begins_while_the_question_is_open_is_left(several: None) -> None:
    """The lock decides, and what has changed since the list was made."""
    runs = {name: RunDir(Path("runs") / name) for name in ("finished", "interrupted", "failed")}
    removals, _ = prunable([RunSummary.of(run) for run in runs.values()])
    before = files()
    with runs["finished"].held(), runs["interrupted"].held(), runs["failed"].held():
        assert all("is being trained by another process" in str(remove(removal)) for removal in removals)
    assert files() == before
    runs["finished"].report.unlink()  # resumed with more steps
    (runs["interrupted"].checkpoints / "checkpoint-1").mkdir(parents=True)
    (runs["failed"].path / "notes.txt").write_text("mine")
    before = files()
    assert [remove(r) for r in removals] == ["it has changed", "it has been resumed", "it has changed"]
    assert files() == before


def test_prune_leaves_files_that_no_run_writes(cli: Cli, several: None, tmp_path: Path) -> None:
    Path("runs/finished/checkpoints/notes.txt").write_text("mine")
    Path("runs/finished/checkpoints/checkpoint-best").mkdir()
    (tmp_path / "elsewhere").mkdir()
    Path("runs/finished/checkpoints/checkpoint-9").symlink_to(tmp_path / "elsewhere")
    Path("runs/failed/notes.txt").write_text("mine")
    cli("runs", "prune", "--yes", "--json").report()
    assert sorted(p.name for p in Path("runs/finished/checkpoints").iterdir()) == [
        "checkpoint-9", "checkpoint-best", "notes.txt",
    ]  # fmt: skip
    assert Path("runs/failed/notes.txt").read_text() == "mine"
    assert (tmp_path / "elsewhere").is_dir()


def test_a_checkpoint_that_replaces_a_damaged_adapter_is_kept(cli: Cli, several: None, make_run: Make) -> None:
    Path("runs/finished/adapter/smollm3.json").write_text("{}")
    without = make_run("runs/without", checkpoints=(4,))
    (without / "adapter" / "smollm3.json").unlink()
    about = cli("runs", "prune", "--yes", "--json", "--state", "finished").report()
    assert [k["reason"] for k in about["kept"]] == ["it has no complete adapter, so a checkpoint is its only copy"]
    assert "its adapter is damaged" in about["not_deleted"][0]["reason"]
    assert Path("runs/finished/checkpoints/checkpoint-4").is_dir()


def test_a_deleted_run_keeps_no_cache_entry(several: None, tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    entry = cache.get_or_build("gguf", {"file": "x"}, lambda out: (out / "weights").write_text("w"))
    for name in ("failed", "finished"):
        record_uses(Path("runs") / name, cache)
    cache.release()
    removals, _ = prunable([RunSummary.of(RunDir(Path("runs/failed")))])
    assert [remove(removal) for removal in removals] == [None]
    assert keeping(entry) == [Path("runs/finished").resolve()]
    assert runs_file(entry).read_text().splitlines() == [str(Path("runs/finished").resolve())]


def test_a_cache_file_of_somebody_else_changes_no_other_file(several: None, tmp_path: Path) -> None:
    """The names of entries in it do not lead out of the cache."""
    victim = tmp_path / "victim.runs"
    victim.write_text(f"{Path('runs/failed').resolve()}\n")
    about = {"root": str(tmp_path / "cache" / "x"), "entries": ["../../victim", "x/../../../victim", "/victim"]}
    Path("runs/failed/cache.json").write_text(json.dumps(about))
    removals, _ = prunable([RunSummary.of(RunDir(Path("runs/failed")))])
    assert [remove(removal) for removal in removals] == [None]
    assert victim.read_text()


# --------------------------------------------------------------------------------------------- a trained run


def test_a_pruned_run_is_used_as_before_and_says_why_it_cannot_be_resumed(cli: Cli) -> None:
    made = cli("train", "--adapter", "full", "--set", "data.limit=20", "--set", "train.sample_tokens=2",
               "--max-steps", "2", "--output", "runs/a", "--json").report()  # fmt: skip
    first = cli("generate", "runs/a", "--prompt", "Hello!", "--max-new-tokens", "4")
    assert cli("runs", "prune", "--yes", "--json").report()["deleted"]
    again = cli("generate", "runs/a", "--prompt", "Hello!", "--max-new-tokens", "4")
    assert (again.code, again.stdout) == (0, first.stdout), again.stderr
    assert cli("merge", "runs/a", "--output", "merged", "--json").report()["fault"] is None
    about = cli("runs", "show", "a", "--json").report()
    assert (about["state"], about["after"], about["checkpoint_bytes"]) == (
        "finished",
        made["after"]["held_out_loss"],
        0,
    )
    for more, text in (((), "has finished its 2 steps, and its checkpoints were deleted"),
                       (("--max-steps", "4"), "cannot take more steps: its checkpoints were deleted")):  # fmt: skip
        refused = cli("train", "--resume", "runs/a", *more)
        assert (refused.code, text in refused.stderr) == (2, True), refused.stderr
        assert "hint: start a new run: smollm3 train --config runs/a/run.yaml" in refused.stderr
