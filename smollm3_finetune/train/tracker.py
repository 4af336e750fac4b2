"""The tracker of a plugin: its selection and its checks, while a run is planned."""

from __future__ import annotations

from smollm3_finetune.api import Env
from smollm3_finetune.components.kinds import TRACKER
from smollm3_finetune.components.registry import Registry, attributed_to
from smollm3_finetune.components.requirements import requirement_problems
from smollm3_finetune.components.selection import SelectedComponent, choose
from smollm3_finetune.config.load import LoadedConfig
from smollm3_finetune.errors import ConfigError, raise_all


def select_tracker(registry: Registry, loaded: LoadedConfig) -> SelectedComponent | None:
    """The tracker that the configuration names, or None. Raises ConfigError for options without a name."""
    config = loaded.config.tracker
    if config.name is not None:
        return choose(registry, TRACKER, config.name, config, loaded.origins)
    if config.options:
        key = f"{TRACKER.section}.{next(iter(config.options))}"
        raise ConfigError(
            f"{loaded.origins.get(key, key)}: an option of a tracker is set, but no tracker is named",
            hint=f"{TRACKER.flag} NAME",
        )
    return None


def check_tracker(tracker: SelectedComponent, env: Env) -> None:
    """Raises MissingRequirementError, or what the tracker's own check raises."""
    raise_all(list(requirement_problems(tracker.component.title, tracker.spec.requires, env.device)))
    if tracker.spec.check is not None:
        with attributed_to(tracker.component, "check()"):
            tracker.component.waited(lambda: tracker.spec.check(tracker.options, env), "check")
    tracker.create()  # a broken factory fails here, before anything is written
