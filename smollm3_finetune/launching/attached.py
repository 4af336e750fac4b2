"""A process of a run that `run_processes` started: where its output goes, when it stops, how it exits."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path

from smollm3_finetune import stopping
from smollm3_finetune.api.processes import ATTACHED
from smollm3_finetune.errors import SmolLM3Error
from smollm3_finetune.files.json import json_object
from smollm3_finetune.launching.worker import work
from smollm3_finetune.runs.rundir import RunDir
from smollm3_finetune.train.distributed.processes import is_main_process, shut_down_processes


def run_launched(run: Path) -> None:
    """The work of `smollm3 train --launched RUN`.

    A process that `run_processes` started prints no error, because the launching process does; and a request to stop
    ends it with exit code 0, because it is not a failure after which a launcher should start the processes again.
    """
    if not os.environ.get(ATTACHED):
        work(run)
        shut_down_processes()
        return
    _attach(RunDir(run))
    debug = bool(json_object(RunDir(run).launch).get("debug"))
    try:
        work(run)
        shut_down_processes()
    except stopping.Stop:
        _exit(0)
    except Exception as e:
        if debug:
            traceback.print_exc()
        _exit(0 if stopping.delivered() is not None else e.exit_code if isinstance(e, SmolLM3Error) else 1)


ALONE = 30.0
"""Seconds that a process which was asked to stop may take after another process of the run has stopped."""


def _attach(run: RunDir) -> None:
    """Print to the output of the launching process, and stop when it ends or asks for it by closing the input."""
    if is_main_process():
        sys.stderr.flush()
        os.dup2(1, 2)
    threading.Thread(target=_stop_at_end_of_input, args=(run,), daemon=True).start()


def _stop_at_end_of_input(run: RunDir) -> None:
    """Ask this process to stop when its input ends.

    Before the first step, a process may wait in the library for another one that has stopped already: it is then ended.
    """
    with contextlib.suppress(OSError):
        while os.read(0, 4096):
            pass
    os.kill(os.getpid(), signal.SIGTERM)
    while not any(run.launched.glob("ended-*.json")):
        time.sleep(0.5)
    time.sleep(ALONE)
    _exit(0)


def _exit(code: int) -> None:
    """End now: threads of a process group whose other processes are gone may never end."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)
