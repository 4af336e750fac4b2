"""Slurm's commands: submit a job, and ask how it is doing."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from smollm3_finetune.api import MissingRequirementError, SmolLM3Error

PATIENCE = 120.0
"""Seconds in which a command of Slurm must answer."""
ENDED = {
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED",
    "TIMEOUT",
}  # fmt: skip
"""States of jobs that do not run again. A job that is requeued is PENDING or REQUEUED instead."""
UNKNOWN = re.compile(r"invalid job id", re.IGNORECASE)
"""What squeue and scontrol say about a job that ended some time ago."""


@dataclass(frozen=True)
class Job:
    """A job of a cluster."""

    number: str
    cluster: str | None = None

    @classmethod
    def parse(cls, text: str) -> Job | None:
        """The job in the answer of `sbatch --parsable`: `4711` or `4711;cluster`."""
        found = re.search(r"^(\d+)(?:;(\S+))?$", text.strip(), re.MULTILINE)
        return None if found is None else cls(found[1], found[2])

    def __str__(self) -> str:
        return self.number if self.cluster is None else f"{self.number};{self.cluster}"

    def command(self, name: str) -> str:
        """A command that a user types: `squeue -j 4711`."""
        flag = "" if name == "scancel" else " -j"
        where = "" if self.cluster is None else f" -M {self.cluster}"
        return f"{name}{where}{flag} {self.number}"

    def state(self) -> str | None:
        """`PENDING`, `RUNNING`, …; None if the job ended and Slurm has forgotten it.

        Raises SmolLM3Error if Slurm does not answer.
        """
        where = () if self.cluster is None else ("-M", self.cluster)
        done = _run(["squeue", *where, "--noheader", "-j", self.number, "-o", "%T"])
        if done.returncode != 0 and not UNKNOWN.search(done.stderr):
            raise SmolLM3Error(
                f"squeue does not say whether job {self.number} has ended: {_why(done)}", hint=self.command("squeue")
            )
        states = [line.strip() for line in done.stdout.splitlines() if line.strip() and ":" not in line]
        return states[-1] if done.returncode == 0 and states else None

    def active(self) -> bool:
        """Whether the job waits or runs."""
        state = self.state()
        return state is not None and state not in ENDED

    def last_state(self) -> str | None:
        """The state of a job that ended a short time ago, if Slurm still knows it."""
        where = () if self.cluster is None else ("-M", self.cluster)
        done = _run(["scontrol", *where, "show", "job", self.number])
        found = re.search(r"JobState=(\S+)", done.stdout) if done.returncode == 0 else None
        return None if found is None else found[1]


def submit(arguments: Sequence[str]) -> Job:
    """Submit a script. Raises SmolLM3Error if sbatch refuses it."""
    done = _run(["sbatch", "--parsable", *arguments])
    job = Job.parse(done.stdout) if done.returncode == 0 else None
    if job is None:
        raise SmolLM3Error(
            f"sbatch refused the job: {_why(done)}",
            hint="correct the options of the launcher; --dry-run shows the script",
        )
    return job


def _run(argv: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            argv, capture_output=True, text=True, errors="replace", timeout=PATIENCE, stdin=subprocess.DEVNULL
        )
    except FileNotFoundError as e:
        raise MissingRequirementError(
            f"launcher slurm needs the command {argv[0]}, which this machine does not have",
            hint="run the command on a login node of the cluster; --dry-run shows the script",
        ) from e
    except (OSError, subprocess.TimeoutExpired) as e:
        reason = f"no answer in {PATIENCE:.0f} s" if isinstance(e, subprocess.TimeoutExpired) else str(e.strerror)
        raise SmolLM3Error(f"{argv[0]} failed: {reason}", hint="run the same command again") from e


def _why(done: subprocess.CompletedProcess[str]) -> str:
    """The last line that a command printed."""
    lines = [line.strip() for line in (done.stderr.strip() or done.stdout.strip()).splitlines() if line.strip()]
    return re.sub(r"^(?:\w+: )?(?:\w+ )?error: ", "", lines[-1]) if lines else f"exit code {done.returncode}"
