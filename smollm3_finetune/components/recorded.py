"""Compares the versions that made a run or an adapter with the installed ones, for every command that uses it."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from smollm3_finetune.components.discovery import CORE_DISTRIBUTION
from smollm3_finetune.components.registry import RegisteredComponent, install_command
from smollm3_finetune.errors import IncompatibleError, SmolLM3Error, raise_all

if TYPE_CHECKING:
    from packaging.version import Version

FILE_VERSION = "0+"
"""Begins the version of a plugin file or module; its hash follows."""


def compare_recorded(recorded: Mapping[str, str], components: Iterable[RegisteredComponent], made: str) -> list[str]:
    """A line for each distribution whose version changed without a change of meaning, as `keeps_meaning` decides.

    `recorded` are the versions of the distributions that made `made` (`the run`). Raises IncompatibleError if one of
    the components comes from a version that may compute something else.
    """
    lines: dict[str, str] = {}
    problems: dict[str, SmolLM3Error] = {}
    for component in components:
        former, old = _recorded(recorded, component)
        now = f"{component.distribution} {component.version}"
        if old is None or f"{former} {old}" == now:
            continue
        if _replaces(component, former, old):
            lines[former] = f"{made} was made with {former} {old}, now {now}"
        elif keeps_meaning(old, component):
            lines[former] = f"{made} was made with {former} {old}, now {component.version}"
        elif old.startswith(FILE_VERSION):
            problems[former] = IncompatibleError(
                f"the plugin {former!r} has changed since it was used for {made}",
                hint="restore the file, or start a new run",
            )
        else:
            problems[former] = IncompatibleError(
                f"{made} was made with {former} {old}, but {component.version} is installed",
                hint=_install(former, old),
            )
    raise_all([problems[name] for name in sorted(problems)])
    return list(lines.values())


def _install(distribution: str, version: str) -> str:
    wanted = shlex.quote(f"{distribution}=={version}")
    return f"pip install {wanted}" if distribution == CORE_DISTRIBUTION else install_command(wanted)


def keeps_meaning(old: str, component: RegisteredComponent) -> bool:
    """Whether the installed version reads options and adapters of version `old` with the same meaning.

    By semantic versioning: the same major version, and before 1.0 the same minor version. `same_since` of the
    descriptor extends it to earlier versions.
    """
    from packaging.version import InvalidVersion, Version

    if old.startswith(FILE_VERSION) and (component.is_file or not component.version.startswith(FILE_VERSION)):
        return False  # another content, or a package of the same name
    try:
        before, now = Version(old), Version(component.version)
    except InvalidVersion:
        return old.partition(".")[0] == component.version.partition(".")[0]
    if component.spec.same_since and before <= now:
        return Version(component.spec.same_since) <= before
    return _line(before) == _line(now)


def _line(version: Version) -> tuple[int, ...]:
    """The numbers of a version that stay the same as long as its meaning does."""
    return (version.epoch, *version.release[: 1 if version.major else 2])


def _replaces(component: RegisteredComponent, former: str, old: str) -> bool:
    """Whether `former`, of version `old`, is a plugin that the component's descriptor says it was made from."""
    if former != component.distribution:
        return True
    named = any(name.partition(":")[0] == former for name in component.spec.replaces)
    return named and old.startswith(FILE_VERSION) and not component.is_file


def _recorded(recorded: Mapping[str, str], component: RegisteredComponent) -> tuple[str, str | None]:
    """The distribution under which a component was recorded, and its version; None if it was not."""
    former = (name.partition(":")[0] for name in component.spec.replaces)
    for name in (component.distribution, *former):
        if name in recorded:
            return name, recorded[name]
    return component.distribution, None
