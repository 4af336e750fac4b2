"""Signals and the time limit: in every phase of a run, the next command ends with the result of an undisturbed run."""

from __future__ import annotations

import contextlib
import os
import pydoc
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from smollm3_finetune import stopping
from smollm3_finetune.errors import ConfigError

Cli = Callable[..., Any]
QUICK = (
    "train", "--adapter", "full", "--set", "data.limit=20", "--set", "train.sample_tokens=2", "--max-steps", "4",
    "--output", "out",
)  # fmt: skip
PHASES = {
    "planning": ("smollm3_finetune.train.start.plan_run", 1),
    "tokenizing": ("smollm3_finetune.train.setup.tokenize", 1),
    "writing the run": ("smollm3_finetune.runs.rundir.write_json", 1),
    "loading the model": ("smollm3_finetune.train.run.compose", 1),
    "measuring before": ("smollm3_finetune.evaluation.held_out_loss.HeldOut.measure", 1),
    "the first step": ("smollm3_finetune.train.trainer.AdaptedTrainer.training_step", 1),
    "training": ("smollm3_finetune.train.trainer.AdaptedTrainer.training_step", 3),
    "writing a checkpoint": ("smollm3_finetune.runs.checkpoints.write_checksums", 1),
    "saving the adapter": ("smollm3_finetune.model.load.LoadedModel.publish", 1),
    "measuring after": ("smollm3_finetune.evaluation.held_out_loss.HeldOut.measure", 2),
    "the sample": ("smollm3_finetune.train.run.answer", 1),
    "the report": ("smollm3_finetune.train.run.write_json", 2),
}
"""Where the signal arrives: in the call of this number of a function."""


@pytest.fixture
def signal_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, int, int], None]]:
    """Send a signal to this process at the beginning of a call, once."""

    # a background job ignores SIGINT, and one under nohup SIGHUP
    before = {
        signal.SIGINT: signal.signal(signal.SIGINT, signal.default_int_handler),
        signal.SIGHUP: signal.signal(signal.SIGHUP, signal.SIG_DFL),
    }

    def arrange(function: str, call: int, number: int) -> None:
        module, _, name = function.rpartition(".")
        owner: Any = pydoc.locate(module)
        whole, calls = getattr(owner, name), [0]

        def disturbed(*args: Any, **kwargs: Any) -> Any:
            calls[0] += 1
            if calls[0] == call:
                os.kill(os.getpid(), number)
                time.sleep(0)  # the handler runs
            return whole(*args, **kwargs)

        monkeypatch.setattr(owner, name, disturbed)

    yield arrange
    for number, handler in before.items():
        signal.signal(number, handler)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL, "main restored the handlers"
    assert stopping.requested() is None


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The weights of a run that was not stopped."""
    from smollm3_finetune.testing.commands import smollm3

    out = tmp_path_factory.mktemp("undisturbed") / "out"
    smollm3(*QUICK[:-1], out, "--json").report()
    return (out / "adapter" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("phase", PHASES)
def test_a_run_that_is_stopped_can_be_continued_to_the_same_result(
    cli: Cli, signal_in: Callable[..., None], undisturbed: bytes, phase: str
) -> None:
    signal_in(*PHASES[phase], signal.SIGTERM)  # once, so it does not disturb the next command
    stopped = cli(*QUICK)
    if phase == "the report":  # it is written at once, and nothing is left to do
        assert stopped.code in (0, 143)
    else:
        assert stopped.code == 143, stopped.stderr
        assert "error: stopped by SIGTERM" in stopped.stderr
        assert "Traceback" not in stopped.stderr
    if not Path("out/report.json").exists():
        hint = [line for line in stopped.stderr.splitlines() if line.startswith("  hint: ")]
        command = shlex.split(hint[0].partition("smollm3 ")[2]) if hint and "smollm3 train" in hint[0] else QUICK
        again = cli(*command)
        assert again.code == 0, again.stderr
    assert Path("out/adapter/model.safetensors").read_bytes() == undisturbed
    assert Path("out/report.json").exists()
    assert not list(Path("out").rglob(".*"))
    if phase == "training":
        assert "step 3 is saved in out/checkpoints/checkpoint-3" in stopped.stderr


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGHUP", 129), ("SIGUSR1", 138), ("SIGTERM", 143)])
def test_each_signal_saves_and_exits_with_its_code(
    cli: Cli, signal_in: Callable[..., None], name: str, code: int
) -> None:
    signal_in("smollm3_finetune.train.trainer.AdaptedTrainer.training_step", 2, getattr(signal, name))
    stopped = cli(*QUICK)
    assert stopped.code == code, stopped.stderr
    assert stopped.stderr.splitlines()[-2:] == [
        f"error: stopped by {name}; step 2 is saved in out/checkpoints/checkpoint-2",
        "  hint: to continue: smollm3 train --resume out",
    ]


SWALLOWS = """
import os, signal
from smollm3_finetune.api import FormatterSpec, hookimpl

class Library:
    def __init__(self, options=None):
        pass

    def __call__(self, row):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            for _ in range(1000):
                pass
        except BaseException:
            raise RuntimeError("KeyboardInterrupt") from None  # as extension modules do

