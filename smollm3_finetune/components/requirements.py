"""Checks requirements of components against package metadata; nothing is imported."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from smollm3_finetune.api import Requires
from smollm3_finetune.errors import MissingRequirementError, PluginError


def installed_version(distribution: str) -> str | None:
    """The installed version of a distribution, or None."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def unmet_distributions(requires: Requires, what: str = "a plugin") -> list[tuple[str, str]]:
    """Each requirement that is not met, and why: (`bitsandbytes>=0.49`, `it is not installed`)."""
    from packaging.requirements import InvalidRequirement, Requirement

    unmet = []
    for text in requires.distributions:
        try:
            wanted = Requirement(text)
        except InvalidRequirement as e:
            raise PluginError(
                f"{what} requires {text!r}, which is not a valid requirement: {e}".splitlines()[0],
                hint="write it as in pyproject.toml, such as 'torch>=2.6'",
            ) from e
        if wanted.marker is not None and not wanted.marker.evaluate():
            continue
        found = installed_version(wanted.name)
        if found is None:
            unmet.append((text, "it is not installed"))
        elif not wanted.specifier.contains(found, prereleases=True):
            unmet.append((text, f"{wanted.name} {found} is installed"))
    return unmet


def requirement_problems(what: str, requires: Requires, device: str) -> list[MissingRequirementError]:
    """One error for each requirement of `what` (such as "quantizer 'none'") that is not met on `device`."""
    problems = [
        MissingRequirementError(f"{what} requires {text}, but {found}", hint=f"pip install '{text}'")
        for text, found in unmet_distributions(requires, what)
    ]
    kind = device.partition(":")[0]
    if requires.accelerators and kind not in requires.accelerators:
        names = " or ".join(requires.accelerators)
        problems.append(
            MissingRequirementError(
                f"{what} runs on {names} only, but this run is on {kind}",
                hint=f"use a machine with such a device: --device {requires.accelerators[0]}",
            )
        )
    return problems


@dataclass(frozen=True, kw_only=True)
class Conflict:
    """An unmet requirement of a distribution."""

    distribution: str
    version: str
    requirement: str
    found: str | None
    """The installed version, or None."""

    @property
    def text(self) -> str:
        name = Requirement(self.requirement).name
        found = "is not installed" if self.found is None else f"{self.found} is installed"
        return f"{self.distribution} {self.version} requires {self.requirement}, but {name} {found}"


def requirements(name: str, extras: Iterable[str] = ()) -> Iterator[Requirement]:
    """The requirements of a distribution whose markers apply, with the named extras; none if it is not installed."""
    try:
        texts = importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:
        return
    for text in texts:
        try:
            wanted = Requirement(text)
        except InvalidRequirement:
            continue
        environments = [{"extra": extra} for extra in ("", *extras)]
        if wanted.marker is None or any(wanted.marker.evaluate(e) for e in environments):
            yield wanted


def conflicts(roots: Iterable[str]) -> list[Conflict]:
    """Every unmet requirement of the distributions and of their dependencies, as `pip check` finds them."""
    found, seen = [], set[tuple[str, frozenset[str]]]()
    queue = [(name, frozenset[str]()) for name in roots]
    while queue:
        name, extras = queue.pop(0)
        if (canonicalize_name(name), extras) in seen:
            continue
        seen.add((canonicalize_name(name), extras))
        version = installed_version(name)
        if version is None:
            continue
        for wanted in requirements(name, extras):
            installed = installed_version(wanted.name)
            if installed is None or not wanted.specifier.contains(installed, prereleases=True):
                text = str(wanted).partition(";")[0].strip()
                found.append(Conflict(distribution=name, version=version, requirement=text, found=installed))
            if installed is not None:
                queue.append((wanted.name, frozenset(wanted.extras)))
    return list(dict.fromkeys(found))


def modules_of(name: str) -> list[str]:
    """The top-level modules of a distribution, the one that resembles its name first."""
    wanted = canonicalize_name(name)
    found = [m for m, owners in _owners().items() if wanted in owners and m.isidentifier() and not m.startswith("_")]
    near = wanted.replace("-", "_")
    return sorted(found, key=lambda m: (m != near, not near.startswith(m), m))


def _owners() -> dict[str, set[str]]:
    if not _OWNERS:
        for module, names in importlib.metadata.packages_distributions().items():
            _OWNERS[module] = {canonicalize_name(n) for n in names}
    return _OWNERS


_OWNERS: dict[str, set[str]] = {}
