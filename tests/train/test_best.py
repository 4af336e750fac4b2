"""The adapter with the lowest held-out loss is published, and a run ends early if there is none lower."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from smollm3_finetune import LoadedModel, load_model
from smollm3_finetune.evaluation.held_out_loss import HeldOut
from smollm3_finetune.model.saved_adapter import SavedAdapter
from smollm3_finetune.runs.checkpoints import Checkpoint, Checkpoints
from smollm3_finetune.runs.details import RunDetails
from smollm3_finetune.runs.measurements import Measurements
from smollm3_finetune.runs.rundir import RunDir
from smollm3_finetune.testing.commands import smollm3
from smollm3_finetune.train.measuring import Measuring
from smollm3_finetune.train.trainer import AdaptedTrainer

Cli = Callable[..., Any]
RUN = (
    "train", "--adapter", "full", "--device", "cpu", "--set", "data.limit=24", "--set", "train.sample_tokens=3",
    "--max-length", "64", "--set", "train.schedule=constant", "--set", "train.warmup=0", "--learning-rate", "1e-2",
    "--set", "data.held_out=0.3", "--json",
)  # fmt: skip
EVERY = ("--set", "train.eval_every=2")
BEST = (*EVERY, "--set", "train.keep_best=true")
STEPS = ("--max-steps", "10")


def metrics(run: str | Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(run) / name).read_text().splitlines()]


def losses(run: str | Path) -> dict[int, float]:
    return {r["step"]: r["held_out_loss"] for r in metrics(run) if "held_out_loss" in r}


def weights(directory: Path) -> bytes:
    return (directory / "model.safetensors").read_bytes()


def names(run: Path) -> list[str]:
    return sorted(p.name for p in (run / "checkpoints").iterdir())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose held-out loss falls and then rises."""
    out = tmp_path_factory.mktemp("best") / "run"
    smollm3(*RUN, *STEPS, *BEST, "--set", "train.save_every=4", "--output", out).report()
    return out


@pytest.fixture
def run(whole: Path) -> Path:
    """A copy of it in the working directory."""
    return Path(shutil.copytree(whole, "run"))


@pytest.fixture
def signal_in(monkeypatch: pytest.MonkeyPatch) -> Callable[[type, str, int], None]:
    """Send SIGTERM to this process at the beginning of a call of a method, once."""

    def arrange(owner: type, name: str, call: int) -> None:
        original, calls = getattr(owner, name), [0]

        def disturbed(*args: Any, **kwargs: Any) -> Any:
            calls[0] += 1
            if calls[0] == call:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0)  # the handler runs
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, disturbed)

    return arrange


def test_the_adapter_of_the_lowest_held_out_loss_is_published(cli: Cli, whole: Path) -> None:
    found = losses(whole)
    assert sorted(found) == [2, 4, 6, 8, 10]
    assert min(found, key=found.__getitem__) == 4, "the loss falls, then rises"
    report = json.loads((whole / "report.json").read_text())
    assert report["steps"] == 10
    assert report["best"] == {"step": 4, "held_out_loss": found[4], "below_base": True}
    assert report["after"]["held_out_loss"] == found[4]
    shorter = cli(*RUN, "--max-steps", "4", "--output", "shorter").report()
    assert weights(whole / "adapter") == weights(Path("shorter/adapter"))
    assert {k: report["after"][k] for k in shorter["after"]} == shorter["after"], "loss and sample are those of step 4"
    assert "the adapter is that of step 4" in (whole / "adapter" / "README.md").read_text()
    assert SavedAdapter.read(whole / "adapter").base_fingerprint == load_model("tiny").base.fingerprint
    assert not (whole / "adapter" / "measured.json").exists()


def test_checkpoints_are_deleted_but_never_the_best_adapter_of_one(whole: Path, run: Path) -> None:
    assert names(whole) == ["best-4", "checkpoint-10", "checkpoint-8"]
    assert Checkpoint(whole / "checkpoints" / "checkpoint-8", 8).measurements.best == 4
    place = Checkpoints(run / "checkpoints")
    place.best.save(6, lambda path: None, {"held_out_loss": 0.5})
    place.prune_best(6)
    assert names(run) == ["best-4", "best-6", "checkpoint-10", "checkpoint-8"]
    place.prune_best()
    assert names(run) == ["best-4", "checkpoint-10", "checkpoint-8"]


