"""What an installation changes, resolved before anything is changed, and refused if it replaces what must stay."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from smollm3_finetune.components.discovery import CORE_DISTRIBUTION
from smollm3_finetune.errors import ConfigError, IncompatibleError, did_you_mean, raise_all
from smollm3_finetune.installing.environment import InstalledDistribution, constraints
from smollm3_finetune.installing.failures import NotFound
from smollm3_finetune.installing.index import PluginIndex
from smollm3_finetune.installing.installer import Installer, Resolved, Sources
from smollm3_finetune.installing.names import NAMES_OF_COMPONENTS, near_wheel
from smollm3_finetune.installing.requests import Request, not_a_plugin


@dataclass(frozen=True, kw_only=True)
class Change:
    """A distribution that is installed, or replaced by another version."""

    name: str
    before: str | None
    """The version that is installed now."""
    after: str
    """Empty if only a build would tell."""
    request: Request | None = None
    """What the user asked for; None: another distribution requires it."""

    @property
    def source(self) -> str:
        """The file, the directory or the URL that the user named."""
        return self.request.source if self.request is not None else ""

    @property
    def requested(self) -> bool:
        return self.request is not None

    @property
    def editable(self) -> bool:
        return self.request is not None and self.request.editable

    def as_dict(self) -> dict[str, Any]:
        return {"name": self.name, "before": self.before, "after": self.after, "source": self.source or None,
                "requested": self.requested, "editable": self.editable}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A resolved installation."""

    requests: tuple[Request, ...]
    changes: tuple[Change, ...]
    installer: Installer = field(repr=False)
    sources: Sources
    found: Mapping[str, InstalledDistribution] = field(repr=False)
    """What is installed now, by canonical name."""
    pins: Mapping[str, str] = field(repr=False)
    """`name==version` of what must stay, by canonical name."""
    upgrades: bool = False
    allowed: frozenset[str] = frozenset()
    """The canonical names that may change."""

    @property
    def exact(self) -> list[str]:
        """The pins of the installation: what stays, and each version that was resolved."""
        new: dict[str, str] = {
            canonicalize_name(c.name): f"{c.name}=={c.after}" for c in self.changes if c.after and not c.source
        }
        return list({**self.pins, **new}.values())

    @property
    def satisfied(self) -> list[InstalledDistribution]:
        """The requested distributions that are installed already."""
        changing = {canonicalize_name(c.name) for c in self.changes}
        names = [r.name for r in self.requests if r.name is not None and r.name not in changing]
        return [self.found[n] for n in names if n in self.found]


def make_plan(
    requests: Sequence[Request], installer: Installer, sources: Sources, found: Mapping[str, InstalledDistribution],
    index: PluginIndex, allow_change: Collection[str] = (), upgrade: bool = False,
) -> Plan:  # fmt: skip
    """Resolve the requests with every other distribution kept as it is. Nothing is changed.

    Raises IncompatibleError if that is impossible, PluginError if a requested distribution is not a plugin, and what
    `failures` makes of other failures.
    """
    allowed = _allowed(allow_change, found)
    own = {r.name for r in requests if r.name is not None}
    pins = constraints(found.values(), own | allowed)
    upgrades = [r.argument[0] for r in requests] if upgrade else []
    try:
        resolved = installer.resolve([r.argument for r in requests], pins.values(), sources, upgrades)
    except NotFound as e:
        raise _not_found(e, requests, index, installer, sources, found) from e
    changes = [_change(one, requests, found) for one in resolved]
    plan = Plan(
        requests=tuple(requests),
        changes=tuple(sorted(changes, key=lambda c: (not c.requested, c.name.lower()))),
        installer=installer,
        sources=sources,
        found=found,
        pins=pins,
        upgrades=upgrade,
        allowed=frozenset(allowed),
    )
    _check_kept(plan)
    raise_all([
        not_a_plugin(one.title, next(r.shown for r in requests if r.name == canonicalize_name(one.name)))
        for one in plan.satisfied if not one.is_plugin
    ])  # fmt: skip
    raise_all(
        [
            not_a_plugin(f"{one.name} {one.version}", r.shown)
            for one in resolved
            if (r := _request_of(one, requests)) is not None and not _may_be_plugin(one, r)
        ]
    )
    return plan


def _allowed(names: Collection[str], found: Mapping[str, InstalledDistribution]) -> set[str]:
    """The canonical names of `--allow-change`. Raises ConfigError for one that is not installed."""
    problems = []
    for name in names:
        if canonicalize_name(name) not in found:
            near = did_you_mean(name, found)
            hint = f"did you mean {near!r}?" if near else "name an installed distribution, such as torch"
            problems.append(ConfigError(f"--allow-change {name}: it is not installed", hint=hint))
    raise_all(problems)
    return {canonicalize_name(n) for n in names}


