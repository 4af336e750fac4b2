"""Environment variables of several processes without a launcher, and processes that never connect."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

import pytest

from smollm3_finetune.errors import ConfigError, SmolLM3Error
from smollm3_finetune.train.distributed.processes import VARIABLES, check_launcher, connecting

LAUNCHED = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.fixture(autouse=True)
def without_a_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def set_all(monkeypatch: pytest.MonkeyPatch, variables: Mapping[str, str]) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    "variables",
    [
        {},
        LAUNCHED,
        {"WORLD_SIZE": "1"},
        {"RANK": "0"},
        {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "-1"},
        {"MASTER_ADDR": "node1", "MASTER_PORT": "29500"},
        {"WORLD_SIZE": ""},
        {"SLURM_NTASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "1"},
        {**LAUNCHED, "WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"},
    ],
)
def test_one_process_and_a_launcher_are_accepted(monkeypatch: pytest.MonkeyPatch, variables: Mapping[str, str]) -> None:
    set_all(monkeypatch, variables)
    check_launcher()


@pytest.mark.parametrize(
    ("variables", "message", "hint"),
    [
        (
            {"WORLD_SIZE": "2"},
            "the environment has WORLD_SIZE=2, but not RANK, LOCAL_RANK, MASTER_ADDR and MASTER_PORT: "
            "no launcher started this process",
            "for several processes: torchrun --nproc-per-node 2 -m smollm3_finetune.main train …; for one: "
            "unset WORLD_SIZE",
        ),
        ({"RANK": "1"}, "has RANK=1, but not WORLD_SIZE", "unset RANK"),
        ({"LOCAL_RANK": "0"}, "has LOCAL_RANK=0, but not WORLD_SIZE", "unset LOCAL_RANK"),
        ({"WORLD_SIZE": "4", "RANK": "1"}, "WORLD_SIZE=4 and RANK=1, but not LOCAL_RANK", "--nproc-per-node 4"),
        ({"WORLD_SIZE": "two"}, "has WORLD_SIZE=two, but not RANK", "unset WORLD_SIZE"),
        ({**LAUNCHED, "MASTER_ADDR": ""}, "but not MASTER_ADDR:", "torchrun"),
        ({**LAUNCHED, "RANK": "2"}, "RANK must be a number below WORLD_SIZE=2, not '2'", "torchrun"),
        ({**LAUNCHED, "LOCAL_RANK": "x"}, "LOCAL_RANK must be a number below WORLD_SIZE=2, not 'x'", "torchrun"),
        ({**LAUNCHED, "WORLD_SIZE": "-2"}, "WORLD_SIZE must be a positive integer, not '-2'", "unset WORLD_SIZE"),
        (
            {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "1", "SLURM_PROCID": "1"},
            "but not LOCAL_RANK",
            "export LOCAL_RANK=$SLURM_LOCALID",
        ),
    ],
)
def test_incomplete_variables_are_an_error_at_once(
    monkeypatch: pytest.MonkeyPatch, variables: Mapping[str, str], message: str, hint: str
) -> None:
    set_all(monkeypatch, variables)
    with pytest.raises(ConfigError) as caught:
        check_launcher()
    assert message in caught.value.message
    assert hint in str(caught.value.hint)


def test_a_run_without_a_launcher_ends_at_once(run_cli: Callable[..., Any]) -> None:
    result = run_cli("train", "--adapter", "full", "--dry-run", WORLD_SIZE="2")
    assert result.code == 2
    assert result.stderr.startswith("error: the environment has WORLD_SIZE=2, but not RANK")


def test_processes_that_never_connect_are_a_named_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.distributed import TCPStore

    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
    set_all(monkeypatch, {**LAUNCHED, "MASTER_PORT": str(port)})
    with pytest.raises(SmolLM3Error) as caught, connecting():
        TCPStore("127.0.0.1", port, 2, is_master=False, timeout=timedelta(seconds=1))
    assert caught.value.message.startswith(f"process 1 of 2 could not connect to the others at 127.0.0.1:{port}: ")
