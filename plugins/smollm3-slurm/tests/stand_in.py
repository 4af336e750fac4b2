"""Stand-ins for Slurm's commands, which execute a job on this machine: sbatch, srun, squeue, scontrol, scancel.

    python stand_in.py COMMAND ARGUMENTS …

The state of a job is in a folder of SLURM_STAND_IN, named by its number. Options that the plugin does not use are
refused.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

PLACE = Path(os.environ.get("SLURM_STAND_IN", "slurm"))
FIRST = 4711
OPTIONS = {
    "job-name", "output", "nodes", "ntasks-per-node", "gpus-per-node", "cpus-per-task", "partition", "account", "qos",
    "constraint", "time", "mem", "open-mode", "signal", "requeue", "no-requeue", "exclusive",
}  # fmt: skip


def options_of(script: Path, arguments: list[str]) -> dict[str, str]:
    """The options in the lines of a script and of the command line, which win."""
    lines = re.findall(r"^#SBATCH (.*)$", script.read_text(encoding="utf-8"), re.MULTILINE)
    found: dict[str, str] = {}
    for argument in [part for line in lines for part in shlex.split(line)] + arguments:
        name, _, value = argument.removeprefix("--").partition("=")
        if name not in OPTIONS:
            fail(f"sbatch: unrecognized option '--{name}'")
        found[name] = value
    return found


def fail(text: str) -> None:
    print(text, file=sys.stderr)
    sys.exit(1)


def sbatch(*arguments: str) -> None:
    *own, name = arguments
    if own[0] != "--parsable":
        fail("sbatch: --parsable is expected")
    script = Path(name)
    options = options_of(script, own[1:])
    if options.get("partition") == "none":
        fail("sbatch: error: invalid partition specified: none\nsbatch: error: Batch job submission failed: Invalid "
             "partition name specified")  # fmt: skip
    PLACE.mkdir(exist_ok=True)
    number = FIRST + len(list(PLACE.iterdir()))
    job = PLACE / str(number)
    job.mkdir()
    (job / "script").write_bytes(script.read_bytes())
    (job / "options").write_text("\n".join(f"{key}={value}" for key, value in options.items()))
    (job / "state").write_text("PENDING")
    subprocess.Popen(
        [sys.executable, __file__, "execute", str(number)], start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    print(f"{number};cluster" if "SLURM_STAND_IN_CLUSTER" in os.environ else number)


def execute(number: str) -> None:
    """Run the job, and again for as long as it is requeued."""
    job = PLACE / number
    options = dict(line.split("=", 1) for line in (job / "options").read_text().splitlines())
    nodes, tasks = int(options["nodes"]), int(options["ntasks-per-node"])
    log = options["output"].replace("%%", "\0").replace("%j", number).replace("\0", "%")
    while options.get("partition") == "held" and job.exists() and not (job / "cancelled").exists():
        time.sleep(0.05)
    if not job.exists():
        return
    if (job / "cancelled").exists():
        (job / "state").write_text("CANCELLED")
        return
    for restarts in range(9):
        (job / "requeue").unlink(missing_ok=True)
        environment = {
            **os.environ, "SLURM_JOB_ID": number, "SLURM_JOB_NODELIST": "localhost", "SLURM_NNODES": str(nodes),
            "SLURM_NTASKS": str(nodes * tasks), "SLURM_RESTART_COUNT": str(restarts),
        }  # fmt: skip
        if "cpus-per-task" in options:
            environment["SLURM_CPUS_PER_TASK"] = options["cpus-per-task"]
        (job / "state").write_text("RUNNING")
        with open(log, "ab" if options.get("open-mode") == "append" else "wb") as output:
            code = subprocess.run(["bash", job / "script"], env=environment, stdout=output, stderr=output).returncode
        (job / "code").write_text(str(code))
        if not (job / "requeue").exists():
            (job / "state").write_text(
                "CANCELLED" if (job / "cancelled").exists() else "FAILED" if code else "COMPLETED"
            )
            return
        (job / "state").write_text("PENDING")
        time.sleep(0.3)


def srun(*arguments: str) -> None:
    """Start the tasks, pass signals on to them, and end the others if one fails; the largest exit code."""
    own = [a for a in arguments[:4] if a.startswith("--")]
    if not {"--ntasks", "--kill-on-bad-exit"} <= {a.partition("=")[0] for a in own}:
        fail("srun: options are missing")
    count, command = int(own[0].partition("=")[2]), arguments[len(own) :]
    job = PLACE / os.environ["SLURM_JOB_ID"]
    tasks = [
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL,
            env={**os.environ, "SLURM_NTASKS": str(count), "SLURM_PROCID": str(n), "SLURM_LOCALID": str(n)},
        )
        for n in range(count)
    ]  # fmt: skip
    (job / "tasks").write_text(" ".join(str(task.pid) for task in tasks))

    def pass_on(number: int, frame: object) -> None:
        for task in tasks:
            task.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, pass_on)
    while any(task.poll() is None for task in tasks):
        if any(task.poll() for task in tasks):
            for task in tasks:
                if task.poll() is None:
                    task.terminate()
            time.sleep(1)
            for task in tasks:
                if task.poll() is None:
                    task.kill()
        time.sleep(0.05)
    (job / "tasks").write_text("")
    sys.exit(max(code if code >= 0 else 128 - code for code in (task.wait() for task in tasks)))


def squeue(*arguments: str) -> None:
    arguments = arguments[2:] if arguments[0] == "-M" else arguments
    if arguments[0:2] != ("--noheader", "-j") or arguments[3:] != ("-o", "%T"):
        fail("squeue: error: unexpected arguments")
    if "SLURM_STAND_IN_DOWN" in os.environ:
        fail("slurm_load_jobs error: Unable to contact slurm controller (connect failure)")
    state = PLACE / arguments[2] / "state"
    if not state.exists():
        fail("slurm_load_jobs error: Invalid job id specified")
    if (now := state.read_text()) in ("PENDING", "RUNNING"):
        print(now)


def scontrol(*arguments: str) -> None:
    arguments = arguments[2:] if arguments[0] == "-M" else arguments
    match arguments:
        case ("show", "hostnames", name):
            print(name)
        case ("show", "job", number):
            job = PLACE / number
            preempted = "2026-11-30T12:00:00" if (job / "preempted").exists() else "None"
            print(f"JobId={number} JobName=x\n   JobState={(job / 'state').read_text()} Reason=None")
            print(f"   SuspendTime=None SecsPreSuspend=0\n   PreemptEligibleTime=Unknown PreemptTime={preempted}")
        case ("requeue", number):
            (PLACE / number / "requeue").touch()
        case _:
            fail("scontrol: unexpected arguments")


def scancel(number: str) -> None:
    job = PLACE / number
    (job / "cancelled").touch()
    for task in (job / "tasks").read_text().split():
        os.kill(int(task), signal.SIGTERM)


if __name__ == "__main__":
    commands = {"sbatch": sbatch, "execute": execute, "srun": srun, "squeue": squeue, "scontrol": scontrol,
                "scancel": scancel}  # fmt: skip
    commands[sys.argv[1]](*sys.argv[2:])
