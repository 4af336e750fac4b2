"""Installs a plan, checks the result, and undoes it if it turns out not to be a plugin."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from smollm3_finetune import stopping
from smollm3_finetune.errors import IncompatibleError, PluginError, SmolLM3Error
from smollm3_finetune.installing.alone import alone
from smollm3_finetune.installing.contents import Contents, overwritten, staged
from smollm3_finetune.installing.environment import InstalledDistribution, installed
from smollm3_finetune.installing.examine import Examined, examined
from smollm3_finetune.installing.plan import Change, Plan
from smollm3_finetune.installing.requests import Request, not_a_plugin

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Installation:
    """What was installed, and what the checks say."""

    changes: tuple[Change, ...]
    plugins: tuple[Examined, ...]


def install(plan: Plan, say: Say = lambda text: None) -> Installation:
    """Install what the plan says, and check the plugins.

    Raises PluginError, and uninstalls what was new, if a requested distribution is not a plugin, and IncompatibleError,
    before anything is installed, if one would overwrite files or programs of another.
    """
    with alone(), tempfile.TemporaryDirectory(prefix="smollm3-install-") as work:
        if plan.changes:
            folder = Path(work)
            with _reporting(plan):
                _fetch(plan, folder, say)
                say("installing …")
                _install(plan, folder)
            _check_arrived(plan)
        say("checking …")
        names = _plugins(plan)
        return Installation(changes=plan.changes, plugins=tuple(examined(names)) if names else ())


def _fetch(plan: Plan, folder: Path, say: Say) -> None:
    """Put what comes by name or by URL into the folder, and check what all distributions contain."""
    contents = [r.contents for r in plan.requests if r.contents is not None]
    wanted = [c for c in plan.changes if c.request is None or c.request.contents is None]
    if wanted:
        say(f"downloading {', '.join(c.name for c in wanted)} …" if not plan.sources.offline else "reading wheels …")
        plan.installer.stage([_exact(c) for c in wanted], plan.sources, folder)
        contents += staged(folder)
    requests = {canonicalize_name(c.name): c.request for c in plan.changes}
    for one in contents:
        _check_contents(one, plan, requests.get(canonicalize_name(one.name or "")))


def _exact(change: Change) -> tuple[str, ...]:
    """The argument that fetches exactly this version, without requirements."""
    if change.request is not None and not change.request.is_name:
        return change.request.argument
    return (f"{change.name}=={change.after}",)


def _check_contents(contents: Contents, plan: Plan, request: Request | None) -> None:
    title = f"{contents.name} {contents.version}"
    if request is not None and contents.plugins == ():
        raise not_a_plugin(title, request.shown)
    kept = [d for n, d in plan.found.items() if n not in plan.allowed]
    if (taken := overwritten(contents, kept)) is not None:
        what, owner = taken
        raise IncompatibleError(
            f"{title} contains {what} of {owner}, which is installed; nothing was installed",
            hint=f"report it to the author; to replace it anyway: --allow-change {canonicalize_name(owner)}",
        )


def _install(plan: Plan, folder: Path) -> None:
    after = {c.request: c.after for c in plan.changes if c.request is not None}
    wanted = [(_pinned(r, after[r]),) if r.is_name and r in after else r.argument for r in plan.requests]
    builds = any(not r.is_name and not r.argument[-1].partition("[")[0].endswith(".whl") for r in plan.requests)
    plan.installer.install(wanted, plan.exact, plan.sources, folder, builds)


def _pinned(request: Request, version: str) -> str:
    """A named request in exactly this version, with its extras."""
    wanted = Requirement(request.argument[0])
    extras = f"[{','.join(sorted(wanted.extras))}]" if wanted.extras else ""
    return f"{wanted.name}{extras}=={version}"


@contextlib.contextmanager
def _reporting(plan: Plan) -> Iterator[None]:
    """Add what was installed until then to the hint of an error, or of a request to stop."""
    try:
        yield
    except (SmolLM3Error, stopping.Stop) as e:
        now = installed()
        done = [c.name for c in plan.changes if _version(now, c.name) not in (None, c.before)]
        new = " ".join(c.name for c in plan.changes if c.before is None and c.name in done)
        undo = f"; to remove it: {plan.installer.shown('uninstall', new)}" if new else ""
        state = f"{', '.join(done)} was installed{undo}" if done else "nothing was installed"
        if done or isinstance(e, stopping.Stop):
            e.hint = "; ".join(filter(None, (e.hint, f"{state}; to continue: the same command")))
        raise


def _version(found: dict[str, InstalledDistribution], name: str) -> str | None:
    one = found.get(canonicalize_name(name))
    return one.version if one is not None else None


def _check_arrived(plan: Plan) -> None:
    """Raises an error if what was installed is not in this environment, or is not a plugin; the latter is undone."""
    now = installed()
    absent = [c for c in plan.changes if _version(now, c.name) is None]
    if absent:
        raise SmolLM3Error(
            f"{plan.installer.name} reported success, but {absent[0].name} is not in this environment",
            hint="look for a target in the configuration: pip config list",
        )
    for change in plan.changes:
        one = now[canonicalize_name(change.name)]
        if change.request is not None and not one.is_plugin:
            raise _undone(plan, not_a_plugin(one.title, change.request.shown))


def _undone(plan: Plan, error: PluginError) -> PluginError:
    """Uninstall what the plan added; `error` says so, and what was replaced."""
    added = [c.name for c in plan.changes if c.before is None]
    if replaced := [f"{c.name} {c.before} by {c.after}" for c in plan.changes if c.before is not None]:
        error.message += f"; {', '.join(replaced)} was replaced"
    if not added:
        return error
    plan.installer.uninstall(added)
    error.message += f"; {', '.join(added)} {'was' if len(added) == 1 else 'were'} uninstalled again"
    return error


def _plugins(plan: Plan) -> list[str]:
    """The distributions to check: those of the plan that are plugins, and the requested ones that were there."""
    now = installed()
    names = [c.name for c in plan.changes] + [d.name for d in plan.satisfied]
    found = (now.get(canonicalize_name(n)) for n in dict.fromkeys(names))
    return [one.name for one in found if one is not None and one.is_plugin]
