"""The options of the launcher. Imported for help and checks, so it imports no Ray."""

from __future__ import annotations

import os
from dataclasses import dataclass

from smollm3_finetune.api import option


@dataclass(frozen=True, kw_only=True)
class RayOptions:
    workers: int = option(1, "Processes of the run, or of each trial of a sweep.", ge=1, le=100000)
    min_workers: int | None = option(
        None, "Elastic: continue with fewer workers, but at least this many; none: always `workers`.", ge=1, le=100000
    )
    gpus_per_worker: int | None = option(
        None, "GPUs that each worker reserves; none: 1 if the run is on a GPU, otherwise 0.", ge=0, le=64
    )
    cpus_per_worker: int = option(1, "CPUs that each worker reserves.", ge=1, le=4096)
    address: str | None = option(
        None, "Address of a running Ray cluster, or `auto`; none: start Ray on this machine and stop it afterwards."
    )
    storage_path: str | None = option(
        None, "Directory or URI, such as s3://bucket/path, to which Ray copies the newest checkpoint; none: no copy."
    )
    max_failures: int = option(3, "Restarts of the workers after one of them died; -1: no limit.", ge=-1, le=100000)
    report_every: int = option(
        10, "Report every N-th step to Ray; steps with a held-out loss are always reported.", ge=1, le=1000000
    )
    logs: bool = option(False, "Show the log lines of Ray and the output of all its workers.")
    concurrent: int | None = option(
        None, "Sweeps: trials at the same time; none: as many as the CPUs and GPUs allow.", ge=1, le=100000
    )
    asha: bool = option(False, "Sweeps: stop trials early with ASHA if their held-out loss is among the worse ones.")
    grace_steps: int = option(100, "With asha: steps before a trial can be stopped.", ge=1, le=10**9)
    reduction_factor: int = option(3, "With asha: about 1 in N trials continues after each rung.", ge=2, le=1000)


def storage(options: RayOptions) -> str | None:
    """The place for copies of checkpoints, as Ray takes it: a URI or an absolute path."""
    path = options.storage_path
    return path if path is None or "://" in path else os.path.abspath(os.path.expanduser(path))
