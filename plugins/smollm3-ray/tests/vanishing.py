"""The launcher `ray` with two workers, which deletes the rows of the run before it starts them."""

from __future__ import annotations

from pathlib import Path

from smollm3_finetune.api import Launch, LauncherSpec, NoOptions, Progress, hookimpl


class Vanishing:
    def __init__(self, options: NoOptions) -> None:
        pass

    def describe(self, launch: Launch) -> str:
        return str(launch.run)

    def launch(self, launch: Launch, progress: Progress) -> None:
        from smollm3_ray.launcher import RayLauncher
        from smollm3_ray.options import RayOptions

        Path("rows.jsonl").unlink()
        RayLauncher(RayOptions(workers=2)).launch(launch, progress)


@hookimpl
def smollm3_launchers() -> list[LauncherSpec]:
    return [
        LauncherSpec(
            name="vanishing",
            summary="deletes the rows",
            factory="vanishing:Vanishing",
            processes=lambda options: 2,
            api=2,
        )
    ]
