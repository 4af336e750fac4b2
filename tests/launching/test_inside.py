"""A launched run, with a launcher that works on it inside the calling process: what is handed over and reported."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

INSIDE = str(Path(__file__).parents[1] / "out_of_tree" / "inside_launcher.py")
FAILING = [
    argument for name in ("scale", "failing") for argument in ("-p", str(Path(INSIDE).with_name(f"{name}_adapter.py")))
]
RUN = ("train", "--adapter", "full", "--device", "cpu", "--max-length", "64", "--max-steps", "3", "--batch-size", "2")
RUN = (*RUN, "--set", "data.limit=30", "--set", "train.sample_tokens=2")
LAUNCHED = (*RUN, "-p", INSIDE, "--launcher", "inside", "--output", "run")
Cli = Callable[..., Any]


def observed() -> list[list[Any]]:
    return [json.loads(line) for line in Path("observed.jsonl").read_text().splitlines()]


def losses(run: str) -> list[float]:
    rows = [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


def test_a_launched_run_is_reported_and_observed(cli: Cli) -> None:
    alone = cli(*RUN, "--json", "--output", "alone")
    result = cli(*LAUNCHED, "--json", "--set", "train.eval_every=2", "--set", "train.save_every=2")
    assert result.code == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["steps"] == 3 and report["run"] == "run", "as the user called it"
    assert losses("run") == losses("alone")
    assert report["after"]["held_out_loss"] == json.loads(alone.stdout)["after"]["held_out_loss"]
    assert "run on cpu" in result.stderr
    assert not Path("run/.launched").exists()

    entries = observed()
    steps = [(step, values) for kind, step, *values in entries if kind == "measured"]
    assert [step for step, [values] in steps if "loss" in values] == [1, 2, 3]
    held_out = {step: values["held_out_loss"] for step, [values] in steps if "held_out_loss" in values}
    assert set(held_out) == {2, 3}
    assert held_out[3] == report["after"]["held_out_loss"]
    saved = [entry[1:] for entry in entries if entry[0] == "saved"]
    assert saved == [[2, ["trainer_state.json"]], [3, ["trainer_state.json"]]]
    assert entries[-1] == ["returned", True]

    assert "name: inside_launcher:inside" in Path("run/run.yaml").read_text()
    versions = json.loads(Path("run/versions.json").read_text())
    assert versions["processes"] == 1 and "inside_launcher" in versions["plugins"]


def test_an_observer_stops_a_run_that_can_be_resumed_without_the_launcher(cli: Cli) -> None:
    stopped = cli(*LAUNCHED, "--launcher-opt", "stop_at=1")
    assert stopped.code == 1
    assert observed()[-1] == ["returned", False]
    assert stopped.stderr.splitlines()[-2:] == [
        "error: launcher 'inside' ended the run before its last step; step 2 is saved in run/checkpoints/checkpoint-2",
        "  hint: to continue: smollm3 train --resume run",
    ], "told after step 1, it ends after the next one"
    resumed = cli("train", "--resume", "run", "-p", INSIDE, "--launcher", "none", "--json")
    assert resumed.code == 0, resumed.stderr
    whole = cli(*RUN, "--output", "whole")
    assert whole.code == 0
    assert Path("run/adapter/model.safetensors").read_bytes() == Path("whole/adapter/model.safetensors").read_bytes()
    assert "name: smollm3-finetune:none" in Path("run/run.yaml").read_text()


def test_the_second_attempt_of_a_launch_continues_from_the_checkpoint(cli: Cli) -> None:
    """`work` begins the run, which the observer stops; the same launch continues it, with the same settings."""
    options = ("--launcher-opt", "stop_at=1", "--launcher-opt", "attempts=2", "--max-steps", "4")
    result = cli(*LAUNCHED, *options)
    assert result.code == 0, result.stderr
    entries = observed()
    assert [entry[1] for entry in entries if entry[0] == "returned"] == [False, True]
    taken = [entry[1] for entry in entries if entry[0] == "measured" and "loss" in entry[2]]
    assert taken == [1, 2, 3, 4], "no step twice"


def test_the_error_of_a_launched_run_is_its_own(cli: Cli) -> None:
    result = cli(*LAUNCHED, *FAILING, "--adapter", "failing", "--adapter-opt", "how=gradients")
    assert result.code == 1
    assert result.stderr.count("error: ") == 1
    assert "in step 2; the checkpoint run/checkpoints/checkpoint-1 has the weights" in result.stderr
    assert "Traceback" not in result.stderr
    assert json.loads(Path("run/error.json").read_text())["message"].startswith("the gradient norm became")


UNATTACHABLE = """
from scale_adapter import ScaleAdapter
from smollm3_finetune.api import AdapterSpec, ModelError, Op, hookimpl

@hookimpl
def smollm3_adapters():
    return [AdapterSpec(name="unattachable", summary="fails", factory="unattachable:Unattachable", needs={Op.FORWARD},
                        options="scale_adapter:ScaleOptions", api=2)]

class Unattachable(ScaleAdapter):
    def attach(self, base, ctx, total_steps):
        raise ModelError("this adapter cannot be attached", hint="use another one: --adapter full")
