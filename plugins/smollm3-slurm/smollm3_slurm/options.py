"""The options of the launcher. Imported for help and checks, so it imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from smollm3_finetune.api import option


@dataclass(frozen=True, kw_only=True)
class SlurmOptions:
    nodes: int = option(1, "Number of machines.", ge=1, le=100_000)
    processes: int | None = option(
        None, "Processes on each machine; default: one for each GPU, or one.", ge=1, le=100_000
    )
    gpus_per_node: int | None = option(None, "GPUs on each machine.", ge=1, le=1000)
    cpus_per_task: int | None = option(None, "CPU cores for each process.", ge=1, le=100_000)
    partition: str | None = option(None, "Partition, as in `sbatch --partition`.")
    account: str | None = option(None, "Account that the job is charged to.")
    qos: str | None = option(None, "Quality of service.")
    constraint: str | None = option(None, "Features that the machines must have, such as a100|h100.")
    time: str | None = option(None, "Time limit of the job: minutes, H:MM:SS or D-HH:MM:SS.")
    memory: str | None = option(None, "Memory on each machine, such as 64G.")
    sbatch: tuple[str, ...] = option((), "More options of sbatch, such as --exclusive.")
    setup: tuple[str, ...] = option((), "Shell commands that the job executes first, such as `module load cuda`.")
    template: str | None = option(
        None, "File with a job script of your own, in which {{sbatch}} and {{start}} are replaced."
    )
    requeue: bool = option(
        True,
        "Put the job back into the queue when it is preempted or reaches its time limit; it then continues the run.",
    )
    signal_seconds: int = option(
        180, "Seconds before the time limit at which the run saves a checkpoint and stops.", ge=10, le=65535
    )
    port: int | None = option(
        None, "Free port of the first machine; default: one between 10000 and 29999, by the job number.", ge=1, le=65535
    )
    wait: bool = option(False, "Show the output of the job until the run ends, then its report; Ctrl-C detaches.")
    interval: float = option(10.0, "With wait: seconds between two looks at the queue.", gt=0, le=3600)