def _request_of(one: Resolved, requests: Sequence[Request]) -> Request | None:
    """The request for a resolved distribution; None: it is required by another one."""
    name = canonicalize_name(one.name)
    exact = next((r for r in requests if r.name == name), None)
    unknown = [r for r in requests if r.name is None]
    if exact is None and unknown and one.url:
        exact = next((r for r in unknown if r.source and _same_place(r, one.url)), None)
    return exact


def _same_place(request: Request, url: str) -> bool:
    """Whether a resolved address is that of the request; pip hides passwords in it."""
    path, argument = (re.sub(r"://[^/@]*@", "://", text) for text in (unquote(url), request.argument[-1]))
    wanted = argument.partition("[")[0].rstrip("/")
    return path.rstrip("/").removeprefix("file://") == wanted or wanted.removeprefix("git+").partition("@")[0] in path


def _change(one: Resolved, requests: Sequence[Request], found: Mapping[str, InstalledDistribution]) -> Change:
    request, now = _request_of(one, requests), found.get(canonicalize_name(one.name))
    known = request.contents.version if request is not None and request.contents is not None else None
    stated = request.version if request is not None else ""
    return Change(
        name=one.name,
        before=now.version if now is not None else None,
        after=one.version or known or stated,
        request=request,
    )


def _check_kept(plan: Plan) -> None:
    """Raises IncompatibleError if a distribution would be replaced that the user did not name.

    The constraints exclude it; this also holds for what they do not reach, such as direct references.
    """
    replaced = [c for c in plan.changes if c.before is not None and not c.requested
                and canonicalize_name(c.name) not in plan.allowed]  # fmt: skip
    core = [c for c in plan.changes if canonicalize_name(c.name) == CORE_DISTRIBUTION]
    if core:
        raise IncompatibleError(f"the installation would replace smollm3-finetune itself with {core[0].after}",
                                hint="pip install --upgrade smollm3-finetune")  # fmt: skip
    if replaced:
        what = ", ".join(f"{c.name} {c.before} with {c.after}" for c in replaced)
        flags = " ".join(f"--allow-change {canonicalize_name(c.name)}" for c in replaced)
        raise IncompatibleError(f"the installation would replace {what}", hint=f"to replace it anyway: {flags}")


def _may_be_plugin(one: Resolved, request: Request) -> bool:
    """Whether a requested distribution may be a plugin; one of a name must depend on smollm3-finetune."""
    if request.contents is not None and request.contents.plugins is not None:
        return bool(request.contents.plugins)
    if one.requires is None:
        return True
    return any(_name(text) == CORE_DISTRIBUTION for text in one.requires)


def _name(requirement: str) -> str:
    try:
        return canonicalize_name(Requirement(requirement).name)
    except InvalidRequirement:
        return ""


def _not_found(
    error: NotFound, requests: Sequence[Request], index: PluginIndex, installer: Installer, sources: Sources,
    found: Mapping[str, InstalledDistribution],
) -> Exception:  # fmt: skip
    """The error of a distribution that no source has, with what the user may have meant."""
    name = _name(error.what) or error.what
    if (one := found.get(name)) is not None and one.is_outside:
        return IncompatibleError(
            f"{one.title} is in {one.location}, where {installer.name} does not see it",
            hint="install it into this environment, or use the one that it belongs to",
        )
    request = next((r for r in requests if r.name == name), None)
    if request is None:
        asked = " and ".join(r.shown for r in requests)
        return IncompatibleError(f"{asked} needs {error.what}, which no package index and no --find-links has",
                                 hint="name a source that has it: --find-links DIR, or --index-url URL")  # fmt: skip
    if request.from_index is not None:
        folder = request.from_index.folder
        clone = f"; in a clone of the repository: smollm3 plugins install ./{folder}" if folder else ""
        return ConfigError(error.message, hint=f"name a source: --find-links DIR, or --index-url URL{clone}")
    near = near_wheel(sources.folders(installer), name) or index.near(name)
    advice = f"did you mean {near}? " if near else "smollm3 plugins search WORD; "
    return ConfigError(error.message, hint=f"{advice}{NAMES_OF_COMPONENTS}")


def newer(before: str | None, after: str) -> str:
    """`new`, `upgrade`, `downgrade` or `again`."""
    if before is None:
        return "new"
    try:
        old, now = Version(before), Version(after)
    except ValueError:
        return "replaced"
    return "again" if old == now else "upgrade" if old < now else "downgrade"
