"""What a run records for its page, and that the page never ends a run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from smollm3_finetune.errors import SmolLM3Error
from smollm3_finetune.runs.rundir import RunDir

QUICK = ("--adapter", "full", "--max-steps", "2", "--set", "train.sample_tokens=4")
SECRETS = [f"the password of account {n} is zebra{n}" for n in range(6)]

Cli = Callable[..., Any]


@pytest.fixture
def secret_rows(tmp_path: Path) -> Path:
    """Rows whose answers are recognized wherever they are copied to; a column that is not read gives a note."""
    file = tmp_path / "secrets.jsonl"
    turns = [[{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": s}] for n, s in enumerate(SECRETS)]
    file.write_text("".join(json.dumps({"messages": t}) + "\n" for t in turns), encoding="utf-8")
    return file


def test_a_run_records_its_rows_and_origins_and_writes_the_page(cli: Cli, secret_rows: Path) -> None:
    text = cli("train", *QUICK, "--data", secret_rows, "--output", "out")
    assert text.code == 0, text.stderr
    assert "page           out/report.html" in text.stdout
    data = json.loads(Path("out/data.json").read_text())
    assert [r["where"] for r in data["rows"]] == [f"{secret_rows}:{n}" for n in (1, 2, 3)]
    shown = cli("data", "preview", "--data", secret_rows, "--rows", "3", "--max-length", "1024").stdout
    for row in data["rows"]:
        (sequence,) = row["sequences"]
        marked = "".join(f"«{words}»" if supervised else words for words, supervised in sequence["segments"])
        expected = shown.partition(f"{row['where']} ")[2].partition("\n")[2].split("\n\n")[0]
        assert [line.strip() for line in marked.strip().splitlines()] == [
            line.removeprefix("│").strip() for line in expected.splitlines()[: len(marked.strip().splitlines())]
        ], "the masks are those of data preview"
        assert row["tokens"] > row["supervised"] > 0
    assert sum(side["examples"] for side in data["lengths"].values()) == len(SECRETS)
    origins = json.loads(Path("out/origins.json").read_text())
    assert origins["data.path"] == "--data" and origins["train.max_steps"] == "--max-steps"
    page = Path("out/report.html").read_text()
    assert f"<mark>{SECRETS[0]}" in page.replace("\n", "") and "secrets.jsonl" in page
    assert "finished" in page and "--max-steps" in page


def test_a_resumed_run_without_the_page_leaves_no_outdated_one(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    quick = (*QUICK, "--set", "data.limit=20", "--output", "out")
    assert cli("train", *quick).code == 0
    page = Path("out/report.html")
    resume = ("train", "--resume", "out", "--max-steps", "3", "--set", "train.report=false")

    def fails(*args: Any, **kwargs: Any) -> None:
        raise SmolLM3Error("the weights cannot be read")

    with monkeypatch.context() as patched:
        patched.setattr("smollm3_finetune.train.run.compose", fails)
        assert cli(*resume).code == 1
    assert page.exists(), "the run has not changed"
    resumed = cli(*resume)
    assert (resumed.code, page.exists()) == (0, False)
    written_again = "to write it again: smollm3 runs report out"
    assert f"out/report.html is deleted, because it was written before the run was resumed; {written_again}\n" in (
        resumed.stderr
    )
    page.write_text("<html>of the user</html>")
    assert cli("train", "--resume", "out", "--max-steps", "4").code == 0
    assert page.read_text() == "<html>of the user</html>"


def test_without_the_page_no_text_of_the_rows_is_copied(cli: Cli, secret_rows: Path) -> None:
    prompt = ("--set", "train.report=false", "--set", "train.sample_prompt=Hello", "--learning-rate", "1e-9")
    text = cli("train", *QUICK, *prompt, "--data", secret_rows, "--output", "out")
    assert text.code == 0 and "report.html" not in text.stdout
    assert not {"report.html", "data.json"} & {p.name for p in Path("out").iterdir()}
    for file in (p for p in Path("out").rglob("*") if p.is_file() and "tokenizer" not in p.name):
        assert b"zebra" not in file.read_bytes(), file
    cli("runs", "report", "out")
    assert b"zebra" not in Path("out/report.html").read_bytes()


def test_a_page_that_fails_is_one_warning_and_the_run_is_finished(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("no template")

    monkeypatch.setattr("smollm3_finetune.report.page.page_of_run", fails)
    monkeypatch.setattr("smollm3_finetune.report.write.page_of_run", fails)
    monkeypatch.setattr("smollm3_finetune.train.page.first_rows", fails)
    result = cli("train", *QUICK, "--set", "data.limit=20", "--output", "out")
    assert result.code == 0 and Path("out/report.json").exists()
    assert "warning: data.json was not written: RuntimeError: no template" in result.stderr
    assert "warning: report.html was not written: RuntimeError: no template" in result.stderr
    assert "report.html" not in result.stdout
    kept = [json.loads(line)["warning"] for line in Path("out/warnings.jsonl").read_text().splitlines()]
    assert kept == ["data.json was not written: RuntimeError: no template",
                    "report.html was not written: RuntimeError: no template"]  # fmt: skip


def test_a_failed_and_a_resumed_run_have_a_page(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter(["Before."])

    def fails(*args: Any, **kwargs: Any) -> str:
        for answer in answers:
            return answer
        raise SmolLM3Error("the answer cannot be measured", hint="another one")

    common = ("train", *QUICK, "--set", "data.limit=20", "--output", "out", "--seed", "5")
    with monkeypatch.context() as patched:
        patched.setattr("smollm3_finetune.train.run.answer", fails)
        assert cli(*common).code != 0
    page = Path("out/report.html").read_text()
    assert "The run failed" in page and "the answer cannot be measured" in page and "Curves" in page
    resumed = cli("train", "--resume", "out")
    assert resumed.code == 0, resumed.stderr
    page = Path("out/report.html").read_text()
    assert "The run failed" not in page and ">finished<" in page
    origins = json.loads(Path("out/origins.json").read_text())
    assert origins["seed"] == "--seed", "of the first command"


def test_a_run_that_fails_before_its_first_step_leaves_nothing(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: Any, **kwargs: Any) -> Any:
        raise SmolLM3Error("no weights")

    monkeypatch.setattr("smollm3_finetune.train.run.compose", fails)
    assert cli("train", *QUICK, "--set", "data.limit=20", "--output", "out").code != 0
    assert not Path("out").exists()


def test_a_page_does_not_make_a_directory_somebody_elses(tmp_path: Path) -> None:
    """A run that a kill ended before its first checkpoint is started again, whatever it has recorded."""
    run = RunDir(tmp_path / "run")
    run.make()
    files = (run.config, run.versions, run.data, run.origins, run.warnings, run.page, run.error, run.metrics)
    for file in files:
        file.write_text("x")
    assert run.holds_nothing()
