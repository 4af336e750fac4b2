"""A component that was selected by name, with its validated options."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from smollm3_finetune.api import Env, given, options_dict
from smollm3_finetune.components.kinds import Kind
from smollm3_finetune.components.registry import RegisteredComponent, Registry
from smollm3_finetune.config.load import plain
from smollm3_finetune.config.options import build
from smollm3_finetune.config.schema import ComponentConfig
from smollm3_finetune.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class SelectedComponent:
    """A component and its validated options."""

    component: RegisteredComponent
    options: Any
    refined: dict[Env, Any] = field(default_factory=dict, init=False, repr=False, compare=False)
    """What `refine` of its descriptor returned, by environment."""

    @property
    def spec(self) -> Any:
        return self.component.spec

    def create(self) -> Any:
        return self.component.create(self.options)

    def as_config(self) -> ComponentConfig:
        """The configuration that selects this component again: its full name and all its options."""
        return ComponentConfig(
            name=self.component.full_name, options=options_dict(self.options), given=given(self.options)
        )

    def changed_options(self) -> dict[str, Any]:
        """The options that differ from their defaults, as plain values."""
        usual, chosen = options_dict(self.component.options_class()()), options_dict(self.options)
        return {k: v for k, v in plain(chosen).items() if chosen[k] != usual.get(k)}


def choose_named(
    registry: Registry, kind: Kind, config: ComponentConfig, origins: Mapping[str, str]
) -> SelectedComponent | None:
    """The component that a section of the configuration names; None if it names none.

    Raises ConfigError for options without a name, and what `choose` raises.
    """
    if config.name is not None:
        return choose(registry, kind, config.name, config, origins)
    if config.options:
        key = f"{kind.section}.{next(iter(config.options))}"
        raise ConfigError(f"{key} is set, but no {kind.name} is named", hint=f"{kind.flag} NAME")
    return None


def choose(
    registry: Registry,
    kind: Kind,
    name: str,
    options: Mapping[str, Any] | ComponentConfig,
    origins: Mapping[str, str] | None = None,
) -> SelectedComponent:
    """The component of this name with its options validated. Raises what `Registry.find` and `options.build` raise.

    The options are those that a user set, or a configuration that says which ones were set.
    """
    return with_options(registry.find(kind, name), options, origins)


def with_options(
    component: RegisteredComponent,
    options: Mapping[str, Any] | ComponentConfig,
    origins: Mapping[str, str] | None = None,
) -> SelectedComponent:
    """A component with its options validated, as in `choose`. Raises what `options.build` raises."""
    config = options if isinstance(options, ComponentConfig) else ComponentConfig(options=options)
    section = component.kind.section
    prefix = f"{section}."
    where = {k.removeprefix(prefix): v for k, v in (origins or {}).items() if k.startswith(prefix)}
    made = build(component.options_class(), config.options, section, where, component.title, given=config.given)
    return SelectedComponent(component=component, options=made)


def reasons(components: Iterable[SelectedComponent]) -> dict[str, str]:
    """For each configuration section whose component the user did not name: why it was chosen."""
    found: dict[str, set[str]] = {}
    for chosen in components:
        if chosen.component.claim is not None:
            found.setdefault(chosen.component.kind.section, set()).add(chosen.component.claim.reason)
    return {section: next(iter(texts)) for section, texts in found.items() if len(texts) == 1}
