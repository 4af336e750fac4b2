"""Descriptor, options and texts, without Ray."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import smollm3_ray
from smollm3_ray.cluster import _check_listens, _environment, _output_of_threads
from smollm3_ray.errors import RunError, as_one_sentence, portable, what_happened
from smollm3_ray.launcher import Background, RayLauncher
from smollm3_ray.options import RayOptions, storage

from smollm3_finetune.api import ConfigError, DataError, Env, Launch, SmolLM3Error

(SPEC,) = smollm3_ray.smollm3_launchers()
LAUNCH = Launch(run=Path("/runs/one"), command=("python", "-m", "smollm3_finetune.main", "train"), name="one")


def test_the_number_of_processes_is_known_unless_it_may_change() -> None:
    assert SPEC.processes is not None
    assert SPEC.processes(RayOptions(workers=3)) == 3
    assert SPEC.processes(RayOptions(workers=3, min_workers=2)) is None


@pytest.mark.parametrize(
    ("options", "device", "says"),
    [
        ({"workers": 2, "min_workers": 3}, "cpu", "min_workers=3 is more than workers=2"),
        ({"address": "ray://host:10001"}, "cpu", "Ray Client addresses"),
        ({"gpus_per_worker": 1}, "cpu", "but the run is on the CPU"),
        ({"gpus_per_worker": 0}, "cuda", "hides every GPU"),
    ],
)
def test_options_that_contradict_are_refused_with_a_hint(options: dict[str, Any], device: str, says: str) -> None:
    assert SPEC.check is not None
    with pytest.raises(ConfigError, match=says) as e:
        SPEC.check(RayOptions(**options), Env(device=device))
    assert e.value.hint is not None


@pytest.mark.parametrize(
    ("options", "device"), [({}, "cpu"), ({"min_workers": 1, "workers": 4}, "cuda"), ({"address": "auto"}, "cpu")]
)
def test_other_options_are_accepted(options: dict[str, Any], device: str) -> None:
    assert SPEC.check is not None
    SPEC.check(RayOptions(**options), Env(device=device))


def test_a_run_on_the_gpus_of_a_cluster_is_planned_for_them() -> None:
    assert SPEC.device(RayOptions(address="auto", gpus_per_worker=1)) == "cuda"
    assert SPEC.device(RayOptions(address="auto")) is None
    assert SPEC.device(RayOptions(gpus_per_worker=1)) is None


def test_the_description_names_workers_device_and_command() -> None:
    text = RayLauncher(RayOptions(workers=2, min_workers=1, storage_path="s3://bucket/runs")).describe(LAUNCH)
    assert "1 to 2 workers of 1 CPU" in text
    assert "s3://bucket/runs" in text
    assert "python -m smollm3_finetune.main train" in text
    gpu = RayLauncher(RayOptions(max_failures=0)).describe(Launch(run=LAUNCH.run, command=("python",), device="cuda"))
    assert "1 worker of 1 CPU and 1 GPU" in gpu
    assert "never" in gpu


def test_only_errors_that_a_restart_would_repeat_are_final() -> None:
    assert portable(DataError("row 3 is empty", hint="remove it")).final
    assert not portable(SmolLM3Error("process 1 could not connect")).final


class Died(Exception):
    """As Ray's error for a worker whose process is gone."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.health_check_failure = Exception(text)


class OfWorkers(Exception):
    def __init__(self, failures: dict[int, Exception]) -> None:
        super().__init__("Training failed due to worker errors:\nTraceback (most recent call last):")
        self.worker_failures = failures


def test_the_worker_that_died_explains_the_errors_of_the_others() -> None:
    lost = RuntimeError("[gloo/pair.cc:553] Connection closed by peer [127.0.0.1]:3986")
    said = as_one_sentence(OfWorkers({0: lost, 1: Died("Worker exit type: SYSTEM_ERROR")}))
    assert said.message == "worker 1 died: its process was killed, or its machine is gone"
    assert said.hint is not None
    assert what_happened(lost) == "lost its connection to another worker"
    out = Died("Worker exit type: NODE_OUT_OF_MEMORY Worker exit detail: …")
    assert what_happened(out) == "was killed because its machine ran out of memory"
    assert what_happened(ValueError("a\nb")) == "failed with ValueError: a"


def test_an_error_of_the_run_keeps_its_words() -> None:
    class OfController(Exception):
        controller_failure = RunError("row 3 is empty", "remove it", final=True)

    said = as_one_sentence(OfController())
    assert (said.message, said.hint) == ("row 3 is empty", "remove it")


def test_variables_are_set_for_ray_and_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "1")
    monkeypatch.delenv("RAY_CHDIR_TO_TRIAL_DIR", raising=False)
    with _environment({"RAY_CHDIR_TO_TRIAL_DIR": "0"}, {"RAY_USAGE_STATS_ENABLED": "0"}):
        assert os.environ["RAY_CHDIR_TO_TRIAL_DIR"] == "0"
        assert os.environ["RAY_USAGE_STATS_ENABLED"] == "1"  # the user's
    assert "RAY_CHDIR_TO_TRIAL_DIR" not in os.environ


@pytest.mark.parametrize("shown", [False, True])
def test_threads_of_ray_do_not_print_to_stdout(capsys: pytest.CaptureFixture[str], shown: bool) -> None:
    with _output_of_threads(shown):
        print("ours")
        thread = Background(lambda: print("(raylet) a worker died"))
        while thread.wait(0.1):
            pass
    out, err = capsys.readouterr()
    assert out == "ours\n"
    assert ("(raylet)" in err) is shown


def test_the_descriptor_imports_no_ray_and_no_torch() -> None:
    loaded = "{'ray', 'torch', 'transformers', 'pandas'} & {*sys.modules}"
    code = f"import sys, smollm3_ray, smollm3_ray.options\nprint({loaded})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("address", ["127.0.0.1:1", "[::1]:1", "127.0.0.1:99999", "node..one:6379"])
def test_an_address_where_nothing_listens_is_refused_at_once(address: str) -> None:
    """Ray would try again for minutes."""
    with pytest.raises(ConfigError, match="no Ray cluster answers at address="):
        _check_listens(address)


def test_an_address_where_something_listens_is_left_to_ray() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        _check_listens(f"127.0.0.1:{server.getsockname()[1]}")
    _check_listens("auto")


def test_a_directory_for_checkpoints_may_be_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert storage(RayOptions()) is None
    assert storage(RayOptions(storage_path="s3://bucket/path")) == "s3://bucket/path"
    assert storage(RayOptions(storage_path="copies")) == str(tmp_path / "copies")


WITHOUT_RAY = """
import importlib.metadata
version = importlib.metadata.version
def installed(name):
    if name == "ray":
        raise importlib.metadata.PackageNotFoundError(name)
    return version(name)
importlib.metadata.version = installed
from smollm3_finetune.main import main
main()
"""


@pytest.mark.plugins
def test_without_ray_a_run_is_refused_with_the_command_that_installs_it(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WITHOUT_RAY, "train", "--adapter", "full", "--device", "cpu", "--launcher", "ray"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 4
    assert "launcher 'ray' requires ray[train,tune]>=2.60, but it is not installed" in done.stderr
    assert "hint: pip install 'ray[train,tune]>=2.60'" in done.stderr
    assert not list(tmp_path.iterdir())