@pytest.mark.parametrize(("owner", "name", "call"), [
    pytest.param(AdaptedTrainer, "training_step", 7, id="in a step after the best"),
    pytest.param(HeldOut, "measure_rows", 3, id="in the measurement of the best"),
    pytest.param(Measuring, "finish", 1, id="after the last step", marks=pytest.mark.long),
    pytest.param(LoadedModel, "publish", 1, id="while the best is published", marks=pytest.mark.long),
])  # fmt: skip
def test_an_interrupted_and_resumed_run_publishes_the_same_adapter(
    cli: Cli, whole: Path, signal_in: Any, owner: type, name: str, call: int
) -> None:
    signal_in(owner, name, call)
    assert cli(*RUN, *STEPS, *BEST, "--output", "run").code == 143
    report = cli("train", "--resume", "run", "--json").report()
    expected = json.loads((whole / "report.json").read_text())
    assert weights(Path("run/adapter")) == weights(whole / "adapter")
    assert losses("run") == losses(whole)
    for key in ("best", "after", "steps"):
        assert report[key] == expected[key]


def test_a_longer_run_keeps_the_best_adapter_of_the_shorter_one(cli: Cli, run: Path) -> None:
    before = weights(run / "adapter")
    report = cli("train", "--resume", "run", "--max-steps", "12", "--json").report()
    assert report["best"]["step"] == 4
    assert weights(run / "adapter") == before
    assert sorted(losses(run)) == [2, 4, 6, 8, 10, 12]


def test_the_last_step_of_a_run_remains_the_best_of_a_longer_one(cli: Cli) -> None:
    """It was measured after its checkpoint was saved, and its adapter was published without a copy."""
    first = cli(*RUN, "--max-steps", "4", *BEST, "--output", "run").report()
    assert first["best"]["step"] == 4
    best = weights(Path("run/adapter"))
    report = cli("train", "--resume", "run", "--max-steps", "6", "--json").report()
    assert report["best"] == first["best"]
    assert report["after"] == first["after"]
    assert weights(Path("run/adapter")) == best
    assert [r["step"] for r in metrics("run") if "held_out_loss" in r] == [2, 4, 6]


def test_without_checkpoints_the_best_adapter_is_published_too(cli: Cli, whole: Path) -> None:
    report = cli(*RUN, *STEPS, *BEST, "--set", "train.save_minutes=off", "--output", "run").report()
    assert (report["best"]["step"], names(Path("run"))) == (4, ["best-4"])
    assert weights(Path("run/adapter")) == weights(whole / "adapter")
    Path("run/report.json").unlink()  # killed before it was written; the adapter is that of step 4
    again = cli("train", "--resume", "run", "--json").report()
    assert again["best"] == report["best"]
    assert weights(Path("run/adapter")) == weights(whole / "adapter")
    assert losses("run") == losses(whole)


@pytest.mark.parametrize(
    ("saves", "kept"),
    [
        pytest.param("off", ["best-4", "last-10"], id="without checkpoints"),
        pytest.param("30", ["best-4", "checkpoint-10"], id="with the checkpoint of the last step"),
    ],
)
def test_before_the_decision_the_last_adapter_is_not_used_for_the_best(
    cli: Cli, whole: Path, signal_in: Any, saves: str, kept: list[str]
) -> None:
    signal_in(Measuring, "finish", 1)
    stopped = cli(*RUN, *STEPS, *BEST, "--set", f"train.save_minutes={saves}", "--output", "run")
    assert (stopped.code, Path("run/adapter").exists()) == (143, False)
    assert "hint: to finish the run: smollm3 train --resume run" in stopped.stderr
    assert names(Path("run")) == kept
    refused = cli("generate", "run", "--prompt", "Hi")
    assert refused.code != 0
    undecided = "the run run has not finished: it has not decided which adapter has the lowest held-out loss"
    assert f"error: {undecided}\n  hint: smollm3 train --resume run\n" in refused.stderr
    started = cli("train", "--from", "run", "--dry-run")
    assert undecided in started.stderr
    assert RunDetails.of(RunDir(Path("run"))).resumable
    assert cli("train", "--resume", "run", "--json").report()["best"]["step"] == 4
    assert weights(Path("run/adapter")) == weights(whole / "adapter")
    assert "last-10" not in names(Path("run"))
    assert cli("generate", "run", "--prompt", "Hi", "--max-new-tokens", "1").code == 0


