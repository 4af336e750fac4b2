"""What a launching process hands over, and what the processes of a run leave for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from smollm3_finetune import stopping
from smollm3_finetune.api import Launch, run_processes
from smollm3_finetune.api.processes import explain_torch
from smollm3_finetune.config.load import Setting
from smollm3_finetune.config.schema import ComponentConfig, RunConfig
from smollm3_finetune.errors import DataError, ModelError, SmolLM3Error
from smollm3_finetune.launching.ended import ended_by, read_ended, recorded
from smollm3_finetune.launching.handover import Handover
from smollm3_finetune.progress import Silent
from smollm3_finetune.runs.resume import identity, may_change
from smollm3_finetune.runs.rundir import RunDir
from smollm3_finetune.testing.launchers import runs

REPORT = """
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
============================================================
smollm3_finetune.main FAILED
------------------------------------------------------------
Root Cause (first observed failure):
[0]:
  time      : 2026-11-30_04:10:00
  host      : node0
  rank      : 5 (local_rank: 1)
  exitcode  : -9 (pid: 4648)
  error_file: <N/A>
"""


def test_a_handover_is_read_as_it_was_written(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    settings = (
        Setting(key=("train", "max_steps"), value=3, origin="--max-steps"),
        Setting(key=("data", "path"), value=[{"path": "a b.jsonl", "weight": 0.5}, "c"], origin="run.yaml:4"),
        Setting(key=("quant", "bits"), value=None, origin="run.yaml:9", given=False),
    )
    written = Handover(settings=settings, resume=True, plugins=("mine.py", "no:gguf"), part_of={"stage": "sft"},
                       directory="/here", run="runs/x", quiet=True)  # fmt: skip
    written.write(run)
    assert Handover.read(run) == written


@pytest.mark.parametrize("text", ["{", "[]", '{"version": 1}', '{"version": 7, "settings": [], "resume": false}'])
def test_a_damaged_handover_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "launch.json").write_text(text)
    with pytest.raises(ModelError, match="is damaged"):
        Handover.read(RunDir(tmp_path))


def test_a_run_that_was_not_handed_over_has_a_hint(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="was not handed over") as caught:
        Handover.read(RunDir(tmp_path))
    assert caught.value.hint == "smollm3 train --launcher NAME …"


def test_the_cause_comes_before_the_loss_of_other_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDir(tmp_path)
    lost = RuntimeError("[gloo/transport/tcp/pair.cc:538] Connection closed by peer [127.0.0.1]:4321\nmore")
    for rank, error in enumerate((lost, DataError("no rows", hint="--data"), lost)):
        monkeypatch.setenv("RANK", str(rank))
        with pytest.raises(type(error)), recorded(run, 3):
            raise error
    found = read_ended(run)
    assert [(e.kind, e.rank) for e in found] == [("error", 1), ("lost", 0), ("lost", 2)]
    made = found[0].error()
    assert (type(made), made.message, made.hint) == (DataError, "no rows", "--data")


def test_an_error_of_a_single_process_is_its_own() -> None:
    assert ended_by(RuntimeError("Connection closed by peer"), 1).kind == "error"
    assert ended_by(stopping.Stop("SIGTERM", 143), 2).kind == "stop"
    assert ended_by(SmolLM3Error("the model is too large"), 2).kind == "error"


def test_the_first_failure_is_found_in_the_report_of_torch() -> None:
    assert explain_torch(REPORT) == "process 5 was killed by SIGKILL"
    assert explain_torch(REPORT.replace("-9 (", "3 (")) == "process 5 ended with exit code 3"
    assert explain_torch("RendezvousTimeoutError") == "the machines of the run did not meet in time"
    taken = "torch.distributed.DistNetworkError: The server socket has failed to listen: EADDRINUSE, port: 29500"
    assert explain_torch(taken) == "another program uses the port where the processes of the run meet"
    assert explain_torch("Traceback …\nValueError: x") is None


def launch(run: Path, program: str) -> Launch:
    return Launch(run=run, command=(sys.executable, "-c", program))


def test_the_output_of_processes_is_shown_and_their_last_error_reported(tmp_path: Path) -> None:
    said: list[str] = []

    class Shown(Silent):
        def say(self, message: str) -> None:
            said.append(message)

    program = (
        "import sys; print('one\\n\\nfirst\\rtwo', flush=True); print('noise', file=sys.stderr); sys.exit('no port')"
    )
    one = launch(tmp_path, program)
    with pytest.raises(SmolLM3Error) as caught:
        run_processes(one.command, one, Shown())
    assert caught.value.message.endswith("ended with exit code 1: no port")
    assert said == ["one", "two"]


def test_a_program_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(SmolLM3Error, match="no-such-program cannot be started: No such file"):
        run_processes(["no-such-program"], launch(tmp_path, ""), Silent())


def test_what_a_program_leaves_behind_is_ended(tmp_path: Path) -> None:
    """A process that the program started and does not wait for; it ends when its input does."""
    child = "import os, pathlib; pathlib.Path('pid').write_text(str(os.getpid())); os.read(0, 1)"
    program = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(1)"
    one = launch(tmp_path, program)
    run_processes(one.command, one, Silent())
    assert not runs(int(Path("pid").read_text()))


def test_the_launcher_is_no_part_of_what_a_run_is() -> None:
    launched = RunConfig(launcher=ComponentConfig(name="torchrun", options={"processes": 2}))
    assert identity(launched) == identity(RunConfig())
    assert may_change(("launcher", "name")) and may_change(("launcher", "processes"))
    assert not may_change(("adapter", "rank"))


def test_the_hidden_option_needs_a_run_that_was_handed_over(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "smollm3_finetune.main", "train", "--launched", str(tmp_path / "none")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 6
    assert done.stderr.startswith("error: ") and "was not handed over" in done.stderr
    assert not (tmp_path / "none").exists()
