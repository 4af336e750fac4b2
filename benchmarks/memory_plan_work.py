"""Runs or plans the configurations of `memory_plan.py`, each in a process of its own.

This process imports what the runs import, so that its memory is the floor, and then forks for each line that it reads.
Nothing but imports happens before the fork.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from memory_plan_cells import STEPS, WORD, Cell, write_rows

from smollm3_finetune.api import Conversation
from smollm3_finetune.components.discovery import PluginSelection, discover
from smollm3_finetune.config.load import assignment
from smollm3_finetune.data.chat_template.renderer import Renderer
from smollm3_finetune.main import set_environment
from smollm3_finetune.model_files.imports import import_for_training
from smollm3_finetune.progress import Silent
from smollm3_finetune.train.start import PlannedRun, plan_training

SELF = Path("/proc/self")


def status(name: str) -> int:
    """A line of /proc/self/status, in bytes."""
    for line in (SELF / "status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return 1024 * int(line.split()[1])
    raise KeyError(name)


def say(**event: Any) -> None:
    print(json.dumps({"time": time.monotonic(), **event}), file=sys.__stdout__, flush=True)


class Phases:
    """The display of the run: reports when training begins and ends, and the exact peak between them.

    The kernel keeps the largest resident size; mapped files, whose size does not change while a run trains, are
    subtracted from it.
    """

    def __init__(self) -> None:
        self.steps = 0

    def say(self, message: str) -> None:
        pass

    def begin(self, total_steps: int, done: int) -> None:
        say(phase="training", anonymous=status("RssAnon"))
        (SELF / "clear_refs").write_text("5")

    def step(self, row: Mapping[str, Any]) -> None:
        self.steps = row["step"]

    def end(self) -> None:
        if self.steps:
            say(phase="after", high=status("VmHWM") - status("RssFile") - status("RssShmem"), steps=self.steps)
            self.steps = 0


def planned(cell: Cell, model: str, work: Path) -> PlannedRun:
    """The checked run of a configuration."""
    about = {
        "model": model, "quant.name": cell.quant, "adapter.name": cell.adapter, "data.path": str(work / "rows.jsonl"),
        "data.max_length": cell.length, "data.held_out": 0, "data.long_text": "cut", "formatter.name": "text",
        "train.batch_size": cell.batch, "train.gradient_checkpointing": str(cell.checkpointing).lower(),
        "train.packing": str(cell.packing).lower(), "train.max_steps": STEPS, "train.sample_tokens": 1,
        "train.save_minutes": "off", "train.report": "false", "train.sample_prompt": "Hi", "device": "cpu",
        "output": str(work / "run"), "calibration.rows": 8, "calibration.length": 64,
    }  # fmt: skip
    settings = [assignment(f"{key}={value}", "the benchmark") for key, value in about.items()]
    find = lambda names: discover(PluginSelection.of(tuple(names)))  # noqa: E731
    return plan_training(settings, find_plugins=find, progress=Silent(), warn=lambda text: None)


def added_tokens(about: Mapping[str, Any], work: Path) -> int:
    """The tokens that a row has beside its text."""
    (work / "rows.jsonl").write_text('{"text": "a"}\n')
    plan = planned(Cell(**about["cell"]), about["model"], work).plan
    renderer = Renderer(plan.tokenizer(), plan.render)
    return len(renderer.encode(Conversation(text=WORD * 10), 10**9).input_ids) - 10


def prepared(about: Mapping[str, Any], work: Path) -> PlannedRun:
    """The checked run of a configuration, with its rows."""
    cell = Cell(**about["cell"])
    write_rows(work / "rows.jsonl", cell, about["added"])
    return planned(cell, about["model"], work)


def predict(about: Mapping[str, Any], work: Path) -> None:
    """Print the prediction."""
    from smollm3_finetune.memory.estimate import estimate

    run = prepared(about, work)
    began = time.monotonic()
    found = estimate(run.plan, run.registry)
    parts = {"parts": dict(found.parts), "peak": found.peak, "low": found.low, "high": found.high}
    say(**parts, unknown=list(found.unknown), seconds=round(time.monotonic() - began, 2))


def take_steps(about: Mapping[str, Any], work: Path) -> None:
    """Train, and print the phases."""
    run = prepared(about, work)
    say(phase="loading", anonymous=status("RssAnon"))
    with contextlib.redirect_stdout(sys.stderr):
        report = run.train(Phases())
    say(phase="end", anonymous=status("RssAnon"), tokens=report["tokens"], batches=report["batches"])


def name_modules(about: Mapping[str, Any], work: Path) -> None:
    """Train, and print the modules that were imported, and the tokens that a row has beside its text."""
    added = added_tokens(about, work)
    with contextlib.redirect_stdout(sys.stderr):
        prepared({**about, "added": added}, work).train(Phases())
    say(modules=sorted(sys.modules), added=added)


def main() -> None:
    """Import modules, or start a process, for each line of standard input."""
    set_environment()  # torch allocates as it does in a command
    import_for_training()
    for line in sys.stdin:
        about = json.loads(line)
        if "import" in about:
            for name in about["import"]:
                with contextlib.suppress(Exception):
                    importlib.import_module(name)
            gc.collect()
            continue
        child = os.fork()
        if not child:
            failed = 1
            try:
                os.nice(about["nice"])
                {"predict": predict, "run": take_steps, "modules": name_modules}[about["what"]](
                    about, Path(about["work"])
                )
                failed = 0
            except BaseException as e:
                say(error=f"{type(e).__name__}: {e}")
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(failed)
        say(pid=child)
        _, code = os.waitpid(child, 0)
        say(exit=os.waitstatus_to_exitcode(code))


if __name__ == "__main__":
    main()
