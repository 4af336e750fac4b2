"""A launcher of somebody else: the run is worked on inside the calling process, and an observer records it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from smollm3_finetune.api import Launch, LauncherSpec, Progress, hookimpl, option


@dataclass(frozen=True, kw_only=True)
class InsideOptions:
    stop_at: int = option(0, "Stop after this step; 0: never.", ge=0)
    attempts: int = option(1, "How often the launch is worked on.", ge=1)


class Recorder:
    def __init__(self, file: Path, stop_at: int) -> None:
        self.file, self.stop_at = file, stop_at

    def add(self, entry: object) -> None:
        with self.file.open("a") as file:
            file.write(json.dumps(entry) + "\n")

    def measured(self, step: int, values: Mapping[str, float]) -> bool:
        self.add(["measured", step, dict(values)])
        return not self.stop_at or step < self.stop_at

    def saved(self, step: int, checkpoint: Path) -> None:
        self.add(["saved", step, sorted(p.name for p in checkpoint.iterdir() if p.name == "trainer_state.json")])


class InsideLauncher:
    def __init__(self, options: InsideOptions) -> None:
        self.options = options

    def describe(self, launch: Launch) -> str:
        return f"work on {launch.run} in this process"

    def launch(self, launch: Launch, progress: Progress) -> None:
        progress.say(f"{launch.name} on {launch.device}")
        recorder = Recorder(launch.run.with_name("observed.jsonl"), self.options.stop_at)
        for _ in range(self.options.attempts):
            recorder.add(["returned", launch.work(recorder) is not None])


@hookimpl
def smollm3_launchers() -> list[LauncherSpec]:
    return [
        LauncherSpec(
            name="inside",
            summary="the calling process",
            factory="inside_launcher:InsideLauncher",
            options="inside_launcher:InsideOptions",
            api=2,
        )
    ]
