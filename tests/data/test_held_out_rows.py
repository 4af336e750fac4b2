"""Which rows are held out: by data.seed, by data.validation; and rows that are left out by their label."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Cli = Callable[..., Any]
Row = dict[str, Any]


def row(n: Any, answer: str = "Yes.", **columns: Any) -> Row:
    said = [{"role": "user", "content": f"Is it {n}?"}, {"role": "assistant", "content": answer}]
    return {"messages": said, **columns}


def write(name: str, rows: list[Row]) -> str:
    Path(name).write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return name


def stats(cli: Cli, *args: str) -> Row:
    result = cli("data", "stats", "--json", *args)
    assert result.code == 0, result.stderr
    return dict(json.loads(result.stdout))


def held_out(cli: Cli, *args: str) -> set[str]:
    """The locations of the held-out rows."""
    out = cli("data", "preview", "--rows", "1000", *args).stdout
    return {line.partition("  ")[0] for line in out.splitlines() if "supervised, held out" in line}


def problem(cli: Cli, code: int, *args: str) -> str:
    result = cli(*args)
    assert result.code == code, (result.stdout, result.stderr)
    return str(result.stderr)


# ----------------------------------------------------------------------------------------------- data.seed


def test_the_seed_of_training_does_not_move_the_held_out_rows_and_data_seed_does(cli: Cli) -> None:
    data = ("--data", write("rows.jsonl", [row(n) for n in range(60)]))
    first = held_out(cli, *data)
    assert 2 < len(first) < 15
    assert held_out(cli, *data, "--seed", "1") == first
    assert held_out(cli, *data, "--seed", "1", "--set", "data.seed=1") not in (first, set())


def test_the_seed_of_training_does_not_change_the_tokens_or_the_calibration_rows(cli: Cli) -> None:
    from smollm3_finetune.config.schema import CalibrationConfig, DataConfig, RunConfig
    from smollm3_finetune.data.calibration import calibration_ids

    examples: Any = [{"input_ids": [n]} for n in range(50)]

    def chosen(seed: int, data_seed: int) -> list[list[int]]:
        config = RunConfig(seed=seed, data=DataConfig(seed=data_seed), calibration=CalibrationConfig(rows=5))
        return calibration_ids(config, None, None, lambda: examples)  # type: ignore[arg-type]

    assert chosen(0, 0) == chosen(7, 0) != chosen(0, 7)


def test_quantize_selects_calibration_rows_by_its_seed(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    from smollm3_finetune.quantize import run

    seen = []

    def stop(registry: Any, loaded: Any, *others: Any) -> None:
        seen.append((loaded.config.seed, loaded.config.data.seed))
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "plan_quantize", stop)
    cli("quantize", "tiny", "--output", "out", "--seed", "5")
    cli("quantize", "tiny", "--output", "out", "--seed", "5", "--set", "data.seed=6")
    assert seen == [(5, 5), (5, 6)]


def test_a_run_saved_without_data_seed_keeps_its_rows(cli: Cli) -> None:
    from smollm3_finetune.config.yaml12 import dump_yaml, read_yaml
    from smollm3_finetune.runs.reopen import saved_configuration
    from smollm3_finetune.runs.rundir import RunDir

    plan = ("train", "--data", write("rows.jsonl", [row(n) for n in range(60)]), "--adapter", "full", "--seed", "9")
    shown = json.loads(cli(*plan, "--set", "data.seed=4", "--dry-run", "--json").stdout)["config"]
    run = RunDir(Path("run"))
    run.path.mkdir()
    run.config.write_text(dump_yaml(shown), encoding="utf-8")
    saved = saved_configuration(run, {}).config.data
    assert (saved.seed, saved.long_text) == (4, "chunk")
    before = read_yaml(run.config)[0]
    for key in ("seed", "long_text", "validation"):
        del before["data"][key]
    run.config.write_text(dump_yaml(before), encoding="utf-8")
    saved = saved_configuration(run, {}).config.data
    assert (saved.seed, saved.long_text, saved.validation) == (9, "cut", None)


# ------------------------------------------------------------------------------------------ data.validation


def test_all_rows_of_data_validation_and_no_others_are_held_out(cli: Cli) -> None:
    train = write("rows.jsonl", [row(n) for n in range(30)])
    write("own.jsonl", [{"instruction": f"Say {n}.", "output": "It."} for n in range(5)])
    args = ("--data", train, "--validation", "own.jsonl")
    about = stats(cli, *args)
    assert (about["held_out"], about["validation"], about["warning"]) == (0.0, True, None)
    rows, own = about["sources"]
    assert [(s["title"], s["formatter"], s["train"], s["held_out"], s["validation"]) for s in (rows, own)] == [
        ("rows.jsonl", "smollm3-finetune:messages", 30, 0, False),
        ("own.jsonl", "smollm3-finetune:alpaca", 0, 5, True),
    ]
    assert held_out(cli, *args) == {f"own.jsonl:{n}" for n in range(1, 6)}
    assert "source 1: own.jsonl  (formatter alpaca, data.validation)" in cli("data", "preview", *args).stdout
    shown = cli("train", *args, "--adapter", "full", "--dry-run", "--json").report()
    data = shown["config"]["data"]
    assert (data["validation"], data["held_out"]) == (str(Path("own.jsonl").absolute()), 0.0)
    assert "30 training rows, 5 held-out rows" in cli("config", "validate", *args, "--adapter", "full").stdout


def test_data_validation_takes_what_data_path_takes(cli: Cli) -> None:
    train = write("rows.jsonl", [row(n) for n in range(30)])
    write("a.jsonl", [row(f"a{n}") for n in range(5)])
    write("b.jsonl", [row(f"b{n}") for n in range(5)])
    for value, count in (
        ("[a.jsonl, b.jsonl]", 10),
        ("{path: a.jsonl, limit: 2, formatter: messages}", 2),
        ("[{path: a.jsonl, limit: 1}, b.jsonl]", 6),
        ("'[ab].jsonl'", 10),
    ):
        about = stats(cli, "--data", train, "--set", f"data.validation={value.strip(chr(39))}", "--set", "data.limit=3")
        assert (about["total"]["train"], about["total"]["held_out"]) == (3, count), "data.limit is for data.path"
    titles = [s["title"] for s in stats(cli, "--data", train, "--validation", "rows.jsonl")["sources"]]
    assert titles == ["rows.jsonl", "rows.jsonl (2)"]
    assert stats(cli, "--validation", "a.jsonl", "--validation", "b.jsonl")["total"]["held_out"] == 10


def test_rows_in_both_are_counted_and_named(cli: Cli) -> None:
    train = write("rows.jsonl", [row(n) for n in range(30)])
    write("own.jsonl", [row(n) for n in (3, 5, 7, 11, 100)])
    args = ("--data", train, "--validation", "own.jsonl")
    warning = (
        "4 training rows are also in data.validation (rows.jsonl:4, rows.jsonl:6, rows.jsonl:8, …), "
        "so the held-out loss is too low"
    )
    assert stats(cli, *args)["warning"] == warning
    for command in ("preview", "stats"):
        assert f"warning: {warning}\n" in cli("data", command, *args).stdout
    done = cli("train", *args, "--adapter", "full", "--max-steps", "1", "--set", "train.sample_tokens=1", "--json")
    assert done.code == 0, done.stderr
    assert f"warning  {warning}\n" in done.stderr
    report = json.loads(done.stdout)
    assert [(r["title"], r["train"], r["held_out"], r["in_validation"]) for r in report["rows"]] == [
        ("rows.jsonl", 30, 0, 4),
        ("own.jsonl", 0, 5, 0),
    ]
    assert report["after"]["held_out_loss"] is not None
    resumed = cli("train", "--resume", report["run"], "--max-steps", "2", "--json")
    assert resumed.code == 0, resumed.stderr
    assert json.loads(resumed.stdout)["steps"] == 2


def test_problems_of_data_validation_come_before_the_training_rows(cli: Cli) -> None:
    train = write("rows.jsonl", [row(n) for n in range(30)])
    Path("rows.jsonl").write_text(Path("rows.jsonl").read_text() + "{broken\n")
    Path("own.jsonl").write_text(json.dumps(row(1)) + "\n{wrong\n")
    base = ("train", "--dry-run", "--adapter", "full", "--data", train)
    assert "own.jsonl:2: not valid JSON" in problem(cli, 5, *base, "--validation", "own.jsonl")
    assert "the data file 'owm.jsonl' does not exist" in problem(cli, 5, *base, "--validation", "owm.jsonl")
    for value, code, message in (
        ("[]", 2, "data.validation is an empty list"),
        ("[{path: own.jsonl, wieght: 1}]", 2, "data.validation[0]: a source has no key 'wieght'"),
        ("{path: own.jsonl, weight: 2}", 2, "the weight 2 of 'own.jsonl' has no effect"),
    ):
        assert message in problem(cli, code, *base, "--set", f"data.validation={value}")
    both = problem(cli, 2, *base, "--validation", "own.jsonl", "--set", "data.held_out=0.2")
    assert "--set data.held_out: data.held_out cannot be used with data.validation" in both


# ---------------------------------------------------------------------------------------------- few rows


def test_one_row_is_shown_and_training_names_the_option(cli: Cli) -> None:
    file = write("rows.jsonl", [row(1)])
    shown = cli("data", "preview", "--data", file)
    assert shown.code == 0, shown.stderr
    assert "«Yes.<|im_end|>»" in shown.stdout
    note = "there is only one distinct row, so no row can be held out"
    assert f"note: {note}; to train on all rows: --set data.held_out=0\n" in shown.stdout
    counted = cli("data", "stats", "--data", file)
    assert counted.code == 5
    assert "rows      1 = 1 training + 0 held out + 0 left out" in counted.stdout
    for command in (("data", "stats"), ("train", "--dry-run", "--adapter", "full")):
        said = problem(cli, 5, *command, "--data", file)
        assert f"error: {note}\n  hint: --set data.held_out=0" in said
    assert stats(cli, "--data", file, "--set", "data.held_out=0")["total"]["train"] == 1
    assert stats(cli, "--data", file, "--validation", write("own.jsonl", [row(2)]))["total"]["train"] == 1


# ------------------------------------------------------------------------------------------------ labels


@pytest.mark.parametrize("column", ["label", "desirable"])
@pytest.mark.parametrize("false", [False, 0, "false"])
def test_rows_with_a_false_label_are_left_out_and_counted(cli: Cli, column: str, false: Any) -> None:
    good = [row(n, "Good.", **{column: True}) for n in range(10)]
    bad = [row(n, f"Bad {n}.", **{column: false}) for n in range(10)]
    file = write("rows.jsonl", [r for pair in zip(good, bad, strict=True) for r in pair])
    (source,) = stats(cli, "--data", file)["sources"]
    assert (source["rows"], source["undesirable"], source["empty"]) == (20, 10, 0)
    assert source["train"] + source["held_out"] == 10
    out = cli("data", "preview", "--data", file, "--rows", "20").stdout
    assert out.count("«Good.<|im_end|>»") == 10
    assert "Bad" not in out
    assert "left out: its label is false: a bad answer, which the objective does not use" in out
    assert "labels    10 rows left out: their label is false, which this objective does not use" in out


def test_a_label_does_not_move_a_row_to_the_other_side_of_the_split(cli: Cli) -> None:
    plain = held_out(cli, "--data", write("rows.jsonl", [row(n) for n in range(60)]))
    labeled = held_out(cli, "--data", write("rows.jsonl", [row(n, label=True) for n in range(60)]))
    assert plain == labeled != set()


def test_a_run_never_trains_on_a_false_label_and_reports_the_count(cli: Cli) -> None:
    rows = [row(n, "Good." if n % 2 else "Bad.", label=bool(n % 2), id=n) for n in range(12)]
    args = ("--data", write("rows.jsonl", rows), "--adapter", "full", "--max-steps", "1", "--output", "run")
    done = cli("train", *args, "--set", "train.sample_tokens=1")
    assert done.code == 0, done.stderr
    (counts,) = json.loads(Path("run/report.json").read_text())["rows"]
    assert (counts["train"] + counts["held_out"], counts["undesirable"], counts["empty"]) == (6, 6, 0)
    assert ", 6 left out (false label); not read: id (12 of 12 rows)\n" in done.stderr
    assert counts["not_read"] == {"id": 12}
    assert "\nnot read       rows.jsonl: id (12 of 12 rows)\n" in done.stdout


def test_files_with_false_labels_only_are_refused(cli: Cli) -> None:
    bad = write("bad.jsonl", [row(n, label=False) for n in range(3)])
    good = write("good.jsonl", [row(n) for n in range(3)])
    base = ("train", "--dry-run", "--adapter", "full")
    assert "data.path: all 3 rows have a false label" in problem(cli, 5, *base, "--data", bad)
    said = problem(cli, 5, *base, "--data", good, "--validation", bad)
    assert "data.validation: all 3 rows have a false label" in said
    shown = cli("data", "preview", "--data", bad)
    assert shown.code == 0, shown.stderr
    assert "note: data.path: all 3 rows have a false label" in shown.stdout


PLUGIN = """
from smollm3_finetune.api import ObjectiveSpec, hookimpl

@hookimpl
def smollm3_objectives():
    return [ObjectiveSpec(name="both", summary="both", uses_labels=True, api=2,
                          factory="smollm3_finetune.builtin.sft:SupervisedFineTuning")]
"""


def test_an_objective_that_uses_labels_gets_all_rows(cli: Cli, plugin_file: Any) -> None:
    file = write("rows.jsonl", [row(n, label=bool(n % 2)) for n in range(12)])
    args = ("--data", file, "-p", str(plugin_file("both", PLUGIN)), "--objective", "both")
    (source,) = stats(cli, *args)["sources"]
    assert (source["train"] + source["held_out"], source["undesirable"]) == (12, 0)
