"""Trackers of plugins: what they receive of a run, when they are refused, and that their failures never end one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from smollm3_finetune import finetune, stopping
from smollm3_finetune.errors import DataError
from smollm3_finetune.train import run as running
from smollm3_finetune.train.containment import Contained
from smollm3_finetune.train.tracked import TrackedJob

Cli = Callable[..., Any]
SOURCE = """
import json
from dataclasses import dataclass
from smollm3_finetune.api import ConfigError, Requires, TrackerSpec, hookimpl, option

@dataclass(frozen=True, kw_only=True)
class Options:
    file: str = option("received.jsonl", "Where everything is written.")
    fails: str = option("", "The method that fails.")

def check(options, env):
    if options.fails == "check":
        raise ConfigError("no key", hint="export KEY=...")

@hookimpl
def smollm3_trackers():
    spec = dict(factory="recording:Recording", options="recording:Options", check=check, api=2)
    return [TrackerSpec(name="recording", summary="writes all", **spec),
            TrackerSpec(name="needy", summary="needs more", requires=Requires(distributions=("no-such-dist>=2",)),
                        **spec)]

class Recording:
    def __init__(self, options):
        self.options = options

    def open(self, run):
        own = run.directory / "trackers" / "recording"
        own.mkdir(parents=True, exist_ok=True)
        (own / "kept.txt").write_text("x")
        self.write("open", name=run.name, first=run.first_step, total=run.total_steps,
                   configured=run.configuration["tracker"]["name"], exists=run.directory.is_dir())
        return self

    def log(self, step, values):
        self.write("log", step=step, values=values)

    def end(self, state, report):
        self.write("end", state=state, report=report)

    def write(self, what, **about):
        if self.options.fails == what:
            raise OSError("the line\\nis cut")
        with open(self.options.file, "a") as out:
            out.write(json.dumps({"what": what, **about}) + "\\n")
