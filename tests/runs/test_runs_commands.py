"""`smollm3 runs list|show|compare`: what they print, at the widths of terminals, and what they refuse."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from smollm3_finetune.cli.output.run import shown_report

Cli = Callable[..., Any]
Make = Callable[..., Path]


@pytest.fixture
def several(make_run: Make) -> None:
    """Four runs: two finished, one interrupted, one failed."""
    make_run("runs/a", {"train.learning_rate": 1e-3}, after=2.5, verdict="cannot tell",
             started="2026-01-01T00:00:00+0000")  # fmt: skip
    make_run("runs/sweep/b", {"adapter.name": "acme:dora", "train.epochs": 2}, after=1.25, verdict="better",
             started="2026-01-04T00:00:00+0000", checkpoints=(4,))  # fmt: skip
    make_run("runs/c", after=None, steps=2, checkpoints=(2,), started="2026-01-03T00:00:00+0000")
    make_run("runs/d", {"quant.name": "acme:q4"}, after=None, steps=1, error={"message": "out of memory"},
             started="2026-01-02T00:00:00+0000")  # fmt: skip


def names(cli: Cli, *arguments: str) -> list[str]:
    return [Path(run["path"]).name for run in cli("runs", "list", "--json", *arguments).report()["runs"]]


# ---------------------------------------------------------------------------------------------------- list


def test_list_shows_the_newest_first(cli: Cli, several: None) -> None:
    result = cli("runs", "list")
    assert result.code == 0, result.stderr
    head, *rows, counts, failed = result.stdout.splitlines()
    assert head.split() == ["run", "state", "age", "model", "quantizer", "adapter", "objective", "data", "steps",
                            "held-out", "loss", "verdict", "size"]  # fmt: skip
    assert [row.split()[0] for row in rows] == ["sweep/b", "c", "d", "a"]
    assert "1.250" in rows[0] and "better" in rows[0] and "dora" in rows[0]
    assert "interrupted" in rows[1] and "2/4" in rows[1] and "3.000 →" in rows[1]
    assert counts.startswith("runs: 4 runs (2 finished, 1 interrupted, 1 failed), ")
    assert failed == "failed: d: out of memory"


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_list_fits_the_terminal(
    cli: Cli, several: None, make_run: Make, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    long = "20261122-101500-SmolLM2-135M-Instruct-bnb-4bit-lora"
    make_run(f"runs/{long}", after=None)
    monkeypatch.setenv("COLUMNS", str(width))
    lines = cli("runs", "list").stdout.splitlines()
    assert max(map(len, lines)) <= width
    head = lines[0].split()
    assert (
        head[:2] == ["run", "state"] and ("held-out" in head) == (width > 40) and ("quantizer" in head) == (width > 80)
    )
    joined = "".join(line.split(" ")[0] for line in lines[1:] if not line.startswith(" "))
    assert long in joined, "a long name is folded, not cut"
    assert width >= 120 or "not shown at this width" in "\n".join(lines)


def test_list_prefers_columns_whose_values_differ(cli: Cli, make_run: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "78")
    make_run("runs/a-run-with-a-name-of-26-ch")
    make_run("runs/b", {"adapter.name": "acme:dora"})
    head = cli("runs", "list").stdout.splitlines()[0].split()
    assert "adapter" in head and "quantizer" not in head and "age" not in head


def test_list_filters_by_values_of_the_table_and_of_the_configuration(cli: Cli, several: None) -> None:
    assert names(cli, "--filter", "adapter=lora") == ["c", "d", "a"]
    assert names(cli, "--filter", "adapter=acme:dora") == names(cli, "--filter", "adapter=D*") == ["b"]
    assert names(cli, "--filter", "verdict=cannot tell") == ["a"]
    assert names(cli, "--filter", "data=rows*", "--state", "finished", "--state", "failed") == ["b", "d", "a"]
    assert names(cli, "--filter", "train.learning_rate=1e-3") == ["a"]
    assert names(cli, "--filter", "train.epochs=2", "--filter", "quantizer=none") == ["b"]
    assert names(cli, "--filter", "train.max_steps=none", "--filter", "name=?") == ["b", "c", "d", "a"]
    assert names(cli, "--filter", "train.packing=true") == []


def test_list_sorts_runs_without_a_value_last(cli: Cli, several: None) -> None:
    assert names(cli, "--sort", "after")[:2] == names(cli, "--sort", "change")[:2] == ["b", "a"]
    assert names(cli, "--sort", "after", "--reverse") == ["a", "b", "c", "d"]
    assert names(cli, "--sort", "name") == ["a", "b", "c", "d"]
    assert names(cli, "--sort", "steps")[-1] == "d"
    assert names(cli, "--sort", "train.epochs")[-1] == "b"
    assert names(cli, "--reverse") == ["a", "d", "c", "b"]


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["--filter", "adaptr=lora"], "did you mean 'adapter'?"),
        (["--filter", "learning_rate=1"], "did you mean 'train.learning_rate'?"),
        (["--filter", "train.learnin_rate=1"], "did you mean 'train.learning_rate'?"),
        (["--filter", "adapter"], "--filter adapter=NAME"),
        (["--filter", "zzzz=1"], "keys: name, state, model"),
        (["--sort", "sizze"], "did you mean 'size'?"),
        (["--runs", "nowhere"], "--runs FOLDER_OF_RUNS"),
    ],
)
def test_list_refuses_a_wrong_value_with_a_hint(cli: Cli, several: None, arguments: list[str], hint: str) -> None:
    result = cli("runs", "list", *arguments)
    assert (result.code, result.stdout) == (2, "")
    assert f"hint: {hint}" in result.stderr


def test_list_without_runs_says_how_to_start_one(cli: Cli) -> None:
    result = cli("runs", "list")
    assert (result.code, result.stdout) == (0, "runs has no runs; to start one: smollm3 train\n")
    assert cli("runs", "list", "--json").report() == {"folder": "runs", "runs": []}


def test_list_names_damaged_runs_and_leaves_other_directories_out(cli: Cli, several: None) -> None:
    Path("runs/a/report.json").write_text("{")
    Path("runs/other/adapter").mkdir(parents=True)
    Path("runs/file").write_text("x")
    shown = cli("runs", "list").stdout
    assert "damaged: a: runs/a/report.json cannot be read as JSON" in shown
    assert sorted(names(cli)) == ["a", "b", "c", "d"]


def test_an_encoding_without_arrows_gets_ascii(several: None, run_cli: Callable[..., Any]) -> None:
    shown = run_cli("runs", "show", "b", PYTHONIOENCODING="ascii").stdout
    assert "3.000 -> 1.250 (-1.750 +- 0.250, better)" in shown
    assert "* loss   o held-out loss" in shown
    assert "\\u" not in shown.partition("smollm3 generate")[0]


def test_show_names_the_next_commands_by_their_names(cli: Cli, several: None) -> None:
    lines = cli("runs", "show", "b").stdout.splitlines()
    for command in ("generate", "chat", "eval", "merge"):
        assert any(line.split()[:3] == [command, "smollm3", command] for line in lines), command


def test_prune_says_that_it_needs_yes_without_a_terminal(cli: Cli, several: None) -> None:
    assert "Delete without asking; required without a terminal." in cli("runs", "prune", "--help").stdout
    refused = cli("runs", "prune")
    assert (refused.code, "hint: pass --yes" in refused.stderr) == (2, True)


# ---------------------------------------------------------------------------------------------------- show


def test_show_has_curves_configuration_versions_and_the_next_commands(cli: Cli, several: None) -> None:
    result = cli("runs", "show", "b")  # by its name, at any depth
    assert result.code == 0, result.stderr
    for text in ("run            runs/sweep/b", "held-out loss  3.000 → 1.250 (−1.750 ± 0.250, better)",
                 "rows.jsonl: 36 training rows, 4 held-out rows", "● loss   ○ held-out loss", "train.epochs  2",
                 "acme 1, torch 2", "smollm3 generate runs/sweep/b --prompt", "smollm3 merge runs/sweep/b",
                 "after          You."):  # fmt: skip
        assert text in result.stdout
    assert "train.max_steps" not in result.stdout, "a default"
    doubtful = cli("runs", "show", "runs/a").stdout
    assert "43 held-out rows can show a difference of 0.250 or more" in doubtful


def test_show_says_how_an_unfinished_run_continues(cli: Cli, several: None, make_run: Make) -> None:
    assert "continue  smollm3 train --resume runs/c" in cli("runs", "show", "c").stdout
    failed = cli("runs", "show", "d").stdout
    assert "error          out of memory" in failed
    assert "repeat    smollm3 train --config runs/d/run.yaml --output runs/d" in failed
    with_file = make_run("runs/e")
    versions = json.loads((with_file / "versions.json").read_text())
    (with_file / "versions.json").write_text(json.dumps({**versions, "plugin_files": {"/x/my plugin.py": "0"}}))
    (with_file / "origins.json").write_text(json.dumps({"train.epochs": "--epochs"}))
    assert "smollm3 merge runs/e -p '/x/my plugin.py'" in cli("runs", "show", "e").stdout


def test_a_run_that_failed_after_its_report_is_not_resumed(cli: Cli, make_run: Make) -> None:
    """For example because its held-out loss exploded; but a run that failed on its way to more steps is."""
    make_run("runs/done", checkpoints=(4,), error={"message": "the held-out loss rose"})
    make_run("runs/more", checkpoints=(4,), planned=8, error={"message": "out of memory"})
    done = cli("runs", "show", "done").stdout
    assert "repeat    smollm3 train --config runs/done/run.yaml" in done and "--resume" not in done
    assert "continue  smollm3 train --resume runs/more" in cli("runs", "show", "more").stdout


def test_show_as_json_has_the_points_of_the_curves(cli: Cli, several: None) -> None:
    about = cli("runs", "show", "b", "--json").report()
    assert about["losses"]["training"] == [[1, 3.9], [2, 3.8], [3, 3.7], [4, 3.6]]
    assert about["losses"]["held_out"] == [[0, 3.0], [4, 1.25]]
    assert about["configuration"] == {"train.epochs": 2.0}


def test_show_names_the_step_of_the_published_adapter(cli: Cli, several: None) -> None:
    report = json.loads(Path("runs/a/report.json").read_text())
    report |= {
        "best": {"step": 2, "held_out_loss": 2.5},
        "stopped_early": {"reason": "no lower loss in 2 measurements"},
    }
    Path("runs/a/report.json").write_text(json.dumps(report))
    shown = cli("runs", "show", "a").stdout
    assert "ended early: no lower loss in 2 measurements" in shown
    assert "the adapter is that of step 2" in shown
    assert cli("runs", "show", "a", "--json").report()["losses"]["held_out"] == [[0, 3.0], [2, 2.5]]


def test_show_survives_damaged_files(cli: Cli, several: None) -> None:
    for name in ("report.json", "metrics.jsonl", "before.json", "run.yaml"):
        Path("runs/a", name).write_bytes(b"\x00\xff{")
    result = cli("runs", "show", "a")
    assert (result.code, "state          damaged" in result.stdout) == (0, True), result.stderr


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("runs/zz", "to see the runs: smollm3 runs list"),
        ("runs/sweep/b/adapter", "it is inside a run: smollm3 runs show runs/sweep/b"),
        ("runs/sweeep-1", "did you mean runs/sweep-1?"),
    ],
)
def test_show_refuses_what_is_not_a_run(cli: Cli, several: None, make_run: Make, name: str, hint: str) -> None:
    make_run("runs/sweep-1")
    result = cli("runs", "show", name)
    assert (result.code, f"hint: {hint}" in result.stderr) == (6, True), result.stderr


def test_train_ends_with_the_same_curve_on_a_terminal(
    cli: Cli, make_run: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run("runs/a")
    report = json.loads((run / "report.json").read_text())
    report |= {"run": str(run), "adapter": "runs/a/adapter", "trained_parameters": 1, "seconds_to_first_step": None}
    report["rows"] = [{**row, "not_read": {}} for row in report["rows"]]
    assert "● loss" not in shown_report(report), "not on a terminal"
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "__stdout__", terminal)
    monkeypatch.setenv("COLUMNS", "80")
    curve = shown_report(report).partition("\n\nheld-out loss")[0].strip("\n")
    assert "● loss   ○ held-out loss" in curve
    assert curve in cli("runs", "show", "a").stdout


# ------------------------------------------------------------------------------------------------- compare


def test_compare_shows_only_what_differs(cli: Cli, several: None) -> None:
    result = cli("runs", "compare", "a", "b")
    assert result.code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[:2] == ["A  runs/a", "B  runs/sweep/b"]
    table = lines[lines.index("differences") + 1 : lines.index("held-out loss") - 1]
    assert [line.split() for line in table] == [
        ["key", "A", "B"], ["adapter.name", "lora", "dora"], ["train.epochs", "1.0", "2.0"],
        ["train.learning_rate", "0.001", "0.0002"],
    ]  # fmt: skip
    assert "B    3.000   1.250  −1.750  −2.000 to −1.500  better       4      finished" in lines
    assert "lowest after training: B" in lines
    assert "● A   ○ B" in map(str.strip, lines)


def test_compare_as_json(cli: Cli, several: None) -> None:
    about = cli("runs", "compare", "runs/a", "runs/c", "--json").report()
    assert about["different"] == {"train.learning_rate": [0.001, 0.0002]}
    assert [run["state"] for run in about["runs"]] == ["finished", "interrupted"]
    assert about["runs"][1]["losses"]["training"] == [[1, 3.9], [2, 3.8]]


def test_compare_warns_if_losses_may_not_be_comparable(cli: Cli, several: None, make_run: Make) -> None:
    make_run("runs/e", {"objective.name": "acme:dpo"}, tokens="other", after=0.5)
    shown = cli("runs", "compare", "a", "e").stdout
    assert "note: the tokenized rows of the runs differ" in shown
    assert "note: the objectives of the runs differ" in shown
    assert "lowest" not in shown


def test_compare_of_many_runs_fits_the_terminal(cli: Cli, make_run: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    for at in range(6):
        make_run(f"runs/r{at}", {"data.path": f"data/part-{at}-of-the-rows.jsonl"}, after=2 - at / 10)
    for width in (40, 60, 80):
        monkeypatch.setenv("COLUMNS", str(width))
        shown = cli("runs", "compare", *(f"r{at}" for at in range(6))).stdout
        lines = [line for line in shown.splitlines() if "smollm3 " not in line]  # a command is not wrapped
        assert max(map(len, lines)) <= width
        assert "part-5-of-the-rows.jsonl" in shown
        assert "● A   ○ B" in shown and "lowest after training: F" in shown


@pytest.mark.parametrize(("named", "message"), [(["a"], "at least two runs"), (["a", "runs/a"], "is named twice")])
def test_compare_needs_two_different_runs(cli: Cli, several: None, named: list[str], message: str) -> None:
    result = cli("runs", "compare", *named)
    assert (result.code, message in result.stderr) == (2, True)


def test_compare_refuses_a_damaged_run(cli: Cli, several: None) -> None:
    Path("runs/a/run.yaml").write_text("a: [")
    result = cli("runs", "compare", "a", "b")
    assert (result.code, "error: the run runs/a is damaged" in result.stderr) == (6, True)
