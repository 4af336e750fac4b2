"""A sweep runs each trial once, as an ordinary run, and compares them; what has not changed is never run again."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_sweep import NAMES, InThisProcess, snapshot

from smollm3_finetune.errors import ModelError
from smollm3_finetune.evaluation.saved_losses import saved_losses
from smollm3_finetune.evaluation.verdict import compare
from smollm3_finetune.files.locks import locked
from smollm3_finetune.runs.rundir import RunDir
from smollm3_finetune.sweep.trials import ChildProcess

Cli = Callable[..., Any]
Edit = Callable[[str, str], None]
Status = Callable[[], dict[str, dict[str, Any]]]
LAUNCHER = str(Path(__file__).parents[1] / "out_of_tree" / "sweeping_launcher.py")


def test_every_trial_is_an_ordinary_run_that_names_the_sweep(cli: Cli, copied: Path) -> None:
    listed = cli("runs", "list", "--runs", "found", "--filter", "sweep=s", "--sort", "name", "--json").report()["runs"]
    assert [Path(run["path"]).name for run in listed] == sorted(NAMES)
    assert {run["state"] for run in listed} == {"finished"}
    assert [run["part_of"] for run in listed] == [{"sweep": "s", "trial": name} for name in sorted(NAMES)]
    assert "sweep s" in cli("runs", "list", "--runs", "found").stdout
    run = copied / NAMES[0]
    for file in ("versions.json", "report.json"):
        assert json.loads((run / file).read_text())["sweep"] == {"sweep": "s", "trial": NAMES[0]}
    assert f"| sweep | trial `{NAMES[0]}` of `s` |" in (run / "adapter/README.md").read_text()
    shown = cli("runs", "show", run)
    assert shown.code == 0, shown.stderr


def test_a_trial_equals_the_same_run_by_hand_bit_for_bit(cli: Cli, copied: Path) -> None:
    cli("train", "--data", "rows.jsonl", "--validation", "held-out.jsonl", "--max-length", "64", "--max-steps", "2",
        "--batch-size", "8", "--device", "cpu", "--set", "train.sample_tokens=1",
        "--set", "train.report=false", "--adapter-opt", "rank=4",
        "--adapter-opt", "target_modules=q_proj", "--lr", "1e-4", "--output", "hand",
        "--json").report()  # fmt: skip
    name = "adapter/adapter_model.safetensors"
    assert (copied / "rank-4_learning_rate-0.0001" / name).read_bytes() == (Path("hand") / name).read_bytes()


def test_trials_are_sorted_and_compared_with_the_best_row_by_row(cli: Cli, copied: Path) -> None:
    about = cli("sweep", "status", "s.yaml", "--json").report()
    trials = about["trials"]
    losses = [trial["held_out_loss"] for trial in trials]
    assert losses == sorted(losses) and len(set(losses)) == 6
    assert about["best"] == trials[0]["run"] and trials[0]["against_best"] is None
    best = saved_losses(RunDir(Path(trials[0]["run"])))
    assert best is not None and len(best.rows) == 32
    for trial in trials:
        run = RunDir(Path(trial["run"]))
        own, report = saved_losses(run), json.loads(run.report.read_text())
        assert own is not None and own.content == best.content
        assert trial["held_out_loss"] == report["after"]["held_out_loss"] == own.rows.loss.mean
        assert trial["verdict"] == report["comparison"]["verdict"]
        assert trial["low"] < trial["held_out_loss"] < trial["high"]
        if trial is not trials[0]:
            found = compare(best.rows, own.rows, seed=0)
            assert found is not None and trial["against_best"] == found.as_json()
            assert trial["against_best"]["difference"] == pytest.approx(trial["held_out_loss"] - losses[0], abs=1e-12)
    assert trials[-1]["against_best"]["verdict"] == "worse"
    shown = cli("sweep", "status", "s.yaml").stdout
    rows = [line for line in shown.splitlines() if line.startswith("rank-")]
    assert [row.split()[0] for row in rows] == [trial["trial"] for trial in trials]
    assert f"smollm3 generate {trials[0]['run']} --prompt" in shown
    assert "chosen from 6 trials by these rows" in shown


def test_what_run_prints_is_what_status_prints(cli: Cli, finished: Path, copied: Path) -> None:
    assert cli("sweep", "status", "s.yaml").stdout == (finished / "report.txt").read_text(encoding="utf-8")


def test_nothing_is_run_again_when_nothing_has_changed(cli: Cli, copied: Path, launched: list[str]) -> None:
    before = snapshot(copied)
    for command in ("run", "resume"):
        result = cli("sweep", command, "s.yaml")
        assert result.code == 0, result.stderr
        assert result.stderr.count("kept (finished)") == 6
    assert launched == []
    assert snapshot(copied) == before


def test_a_changed_file_keeps_the_trials_whose_values_are_unchanged(
    cli: Cli, copied: Path, launched: list[str], edit: Edit, status: Status
) -> None:
    before = {name: snapshot(copied / name) for name in NAMES}
    edit("[2, 4, 8]", "[8, 3]")
    edit("[1e-3, 1e-4]", "[1e-3]")
    Path("rows.jsonl").rename("same.jsonl")  # the content counts
    edit("rows.jsonl", "same.jsonl")
    edit("report: false", "report: false, save_every: 2")  # does not change the result
    assert (found := status())["rank-3_learning_rate-0.001"]["next"] == "run"
    assert found["rank-8_learning_rate-0.001"]["state"] == "finished"
    result = cli("sweep", "resume", "s.yaml")
    assert result.code == 0, result.stderr
    assert launched == ["rank-3_learning_rate-0.001"]
    assert {name: snapshot(copied / name) for name in NAMES} == before
    assert set(status()) == {"rank-8_learning_rate-0.001", "rank-3_learning_rate-0.001"}


def test_a_trial_that_was_named_differently_is_the_same_trial(copied: Path, edit: Edit, status: Status) -> None:
    edit("  train.learning_rate: [1e-3, 1e-4]\n", "")
    edit("max_steps: 2", "max_steps: 2, learning_rate: 1e-4")
    assert {(name, trial["next"]) for name, trial in status().items()} == {
        (f"rank-{rank}_learning_rate-0.0001", "keep") for rank in (2, 4, 8)
    }


def test_a_trial_that_would_be_another_run_gets_a_new_directory(cli: Cli, copied: Path, edit: Edit) -> None:
    edit("max_steps: 2", "max_steps: 3")
    edit("[2, 4, 8]", "[2]")
    trials = cli("sweep", "run", "s.yaml", "--dry-run", "--json").report()["trials"]
    assert [(t["run"], t["next"]) for t in trials] == [(f"found/{name}-2", "run") for name in NAMES[:2]]


def test_equal_trials_are_run_once(cli: Cli, fresh: Path) -> None:
    text = Path("s.yaml").read_text(encoding="utf-8")
    text = text[: text.index("grid:")] + "trials:\n- {adapter.rank: 2}\n- {adapter: {rank: 2}}\n- {adapter.rank: 2}\n"
    Path("s.yaml").write_text(text, encoding="utf-8")
    planned = cli("sweep", "run", "s.yaml", "--dry-run", "--json").report()["trials"]
    assert [(trial["trial"], trial["times"]) for trial in planned] == [("rank-2", 3)]
    assert "3 times in the file, run once" in cli("sweep", "run", "s.yaml", "--dry-run").stdout


def test_all_trials_are_checked_before_the_first_one_runs(
    cli: Cli, fresh: Path, edit: Edit, launched: list[str]
) -> None:
    edit("  adapter.rank: [2, 4, 8]\n", "  adapter.rank: [2, -4]\n  adapter: [lora, lore, ia3]\n")
    failed = cli("sweep", "run", "s.yaml")
    assert failed.code == 2
    errors = [line for line in failed.stderr.splitlines() if line.startswith("error")]
    assert errors == [
        "error: s.yaml:10: trials rank-2_adapter-lore_learning_rate-0.001, rank-2_adapter-lore_learning_rate-0.0001 "
        "and 2 more: there is no adapter 'lore'",
        "error: s.yaml:9: adapter 'ia3' has no option 'rank' (trials rank-2_adapter-ia3_learning_rate-0.001, "
        "rank-2_adapter-ia3_learning_rate-0.0001 and 2 more)",
        "error: s.yaml:9: adapter.rank: expected integer (at least 1), got -4 (trials "
        "rank--4_adapter-lora_learning_rate-0.001, rank--4_adapter-lora_learning_rate-0.0001)",
    ]
    assert launched == [] and not Path("found").exists()


def test_a_problem_of_all_trials_is_said_once(cli: Cli, fresh: Path, edit: Edit) -> None:
    edit("validation: held-out.jsonl, ", "held_out: 0, ")
    failed = cli("sweep", "run", "s.yaml", "--dry-run")
    assert failed.code == 2
    assert failed.stderr.count("error: a sweep compares held-out losses, and there are no held-out rows") == 1
    edit("rows.jsonl", "nowhere.jsonl")
    failed = cli("sweep", "run", "s.yaml", "--dry-run")
    assert failed.code == 5 and failed.stderr.count("nowhere.jsonl") == 1


def test_options_of_run_that_do_not_apply_and_other_held_out_rows_are_warned_of(
    cli: Cli, fresh: Path, edit: Edit
) -> None:
    edit("target_modules: [q_proj]", "rank: 2")
    edit(
        "  adapter.rank: [2, 4, 8]\n  train.learning_rate: [1e-3, 1e-4]\n",
        "  adapter: [lora, dora]\n  data.max_length: [48, 64]\n",
    )
    result = cli("sweep", "run", "s.yaml", "--dry-run")
    assert result.code == 0, result.stderr
    assert result.stderr.count("s.yaml:5: adapter.rank does not apply to trials with adapter=dora") == 1
    assert "trials that differ in data.max_length have other held-out rows" in result.stderr


def test_a_failed_trial_is_recorded_and_others_run_until_a_request_to_stop(
    cli: Cli, copied: Path, launched: list[str], edit: Edit, status: Status, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit("[2, 4, 8]", "[2, 5, 6]")
    edit("[1e-3, 1e-4]", "[1e-3]")

    def ends(self: ChildProcess, launch: Any, progress: Any) -> None:
        if launch.name.startswith("rank-5"):
            raise ModelError("the weights are bad", hint="use others")
        signal.raise_signal(signal.SIGTERM)  # a shell lets its background jobs ignore SIGINT

    with monkeypatch.context() as patch:
        patch.setattr(ChildProcess, "launch", ends)
        stopped = cli("sweep", "run", "s.yaml")
    assert stopped.code == 143
    assert "trial 2/3 rank-5_learning_rate-0.001: failed: the weights are bad" in stopped.stderr
    assert "error: trial rank-6_learning_rate-0.001: stopped by SIGTERM" in stopped.stderr
    assert "to continue: smollm3 sweep resume s.yaml" in stopped.stderr
    states = {name.partition("_")[0]: trial["state"] for name, trial in status().items()}
    assert states == {"rank-2": "finished", "rank-5": "failed", "rank-6": "interrupted"}
    with monkeypatch.context() as patch:
        patch.setattr(ChildProcess, "launch", lambda *args: ends(*args) if "rank-5" in args[1].name else run(*args))
        run = InThisProcess()
        failed = cli("sweep", "resume", "s.yaml")
    assert failed.code == 1
    assert "1 of 3 trials failed: rank-5_learning_rate-0.001" in failed.stderr
    assert "after the fault is fixed: smollm3 sweep resume s.yaml" in failed.stderr
    assert "rank-5_learning_rate-0.001 failed: the weights are bad" in failed.stdout
    assert run.trials == ["rank-6_learning_rate-0.001"]
    result = cli("sweep", "resume", "s.yaml")
    assert result.code == 0, result.stderr
    assert launched == ["rank-5_learning_rate-0.001"]


def test_two_processes_cannot_run_one_sweep_and_status_sees_it(cli: Cli, copied: Path) -> None:
    with locked(copied / ".smollm3-lock", "busy", remove=True):
        refused = cli("sweep", "run", "s.yaml")
        assert cli("sweep", "status", "s.yaml", "--json").report()["running"] is True
    assert refused.code == 2
    assert "the sweep in found is being run by another process (process " in refused.stderr


def test_a_sweep_that_was_never_begun_cannot_be_resumed(cli: Cli, fresh: Path) -> None:
    refused = cli("sweep", "resume", "s.yaml")
    assert refused.code == 2
    assert "there is nothing to resume: found holds no sweep\n  hint: smollm3 sweep run s.yaml" in refused.stderr


def test_a_damaged_state_says_what_to_do(cli: Cli, copied: Path, status: Status) -> None:
    (copied / "sweep.json").write_text("{}", encoding="utf-8")
    refused = cli("sweep", "run", "s.yaml")
    assert refused.code == 6
    assert (
        "to run every trial again, in new directories: mv found/sweep.json found/damaged-sweep.json" in refused.stderr
    )
    (copied / "sweep.json").rename(copied / "damaged-sweep.json")
    assert {trial["next"] for trial in status().values()} == {"run"}


def test_trials_whose_held_out_rows_differ_are_not_compared(cli: Cli, copied: Path) -> None:
    file = copied / NAMES[3] / "after.json"
    about = json.loads(file.read_text())
    file.write_text(json.dumps({**about, "held_out_rows": "other"}), encoding="utf-8")
    found = cli("sweep", "status", "s.yaml", "--json").report()
    assert found["best"] is None
    assert found["notes"] == ["the held-out rows of the trials differ, so their losses cannot be compared"]
    assert all(trial["against_best"] is None for trial in found["trials"])
    assert "best:" not in cli("sweep", "status", "s.yaml").stdout


def test_a_launcher_that_sweeps_gets_the_unfinished_trials(cli: Cli, fresh: Path, edit: Edit) -> None:
    edit("[2, 4, 8]", "[5, 2]")
    edit("[1e-3, 1e-4]", "[1e-3]")
    edit("max_steps: 2", "max_steps: 3")
    plugin = ("-p", LAUNCHER)
    failed = cli("sweep", "run", "s.yaml", *plugin, "--launcher", "in-turn", "--launcher-opt", "fail=5")
    assert failed.code == 1
    assert "1 of 2 trials failed: rank-5_learning_rate-0.001" in failed.stderr
    assert f"sweep resume s.yaml -p {LAUNCHER} --launcher in-turn --launcher-opt fail=5" in failed.stderr

    def states() -> dict[str, tuple[str, str]]:
        trials = cli("sweep", "status", "s.yaml", *plugin, "--json").report()["trials"]
        return {t["trial"].partition("_")[0]: (t["state"], t["next"]) for t in trials}

    assert states() == {"rank-5": ("failed", "continue"), "rank-2": ("stopped", "keep")}
    stopped = Path("found/rank-2_learning_rate-0.001")
    before = snapshot(stopped)
    result = cli("sweep", "resume", "s.yaml", *plugin, "--launcher", "in-turn")
    assert result.code == 0, result.stderr
    assert states()["rank-5"] == ("finished", "keep")
    assert snapshot(stopped) == before
