"""An out-of-tree launcher of sweeps: it runs each trial in this process, and stops those with a rank of 2 early."""

from dataclasses import dataclass

from smollm3_finetune.api import LauncherSpec, SmolLM3Error, hookimpl, option


@dataclass(frozen=True, kw_only=True)
class SweepingOptions:
    fail: int = option(0, "The rank whose trial fails; 0: none.", ge=0)


@hookimpl
def smollm3_launchers():
    yield LauncherSpec(
        name="in-turn",
        summary="trials in this process",
        factory="sweeping_launcher:InTurn",
        options="sweeping_launcher:SweepingOptions",
        sweeps=True,
        api=2,
    )


class FirstStep:
    """Stops a run after its first step."""

    def measured(self, step, values):
        return False

    def saved(self, step, checkpoint):
        pass


class InTurn:
    def __init__(self, options):
        self.options = options

    def describe(self, launch):
        return " ".join(launch.command)

    def launch(self, launch, progress):
        launch.work()

    def launch_trials(self, trials, ended):
        for trial in trials:
            rank = trial.values["adapter.rank"]
            if rank == self.options.fail:
                ended(trial.name, "its worker was lost")
                continue
            try:
                trial.launch.work(FirstStep() if rank == 2 else None)
            except SmolLM3Error as e:
                ended(trial.name, e.message)
            else:
                ended(trial.name, None)