"""
QUICK = ("--adapter", "full", "--device", "cpu", "--set", "data.limit=20", "--set", "train.sample_tokens=2")


@pytest.fixture
def tracker(plugin_file: Callable[[str, str], Path]) -> Path:
    return plugin_file("recording", SOURCE)


def received(file: str = "received.jsonl") -> list[dict[str, Any]]:
    if not Path(file).exists():
        return []
    found = [json.loads(line) for line in Path(file).read_text().splitlines()]
    Path(file).unlink()
    return found


def test_it_receives_a_run_and_its_continuation(cli: Cli, tracker: Path) -> None:
    more = ("--max-steps", "3", "--set", "train.eval_every=2", "--output", "run")
    done = cli("train", "-p", tracker, "--tracker", "recording", *QUICK, *more)
    assert done.code == 0, done.stderr
    assert "name: recording:recording\n  file: received.jsonl\n" in Path("run/run.yaml").read_text()
    first, *rows, last = received()
    assert first == {"what": "open", "name": "run", "first": 0, "total": 3, "configured": "recording:recording",
                     "exists": True}  # fmt: skip
    written = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows] == [r["step"] for r in written] == [1, 2, 2, 3, 3]
    for row, line in zip(rows, written, strict=True):
        numbers = {k: v for k, v in line.items() if k != "step" and isinstance(v, int | float)}
        assert row["values"] == pytest.approx({k: numbers[k] for k in row["values"]})
        assert row["values"].keys() >= numbers.keys() & {"loss", "held_out_loss", "learning_rate", "grad_norm"}
    assert (last["what"], last["state"]) == ("end", "finished")
    assert last["report"] == json.loads(Path("run/report.json").read_text())

    done = cli("train", "-p", tracker, "--resume", "run", "--max-steps", "4", "--tracker-opt", "file=again.jsonl")
    assert done.code == 0, done.stderr
    first, *rows, last = received("again.jsonl")
    assert (first["first"], first["total"], [r["step"] for r in rows]) == (3, 4, [4, 4])
    assert last["state"] == "finished"

    without = ("--set", "tracker=null", "--dry-run", "--json")
    plan = cli("train", "-p", tracker, "--resume", "run", "--max-steps", "5", *without).report()
    assert plan["config"]["tracker"] == {"name": None}


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (DataError("broken rows"), "failed"),
        (RuntimeError("a bug"), "failed"),
        (stopping.Stop("SIGTERM", 143), "stopped"),
    ],
)
def test_it_is_told_how_a_run_ended(
    cli: Cli, tracker: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, state: str
) -> None:
    def ended(job: Any) -> Any:
        job.receive(1, {"loss": 2.0})
        raise error

    monkeypatch.setattr(running, "_execute", ended)
    assert cli("train", "-p", tracker, "--tracker", "recording", *QUICK).code != 0
    found = received()
    assert [r["what"] for r in found] == ["open", "log", "end"]
    assert not list(Path("runs").iterdir()), "a run that has not begun leaves nothing, also of its tracker"
    assert (found[-1]["state"], found[-1]["report"]) == (state, None)


@pytest.mark.parametrize("fails", ["open", "log", "end"])
def test_a_failure_is_one_line_and_the_run_continues(
    cli: Cli, tracker: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    """The steps are not taken here; what a run does with its report is checked by the other tests."""

    def steps(job: Any) -> Any:
        for step in (1, 2):
            job.receive(step, {"loss": 2.0, "grad_norm": float("nan")})
        raise DataError("the end of the test")

    monkeypatch.setattr(running, "_execute", steps)
    done = cli("train", "-p", tracker, "--tracker", "recording", "--tracker-opt", f"fails={fails}", *QUICK)
    line = "warning: the tracker recording failed and gets no more metrics of this run: OSError: the line"
    assert done.stderr.count(line) == 1 and "Traceback" not in done.stderr
    assert "error: the end of the test" in done.stderr
    whats = [(r["what"], r.get("values")) for r in received()]
    log = ("log", {"loss": 2.0})
    assert whats == {"open": [], "log": [("open", None), ("end", None)], "end": [("open", None), log, log]}[fails]


@pytest.mark.parametrize(
    ("opened", "problem"),
    [(None, "open() returned None"), (SimpleNamespace(log=print), "has no method 'end'")],
)
def test_what_open_returns_is_checked(opened: Any, problem: str) -> None:
    from smollm3_finetune.train import tracked

    said: list[str] = []
    job: Any = SimpleNamespace(
        display=SimpleNamespace(say=said.append), run=SimpleNamespace(path=Path("run")), checkpoint=None, steps=1,
        plan=SimpleNamespace(config=running_config(), tracker=selected(opened)),
    )  # fmt: skip
    with tracked.tracked_run(job) as found:
        assert found is not None
        found.log(1, {"loss": 1.0})
    assert len(said) == 1 and problem in said[0]


def running_config() -> Any:
    from smollm3_finetune.config.schema import RunConfig

    return RunConfig()


def selected(opened: Any) -> Any:
    from smollm3_finetune.api import TrackerSpec
    from smollm3_finetune.components.kinds import TRACKER
    from smollm3_finetune.components.registry import RegisteredComponent

    spec = TrackerSpec(name="mine", summary="x", factory="a:B", api=2)
    component = RegisteredComponent(kind=TRACKER, spec=spec, distribution="d", version="1", plugin="d")
    return SimpleNamespace(component=component, create=lambda: SimpleNamespace(open=lambda run: opened))


def test_a_tracker_that_exits_does_not_end_the_run() -> None:
    said: list[str] = []

    def leave(*args: Any) -> None:
        raise SystemExit(3)

    job = TrackedJob(Contained("mine", said.append), opened=SimpleNamespace(log=leave, end=leave))
    job.log(1, {"loss": 1.0})
    job.end("failed")
    assert len(said) == 1 and "SystemExit" in said[0]


@pytest.mark.parametrize(
    ("words", "problem", "hint"),
    [
        (["--tracker", "recordin"], "there is no tracker 'recordin'", "did you mean 'recording'?"),
        (["--tracker", "recording", "--tracker-opt", "fil=x"], "fil", "did you mean 'file'?"),
        (["--tracker", "recording", "--tracker-opt", "fails=check"], "no key", "export KEY=..."),
        (["--tracker", "needy"], "no-such-dist", "pip install 'no-such-dist>=2'"),
        (["--tracker-opt", "file=x"], "no tracker is named", "--tracker NAME"),
    ],
)
def test_mistakes_are_found_before_rows_are_read(
    cli: Cli, tracker: Path, words: list[str], problem: str, hint: str
) -> None:
    Path("rows.jsonl").write_text("not a row\n")
    done = cli("train", "-p", tracker, *words, "--data", "rows.jsonl", "--adapter", "full", "--device", "cpu")
    assert done.code in (2, 4)
    assert problem in done.stderr and f"hint: {hint}" in done.stderr
    assert "rows.jsonl" not in done.stderr
    assert not Path("runs").exists()


def test_help_shows_its_options(cli: Cli, tracker: Path) -> None:
    text = cli("train", "-p", tracker, "--tracker", "recording", "--help").stdout
    assert "--tracker     " in text and "--tracker-opt file=text  [default: received.jsonl]" in text


def test_python_names_it_as_the_command_does(tracker: Path) -> None:
    report = finetune(
        adapter="full", device="cpu", tracker={"name": "recording", "file": "python.jsonl"}, plugins=[tracker],
        data={"limit": 20}, train={"max_steps": 1, "sample_tokens": 2}, quiet=True,
    )  # fmt: skip
    first, *_, last = received("python.jsonl")
    assert first["name"] == Path(report["run"]).name and last["report"]["steps"] == 1


@pytest.mark.long
def test_only_the_first_of_two_processes_has_it(run_cli: Cli, tracker: Path) -> None:
    launcher = ("--launcher", "torchrun", "--launcher-opt", "processes=2")
    done = run_cli("train", "-p", tracker, "--tracker", "recording", *QUICK, *launcher, "--max-steps", "2")
    assert done.code == 0, done.stderr
    assert [r["what"] for r in received()] == ["open", "log", "log", "log", "end"]