"""


def test_a_run_that_fails_before_its_first_step_leaves_nothing(cli: Cli, plugin_file: Callable[..., Path]) -> None:
    broken = plugin_file("unattachable", UNATTACHABLE)
    result = cli(*LAUNCHED, *FAILING[:2], "-p", str(broken), "--adapter", "unattachable")
    assert result.code == 6, result.stderr
    assert result.stderr.splitlines()[-2:] == [
        "error: this adapter cannot be attached",
        "  hint: use another one: --adapter full",
    ]
    assert not Path("run").exists()


def test_a_dry_run_shows_what_the_launcher_would_do(cli: Cli) -> None:
    result = cli(*LAUNCHED, "--dry-run")
    assert result.code == 0, result.stderr
    assert f"# launcher 'inside': 1 process\n#   work on {Path('run').absolute()} in this process\n" in result.stdout
    assert not Path("run").exists()


def test_a_command_for_two_machines_is_shown(cli: Cli) -> None:
    two = ("--launcher-opt", "nodes=2", "--launcher-opt", "processes=8")
    torchrun = cli(*RUN, "--launcher", "torchrun", *two, "--launcher-opt", "rendezvous=node0:29500", "--output", "run",
                   "--dry-run")  # fmt: skip
    assert torchrun.code == 0, torchrun.stderr
    assert "# launcher 'torchrun': 16 processes\n" in torchrun.stdout
    assert "torchrun --nproc-per-node 8 --nnodes 2 --node-rank 0 --master-addr node0 --master-port 29500" in (
        torchrun.stdout
    )
    accelerate = cli(*RUN, "--launcher", "accelerate", *two, "--launcher-opt", "main_address=node0",
                     "--launcher-opt", "profile=fsdp2", "--output", "run", "--dry-run")  # fmt: skip
    assert accelerate.code == 0, accelerate.stderr
    assert "# launcher 'accelerate': 16 processes, sharding fsdp2\n" in accelerate.stdout
    for flag in ("--num_processes 16", "--num_machines 2", "--machine_rank 0", "--main_process_ip node0",
                 "--use_fsdp --fsdp_version 2"):  # fmt: skip
        assert flag in accelerate.stdout


def test_the_other_machine_shows_its_command_and_plans_nothing(cli: Cli) -> None:
    two = ("--launcher-opt", "nodes=2", "--launcher-opt", "processes=8", "--launcher-opt", "rendezvous=node0:29500")
    result = cli(*RUN, "--launcher", "torchrun", *two, "--launcher-opt", "node_rank=1", "--output", "run", "--dry-run")
    assert result.code == 0, result.stderr
    assert "--node-rank 1 " in result.stderr and "--launched" in result.stderr
    assert "training row" not in result.stdout
    nowhere = cli(*RUN, "--launcher", "torchrun", *two, "--launcher-opt", "node_rank=1")
    assert nowhere.code == 2
    assert "whose directory must be named" in nowhere.stderr


def test_the_other_machine_checks_its_options(cli: Cli) -> None:
    """Without a place to meet, its processes would be a run of their own in the directory of machine 0."""
    alone = ("--launcher-opt", "nodes=2", "--launcher-opt", "node_rank=1", "--launcher-opt", "processes=8")
    result = cli(*RUN, "--launcher", "torchrun", *alone, "--output", "run", "--dry-run")
    assert result.code == 2, result.stderr
    assert "needs the place where 2 machines meet" in result.stderr


@pytest.mark.parametrize(
    ("options", "code", "message", "hint"),
    [
        (("--launcher", "torchrn"), 2, "'torchrn'", "torchrun"),
        (("--launcher", "torchrun", "--launcher-opt", "proceses=2"), 2, "has no option 'proceses'", "'processes'"),
        (("--launcher", "torchrun", "--launcher-opt", "nodes=2", "--launcher-opt", "processes=2"), 2,
         "where 2 machines meet", "--launcher-opt rendezvous="),
        (("--launcher", "torchrun", "--launcher-opt", "rendezvous=node0", "--launcher-opt", "processes=2"), 2,
         "must be HOST:PORT, not 'node0'", "HOST:29500"),
        (("--launcher", "accelerate", "--launcher-opt", "nodes=2", "--launcher-opt", "processes=2"), 2,
         "needs the address of machine 0", "main_address=HOST"),
        (("--launcher", "accelerate", "--launcher-opt", "processes=2", "--launcher-opt", "offload=true"), 2,
         "offload works with profile fsdp2", "profile=fsdp2"),
    ],
)  # fmt: skip
def test_wrong_options_end_before_anything_is_read(
    cli: Cli, options: tuple[str, ...], code: int, message: str, hint: str
) -> None:
    result = cli(*RUN, *options, "--output", "run")
    assert result.code == code, result.stderr
    error, _, given = result.stderr.partition("hint: ")
    assert message in error and hint in given
    assert not Path("run").exists()


def test_deepspeed_is_a_requirement_of_its_profiles(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.metadata

    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.version", missing)
    from smollm3_finetune.api import Env, MissingRequirementError, Purpose
    from smollm3_finetune.builtin.launchers.checks import check_accelerate
    from smollm3_finetune.builtin.launchers.options import AccelerateOptions

    env = Env(device="cuda", purpose=Purpose.TRAIN, tools=frozenset())
    with pytest.raises(MissingRequirementError, match=r"profile zero1 .* requires deepspeed") as caught:
        check_accelerate(AccelerateOptions(profile="zero1", processes=1), env)
    assert caught.value.hint == "pip install deepspeed"


def test_a_launcher_inside_of_another_is_refused(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "WORLD_SIZE": "2",
        "RANK": "0",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "x",
        "MASTER_PORT": "1",
    }.items():
        monkeypatch.setenv(name, value)
    result = cli(*RUN, "--launcher", "torchrun", "--launcher-opt", "processes=2", "--dry-run")
    assert result.code == 2
    assert "--launcher torchrun cannot be used here: another launcher started this process" in result.stderr