def test_before_the_decision_an_earlier_adapter_is_not_used_either(cli: Cli, whole: Path, signal_in: Any) -> None:
    cli(*RUN, "--max-steps", "2", *BEST, "--output", "run").report()
    earlier = weights(Path("run/adapter"))
    signal_in(Measuring, "finish", 1)
    assert cli("train", "--resume", "run", "--max-steps", "10").code == 143
    assert weights(Path("run/adapter")) == earlier
    assert "has not decided which adapter" in cli("generate", "run", "--prompt", "Hi").stderr
    cli("train", "--resume", "run", "--json").report()
    assert weights(Path("run/adapter")) == weights(whole / "adapter")


def test_the_last_adapter_is_published_if_it_turns_out_to_be_the_best(cli: Cli, signal_in: Any) -> None:
    expected = cli(*RUN, "--max-steps", "4", "--output", "plain").report()
    signal_in(Measuring, "finish", 1)
    four = ("--max-steps", "4", *BEST, "--set", "train.save_minutes=off")
    assert cli(*RUN, *four, "--output", "run").code == 143
    assert names(Path("run")) == ["best-2", "last-4"]
    report = cli("train", "--resume", "run", "--json").report()
    assert (report["best"]["step"], names(Path("run"))) == (4, ["best-2"])
    assert report["after"]["held_out_loss"] == expected["after"]["held_out_loss"]
    assert weights(Path("run/adapter")) == weights(Path("plain/adapter"))


def test_a_best_adapter_that_was_deleted_is_a_warning(cli: Cli, run: Path) -> None:
    shutil.rmtree(run / "checkpoints" / "best-4")
    result = cli("train", "--resume", "run", "--max-steps", "11", "--json")
    assert result.stderr.count("best-4, the adapter with the lowest held-out loss, cannot be used (it is missing)") == 1
    assert result.report()["best"]["step"] == 11


def test_a_run_in_which_nothing_was_better_than_the_base_says_so(cli: Cli) -> None:
    ruined = ("--learning-rate", "0.5", "--max-steps", "4")
    result = cli(*RUN, *ruined, *BEST, "--output", "run")
    assert "no measurement was below the held-out loss before training, which is not a candidate" in result.stderr
    report = json.loads(Path("run/report.json").read_text())
    assert report["best"]["below_base"] is False


def test_a_run_ends_early_and_normally(cli: Cli, whole: Path) -> None:
    result = cli(*RUN, *STEPS, *EVERY, "--set", "train.stop_after=2", "--output", "run")
    report = result.report()
    reason = "no lower held-out loss in 2 measurements since step 4"
    assert report["stopped_early"] == {"planned_steps": 10, "reason": reason}
    assert (report["steps"], report["after"]["held_out_loss"]) == (8, losses(whole)[8])
    assert f"training ends after 8 of 10 steps: {reason}" in result.stderr
    assert json.loads(Path("run/trained.json").read_text())["steps"] == 8
    assert (names(Path("run")), "best" in report) == (["checkpoint-8"], False)
    ours, theirs = metrics("run"), [r for r in metrics(whole) if r["step"] <= 8]
    for key in ("loss", "learning_rate", "held_out_loss"):
        assert [r.get(key) for r in ours] == [r.get(key) for r in theirs]

    again = cli("train", "--resume", "run", "--max-steps", "12")
    assert again.code == 2
    assert f"error: the run run ended early after 8 of 12 steps: {reason}\n" in again.stderr
    assert "hint: to continue: --set train.stop_after=4" in again.stderr
    longer = cli("train", "--resume", "run", "--set", "train.stop_after=4", "--json").report()
    assert ("stopped_early" in longer, longer["steps"]) == (False, 10)
    assert losses("run") == losses(whole)


def test_measurements_without_improvement_are_counted_over_interruptions(cli: Cli, signal_in: Any) -> None:
    early = (*STEPS, *EVERY, "--set", "train.stop_after=2")
    signal_in(AdaptedTrainer, "training_step", 7)
    assert cli(*RUN, *early, "--output", "run").code == 143
    assert names(Path("run")) == ["checkpoint-7"]
    report = cli("train", "--resume", "run", "--json").report()
    assert (report["steps"], report["stopped_early"]["planned_steps"]) == (8, 10)


