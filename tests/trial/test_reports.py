"""Reports of a trial: written, read, refused if they are damaged, and shown by `smollm3 compat --evidence`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from smollm3_finetune.cli.output.trial_table import shown_trial
from smollm3_finetune.compatibility.results import Use
from smollm3_finetune.errors import ConfigError
from smollm3_finetune.trial.results import Status, Step, TrialReport, Tried, read_report, write_report

PASSED = dict.fromkeys((s.value for s in Step), True)
CARD = "A Card 9000"


def cell(quantizer: str = "none", **more: Any) -> Tried:
    about: dict[str, Any] = {
        "quantizer": f"smollm3-finetune:{quantizer}", "adapter": "smollm3-finetune:full", "status": Status.WORKS,
        "steps": PASSED, "figures": {"gradients": 6.1e-7, "tokens_per_second": 204.4, "memory": 3.7e8},
        "versions": {"torch": "2.13.0"}, "seconds": 4.1,
    }  # fmt: skip
    return Tried(**{**about, **more})


def report(*cells: Tried) -> TrialReport:
    return TrialReport(
        machine={"device": "cuda:0", "name": CARD, "torch": "2.13.0"}, dtype="float32", date="2026-11-30",
        command="smollm3 doctor --try --device cuda", seconds=61.2, cells=cells or (cell(),),
    )  # fmt: skip


def written(tmp_path: Path, *cells: Tried) -> Path:
    file = tmp_path / "card.json"
    write_report(report(*cells), file)
    return file


def test_a_report_is_read_as_it_was_written(tmp_path: Path) -> None:
    failing = cell(
        status=Status.FAILS,
        sentence="merge: off",
        steps={**PASSED, "merge": False},
        figures={"merged": None, "gradients": 1e-7},
    )
    file = written(tmp_path, cell(), failing)
    assert read_report(file, "--evidence") == report(cell(), failing)


def damaged(**changes: Any) -> str:
    about = report().as_json()
    first = about["cells"][0]
    for name, value in changes.items():
        (first if name in first else about)[name] = value
    return json.dumps(about)


def without(name: str) -> str:
    about = report().as_json()
    del about["cells"][0][name]
    return json.dumps(about)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "Expecting value"),
        ("{", "Expecting property name"),
        ("[]", "expected an object of the kind 'smollm3 trial'"),
        ('{"format": 1, "results": []}', "expected an object of the kind 'smollm3 trial'"),
        (damaged(format=2), "expected format 1, found 2"),
        (damaged(machine=[]), "'machine' has a wrong value"),
        (damaged(machine={"device": "cpu"}), "it has no 'name'"),
        (damaged(cells=[3]), "a cell must be an object, not 3"),
        (damaged(status="fine"), "'fine' is not a valid Status"),
        (damaged(figures={"gradients": "small"}), "'figures' must map names to values"),
        (damaged(quantizer="none"), "must be 'distribution:name', not 'none'"),
        (damaged(sentence=3), "'sentence' has a wrong value: '3'"),
        (damaged(sentence="\x1b[2Jgone"), "'sentence' has a wrong value"),
        (damaged(machine={"device": "cpu", "name": "a\nb"}), "'name' has a wrong value"),
        (damaged(figures={"memory": 10**400}), "'figures' must map names to values"),
        (damaged(figures={"memory": float("inf")}), "'figures' must map names to values"),
        (damaged(seconds=float("nan")), "'seconds' has a wrong value"),
        (without("steps"), "it has no 'steps'"),
    ],
)
def test_a_damaged_or_foreign_file_is_one_sentence(text: str, says: str, tmp_path: Path) -> None:
    file = tmp_path / "sent.json"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        read_report(file, "--evidence")
    assert caught.value.message.startswith(f"--evidence: {file} is not a report of a trial: ")
    assert says in caught.value.message
    assert "\n" not in caught.value.message


def test_compat_shows_evidence_beside_the_published_table(cli: Any, tmp_path: Path) -> None:
    failing = cell(status=Status.FAILS, sentence="train: the gradient is zero", steps={"load": True, "train": False})
    pair = ("--device", "cuda", "--quant", "none", "--adapter", "full")
    before = cli("compat", "--no-plugins", *pair).stdout
    assert "not measured on cuda" in before
    file = str(written(tmp_path))
    shown = cli("compat", "--no-plugins", *pair, "--evidence", file).stdout
    assert f"by a trial on {CARD}, 2026-11-30, on cuda" in shown
    assert "on cuda:0, float32: A Card 9000 (2026-11-30, 61 s)" in shown
    assert "204  370 MB" in shown
    assert "Of 1 pair: 1 work, none fail, none are refused." in shown
    wrong = cli("compat", "--no-plugins", "--device", "cuda", "--evidence", str(written(tmp_path, failing))).stdout
    assert "✗" in wrong.partition("measured: fails")[0]
    assert "FAILS none × full: train: the gradient is zero" in wrong
    found = json.loads(cli("compat", "--no-plugins", *pair, "--evidence", file, "--json").stdout)
    assert found["trials"][0]["machine"]["name"] == CARD
    gone = cli("compat", "--evidence", str(tmp_path / "gone.json"))
    assert (gone.code, gone.stderr.splitlines()[0]) == (
        2,
        f"error: --evidence: {tmp_path}/gone.json cannot be read: No such file or directory",
    )


def test_what_was_not_reached_is_no_result() -> None:
    steps: dict[str, bool | None] = {**PASSED, "merge": None}
    assert [r.purpose for r in report(cell(steps=steps)).results()] == [Use.TRAIN]
    steps = {"load": False, "start": None, "train": None, "resume": None, "merge": None}
    broken = cell(status=Status.FAILS, sentence="load: off", steps=steps)
    assert [(r.purpose, r.holds, r.note) for r in report(broken).results()] == [
        (Use.TRAIN, False, "load: off"), (Use.MERGE, False, "load: off"),
    ]  # fmt: skip
    refused = dataclasses.replace(broken, status=Status.REFUSED)
    assert list(report(refused).results()) == []


def test_pairs_with_one_sentence_share_it() -> None:
    refused = [cell(name, status=Status.REFUSED, sentence="it needs cuda", steps={}, figures={}) for name in "ab"]
    assert "refused a × full, b × full: it needs cuda" in shown_trial(report(*refused))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--report", "r.json"], "--report requires --try"),
        (["--quant", "none"], "--quant requires --try"),
        (["--try", "--report", "gone/r.json"], "--report: gone/r.json cannot be written: the directory gone does not"),
        (["--try", "--report", "."], "--report: . is a directory"),
        (["--try", "--quant", "nothing"], "there is no quantizer 'nothing'"),
        (["--try", "--device", "gpu"], "--device must be a torch device, not 'gpu'"),
    ],
)
def test_wrong_options_are_found_before_anything_is_tried(words: list[str], says: str, cli: Any) -> None:
    found = cli("doctor", "--no-plugins", *words)
    assert found.code == 2
    assert says in found.stderr
