"""The tracker of a plugin: its selection and its checks, while a run is planned."""

from __future__ import annotations

from smollm3_finetune.api import Env
from smollm3_finetune.components.kinds import TRACKER
from smollm3_finetune.components.registry import Registry, attributed_to
from smollm3_finetune.components.requirements import requirement_problems
from smollm3_finetune.components.selection import SelectedComponent, choose_named
from smollm3_finetune.config.load import LoadedConfig
from smollm3_finetune.errors import raise_all


def select_tracker(registry: Registry, loaded: LoadedConfig) -> SelectedComponent | None:
    """The tracker that the configuration names, or None. Raises what `choose_named` raises."""
    return choose_named(registry, TRACKER, loaded.config.tracker, loaded.origins)


def check_tracker(tracker: SelectedComponent, env: Env) -> None:
    """Raises MissingRequirementError, or what the tracker's own check raises."""
    raise_all(list(requirement_problems(tracker.component.title, tracker.spec.requires, env.device)))
    if tracker.spec.check is not None:
        with attributed_to(tracker.component, "check()"):
            tracker.component.waited(lambda: tracker.spec.check(tracker.options, env), "check")
    tracker.create()  # a broken factory fails here, before anything is written
