"""The launcher `accelerate`: its profiles as flags of `accelerate launch`, without a file of settings."""

from __future__ import annotations

import shlex
import sys

from smollm3_finetune.api import Launch, Progress, run_processes
from smollm3_finetune.builtin.launchers.checks import all_processes
from smollm3_finetune.builtin.launchers.elastic import environment
from smollm3_finetune.builtin.launchers.options import AccelerateOptions

PROFILES = {
    "ddp": (),
    "fsdp2": ("--use_fsdp", "--fsdp_version", "2", "--fsdp_reshard_after_forward", "true",
              "--fsdp_cpu_ram_efficient_loading", "false", "--fsdp_auto_wrap_policy", "TRANSFORMER_BASED_WRAP"),
    "zero1": ("--use_deepspeed", "--zero_stage", "1"),
    "zero2": ("--use_deepspeed", "--zero_stage", "2"),
}  # fmt: skip


class Accelerate:
    def __init__(self, options: AccelerateOptions) -> None:
        self.options = options

    def describe(self, launch: Launch) -> str:
        return shlex.join(["accelerate", "launch", *self._arguments(launch)])

    def launch(self, launch: Launch, progress: Progress) -> None:
        run_processes(
            [sys.executable, "-m", "accelerate.commands.launch", *self._arguments(launch)],
            launch,
            progress,
            environment=environment(self.options, launch.device),
        )

    def _arguments(self, launch: Launch) -> list[str]:
        o = self.options
        found = ["--num_processes", str(all_processes(o)), "--num_machines", str(o.nodes)]
        found += ["--mixed_precision", "no", "--dynamo_backend", "no"]
        if o.profile == "ddp" and all_processes(o) > 1:
            found += ["--multi_gpu"]  # also on a CPU: --cpu starts a single process
        if o.nodes > 1:
            found += ["--machine_rank", str(o.node_rank), "--main_process_ip", str(o.main_address)]
        found += ["--main_process_port", str(o.main_port) if o.nodes > 1 else "0"]
        if o.restarts:
            found += ["--max_restarts", str(o.restarts)]
        found += PROFILES[o.profile]
        if o.offload:
            found += ["--fsdp_offload_params", "true"]
        return [*found, *launch.command[1:]]
