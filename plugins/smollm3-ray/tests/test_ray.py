"""Runs of the built-in model on real workers of Ray, and trials that Ray Tune decides about."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

pytestmark = [pytest.mark.plugins, pytest.mark.usefixtures("needs_ray", "beside")]

pytest_plugins = ["smollm3_finetune.testing.fixtures"]  # for `cli`
Cli = Callable[..., Any]

MARK = "SMOLLM3_RAY_TEST"
TRAIN = ("train", "--json", "--adapter", "full", "--device", "cpu", "--batch-size", "2", "--max-length", "64")
QUICK = (*TRAIN, "--set", "data.limit=60", "--set", "train.sample_tokens=2")
STEPS = (*QUICK, "--max-steps", "6", "--set", "train.save_every=2", "--set", "train.eval_every=4")
UNWANTED = ("Traceback", "Warning", "(raylet)", "TrainingReport", "DEBUG", "INFO")


class Command:
    """`smollm3 ARGUMENTS` in a process of its own, and the processes that descend from it."""

    def __init__(self, *arguments: str) -> None:
        self.mark = secrets.token_hex(8)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "smollm3_finetune.main", *arguments],
            env={**os.environ, MARK: self.mark},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def descendants(self) -> Iterator[psutil.Process]:
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get(MARK) == self.mark and process.pid != self.process.pid:
                    yield process

    def workers(self) -> list[psutil.Process]:
        return [p for p in self.descendants() if "RayTrainWorker" in "".join(p.cmdline())]

    def when(self, happened: Callable[[], Any], act: Callable[[], None]) -> None:
        """Act when something has happened, unless the command ends before."""
        while self.process.poll() is None:
            if happened():
                act()
                return
            time.sleep(0.2)

    def result(self) -> subprocess.CompletedProcess[str]:
        """The result, after which no process is left."""
        out, err = self.process.communicate()
        deadline = time.monotonic() + 30
        while (left := list(self.descendants())) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert not left
        assert not [word for word in UNWANTED if word in err], err
        return subprocess.CompletedProcess(self.process.args, self.process.returncode, out, err)


def curve(run: str) -> list[tuple[int, float]]:
    """The losses of the steps; a step that a restarted run took again counts once."""
    rows = [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]
    return sorted({(row["step"], row["loss"]) for row in rows if "loss" in row})


def weights(run: str) -> bytes:
    (file,) = (Path(run) / "adapter").glob("*.safetensors")
    return file.read_bytes()


@pytest.fixture
def in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_killed_worker_is_restarted_and_the_result_is_that_of_torchrun(in_tmp: Path, cli: Cli) -> None:
    torchrun = ("--launcher", "torchrun", "--launcher-opt", "processes=2", "--output", "torchrun")
    expected = cli(*STEPS, *torchrun)  # in this process: a new one would import torch again
    assert expected.code == 0, expected.stderr

    command = Command(*STEPS, "--launcher", "ray", "--launcher-opt", "workers=2", "--output", "ray")
    command.when(lambda: Path("ray/checkpoints/checkpoint-2").is_dir(), lambda: command.workers()[1].kill())
    found = command.result()
    assert found.returncode == 0, found.stderr
    assert found.stderr.count(": restart 1 of 3") == 1
    assert json.loads(found.stdout)["after"] == json.loads(expected.stdout)["after"]
    assert curve("ray") == curve("torchrun")
    assert len(curve("ray")) == 6
    assert weights("ray") == weights("torchrun")
    assert not Path("ray/.launched").exists()


def sweep(root: Path, settings: dict[str, dict[str, Any]], **options: Any) -> dict[str, str | None]:
    """How the trials of a sweep end, with runs that only add numbers."""
    for name, about in settings.items():
        (root / name).mkdir(parents=True)
        (root / name / "settings.json").write_text(json.dumps(about))
    arguments = [str(Path(__file__).parent / "trials.py"), str(root), json.dumps(options)]
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not [word for word in UNWANTED if word in done.stderr], done.stderr
    ends: dict[str, str | None] = json.loads(done.stdout)
    return ends


def attempts(run: Path) -> list[int]:
    """The step at which each attempt began."""
    return [json.loads(line)["from"] for line in (run / "attempts-0.jsonl").read_text().splitlines()]


GOOD = {"losses": {"2": 1.0, "4": 0.9, "6": 0.8}}
BAD = {"losses": {"2": 5.0, "4": 4.0, "6": 3.0}}
ASHA = {"concurrent": 1, "asha": True, "grace_steps": 2, "reduction_factor": 2}


@pytest.mark.long
def test_a_trial_with_a_higher_loss_is_stopped_early_and_can_be_resumed(tmp_path: Path) -> None:
    assert sweep(tmp_path, {"1-good": GOOD, "2-bad": BAD}, **ASHA) == {"1-good": None, "2-bad": None}
    assert (tmp_path / "1-good" / "report.json").exists()
    assert not (tmp_path / "2-bad" / "report.json").exists()
    assert json.loads((tmp_path / "2-bad" / "checkpoint" / "step.json").read_text())["step"] < 4
    assert not list(tmp_path.glob("*/.launched/ray"))


@pytest.mark.long
def test_a_failed_trial_is_reported_and_a_killed_one_is_continued(tmp_path: Path) -> None:
    ends = sweep(tmp_path, {"1-killed": GOOD | {"mishap": [0, 3]}, "2-broken": {"bad_row": 1}}, concurrent=2)
    assert ends == {"1-killed": None, "2-broken": "row 1 is not usable"}
    assert attempts(tmp_path / "1-killed") == [0, 3]
    assert attempts(tmp_path / "2-broken") == [0]  # a restart would fail in the same way


@pytest.mark.long
def test_trials_of_two_workers_each(tmp_path: Path) -> None:
    ends = sweep(tmp_path, {"1-good": GOOD, "2-bad": BAD}, workers=2, **ASHA)
    assert ends == {"1-good": None, "2-bad": None}
    assert json.loads((tmp_path / "1-good" / "report.json").read_text())["sum"] == 63.0
    assert not (tmp_path / "2-bad" / "report.json").exists()
    assert (tmp_path / "2-bad" / "attempts-1.jsonl").exists()


@pytest.mark.long
def test_a_request_to_stop_saves_the_state_and_the_run_continues(in_tmp: Path) -> None:
    many = (*QUICK, "--max-steps", "300", "--set", "train.save_every=300")
    ray = ("--launcher", "ray", "--launcher-opt", "workers=2")
    command = Command(*many, *ray, "--output", "run")
    command.when(
        lambda: Path("run/metrics.jsonl").exists() and len(curve("run")) >= 2,
        lambda: command.process.send_signal(signal.SIGTERM),
    )
    stopped = command.result()
    assert stopped.returncode == 128 + signal.SIGTERM, stopped.stderr
    (saved,) = Path("run/checkpoints").iterdir()
    step = int(saved.name.removeprefix("checkpoint-"))
    assert f"stopped by SIGTERM; step {step} is saved" in stopped.stderr

    resumed = Command("train", "--resume", "run", "--max-steps", str(step + 1), "--json", *ray).result()
    assert resumed.returncode == 0, resumed.stderr
    assert json.loads(resumed.stdout)["steps"] == step + 1


TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "5" * 32}


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of a running cluster, which needs a token."""
    head = [sys.executable, str(Path(__file__).parent / "head.py")]
    variables = {**os.environ, **TOKEN}
    with subprocess.Popen(head, env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()


@pytest.mark.long
def test_a_cluster_by_its_address_with_storage_and_elastic_workers(
    in_tmp: Path, cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in TOKEN.items():
        monkeypatch.setenv(name, value)
    options = {"address": cluster, "workers": 2, "min_workers": 1, "storage_path": str(in_tmp / "storage")}
    given = [a for k, v in options.items() for a in ("--launcher-opt", f"{k}={v}")]
    done = Command(*STEPS, "--launcher", "ray", *given, "--output", "run").result()
    assert done.returncode == 0, done.stderr
    assert json.loads(Path("run/versions.json").read_text())["processes"] == 2
    (copied,) = (f for f in in_tmp.glob("storage/run-*/checkpoint_*") if f.is_dir())
    newest = Path("run/checkpoints/checkpoint-6")
    assert {f.name for f in copied.iterdir()} >= {"optimizer.pt", "trainer_state.json"}
    assert (copied / "trainer_state.json").read_bytes() == (newest / "trainer_state.json").read_bytes()


@pytest.mark.long
def test_a_cluster_that_refuses_the_connection_is_one_sentence(
    in_tmp: Path, cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An explicit address needs RAY_AUTH_MODE, also if the machine has a token."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    done = Command(*STEPS, "--launcher", "ray", "--launcher-opt", f"address={cluster}", "--output", "run").result()
    assert done.returncode == 2
    error, hint = (line for line in done.stderr.splitlines() if line.startswith(("error: ", "  hint: ")))
    assert error == f"error: launcher 'ray': the Ray cluster at address={cluster} did not accept the connection"
    assert hint.startswith("  hint: if it needs a token: RAY_AUTH_MODE=token before the command")


@pytest.mark.long
def test_an_address_where_no_cluster_answers_is_one_sentence(in_tmp: Path) -> None:
    given = ("--launcher", "ray", "--launcher-opt", "address=127.0.0.1:1", "--output", "run")
    done = Command(*STEPS, *given).result()
    assert done.returncode == 2
    assert "error: launcher 'ray': no Ray cluster answers at address=127.0.0.1:1" in done.stderr
    assert not Path("run").exists()


@pytest.mark.long
def test_an_error_of_the_run_is_not_tried_again(in_tmp: Path) -> None:
    """Rows that vanish after the run was planned: the same error would follow each restart."""
    Path("rows.jsonl").write_text("".join(f'{{"text": "one two three four five {n}"}}\n' for n in range(20)))
    changed = Path(__file__).parent / "vanishing.py"
    given = ("--data", "rows.jsonl", "-p", str(changed), "--launcher", "vanishing", "--output", "run")
    done = Command(*TRAIN, "--max-steps", "2", *given).result()
    assert done.returncode == 5, done.stderr
    assert "rows.jsonl" in done.stderr
    assert "restart" not in done.stderr
