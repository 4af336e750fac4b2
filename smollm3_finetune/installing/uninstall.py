"""Uninstalls distributions that are plugins, and says what stays that only they required."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from smollm3_finetune.components.requirements import requirements
from smollm3_finetune.errors import ConfigError, Problems, SmolLM3Error, did_you_mean
from smollm3_finetune.installing.alone import alone
from smollm3_finetune.installing.environment import InstalledDistribution, installed
from smollm3_finetune.installing.examine import refresh_snapshot
from smollm3_finetune.installing.index import PluginIndex
from smollm3_finetune.installing.installer import Installer


@dataclass(frozen=True, kw_only=True)
class Removal:
    """What would be uninstalled."""

    distributions: tuple[InstalledDistribution, ...]
    stays: tuple[InstalledDistribution, ...]
    """What only they required."""
    needed_by: Mapping[str, tuple[str, ...]]
    """For each of them, the other installed distributions that require it."""
    installer: Installer = field(repr=False)


def plan_removal(
    names: Sequence[str], installer: Installer, found: Mapping[str, InstalledDistribution], index: PluginIndex
) -> Removal:
    """The plugins that a user names. Raises ConfigError for a name that is not an installed plugin."""
    problems: list[SmolLM3Error] = []
    chosen: dict[str, InstalledDistribution] = {}
    for name in names:
        try:
            one = installed_plugin(name, found, index)
            _check_inside(one)
        except SmolLM3Error as e:
            problems.append(e)
        else:
            chosen[canonicalize_name(one.name)] = one
    if problems:
        raise problems[0] if len(problems) == 1 else Problems(problems)
    return Removal(
        distributions=tuple(chosen.values()),
        stays=tuple(found[n] for n in sorted(only_required_by(set(chosen), found))),
        needed_by={n: tuple(_requiring(n, set(chosen), found)) for n in chosen},
        installer=installer,
    )


def installed_plugin(
    name: str, found: Mapping[str, InstalledDistribution], index: PluginIndex
) -> InstalledDistribution:
    """The installed plugin of this name: a distribution, a plugin or a component. No plugin is imported."""
    plugins = [one for one in found.values() if one.is_plugin]
    own = found.get(canonicalize_name(name))
    if own is not None and own.is_core:
        raise ConfigError("smollm3-finetune is not a plugin", hint="pip uninstall smollm3-finetune")
    if own is not None and own.is_plugin:
        return own
    by_point = [one for one in plugins if name in one.plugins]
    if len(by_point) > 1:
        who = [one.name for one in by_point]
        raise ConfigError(f"{name!r} is a plugin of {' and '.join(who)}", hint=f"name one of them: {who[0]}")
    if by_point:
        return by_point[0]
    entry = index.find(name)
    listed = found.get(canonicalize_name(entry.name)) if entry is not None else None
    if listed is not None and listed.is_plugin:
        return listed
    if own is not None:
        raise ConfigError(f"{own.title} is not a plugin of smollm3", hint=f"pip uninstall {own.name}")
    if entry is not None:
        raise ConfigError(f"{entry.name} is not installed", hint="smollm3 plugins list")
    near = did_you_mean(name, [n for one in plugins for n in (one.name, *one.plugins)])
    raise ConfigError(f"no plugin named {name!r} is installed",
                      hint=f"did you mean {near!r}?" if near else "smollm3 plugins list")  # fmt: skip


def _check_inside(one: InstalledDistribution) -> None:
    if one.is_outside:
        raise ConfigError(
            f"{one.title} is in {one.location}, which does not belong to this environment",
            hint="remove that directory from PYTHONPATH, or use the environment that it belongs to",
        )


def only_required_by(removed: Collection[str], found: Mapping[str, InstalledDistribution]) -> set[str]:
    """The canonical names of distributions that only `removed` require, directly or not, and that nobody asked for."""
    needs = {name: _needs(one) for name, one in found.items()}
    reached, queue = set[str](), [*removed]
    while queue:
        for name in needs.get(queue.pop(), set()) & needs.keys():
            if name not in reached and name not in removed:
                reached.add(name)
                queue.append(name)
    left = {n for n in reached if not found[n].requested and not found[n].is_core and not found[n].is_plugin}
    while True:
        gone = left | set(removed)
        kept = {n for n in left if any(n in needs[other] for other in found if other not in gone)}
        if not kept:
            return left
        left -= kept


def _needs(one: InstalledDistribution) -> set[str]:
    """The canonical names that a distribution requires, those of its extras included."""
    names = set[str]()
    for text in one.about.requires or ():
        try:
            names.add(canonicalize_name(Requirement(text).name))
        except InvalidRequirement:
            continue
    return names


def _requiring(name: str, removed: Collection[str], found: Mapping[str, InstalledDistribution]) -> list[str]:
    """The installed distributions, besides `removed`, that require this one without any extra."""
    return sorted(
        one.name for other, one in found.items()
        if other not in removed and name in {canonicalize_name(r.name) for r in requirements(one.name)}
    )  # fmt: skip


def uninstall(removal: Removal) -> None:
    """Uninstall. Raises SmolLM3Error if one is still there afterwards."""
    with alone():
        removal.installer.uninstall([one.name for one in removal.distributions])
        now = installed()
        for one in removal.distributions:
            left = now.get(canonicalize_name(one.name))
            if left is not None:
                raise SmolLM3Error(f"{removal.installer.name} reported success, but {left.title} is in {left.location}",
                                   hint=f"remove it by hand: {left.location}")  # fmt: skip
        refresh_snapshot()
