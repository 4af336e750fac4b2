"""Several processes that train together, started by torchrun or `accelerate launch`.

Each process has the whole model and its share of every batch; transformers' Trainer sums the gradients. Only the first
process writes the run and prints.
"""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

from smollm3_finetune.errors import ConfigError, SmolLM3Error, first_line

T = TypeVar("T")
PATIENCE = timedelta(days=7)
"""How long processes wait for work that only the main one does."""


def world_size() -> int:
    """The number of processes that train together. Raises ConfigError if WORLD_SIZE is not a positive integer."""
    text = os.environ.get("WORLD_SIZE", "1")
    if not text.isdecimal() or not int(text):
        raise ConfigError(
            f"the environment variable WORLD_SIZE must be a positive integer, not {text!r}", hint="unset WORLD_SIZE"
        )
    return int(text)


VARIABLES = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What a launcher sets for each process."""
OF_SLURM = {"WORLD_SIZE": "SLURM_NTASKS", "RANK": "SLURM_PROCID", "LOCAL_RANK": "SLURM_LOCALID"}
"""The variables of srun from which a job script can set those of a launcher."""


def check_launcher() -> None:
    """Raises ConfigError if the environment describes several processes incompletely or inconsistently.

    A process would otherwise wait for others that do not exist. SLURM's own variables alone do not matter.
    """
    given = {name: os.environ[name] for name in VARIABLES if os.environ.get(name)}
    size, rank, local = (given.get(name) for name in VARIABLES[:3])
    if size in (None, "1") and rank in (None, "0") and local in (None, "-1"):
        return
    shown = " and ".join(f"{name}={given[name]}" for name in VARIABLES[:3] if name in given)
    count = int(size) if size is not None and size.isdecimal() and int(size) > 1 else 2
    command = f"torchrun --nproc-per-node {count} -m smollm3_finetune.main train …"
    unset = f"unset {' '.join(name for name in VARIABLES[:3] if name in given)}"
    if missing := [name for name in VARIABLES if name not in given]:
        names = ", ".join(missing[:-1]) + (" and " if missing[:-1] else "") + missing[-1]
        hint = f"for several processes: {command}; for one: {unset}"
        if "SLURM_PROCID" in os.environ and all(name in OF_SLURM for name in missing):
            hint = "export " + " ".join(f"{name}=${OF_SLURM[name]}" for name in missing)
        raise ConfigError(f"the environment has {shown}, but not {names}: no launcher started this process", hint=hint)
    for name, value in (("RANK", rank), ("LOCAL_RANK", local)):
        if value is None or not value.isdecimal() or int(value) >= world_size():
            raise ConfigError(
                f"the environment variable {name} must be a number below WORLD_SIZE={size}, not {value!r}",
                hint=f"{command}; for one process: {unset}",
            )


def is_main_process() -> bool:
    return world_size() == 1 or os.environ.get("RANK", "0") == "0"


@contextlib.contextmanager
def connecting(device: str = "cpu") -> Iterator[None]:
    """Inside the context, the processes connect; an error of torch, such as its timeout, becomes a SmolLM3Error."""
    try:
        _connect_again(device.partition(":")[0])
        yield
    except RuntimeError as e:
        import torch.distributed as dist

        known = dist.is_available() and (isinstance(e, dist.DistError) or "connectFullMesh" in str(e))
        if not known:
            raise
        if _restarted():
            raise SmolLM3Error(
                f"process {os.environ.get('RANK', '0')} of {world_size()} was started again, and could not connect to "
                f"the others: {first_line(e)}",
                hint=f"export {OWN_STORE}=1 before torchrun: otherwise it keeps the addresses of ended processes",
            ) from e
        address = ":".join(os.environ.get(name, "?") for name in ("MASTER_ADDR", "MASTER_PORT"))
        raise SmolLM3Error(
            f"process {os.environ.get('RANK', '0')} of {world_size()} could not connect to the others at {address}: "
            f"{first_line(e)}",
            hint="start every process, and give all of them the same MASTER_ADDR and a free MASTER_PORT",
        ) from e


OWN_STORE = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"
"""A variable of torchrun: each start of the processes has a store of its own."""


def _restarted() -> bool:
    """Whether torchrun has started the processes again, and they share its store."""
    count = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return count not in ("", "0") and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


BACKENDS = {"cpu": "gloo", "cuda": "nccl"}


def _connect_again(device: str) -> None:
    """Connect processes that torchrun has started again on one machine.

    Its store keeps the addresses of the ended processes, under the same names
    (https://github.com/pytorch/pytorch/issues/135712). On several machines the number of the start may differ, so that
    it cannot be part of the names.
    """
    if world_size() == 1 or not _restarted() or os.environ.get("GROUP_WORLD_SIZE") != "1":
        return
    import torch
    import torch.distributed as dist

    if dist.is_initialized() or device not in BACKENDS:
        return
    place = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
    shared = dist.TCPStore(*place, world_size(), is_master=False)
    store = dist.PrefixStore(f"start-{os.environ['TORCHELASTIC_RESTART_COUNT']}", shared)
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    about = {"rank": int(os.environ["RANK"]), "world_size": world_size()}
    dist.init_process_group(BACKENDS[device], store=store, **about)


def of_main_process(path: Path) -> Path:
    """The main process's value of `path`, in every process: a directory named by the time would differ otherwise.

    Call it after `TrainingArguments` was created, which connects the processes.
    """
    return Path(from_main(str(path)))


def from_main(value: T) -> T:
    """The main process's value, in every process; every process must call this."""
    import torch.distributed as dist

    if world_size() == 1 or not dist.is_available() or not dist.is_initialized():
        return value
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]


def done_by_main(act: Callable[[], None], what: str) -> None:
    """Let the main process `act`, which may take hours; every process must call this, and the others wait for its end.

    They do not wait in the training group, whose timeout may be minutes. If `act` raises in the main process, they
    raise a SmolLM3Error that says `what` failed: otherwise they would wait for steps that never come.
    """
    import torch.distributed as dist

    if world_size() == 1 or not dist.is_available() or not dist.is_initialized():
        act()
        return
    group = dist.new_group(backend="gloo", timeout=PATIENCE)
    done = [False]
    try:
        if is_main_process():
            act()
            done = [True]
    finally:
        dist.broadcast_object_list(done, group=group)
        dist.destroy_process_group(group)
    if not done[0]:
        raise SmolLM3Error(f"{what} failed in the main process", hint="read the error of process 0")


def shut_down_processes() -> None:
    """Destroy the process group, if there is one; call it at the end of a program whose processes all succeeded.

    A process that exits while a thread of the group still holds a tensor may abort after all work is done
    (https://github.com/pytorch/pytorch/pull/179291).
    """
    if world_size() == 1:
        return
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        gc.collect()  # an uncollected wrapped model would keep the threads alive
        with contextlib.suppress(RuntimeError):  # another process may have exited; everything is written already
            dist.destroy_process_group()
