"""A pipeline equals the same steps by hand; what is unchanged is not run again, and what depends on a change is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from smollm3_finetune.files.json import file_sha256
from smollm3_finetune.files.locks import locked

HERE = Path(__file__).parent
ROUNDING = str(HERE.parent / "out_of_tree" / "rounding_quantizer.py")
CARD = ("README.md", "merge.json")
Cli = Callable[..., Any]
Edit = Callable[[str, str], None]
Status = Callable[[], dict[str, dict[str, Any]]]
Snapshot = Callable[[Path], dict[str, tuple[int, int]]]


def snapshot(directory: Path) -> dict[str, tuple[int, int]]:
    """Time of change and inode of every file below a directory."""
    files = (Path(folder) / name for folder, _, names in os.walk(directory) for name in names)
    return {str(file): (file.stat().st_mtime_ns, file.stat().st_ino) for file in files}


def hashes(directory: Path) -> dict[str, str]:
    """The SHA-256 of each file of a model or an adapter, without its card."""
    return {f.name: file_sha256(f) for f in sorted(directory.iterdir()) if f.is_file() and f.name not in CARD}


def test_the_chain_equals_the_same_steps_by_hand_bit_for_bit(cli: Cli, copied: Path) -> None:
    rows = ("--data", "rows.jsonl", "--max-length", "64")
    settings = ("--batch-size", "4", "--set", "train.sample_tokens=1", "--set", "train.save_every=1",
                "--set", "calibration.rows=8", "--device", "cpu")  # fmt: skip
    plugin = ("-p", ROUNDING)
    cli(
        "train", "--adapter", "full", *rows, "--max-steps", "3", *settings, *plugin, "--output", "sft", "--json"
    ).report()
    cli("train", "--from", "sft", "--data", "rows.jsonl", "--max-length", "48", "--max-steps", "2", "--lr", "1e-4",
        *settings, *plugin, "--output", "more", "--json").report()  # fmt: skip
    cli("merge", "more", *plugin, "--output", "merged", "--json").report()
    cli("quantize", "merged", "--quant", "rounding-rows", "--quant-opt", "bits=8", *rows, "--set",
        "calibration.rows=8", "--device", "cpu", *plugin, "--output", "q", "--json").report()  # fmt: skip
    by_hand = cli("eval", "more", "--answers", "0", "--no-null-adapter", *plugin, "--json").report()
    for name in ("sft/adapter", "more/adapter", "merged", "q"):
        made = hashes(copied / name)
        assert made == hashes(Path(name))
        assert any(file.endswith(".safetensors") for file in made)
    made = json.loads((copied / "check/eval.json").read_text())
    assert made["pipeline"] == {"pipeline": "p", "stage": "check"}
    for report in (made, by_hand):
        for key in ("model", "seconds"):
            del report[key]
        for row in report["row_losses"]:
            row["row"] = Path(row["row"]).name
    assert {k: v for k, v in made.items() if k != "pipeline"} == by_hand


def test_every_stage_is_an_ordinary_directory_that_names_the_pipeline(cli: Cli, copied: Path) -> None:
    shown = cli("runs", "show", "pipe/sft")
    assert shown.code == 0, shown.stderr
    assert json.loads((copied / "sft/report.json").read_text())["pipeline"] == {"pipeline": "p", "stage": "sft"}
    for card, stage in (("sft/adapter", "sft"), ("more/adapter", "more"), ("merged", "merged"), ("q", "q")):
        assert f"| pipeline | stage `{stage}` of `p` |" in (copied / card / "README.md").read_text()
    answered = cli("generate", "pipe/q", "--prompt", "Hello", "--max-new-tokens", "2", "-p", ROUNDING)
    assert answered.code == 0, answered.stderr


def test_nothing_is_run_again_when_nothing_has_changed(cli: Cli, copied: Path) -> None:
    before = snapshot(copied)
    for command in ("run", "resume"):
        result = cli("pipeline", command, "p.yaml")
        assert result.code == 0, result.stderr
        assert result.stderr.count("unchanged") == 5
    assert cli("pipeline", "status", "p.yaml").code == 0
    assert cli("pipeline", "run", "p.yaml", "--dry-run").code == 0
    assert snapshot(copied) == before


def test_the_rows_count_by_content_and_a_device_does_not_count(
    cli: Cli, copied: Path, edit: Edit, status: Status
) -> None:
    Path("rows.jsonl").rename("renamed.jsonl")
    edit("rows.jsonl", "renamed.jsonl")
    edit("device: cpu", "device: auto")
    edit("sample_tokens: 1, save_every: 1", "sample_tokens: 1, save_every: 2, log_every: 2")
    assert {stage["next"] for stage in status().values()} == {"keep"}


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("bits: 8", "bits: 4", {"q": "configuration changed"}),
        ("answers: 0", "answers: 1", {"check": "configuration changed"}),
        ("merge: true", "merge: {untie: true}", {"merged": "configuration changed", "q": "after merged"}),
        ("{rows: 8}", "{rows: 9}", {"q": "configuration changed"}),
        (
            "max_steps: 3", "max_steps: 1",
            {"sft": "configuration changed", "more": "after sft", "merged": "after more", "q": "after merged",
             "check": "after more"},
        ),
        (
            "1e-4", "2e-4",
            {"more": "configuration changed", "merged": "after more", "q": "after merged", "check": "after more"},
        ),
    ],
)  # fmt: skip
def test_an_edit_of_the_file_runs_exactly_what_depends_on_it(
    copied: Path, edit: Edit, status: Status, old: str, new: str, expected: dict[str, str]
) -> None:
    edit(old, new)
    found = status()
    assert {name: s["reason"] for name, s in found.items() if s["next"] == "run"} == expected
    assert {s["state"] for s in found.values() if s["next"] == "run"} == {"outdated"}
    assert {s["next"] for name, s in found.items() if name not in expected} <= {"keep"}


def test_changed_rows_results_and_plugins_are_seen(copied: Path, edit: Edit, status: Status) -> None:
    weights = next((copied / "merged").glob("*.safetensors"))
    kept = weights.read_bytes()
    weights.write_bytes(kept[:-4] + b"\0\1\2\3")
    assert {n: s["reason"] for n, s in status().items() if s["next"] == "run"} == {
        "merged": f"{weights.name} was changed", "q": "after merged",
    }  # fmt: skip
    weights.write_bytes(kept)  # another time of change, the same content
    assert {s["next"] for s in status().values()} == {"keep"}
    with open("rows.jsonl", "a", encoding="utf-8") as stream:
        stream.write('{"prompt": "2 + 2", "completion": "4"}\n')
    assert {n: s["reason"] for n, s in status().items() if s["next"] == "run"} == {
        "sft": "rows changed", "more": "after sft", "merged": "after more", "q": "after merged",
        "check": "after more",
    }  # fmt: skip


def test_a_stage_that_changed_is_run_in_a_new_directory_and_nothing_is_overwritten(
    cli: Cli, copied: Path, edit: Edit, status: Status
) -> None:
    before = snapshot(copied)
    edit("bits: 8", "bits: 4")
    result = cli("pipeline", "run", "p.yaml", "--again", "check")
    assert result.code == 0, result.stderr
    assert json.loads((copied / "q-2/config.json").read_text())["quantization_config"]["bits"] == 4
    after = snapshot(copied)
    state = str(copied / "pipeline.json")
    assert {name: after.get(name) for name in before if name != state} == {
        n: s for n, s in before.items() if n != state
    }
    found = status()
    assert {name: Path(s["directory"]).name for name, s in found.items()} == {
        "sft": "sft", "more": "more", "merged": "merged", "q": "q-2", "check": "check-2",
    }  # fmt: skip
    assert found["q"]["former"] == ["q"]
    assert {s["next"] for s in found.values()} == {"keep"}
    one, two = (json.loads((copied / name / "eval.json").read_text()) for name in ("check", "check-2"))
    assert one["comparison"] == two["comparison"]


def test_a_second_process_is_refused(cli: Cli, copied: Path, edit: Edit) -> None:
    code = "import sys; from smollm3_finetune.files.locks import locked; from pathlib import Path\n"
    code += f"with locked(Path({str(copied / '.smollm3-lock')!r}), 'busy'): print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        for command in ("run", "resume"):
            result = cli("pipeline", command, "p.yaml")
            assert result.code == 2
            assert f"the pipeline in pipe is being run by another process (process {other.pid}" in result.stderr
        assert cli("pipeline", "status", "p.yaml", "--json").report()["running"] is True
        other.kill()
    with locked(copied / ".smollm3-lock", "busy", remove=True):
        pass
    assert cli("pipeline", "run", "p.yaml").code == 0


def test_the_whole_file_is_checked_before_anything_runs(cli: Cli, isolated: Path) -> None:
    Path("p.yaml").write_text(
        "stages:\n"
        "  - name: sft\n"
        "    adapter: {name: full, ranc: 3}\n"
        "  - name: merged\n"
        "    from: sft\n"
        "    merge: {dtype: float7}\n"
        "  - name: q\n"
        "    from: merged\n"
        "    quantize: none\n"
        "  - name: again\n"
        "    model: {stage: merged}\n"
        "    objective: nosuch\n"
        "  - name: check\n"
        "    from: merged\n"
        "    eval: true\n",
        encoding="utf-8",
    )
    result = cli("pipeline", "run", "p.yaml")
    assert result.code == 2
    for said in (
        "p.yaml:3: adapter 'full' has no option 'ranc'",
        "--quant none does not write checkpoints",
        "stage again: there is no objective 'nosuch'",
        "the stage 'check' evaluates a model, which has no held-out rows",
        "float7",
    ):
        assert said in result.stderr
    assert not Path("runs/pipelines/p/sft").exists()
    assert not Path("runs/pipelines/p/pipeline.json").exists()


def test_a_dry_run_shows_the_plan_of_every_stage_and_writes_nothing(cli: Cli, fresh: Path) -> None:
    plan = cli("pipeline", "run", "p.yaml", "--dry-run", "--json").report()
    assert [(s["stage"], s["kind"], s["next"], s["reason"]) for s in plan["stages"]] == [
        ("sft", "train", "run", "new"), ("more", "train", "run", "after sft"), ("merged", "merge", "run", "after more"),
        ("q", "quantize", "run", "after merged"), ("check", "eval", "run", "after more"),
    ]  # fmt: skip
    sft = plan["stages"][0]
    assert (sft["adapter"], sft["objective"], sft["quantizer"]) == ("full", "sft", "none")
    assert sft["rows"]["train"] + sft["rows"]["held_out"] == 24
    assert not Path("pipe").exists()
    result = cli("pipeline", "resume", "p.yaml")
    assert result.code == 2
    assert "there is nothing to resume: pipe holds no pipeline" in result.stderr
    assert "smollm3 pipeline run p.yaml" in result.stderr


def test_the_status_says_what_prevents_a_stage(copied: Path, edit: Edit, status: Status, cli: Cli) -> None:
    edit("    adapter: full\n    data: {path: rows.jsonl", "    adapter: fulll\n    data: {path: gone.jsonl")
    found = status()["sft"]
    assert found["reason"].startswith("it cannot be run: ")
    assert "gone.jsonl" in found["reason"]
    result = cli("pipeline", "run", "p.yaml")
    assert result.code == 5
    assert "gone.jsonl" in result.stderr


def test_a_verdict_that_is_not_accepted_ends_the_pipeline_and_is_kept(cli: Cli, copied: Path, edit: Edit) -> None:
    edit("answers: 0,", "answers: 0, fail_if: not-better,")
    verdict = json.loads((copied / "check/eval.json").read_text())["comparison"]["verdict"]
    before = snapshot(copied / "check")
    result = cli("pipeline", "run", "p.yaml")
    assert result.code == (0 if verdict == "better" else 9)
    assert snapshot(copied / "check") == before
