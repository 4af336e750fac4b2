"""The launcher `none`: a single process."""

from __future__ import annotations

import shlex

from smollm3_finetune.api import Launch, NoOptions, Progress, run_processes


class OneProcess:
    """`smollm3 train` itself is the process of the run and does not call `launch`; other commands do."""

    def __init__(self, options: NoOptions) -> None:
        pass

    def describe(self, launch: Launch) -> str:
        return shlex.join(launch.command)

    def launch(self, launch: Launch, progress: Progress) -> None:
        run_processes(launch.command, launch, progress)
