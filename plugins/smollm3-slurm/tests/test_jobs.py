"""Jobs of a stand-in for Slurm: their processes, their exit codes, signals, requeuing; no model is trained."""

from __future__ import annotations

import json
import re
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from smollm3_slurm import check
from smollm3_slurm.launcher import Slurm, submitted_job
from smollm3_slurm.options import SlurmOptions

from smollm3_finetune.api import ConfigError, Env, Launch, MissingRequirementError, Purpose, SmolLM3Error, Submitted

pytest_plugins = ["smollm3_finetune.testing.fixtures"]
PROGRAM = """
import json, os, pathlib, signal, sys, time

run, *more = sys.argv[1:]
place = pathlib.Path(run)
rank, names = os.environ["RANK"], ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS")
begun = len(list(place.glob(f"begun-{rank}-*")))
(place / f"begun-{rank}-{begun}").write_text(json.dumps({n: os.environ[n] for n in names} | {"MORE": more}))
print(f"process {rank} has begun", flush=True)


def stop(number, frame):
    if rank == "0" and "unsaved" not in more:
        time.sleep(0.3)  # the other process has ended already
        (place / "checkpoints" / f"checkpoint-{begun}").mkdir(parents=True)
    sys.exit(128 + number)


for number in (signal.SIGUSR1, signal.SIGTERM):
    signal.signal(number, stop)
(place / f"ready-{rank}-{begun}").touch()
if "fails" in more and rank == "1":
    sys.exit(3)
if "ends" not in more and not ("once" in more and begun):
    time.sleep(60)
"""


class Said:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, message: str) -> None:
        self.lines.append(message)

    def task(self, description: str, total: int | None = None) -> Any:
        raise NotImplementedError


def launch_of(run: Path, *more: str, **about: Any) -> Launch:
    run.mkdir(parents=True, exist_ok=True)
    return Launch(run=run, command=(sys.executable, "-c", PROGRAM, str(run), *more), name=run.name, **about)


def submitted(launch: Launch, **options: Any) -> Submitted | None:
    return Slurm(SlurmOptions(processes=2, **options)).launch(launch, Said())  # type: ignore[arg-type]


def begun(run: Path, rank: int, attempt: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / f"begun-{rank}-{attempt}").read_text())
    return found


def ready(run: Path, attempt: int) -> bool:
    return all((run / f"ready-{rank}-{attempt}").exists() for rank in (0, 1))


def log(run: Path) -> str:
    return (run / "launcher" / "job-4711.log").read_text()


def test_each_process_gets_the_variables_of_a_launcher(cluster: Any, tmp_path: Path) -> None:
    """In a directory, and with arguments, that a shell or sbatch would misread."""
    run = tmp_path / 'it\'s 100%j "of" $HOME; a'
    odd = ["ends", "a b", "it's", '"quoted"', "$HOME", "`date`", "\\", "a\nb", ";exit 1", "*"]
    more = {"VARIABLE": 'it\'s $HOME\n"x"'}
    found = submitted(launch_of(run, *odd, environment=more), cpus_per_task=3, partition="gpu")
    assert found == Submitted(says="job 4711 is in the queue of partition 'gpu'", hint="squeue -j 4711")
    assert cluster.ended() == "COMPLETED", log(run)
    for rank in (0, 1):
        about = begun(run, rank)
        assert about.pop("MORE") == odd
        assert about == {
            "WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_ADDR": "localhost",
            "MASTER_PORT": "14711", "OMP_NUM_THREADS": about["OMP_NUM_THREADS"],
        }  # fmt: skip
    assert str(submitted_job(run)) == "4711"
    assert "process 0 has begun" in log(run)
    options = (cluster.job() / "options").read_text().splitlines()
    assert {"nodes=1", "ntasks-per-node=2", "cpus-per-task=3", "partition=gpu", "requeue=", f"job-name={run.name}"} <= {
        *options
    }


@pytest.mark.parametrize("how", ["USR1", "preempted"])
def test_a_stopped_run_is_requeued_and_continues(cluster: Any, tmp_path: Path, how: str) -> None:
    run = tmp_path / "run"
    submitted(launch_of(run, "once"))
    cluster.until(lambda: ready(run, 0))
    if how == "preempted":
        (cluster.job() / "preempted").touch()
    cluster.signal(signal.SIGUSR1 if how == "USR1" else signal.SIGTERM)
    assert cluster.ended() == "COMPLETED"
    assert ready(run, 1)
    assert "the job is requeued and will continue the run" in log(run)
    assert [p.name for p in (run / "checkpoints").iterdir()] == ["checkpoint-0"], "the last process saved its state"


