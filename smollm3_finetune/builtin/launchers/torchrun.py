"""The launcher `torchrun`."""

from __future__ import annotations

import shlex
import sys

from smollm3_finetune.api import Launch, Progress, run_processes
from smollm3_finetune.builtin.launchers.checks import processes_here
from smollm3_finetune.builtin.launchers.elastic import environment
from smollm3_finetune.builtin.launchers.options import TorchrunOptions


class Torchrun:
    def __init__(self, options: TorchrunOptions) -> None:
        self.options = options

    def describe(self, launch: Launch) -> str:
        return shlex.join(["torchrun", *self._arguments(launch)])

    def launch(self, launch: Launch, progress: Progress) -> None:
        run_processes(
            [sys.executable, "-m", "torch.distributed.run", *self._arguments(launch)],
            launch,
            progress,
            environment=environment(processes_here(self.options), launch.device),
        )

    def _arguments(self, launch: Launch) -> list[str]:
        o = self.options
        found = ["--nproc-per-node", str(processes_here(o))]
        if o.rendezvous is None:
            found += ["--standalone"]
        else:
            host, _, port = o.rendezvous.rpartition(":")
            found += ["--nnodes", str(o.nodes), "--node-rank", str(o.node_rank)]
            found += ["--master-addr", host, "--master-port", port]
            found += ["--rdzv-conf", f"timeout={o.rendezvous_timeout}"]
        if o.restarts:
            found += ["--max-restarts", str(o.restarts)]
        return [*found, *launch.command[1:]]