def test_a_run_that_is_killed_after_it_ended_early_takes_no_more_steps(cli: Cli, signal_in: Any) -> None:
    signal_in(LoadedModel, "publish", 1)
    early = (*STEPS, *EVERY, "--set", "train.stop_after=2")
    assert cli(*RUN, *early, "--output", "run").code == 143
    Path("run/trained.json").unlink()
    result = cli("train", "--resume", "run", "--json")
    assert "training ended after 8 of 10 steps (no lower held-out loss in 2 measurements since step 4)" in result.stderr
    assert (result.report()["steps"], "stopped_early" in result.report()) == (8, True)
    assert json.loads(Path("run/trained.json").read_text())["steps"] == 8


def test_a_resumed_run_that_ends_early_in_its_first_measurement_writes_its_steps(cli: Cli, signal_in: Any) -> None:
    early = (*STEPS, *EVERY, "--set", "train.stop_after=2")
    signal_in(HeldOut, "measure_rows", 5)  # before training, and after 2, 4, 6 and 8 steps
    assert cli(*RUN, *early, "--output", "run").code == 143
    assert (names(Path("run")), Path("run/trained.json").exists()) == (["checkpoint-8"], False)
    assert cli("train", "--resume", "run", "--json").report()["steps"] == 8
    about = json.loads(Path("run/trained.json").read_text())
    assert (about["steps"], len(about["measurements"])) == (8, 4)
    assert about["tokens"] == Checkpoints(Path("run/checkpoints")).all()[-1].tokens


@pytest.mark.parametrize(
    ("settings", "message", "hint"),
    [
        (("train.keep_best=true",), "train.keep_best compares held-out losses", "--set train.eval_every=50"),
        (("train.stop_after=3",), "train.stop_after=3 compares held-out losses", "--set train.eval_every=50"),
        (
            ("train.keep_best=true", "train.eval_every=5", "data.held_out=0"),
            "train.keep_best needs held-out rows, but there are none",
            "--set data.held_out=0.1",
        ),
    ],
)
def test_what_the_options_need_is_checked_before_rows_are_read(
    cli: Cli, settings: tuple[str, ...], message: str, hint: str
) -> None:
    arguments = [part for setting in settings for part in ("--set", setting)]
    result = cli("train", "--adapter", "full", *arguments, "--dry-run")
    assert result.code == 2
    assert f"error: {message}" in result.stderr
    assert f"hint: {hint}\n" in result.stderr


def test_an_exploded_run_names_the_best_adapter_and_one_measurement_is_a_warning(cli: Cli) -> None:
    failing = Path(__file__).parents[1] / "out_of_tree" / "failing_adapter.py"
    scale = failing.with_name("scale_adapter.py")
    command = (
        *(*RUN, "-p", scale, "-p", failing, "--adapter", "failing", "--adapter-opt", "how=weights"),
        *("--max-steps", "4", "--set", "train.eval_every=1", "--set", "train.keep_best=true", "--output", "run"),
    )
    result = cli(*command)
    assert result.code == 1, result.stderr
    assert "run/checkpoints/best-1 has the best adapter" in result.stderr
    assert names(Path("run"))[0] == "best-1"
    again = cli(*command)
    assert (again.code, "already contains a run" in again.stderr) == (2, True), "the best adapter is kept"
    assert names(Path("run"))[0] == "best-1"
    rare = ("--max-steps", "2", *EVERY, "--set", "train.stop_after=1", "--output", "rare")
    warning = "warning: train.stop_after=1 has no effect: train.eval_every=2 is not below the 2 steps of the run"
    assert warning in cli(*RUN, *rare).stderr


def test_measurements_know_the_best_and_how_many_followed() -> None:
    found = Measurements()
    assert (found.best, found.waited) == (None, 0)
    for step, loss in ((10, 2.0), (20, float("nan")), (30, 1.5), (40, 1.5), (50, float("inf"))):
        found = found.added(step, loss)
    assert (found.best, found.waited) == (30, 2), "an equal loss is not lower"
    assert found.losses[1] == (20, None)
    assert Measurements.from_json(json.loads(json.dumps(found.as_json()))) == found
    assert (found.until(30).waited, found.added(30, 9.0).losses[-1]) == (0, (30, 9.0))
    assert (30 in found, 31 in found, found.of(30)) == (True, False, 1.5)
    for wrong in (None, {}, [[1]], [[1, "2"]], [[True, 1.0]], [["1", 1.0]], [[-1, 1.0]]):
        with pytest.raises(ValueError, match="not pairs"):
            Measurements.from_json(wrong)
