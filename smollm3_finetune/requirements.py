"""Whether what a component requires is there, from package metadata alone: nothing is imported."""

from __future__ import annotations

import importlib.metadata

from smollm3_finetune.api import Requires
from smollm3_finetune.errors import MissingRequirementError, PluginError


def installed_version(distribution: str) -> str | None:
    """The installed version of a distribution, or None."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def unmet_distributions(requires: Requires) -> list[tuple[str, str]]:
    """Each requirement that is not met, with what was found: (`bitsandbytes>=0.49`, `it is not installed`)."""
    from packaging.requirements import InvalidRequirement, Requirement

    unmet = []
    for text in requires.distributions:
        try:
            wanted = Requirement(text)
        except InvalidRequirement as e:
            raise PluginError(f"a plugin requires {text!r}, which is no requirement: {e}".splitlines()[0]) from e
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
        for text, found in unmet_distributions(requires)
    ]
    kind = device.partition(":")[0]
    if requires.accelerators and kind not in requires.accelerators:
        names = " or ".join(requires.accelerators)
        problems.append(
            MissingRequirementError(
                f"{what} runs on {names} only, and this run is on {kind}",
                hint=f"--device {requires.accelerators[0]}, on a machine that has one",
            )
        )
    return problems
