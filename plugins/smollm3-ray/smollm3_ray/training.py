"""Ray Train's trainer for one run, and what its controller does when a worker fails."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchTrainer

from smollm3_finetune.api import Launch
from smollm3_ray.cluster import gpus_per_worker
from smollm3_ray.errors import RunError, what_happened
from smollm3_ray.folder import RunFolder
from smollm3_ray.options import RayOptions, storage
from smollm3_ray.worker import Work, work


def make_trainer(options: RayOptions, launch: Launch, *, waits: bool = False) -> TorchTrainer:
    """A trainer whose `fit` executes the run. `waits`: a measurement is followed by a decision about the trial."""
    name = f"{launch.name or launch.run.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    place = storage(options) or str(RunFolder(launch.run).path / "storage")
    links = None if options.storage_path else str(Path(place) / name)
    gpus = gpus_per_worker(options, launch)
    given = Work(launch=launch, report_every=options.report_every, links=links, waits=waits)
    return TorchTrainer(
        work,
        train_loop_config={"work": given},
        scaling_config=ScalingConfig(
            num_workers=options.workers if options.min_workers is None else (options.min_workers, options.workers),
            use_gpu=gpus > 0,
            resources_per_worker={"CPU": options.cpus_per_worker, **({"GPU": gpus} if gpus else {})},
        ),
        run_config=RunConfig(
            name=name,
            storage_path=place,
            failure_config=FailureConfig(max_failures=options.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
            callbacks=[Failures(launch.run, options.max_failures)],
            worker_runtime_env={"env_vars": dict(launch.environment)} if launch.environment else None,
        ),
    )


class Failures(UserCallback):  # type: ignore[misc]
    """Says that workers are restarted, and ends the run at an error that a restart would repeat."""

    def __init__(self, run: Path, max_failures: int) -> None:
        self.run, self.max_failures = run, max_failures
        self.count = 0

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        for error in worker_exceptions.values():
            if isinstance(error, RunError) and error.final:
                raise error  # Ray does not restart workers after an error of this callback
        self.count += 1
        if self.max_failures != -1 and self.count > self.max_failures:
            return
        rank, error = min(worker_exceptions.items())
        limit = "" if self.max_failures == -1 else f" of {self.max_failures}"
        RunFolder(self.run).say(f"worker {rank} {what_happened(error)}: restart {self.count}{limit}")