@hookimpl
def smollm3_formatters():
    return [FormatterSpec(name="swallows", summary="a library", factory="swallows:Library", api=2)]
"""


def test_an_error_that_a_library_made_of_a_signal_is_the_signal(
    cli: Cli, signal_in: Callable[..., None], tmp_path: Path
) -> None:
    plugin = tmp_path / "swallows.py"
    plugin.write_text(SWALLOWS)
    stopped = cli(*QUICK, "-p", plugin, "--formatter", "swallows")
    assert stopped.code == 143, stopped.stderr
    assert stopped.stderr.splitlines()[-1] == "error: stopped by SIGTERM"


def test_a_plugin_whose_import_swallows_a_signal_is_not_taken_for_broken(
    cli: Cli, signal_in: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the run does not need the plugin."""
    from smollm3_finetune.components import discovery

    def load() -> None:
        with contextlib.suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
        raise SystemError("returned a result with an exception set")

    candidates = discovery._candidates
    monkeypatch.setattr(discovery, "_candidates", lambda s: [replace(c, load=load) for c in candidates(s)])
    stopped = cli(*QUICK)
    assert (stopped.code, stopped.stderr.splitlines()[-1]) == (143, "error: stopped by SIGTERM")


def test_checkpoints_that_are_off_are_saved_on_request(cli: Cli, signal_in: Callable[..., None]) -> None:
    signal_in("smollm3_finetune.train.trainer.AdaptedTrainer.training_step", 3, signal.SIGUSR1)
    assert cli(*QUICK, "--set", "train.save_minutes=off").code == 138
    assert [p.name for p in Path("out/checkpoints").iterdir()] == ["checkpoint-3"]


def test_the_time_limit_saves_and_exits_with_a_code_of_its_own(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, undisturbed: bytes
) -> None:
    from smollm3_finetune.train.trainer import AdaptedTrainer

    whole = AdaptedTrainer.training_step

    def slow(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == 2:  # as if the run had begun 59.9 s ago
            stopping.limit_time("1m", time.monotonic() - 59.9)
            time.sleep(0.2)
        return whole(self, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(AdaptedTrainer, "training_step", slow)
        stopped = cli(*QUICK, "--max-time", "1h")
    assert stopped.code == 75, stopped.stderr
    assert "error: stopped by the time limit of 1m; step 3 is saved in out/checkpoints/checkpoint-3" in stopped.stderr
    again = cli("train", "--resume", "out", "--max-time", "1h")
    assert again.code == 0, again.stderr
    assert Path("out/adapter/model.safetensors").read_bytes() == undisturbed


@pytest.mark.parametrize(("text", "expected"), [("55m", 3300), ("1h30m", 5400), ("2d", 172800), ("90s", 90)])
def test_durations(text: str, expected: int) -> None:
    assert stopping.seconds(text) == expected


@pytest.mark.parametrize("text", ["", "0s", "55", "5 m", "m", "1m1h", "-5m", "1.5h", "9" * 50 + "h"])
def test_other_texts_are_not_durations(cli: Cli, text: str) -> None:
    with pytest.raises(ConfigError, match="is not a duration"):
        stopping.seconds(text)
    refused = cli(*QUICK, "--max-time", text, "--dry-run")
    assert refused.code == 2
    assert not Path("out").exists()


def test_a_request_inside_a_deferred_context_is_raised_at_its_end() -> None:
    done = []

    def save() -> None:
        with stopping.deferred():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0)
            done.append("saved")

    with stopping.handled(), pytest.raises(stopping.Stop, match="SIGTERM"):
        save()
    assert done == ["saved"]


def test_a_time_limit_that_has_passed_before_training_stops_the_run(cli: Cli) -> None:
    stopped = cli(*QUICK, "--max-time", "1s", "--max-steps", "100000")
    assert stopped.code == 75, stopped.stderr
    assert not Path("out/adapter").exists()


def test_an_ignored_signal_stays_ignored() -> None:
    """As under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stopping.handled():
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(0)
            assert stopping.requested() is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_second_interrupt_exits_at_once(run_cli: Callable[..., Any], tmp_path: Path) -> None:
    """Although the first one is deferred, and nothing is cleaned up."""
    program = tmp_path / "program.py"
    program.write_text(
        "import os, signal\n"
        "from smollm3_finetune import stopping\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "with stopping.handled(), stopping.deferred():\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    print('saving', flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    print('not reached', flush=True)\n"
    )
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (130, "saving\n")


def test_merge_that_is_stopped_leaves_nothing(cli: Cli, signal_in: Callable[..., None]) -> None:
    assert cli(*QUICK[:-4], "--max-steps", "1", "--output", "out").code == 0
    signal_in("smollm3_finetune.merge.run.write_model", 1, signal.SIGTERM)
    stopped = cli("merge", "out", "--output", "merged")
    assert stopped.code == 143, stopped.stderr
    assert not Path("merged").exists()
    assert not [p.name for p in Path().iterdir() if "partial" in p.name]
    assert cli("merge", "out", "--output", "merged").code == 0
