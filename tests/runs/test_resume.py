"""Resuming: from the newest whole checkpoint, to the same result, whenever the run was ended."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from smollm3_finetune import load_model
from smollm3_finetune.errors import ModelError
from smollm3_finetune.files.checksums import write_checksums
from smollm3_finetune.runs.checkpoints import Checkpoint

START = (
    "train", "--adapter", "full", "--set", "data.limit=20", "--set", "train.sample_tokens=2", "--max-steps", "4",
    "--set", "train.save_every=2", "--set", "train.schedule=constant", "--output", "out",
)  # fmt: skip


@pytest.fixture
def interrupted(cli: Callable[..., Any]) -> Path:
    """A run of four steps whose last checkpoints are at 2 and 4."""
    assert cli(*START).code == 0
    return Path("out")


def steps(run: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def cut_in_half(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def resumed(cli: Callable[..., Any], *more: str) -> Any:
    return cli("train", "--resume", "out", "--max-steps", "6", *more)


def test_the_newest_whole_checkpoint_is_used_and_the_damaged_one_is_named(
    cli: Callable[..., Any], interrupted: Path, tmp_path: Path
) -> None:
    """A truncated file, an empty one, a missing one: the run continues from step 2, and ends as if nothing happened."""
    shutil.copytree(interrupted, tmp_path / "kept")
    assert resumed(cli).code == 0
    expected = (interrupted / "adapter" / "model.safetensors").read_bytes()
    for name in ("optimizer.pt", "trainer_state.json", "model.safetensors"):
        shutil.rmtree(interrupted)
        shutil.copytree(tmp_path / "kept", interrupted)
        newest = interrupted / "checkpoints" / "checkpoint-4"
        cut_in_half(newest / name)
        result = resumed(cli)
        assert result.code == 0, result.stderr
        warning = (
            f"warning: {newest} is damaged ({name} differs from its checksum): the run continues from checkpoint-2"
        )
        assert warning in result.stderr
        assert steps(interrupted) == [1, 2, 3, 4, 5, 6]
        assert (interrupted / "adapter" / "model.safetensors").read_bytes() == expected
        assert sorted(p.name for p in (interrupted / "checkpoints").iterdir()) == [
            "checkpoint-4", "checkpoint-6", "damaged-checkpoint-4",
        ]  # fmt: skip


def test_every_flipped_bit_of_a_checkpoint_is_found(interrupted: Path) -> None:
    """In every file: one bit at the start, in the middle, at the end."""
    checkpoint = Checkpoint(interrupted / "checkpoints" / "checkpoint-4", 4)
    assert checkpoint.damage() is None
    files = [p for p in checkpoint.path.rglob("*") if p.is_file()]
    assert len(files) > 7
    for file in files:
        whole = file.read_bytes()
        for at in {0, len(whole) // 2, len(whole) - 1}:
            file.write_bytes(whole[:at] + bytes((whole[at] ^ 4,)) + whole[at + 1 :])
            found = checkpoint.damage()
            assert found is not None, (file, at)
            assert file.name in found or file.name == "checksums.json"
        file.write_bytes(whole)
    assert checkpoint.damage() is None


def test_a_checkpoint_of_an_earlier_version_is_examined_without_checksums(
    cli: Callable[..., Any], interrupted: Path
) -> None:
    newest = interrupted / "checkpoints" / "checkpoint-4"
    (newest / "checksums.json").unlink()
    checkpoint = Checkpoint(newest, 4)
    assert checkpoint.damage() is None
    for name in ("optimizer.pt", "scheduler.pt", "trainer_state.json", "rng_state.pth"):
        whole = (newest / name).read_bytes()
        for damaged in (whole[: len(whole) // 2], b"", whole[:-30]):
            (newest / name).write_bytes(damaged)
            found = checkpoint.damage()
            assert found is not None
            assert name in found
        (newest / name).write_bytes(whole)
    for wrong in ("[]", '{"global_step": "4", "log_history": []}', '{"global_step": 4}', "[" * 10_000):
        (newest / "trainer_state.json").write_text(wrong)
        assert "trainer_state.json cannot be read" in str(checkpoint.damage())
    assert resumed(cli).code == 0


def test_a_checkpoint_that_torch_cannot_read_is_named(cli: Callable[..., Any], interrupted: Path) -> None:
    """A valid archive with other contents, and its checksum."""
    import torch

    newest = interrupted / "checkpoints" / "checkpoint-4"
    torch.save({"state": "of nothing"}, newest / "optimizer.pt")
    write_checksums(newest)
    result = resumed(cli)
    assert (result.code, result.stdout) == (6, ""), result.stderr
    assert f"error: the checkpoint {newest} is damaged: " in result.stderr
    assert f"hint: rm -r {newest}" in result.stderr


def test_a_run_without_a_whole_checkpoint_is_refused_with_each_damage(
    cli: Callable[..., Any], interrupted: Path
) -> None:
    for step in (2, 4):
        (interrupted / "checkpoints" / f"checkpoint-{step}" / "scheduler.pt").unlink()
    result = resumed(cli)
    assert result.code == 6
    assert result.stderr.splitlines() == [
        "error: out/checkpoints/checkpoint-4 is damaged (scheduler.pt is missing); out/checkpoints/checkpoint-2 is "
        "damaged (scheduler.pt is missing)",
        "  hint: start a new run: smollm3 train --config out/run.yaml",
    ]


def test_the_metrics_contain_each_step_once(cli: Callable[..., Any], interrupted: Path) -> None:
    shutil.rmtree(interrupted / "checkpoints" / "checkpoint-4")
    with (interrupted / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 5, "lo')  # killed while it was written
    before = (interrupted / "metrics.jsonl").read_text().splitlines()[:2]
    assert resumed(cli).code == 0
    assert steps(interrupted) == [1, 2, 3, 4, 5, 6]
    assert (interrupted / "metrics.jsonl").read_text().splitlines()[:2] == before


@pytest.mark.parametrize(
    "lost", [("report.json",), ("report.json", "adapter"), ("report.json", "adapter", "trained.json")]
)
def test_a_run_whose_steps_are_done_is_finished(
    cli: Callable[..., Any], interrupted: Path, lost: tuple[str, ...]
) -> None:
    """As after a kill between the last step and the report."""
    report = json.loads((interrupted / "report.json").read_text())
    weights = (interrupted / "adapter" / "model.safetensors").read_bytes()
    metrics = (interrupted / "metrics.jsonl").read_text()
    for name in lost:
        path = interrupted / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    (interrupted / "checkpoints" / ".partial-checkpoint").mkdir()  # a checkpoint and a file that were being written
    (interrupted / ".partial-trained.json").write_text("{")
    result = cli("train", "--resume", "out", "--json")
    assert not list(interrupted.rglob(".partial*"))
    again = result.report()
    assert (again["seconds_to_first_step"], again["checkpoints"]) == (None, {"saved": 0, "seconds": 0.0})
    assert "all 4 steps are done: the adapter is saved and measured" in result.stderr
    assert (interrupted / "adapter" / "model.safetensors").read_bytes() == weights
    assert (interrupted / "metrics.jsonl").read_text() == metrics
    for key in ("steps", "tokens", "before", "after", "trained_parameters", "rows"):
        assert again[key] == report[key], key
    finished = cli("train", "--resume", "out")
    assert finished.code == 2
    assert "error: the run out has finished its 4 steps" in finished.stderr


def test_a_finished_run_stays_finished_if_its_resume_takes_no_step(
    cli: Callable[..., Any], interrupted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (interrupted / "report.json").read_bytes()

    def fails(*args: Any, **kwargs: Any) -> None:
        raise ModelError("the weights cannot be read", hint="copy them again")

    with monkeypatch.context() as patched:
        patched.setattr("smollm3_finetune.train.run.compose", fails)
        failed = resumed(cli)
    assert "error: the weights cannot be read\n  hint: copy them again\n" in failed.stderr
    assert "the run out has taken no new step: its adapter and its report are unchanged" in failed.stderr
    assert (interrupted / "report.json").read_bytes() == before
    listed = cli("runs", "show", "out", "--json").report()
    assert (listed["state"], listed["error"]) == ("finished", None)
    assert cli("generate", "out", "--prompt", "Hi", "--max-new-tokens", "1").code == 0
    (interrupted / "error.json").write_text('{"message": "it failed after its report"}')
    with monkeypatch.context() as patched:
        patched.setattr("smollm3_finetune.train.run.compose", fails)
        assert resumed(cli).code == failed.code
    assert (interrupted / "error.json").exists(), "the error that ended it is still true"
    assert resumed(cli).code == 0
    assert not (interrupted / "error.json").exists()


def test_a_run_without_checkpoints_is_finished_from_its_adapter(cli: Callable[..., Any]) -> None:
    made = cli(*START, "--set", "train.save_every=none", "--set", "train.save_minutes=off", "--json").report()
    assert not list(Path("out/checkpoints").glob("*"))
    Path("out/report.json").unlink()
    more = cli("train", "--resume", "out", "--max-steps", "6")
    assert (more.code, "has no checkpoint, so it cannot take more steps" in more.stderr) == (2, True)
    again = cli("train", "--resume", "out", "--json").report()
    assert (again["tokens"], again["after"]) == (made["tokens"], made["after"])


@pytest.mark.parametrize("content", ["{}", '{"steps": "4", "tokens": []}', '{"steps": true, "tokens": 1e9}', "[", "[]"])
def test_damaged_counts_of_a_run_whose_steps_are_done_are_named(
    cli: Callable[..., Any], interrupted: Path, content: str
) -> None:
    """With checkpoints and without; the hint works."""
    (interrupted / "report.json").unlink()
    (interrupted / "trained.json").write_text(content)
    result = cli("train", "--resume", "out")
    assert result.code == 6, result.stderr
    assert "out/trained.json" in result.stderr
    (interrupted / "trained.json").unlink()
    again = cli("train", "--resume", "out")
    assert again.code == 0, again.stderr


def test_a_run_that_was_killed_before_its_first_checkpoint_is_started_again(cli: Callable[..., Any]) -> None:
    """The same command, in the same directory."""
    expected = cli(*START, "--json").report()["after"]
    for path in (Path("out/adapter"), Path("out/checkpoints")):
        shutil.rmtree(path)
    Path("out/checkpoints/.partial-checkpoint/checkpoint-2").mkdir(parents=True)
    Path("out/.partial-adapter").mkdir()
    for name in ("report.json", "trained.json"):
        Path("out", name).unlink()
    Path("out/.smollm3-lock").touch()
    refused = cli("train", "--resume", "out")
    assert refused.code == 6
    hint = refused.stderr.splitlines()[-1].removeprefix("  hint: start it again: smollm3 ")
    again = cli(*shlex.split(hint), "--json")
    assert again.report()["after"] == expected
    assert "warning" not in again.stderr
    assert "out contains a run that ended before its first checkpoint: it is started again" in again.stderr
    assert steps(Path("out")) == [1, 2, 3, 4]
    assert not list(Path("out").glob(".*"))


@pytest.mark.parametrize("kept", ["adapter/model.safetensors", "checkpoints/checkpoint-2/optimizer.pt", "notes.txt"])
def test_a_directory_that_holds_anything_else_is_never_taken_over(cli: Callable[..., Any], kept: str) -> None:
    """Even half of a checkpoint, and files of the user."""
    Path("out").mkdir()
    Path("out/run.yaml").write_text("model: tiny\n")
    assert cli(*START, "--dry-run").code == 2, "the user may have written it"
    Path("out/versions.json").write_text("{}")
    assert cli(*START, "--dry-run").code == 0, "a run without a checkpoint can be started again"
    Path("out", kept).parent.mkdir(parents=True, exist_ok=True)
    Path("out", kept).write_text("kept")
    result = cli(*START)
    assert result.code == 2
    assert "already contains a run" in result.stderr
    assert Path("out", kept).read_text() == "kept"


def test_a_directory_with_a_name_of_a_run_file_is_not_a_run(cli: Callable[..., Any]) -> None:
    Path("out").mkdir()
    Path("out/versions.json").write_text("{}")
    assert "the output directory 'out' is not empty" in cli(*START).stderr


AUTO = START[:-2]


def test_resume_auto_takes_the_newest_unfinished_run_of_the_same_configuration(cli: Callable[..., Any]) -> None:
    first = cli(*AUTO, "--resume", "auto", "--json")
    assert "no unfinished run has this configuration: a new run is started" in first.stderr
    run = Path(first.report()["run"])
    other = cli(*AUTO, "--seed", "5", "--json").report()["run"]
    for path in (run, Path(other)):  # both are interrupted after step 2
        shutil.rmtree(path / "checkpoints" / "checkpoint-4")
        shutil.rmtree(path / "adapter")
        (path / "report.json").unlink()
        (path / "trained.json").unlink()
    again = cli(*AUTO, "--resume", "auto", "--set", "train.log_every=2", "--json")
    assert f"the run {run} is resumed" in again.stderr
    assert again.report()["after"] == first.report()["after"]
    third = cli(*AUTO, "--resume", "auto", "--json")
    assert third.report()["run"] not in (str(run), other), "a finished run is not resumed"


def test_resume_auto_keeps_the_permission_that_was_given_again(cli: Callable[..., Any], tmp_path: Path) -> None:
    """`trust_remote_code` is never taken from the files of a run, so the same command must bring it."""
    loaded = load_model("tiny")
    loaded.base.model.save_pretrained(str(tmp_path / "model"))
    loaded.tokenizer.save_pretrained(str(tmp_path / "model"))
    trusting = ("--model", str(tmp_path / "model"), "--loader", "hf", "--loader-opt", "trust_remote_code=true")
    run = Path(cli(*AUTO, *trusting, "--resume", "auto", "--json").report()["run"])
    (run / "report.json").unlink()
    again = cli(*AUTO, *trusting, "--resume", "auto", "--json")
    assert Path(again.report()["run"]) == run, again.stderr


def test_resume_auto_does_not_take_the_current_directory_for_a_run(
    cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Path(cli(*AUTO, "--json").report()["run"])
    (run / "report.json").unlink()
    monkeypatch.chdir(run)
    result = cli(*AUTO, "--resume", "auto", "--json")
    assert Path(result.report()["run"]).parent == Path("runs")
    assert "a new run is started" in result.stderr


def test_resume_auto_starts_a_run_again_that_has_no_checkpoint(cli: Callable[..., Any]) -> None:
    run = Path(cli(*AUTO, "--json").report()["run"])
    for name in ("adapter", "checkpoints"):
        shutil.rmtree(run / name)
    for name in ("report.json", "trained.json"):
        (run / name).unlink()
    again = cli(*AUTO, "--resume", "auto", "--json").report()
    assert Path(again["run"]) == run
    assert steps(run) == [1, 2, 3, 4]


def test_resuming_with_other_rows_is_refused(cli: Callable[..., Any]) -> None:
    rows = Path("rows.jsonl")
    line = '{"prompt": "What is %d and one?", "completion": "It is %d."}\n'
    rows.write_text("".join(line % (n, n + 1) for n in range(20)), encoding="utf-8")
    made = cli(
        *("train", "--adapter", "full", "--data", "rows.jsonl", "--max-steps", "2", "--output", "run"),
        *("--set", "train.save_every=2", "--set", "train.sample_tokens=2"),
    )
    assert made.code == 0, made.stderr
    before = Path("run/run.yaml").read_text()
    with rows.open("a", encoding="utf-8") as stream:
        stream.write(line % (20, 21))
    refused = cli("train", "--resume", "run", "--max-steps", "4")
    assert refused.code == 3
    assert "the rows of the run run, or their rendering, have changed" in refused.stderr
    assert "--config run/run.yaml" in refused.stderr
    assert Path("run/run.yaml").read_text() == before
    rows.write_text("".join(line % (n, n + 1) for n in range(20)), encoding="utf-8")
    assert cli("train", "--resume", "run", "--max-steps", "4").code == 0
