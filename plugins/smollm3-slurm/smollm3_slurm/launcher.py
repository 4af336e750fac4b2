"""The launcher: the job script in the run directory, its submission, and following the job."""

from __future__ import annotations

import codecs
import shlex
import shutil
import time
from pathlib import Path

from smollm3_finetune.api import ConfigError, Launch, MissingRequirementError, Progress, SmolLM3Error, Submitted
from smollm3_slurm.jobs import ENDED, Job, submit
from smollm3_slurm.options import SlurmOptions
from smollm3_slurm.script import job_script

FILES = "launcher"
"""The directory of a run that is the launcher's."""
SCRIPT, JOB, STOPPED = "job.sh", "slurm-job", "stopped"
ATTEMPTS = 30
"""With `wait`: how often in succession squeue may fail, for example while Slurm's controller restarts."""


class Slurm:
    def __init__(self, options: SlurmOptions) -> None:
        self.options = options

    def describe(self, launch: Launch) -> str:
        return f"# {shlex.join(['sbatch', *_arguments(launch)])}\n{job_script(self.options, launch)}".rstrip()

    def ready(self, launch: Launch) -> None:
        """Raises MissingRequirementError without sbatch, and ConfigError if a job of this run waits or runs."""
        for command in ("sbatch", "squeue"):
            if shutil.which(command) is None:
                raise MissingRequirementError(
                    f"launcher slurm needs the command {command}, which this machine does not have",
                    hint="run the command on a login node of the cluster; --dry-run shows the script",
                )
        job = submitted_job(launch.run)
        if job is not None and job.active():
            raise ConfigError(
                f"the run {launch.run} has job {job.number}, which has not ended",
                hint=f"{job.command('squeue')} shows it; to end it: {job.command('scancel')}",
            )

    def launch(self, launch: Launch, progress: Progress) -> Submitted | None:
        self.ready(launch)
        folder = launch.run / FILES
        folder.mkdir(exist_ok=True)
        (folder / STOPPED).unlink(missing_ok=True)
        script = folder / SCRIPT
        script.write_text(job_script(self.options, launch), encoding="utf-8")
        job = submit(_arguments(launch))
        (folder / JOB).write_text(f"{job}\n", encoding="utf-8")
        place = f" of partition {self.options.partition!r}" if self.options.partition else ""
        submitted = Submitted(says=f"job {job.number} is in the queue{place}", hint=job.command("squeue"))
        if not self.options.wait:
            return submitted
        progress.say(f"{submitted.says}; Ctrl-C detaches, and the job continues")
        return self._follow(job, launch, progress)

    def _follow(self, job: Job, launch: Launch, progress: Progress) -> Submitted | None:
        """Show the output of the job until it ends. Raises SmolLM3Error if the run did not finish.

        It does not raise while the job may still wait or run: core would delete a run that has not begun.
        """
        output, state, failures = _Output(log_of(launch, job)), None, 0
        try:
            while True:
                try:
                    now, failures = job.state(), 0
                except SmolLM3Error as e:
                    failures += 1
                    if failures == ATTEMPTS:
                        return Submitted(says=f"job {job.number} may continue: {e.message}", hint=job.command("squeue"))
                    now = state or "PENDING"
                if now is None or now in ENDED:
                    break
                if now != state:
                    state = now
                    progress.say(f"job {job.number} is {state.lower().replace('_', ' ')}")
                output.show(progress)
                time.sleep(self.options.interval)
        except KeyboardInterrupt:
            return Submitted(says=f"job {job.number} continues", hint=f"to end it: {job.command('scancel')}")
        output.show(progress)
        last = job.last_state() or now
        if last not in (None, "COMPLETED"):
            raise SmolLM3Error(
                f"job {job.number} ended with the state {last}", hint=f"read its output: less {_shown(output.path)}"
            )
        return None


def submitted_job(run: Path) -> Job | None:
    """The job that was submitted last for a run; None if there is none."""
    try:
        return Job.parse((run / FILES / JOB).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        return None


def log_of(launch: Launch, job: Job) -> Path:
    return launch.run / FILES / f"job-{job.number}.log"


def _arguments(launch: Launch) -> list[str]:
    """The arguments of sbatch that contain paths, in which sbatch replaces % and what follows it."""
    folder = str(launch.run / FILES)
    log = f"{folder.replace('%', '%%')}/job-%j.log"
    return [f"--job-name={launch.name or launch.run.name}", f"--output={log}", f"{folder}/{SCRIPT}"]


def _shown(path: Path) -> str:
    return shlex.quote(str(path))


class _Output:
    """The lines that a job has written so far."""

    def __init__(self, path: Path) -> None:
        self.path, self.read = path, 0
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.rest = ""

    def show(self, progress: Progress) -> None:
        try:
            with self.path.open("rb") as stream:
                stream.seek(self.read)
                found = stream.read()
        except OSError:  # not begun yet
            return
        self.read += len(found)
        *lines, self.rest = (self.rest + self.decoder.decode(found)).split("\n")
        for line in lines:
            progress.say(line.rpartition("\r")[2])
