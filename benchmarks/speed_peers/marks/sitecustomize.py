"""Records the optimizer steps of a contestant's process in the file $SPEED_MARKS, one JSON object per line.

Python imports this module at start-up if its directory is on PYTHONPATH, in every process that a contestant starts. It
imports nothing heavy, and waits until the contestant imports torch and transformers:

{"what": "optimizer", …}          when the first optimizer is created: imports are done and weights are loaded
{"what": "step", "positions": …}  after each optimizer step, with the number of token positions that were embedded, and
                                  the largest memory of torch on a GPU, `gpu`
{"what": "log", "logs": {…}}      the logs of transformers.Trainer, not rounded

`time` is wall-clock time; `cpu` is user and system time of the process and its parents, up to $SPEED_ROOT.

With $SPEED_PROFILE, the steps between the first and the last are profiled, from forward pass to forward pass:

{"what": "profile", "step": …, "took": …, "ops": {…}}   the step, from 0; its processor time in seconds; the wall-clock
                                                        seconds of each torch operation, without nested operations

With $SPEED_PARAMETERS, the parameters in memory are counted before the end of the first step:

{"what": "parameters", "count": …}   elements of all parameters of torch, those that share memory once

With $SPEED_TRAINED=float32, trained parameters are cast to float32 when the first optimizer receives them.
"""

from __future__ import annotations

import atexit
import functools
import gc
import importlib.abc
import json
import os
import sys
import time
from typing import Any

FILE = os.environ.get("SPEED_MARKS")
TICK = os.sysconf("SC_CLK_TCK")
PROFILED = "SPEED_PROFILE" in os.environ
state: dict[str, Any] = {"made": False, "positions": 0, "steps": 0, "profiled": 0}


def cpu_seconds() -> float:
    total, pid, root = time.process_time(), os.getppid(), os.environ.get("SPEED_ROOT", "1")
    while pid > 1 and str(pid) != root:
        with open(f"/proc/{pid}/stat") as stream:
            fields = stream.read().rpartition(")")[2].split()  # from the third field: state, ppid, …
        total += (int(fields[11]) + int(fields[12])) / TICK
        pid = int(fields[1])
    return total


def anonymous() -> int:
    """Bytes of memory without a backing file."""
    with open("/proc/self/status") as stream:
        found = {line.split(":")[0]: line.split()[1] for line in stream if line.startswith(("RssAnon", "RssShmem"))}
    return 1024 * sum(map(int, found.values()))


def mark(what: str, **more: Any) -> None:
    line = json.dumps({"what": what, "time": time.time(), "cpu": cpu_seconds(), "pid": os.getpid(), **more})
    with open(str(FILE), "a") as stream:
        stream.write(line + "\n")


def gpu_peak() -> int:
    """The largest memory of torch on the GPU until now, in bytes, after what was queued there; 0 without a GPU."""
    import torch

    if not torch.cuda.is_initialized():
        return 0
    torch.cuda.synchronize()
    return int(torch.cuda.max_memory_allocated())


def parameters() -> int:
    """The elements of all parameters in memory, of every model."""
    from torch.nn import Parameter

    found = (one for one in gc.get_objects() if issubclass(type(one), Parameter))
    return sum({one.data_ptr(): one.numel() for one in found}.values())


def watch_optimizer(module: Any) -> None:
    init = module.Optimizer.__init__

    @functools.wraps(init)
    def first(self: Any, *args: Any, **kwargs: Any) -> None:
        if not state["made"]:
            state["made"] = True
            state["positions"] = 0
            mark("optimizer", anonymous=anonymous())
            if os.environ.get("SPEED_TRAINED") == "float32":
                for group in args[0] if args else kwargs["params"]:
                    for parameter in group["params"]:
                        parameter.data = parameter.data.float()
        init(self, *args, **kwargs)

    def stepped(optimizer: Any, args: Any, kwargs: Any) -> None:
        if "SPEED_PARAMETERS" in os.environ and not state["steps"]:
            mark("parameters", count=parameters())
        mark("step", positions=state["positions"], gpu=gpu_peak())
        state["positions"] = 0
        state["steps"] += 1

    module.Optimizer.__init__ = first
    module.register_optimizer_step_post_hook(stepped)


def profile_step() -> None:
    """Called before the first layer of a forward pass: write the profile of the previous step, and start a new one."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    if not torch.is_grad_enabled() or state["steps"] == state["profiled"]:
        return
    if "profiler" in state:
        took = time.process_time() - state["began"]
        state["profiler"].stop()
        found = state["profiler"].key_averages()
        ops = {e.key: e.self_cpu_time_total / 1e6 for e in found if e.self_cpu_time_total}
        mark("profile", step=state["profiled"], took=took, ops=ops)
    else:
        atexit.register(lambda: state["profiler"].stop())
    state["profiled"] = state["steps"]
    state["profiler"] = profile(activities=[ProfilerActivity.CPU])
    state["profiler"].start()
    state["began"] = time.process_time()


def watch_embedding(module: Any) -> None:
    forward = module.Embedding.forward

    @functools.wraps(forward)
    def counted(self: Any, input: Any) -> Any:
        if PROFILED:
            profile_step()
        state["positions"] += input.numel()
        return forward(self, input)

    module.Embedding.forward = counted


def watch_trainer(module: Any) -> None:
    log = module.Trainer.log

    @functools.wraps(log)
    def logged(self: Any, logs: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        log(self, logs, *args, **kwargs)
        mark("log", logs={k: v for k, v in logs.items() if isinstance(v, int | float)})

    module.Trainer.log = logged


WATCHED = {
    "torch.optim.optimizer": watch_optimizer,
    "torch.nn.modules.sparse": watch_embedding,
    "transformers.trainer": watch_trainer,
}


class Watcher(importlib.abc.MetaPathFinder):
    """Runs a function immediately after the first import of a module."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        then = WATCHED.pop(name, None)
        if then is None:
            return None
        for finder in sys.meta_path:
            if finder is not self and (spec := finder.find_spec(name, path, target)) is not None:
                break
        else:
            return None
        execute = spec.loader.exec_module

        def exec_module(module: Any) -> None:
            execute(module)
            then(module)

        spec.loader.exec_module = exec_module
        return spec


if FILE:
    sys.meta_path.insert(0, Watcher())