@pytest.mark.parametrize("why", ["cancelled", "unsaved", "forbidden"])
def test_a_stopped_run_is_not_requeued(cluster: Any, tmp_path: Path, why: str) -> None:
    """By scancel; if it saved no step, as it would never end; and with requeue=false."""
    run = tmp_path / "run"
    submitted(launch_of(run, why), requeue=why != "forbidden")
    cluster.until(lambda: ready(run, 0))
    if why == "cancelled":
        (cluster.job() / "cancelled").touch()
    cluster.signal(signal.SIGTERM if why == "cancelled" else signal.SIGUSR1)
    assert cluster.ended() == ("CANCELLED" if why == "cancelled" else "FAILED")
    assert cluster.code() == (143 if why == "cancelled" else 138)
    assert not ready(run, 1)
    assert ("not requeued: no new step was saved" in log(run)) == (why == "unsaved")
    assert (run / "checkpoints").exists() == (why != "unsaved")


def test_if_one_process_fails_the_job_fails(cluster: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    submitted(launch_of(run, "fails", "unsaved"))
    assert cluster.ended() == "FAILED"
    assert cluster.code() in (3, 143)
    assert not (run / "begun-0-1").exists()


def test_a_run_whose_job_has_not_ended_is_not_submitted_again(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    launch = launch_of(run)
    submitted(launch)
    cluster.until(lambda: ready(run, 0))
    with pytest.raises(ConfigError) as refused:
        submitted(launch)
    assert refused.value.message == f"the run {run} has job 4711, which has not ended"
    assert refused.value.hint == "squeue -j 4711 shows it; to end it: scancel 4711"
    with monkeypatch.context() as patched:
        patched.setenv("SLURM_STAND_IN_DOWN", "1")
        with pytest.raises(SmolLM3Error, match="squeue does not say whether job 4711 has ended: Unable to contact"):
            submitted(launch)
    cluster.signal(signal.SIGTERM)
    cluster.ended()
    assert submitted(launch) == Submitted(says="job 4712 is in the queue", hint="squeue -j 4712")
    cluster.until(lambda: ready(run, 1))
    cluster.signal(signal.SIGTERM, 4712)
    cluster.ended(4712)
    (run / "launcher" / "slurm-job").write_text("99\n")  # Slurm has forgotten it
    Slurm(SlurmOptions()).ready(launch)


def test_the_output_of_a_job_is_followed_to_its_end(cluster: Any, tmp_path: Path) -> None:
    said = Said()
    options = SlurmOptions(processes=2, wait=True, interval=0.2)
    assert Slurm(options).launch(launch_of(tmp_path / "run", "ends"), said) is None  # type: ignore[arg-type]
    assert {"process 0 has begun", "process 1 has begun"} <= {*said.lines}
    with pytest.raises(SmolLM3Error, match="job 4712 ended with the state FAILED") as failed:
        Slurm(options).launch(launch_of(tmp_path / "b c", "fails", "unsaved"), said)  # type: ignore[arg-type]
    assert failed.value.hint == f"read its output: less '{tmp_path}/b c/launcher/job-4712.log'"


def test_a_job_whose_state_is_unknown_is_left_alone(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error would say that the run has failed, and its directory would be deleted under a job in the queue."""
    monkeypatch.setattr("smollm3_slurm.launcher.ATTEMPTS", 2)
    monkeypatch.setenv("SLURM_STAND_IN_DOWN", "1")
    found = submitted(launch_of(tmp_path / "run", "ends"), wait=True, interval=0.1)
    assert found is not None and found.hint == "squeue -j 4711"
    assert found.says.startswith("job 4711 may continue: squeue does not say whether job 4711 has ended: Unable to")
    assert cluster.ended() == "COMPLETED"


def test_what_sbatch_refuses_is_named(cluster: Any, tmp_path: Path) -> None:
    with pytest.raises(SmolLM3Error) as refused:
        submitted(launch_of(tmp_path / "run"), partition="none")
    assert refused.value.message == (
        "sbatch refused the job: Batch job submission failed: Invalid partition name specified"
    )
    assert submitted_job(tmp_path / "run") is None


def test_another_cluster_is_named_in_commands(cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_STAND_IN_CLUSTER", "1")
    found = submitted(launch_of(tmp_path / "run", "ends"))
    assert found is not None and found.hint == "squeue -M cluster -j 4711"
    assert cluster.ended() == "COMPLETED"
    Slurm(SlurmOptions()).ready(launch_of(tmp_path / "run"))


def test_without_slurm_the_hint_names_a_login_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingRequirementError, match="needs the command sbatch, which this machine does not") as e:
        submitted(launch_of(tmp_path / "run"))
    assert e.value.hint is not None and "login node" in e.value.hint
    assert not (tmp_path / "run" / "launcher").exists()


def script(run: str = "/runs/one", **options: Any) -> str:
    return Slurm(SlurmOptions(**options)).describe(Launch(run=Path(run), command=("python", "-m", "x y"), name="one"))


def test_the_script_states_what_was_asked_for() -> None:
    text = script(
        nodes=2, gpus_per_node=8, cpus_per_task=12, account="a b", qos='q"x', constraint="a100|h100", time="1-00:00:00",
        memory="0", sbatch=("--exclusive",), setup=("module load cuda", "cd 'a b'"), port=29500,
    )  # fmt: skip
    lines = text.splitlines()
    assert lines[:2] == [
        "# sbatch --job-name=one --output=/runs/one/launcher/job-%j.log /runs/one/launcher/job.sh", "#!/bin/bash",
    ]  # fmt: skip
    assert lines[2:15] == [
        f"#SBATCH {option}" for option in (
            "--nodes=2", "--ntasks-per-node=8", "--gpus-per-node=8", "--cpus-per-task=12", '--account="a b"',
            '--qos="q\\"x"', "--constraint=a100|h100", "--time=1-00:00:00", "--mem=0", "--open-mode=append",
            "--signal=USR1@180", "--requeue", "--exclusive",
        )
    ]  # fmt: skip
    assert lines.index("module load cuda") < lines.index("cd 'a b'") < lines.index("run=/runs/one")
    assert "export MASTER_PORT=29500" in lines
    assert any(line.startswith("srun --ntasks=16 --kill-on-bad-exit=1 --cpus-per-task=12 bash") for line in lines)
    assert "  python -m 'x y' &" in lines


def test_a_template_of_the_user(tmp_path: Path) -> None:
    file = tmp_path / "job.sh"
    file.write_text("#!/bin/bash\n{{sbatch}}\n#SBATCH --mail-type=FAIL\nexport A=${B:-1}\n{{ start }}\n")
    lines = script(template=str(file)).splitlines()
    assert lines.index("#SBATCH --requeue") < lines.index("#SBATCH --mail-type=FAIL")
    assert lines.index("export A=${B:-1}") < lines.index("run=/runs/one")
    env = Env(device="cpu", purpose=Purpose.TRAIN, tools=frozenset())
    check(SlurmOptions(template=str(file)), env)
    for text, problem in (
        ("#!/bin/bash\n{{sbatch}}\n", "must have the placeholder {{start}} once"),
        ("#!/bin/bash\n{{sbatch}}\n{{start}}\n{{start}}\n", "must have the placeholder {{start}} once"),
        ("#!/bin/bash\n{{sbatch}}\n{{command}}\n{{start}}\n", "has the unknown placeholder {{command}}"),
        ("{{sbatch}}\n{{start}}\n", "must name a shell"),
    ):
        file.write_text(text)
        with pytest.raises(ConfigError, match=re.escape(problem)):
            check(SlurmOptions(template=str(file)), env)
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        check(SlurmOptions(template=str(tmp_path / "missing.sh")), env)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"time": "8 hours"}, "launcher.time must be a time limit of sbatch"),
        ({"gpus_per_node": 2, "processes": 4}, "each process needs a GPU of its own"),
        ({"partition": "a\nb"}, "launcher.partition must be one line"),
        ({"account": " "}, "launcher.account must be one line"),
        ({"sbatch": ("exclusive",)}, "'exclusive' is not an option of sbatch"),
        ({"sbatch": ("--exclusive\n#SBATCH --x",)}, "is not an option of sbatch"),
    ],
)
def test_options_that_sbatch_would_misread_are_refused(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        check(SlurmOptions(**options), Env(device="cpu", purpose=Purpose.TRAIN, tools=frozenset()))
