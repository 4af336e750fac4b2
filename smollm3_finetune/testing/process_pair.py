"""Two processes connected by gloo, started once for all tests of a session that compute in two processes."""

from __future__ import annotations

import atexit
import contextlib
import importlib
import multiprocessing
import os
import tempfile
import traceback
from functools import cache
from pathlib import Path
from typing import Any

PATIENCE = 300
"""Seconds that a function may take."""


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
        """The results of `module:function` in both processes, where it is called with `args` at the same time.

        Arguments and results are pickled. Raises RuntimeError with the traceback of a process that failed; the pair
        cannot be used afterwards.
        """
        for pipe in self._pipes:
            pipe.send((function, args))
        found = []
        for rank, pipe in enumerate(self._pipes):
            if not pipe.poll(PATIENCE):
                self.close()
                raise RuntimeError(f"process {rank} did not answer within {PATIENCE} seconds")
            try:
                result, failure = pipe.recv()
            except EOFError:
                result, failure = None, f"process {rank} ended"
            if failure is not None:
                self.close()
                raise RuntimeError(failure)
            found.append(result)
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


def _serve(pipe: Any, rank: int, rendezvous: str) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    while True:
        try:
            function, args = pipe.recv()
        except EOFError:  # the session ended
            return
        module, _, name = function.partition(":")
        try:
            pipe.send((getattr(importlib.import_module(module), name)(*args), None))
        except BaseException:
            pipe.send((None, traceback.format_exc()))
