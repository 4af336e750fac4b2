"""Two processes connected by gloo, started once for all tests of a session that compute in two processes."""

from __future__ import annotations

import atexit
import contextlib
import importlib
import multiprocessing
import os
import runpy
import tempfile
import time
import traceback
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

PATIENCE = 300.0
"""Seconds that a function may take."""
AFTER_FAILURE = 20.0
"""Seconds that it may take after it failed in the other process."""


PRELOADED = ["torch.distributed.fsdp", "transformers.modeling_utils", "smollm3_finetune.testing.small"]


class ProcessPair:
    """Two processes that wait for work."""

    def __init__(self) -> None:
        method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
        started: Any = multiprocessing.get_context(method)
        started.set_forkserver_preload(PRELOADED)  # imported once for both
        self._directory = tempfile.TemporaryDirectory()
        rendezvous = str(Path(self._directory.name) / "rendezvous")
        self._pipes, self._processes = [], []
        for rank in range(2):
            here, there = started.Pipe()
            process = started.Process(target=_serve, args=(there, rank, rendezvous), daemon=True)
            process.start()
            there.close()
            self._pipes.append(here)
            self._processes.append(process)
        atexit.register(self.close)

    def call(self, function: str, *args: Any) -> list[Any]:
        """The results of `module:function` or `FILE.py:function` in both processes, called at the same time.

        Arguments and results are pickled. Raises RuntimeError with the traceback of a process that failed. If the other
        one does not fail too, the pair is closed.
        """
        for pipe in self._pipes:
            pipe.send((function, args))
        found: list[Any] = []
        failures: list[str] = []
        ends = time.monotonic() + PATIENCE
        for rank, pipe in enumerate(self._pipes):
            try:
                answered = pipe.poll(max(ends - time.monotonic(), 0) if not failures else AFTER_FAILURE)
                result, failure = pipe.recv() if answered else (None, f"process {rank} did not answer in time")
            except EOFError:
                answered, result, failure = False, None, f"process {rank} ended"
            if not answered:
                self.close()
            failures += [] if failure is None else [failure]
            found.append(result)
        if failures:
            if len(failures) == 1:
                self.close()
            raise RuntimeError(failures[0])
        return found

    def close(self) -> None:
        process_pair.cache_clear()
        for process in self._processes:
            process.kill()
            process.join()
        with contextlib.suppress(OSError):
            self._directory.cleanup()


@cache
def process_pair() -> ProcessPair:
    """The pair of this session."""
    return ProcessPair()


def finetuned(arguments: Mapping[str, Any], environment: Mapping[str, str], directory: Path) -> dict[str, Any]:
    """The report of `finetune` with these arguments, in this directory, with these variables; for both processes."""
    from accelerate.state import AcceleratorState, GradientState

    from smollm3_finetune.launching.finetune import finetune

    os.chdir(directory)
    os.environ |= environment
    try:
        return finetune(**arguments, quiet=True)
    finally:
        for name in environment:
            del os.environ[name]
        AcceleratorState._reset_state(True)
        GradientState._reset_state()


FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
}
"""The variables with which `accelerate launch` asks for FSDP 2."""


def _serve(pipe: Any, rank: int, rendezvous: str) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}  # not used: the processes are connected already
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    while True:
        try:
            function, args = pipe.recv()
        except EOFError:  # the session ended
            return
        module, _, name = function.rpartition(":")
        try:
            found = runpy.run_path(module) if module.endswith(".py") else vars(importlib.import_module(module))
            pipe.send((found[name](*args), None))
        except BaseException:
            pipe.send((None, traceback.format_exc()))
