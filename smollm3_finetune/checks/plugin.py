"""Checks whether a plugin follows the contract, without loading weights; for plugin authors and their CI.

Discovery stops at the first problem of a plugin, and a run at the first problem that affects it. These checks report
all: of hooks, descriptors, options, implementations, requirements, and names that other plugins use.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import itertools
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smollm3_finetune.checks.component import component_findings
from smollm3_finetune.checks.findings import Finding
from smollm3_finetune.checks.light import SLOW, Light, heavy_imports
from smollm3_finetune.checks.probe import run_pieces
from smollm3_finetune.components.contract import hint_of, near_hook, sentence
from smollm3_finetune.components.discovery import GROUP, PluginSelection, discover, to_install
from smollm3_finetune.components.kinds import COMMAND, KINDS
from smollm3_finetune.components.lifetimes import HOOKS as LIFETIMES
from smollm3_finetune.components.locations import own_line
from smollm3_finetune.components.registry import (
    PluginRecord,
    RegisteredComponent,
    Registry,
    install_command,
    known_components,
)
from smollm3_finetune.errors import ConfigError, PluginError, did_you_mean
from smollm3_finetune.paths import user_path

SECONDS = 60.0
"""The time limit for the import of one plugin; after that it counts as hanging."""
HOOKS = tuple(k.hook for k in KINDS)
CALL_HOOKS = """
import importlib
module = importlib.import_module({!r})
for hook in {!r}:
    list(getattr(module, hook, tuple)())
"""
"""Calls the hooks of an installed plugin, without core: whether a hook ends Python or never returns."""
BUILT_IN = "built in"


@dataclass(frozen=True, kw_only=True)
class Target:
    """A plugin to check."""

    name: str
    distribution: str
    requested: tuple[str, ...]
    """The values of `-p` with which it is discovered."""
    record: PluginRecord | None
    """None for a file that discovery refuses."""
    error: PluginError | None
    components: tuple[RegisteredComponent, ...]
    registry: Registry

    @property
    def title(self) -> str:
        return f"{self.record.distribution} {self.record.version}" if self.record is not None else "broken"


@dataclass(frozen=True, kw_only=True)
class Fatal:
    """A plugin whose import ends Python or never finishes."""

    asked: str
    """The file of `-p`, or the `no:NAME` that disables an installed plugin."""
    distribution: str
    finding: Finding

    def is_called(self, name: str) -> bool:
        return name in (self.asked, self.finding.subject, self.distribution)


def fatal(name: str | None, requested: Sequence[str], no_plugins: bool) -> list[Fatal]:
    """The plugins that discovery would import and whose import ends Python or never finishes.

    They are imported in a separate process, before anything is imported in this one.
    """
    files = [r for r in requested if not r.startswith("no:")]
    files += [name] if name is not None and (name.endswith(".py") or os.sep in name) else []
    code = (
        "from smollm3_finetune.components.discovery import PluginSelection, discover\n"
        "discover(PluginSelection.of(({!r},), True))"
    )
    pieces = {file: code.format(os.path.abspath(file) if file.endswith(".py") else file) for file in files}
    distributions = {file: Path(file).stem for file in files}
    wanted = PluginSelection.of(tuple(requested), no_plugins)
    for point in importlib.metadata.entry_points(group=GROUP) if wanted.entry_points else ():
        distribution = point.dist.name if point.dist is not None else ""
        if not {point.name, distribution} & wanted.blocked:
            pieces[f"no:{point.name}"] = CALL_HOOKS.format(point.module, HOOKS)
            distributions[f"no:{point.name}"] = distribution
    found = []
    for asked, probe in run_pieces(pieces, SECONDS).items():
        if probe.ended or (probe.problem or "").startswith("KeyboardInterrupt"):
            finding = Finding(
                subject=asked.removeprefix("no:"), check="it can be imported", ok=False,
                found="importing it raises KeyboardInterrupt" if not probe.ended
                else f"importing it or calling its hooks: {probe.problem}",
                fix="only define and decorate functions at import; to disable an installed plugin: -p no:NAME",
            )  # fmt: skip
            found.append(Fatal(asked=asked, distribution=distributions[asked], finding=finding))
    return found


def targets(
    name: str | None, requested: Sequence[str], no_plugins: bool = False, reported: bool = False
) -> list[Target]:
    """The plugins that `plugins check [NAME|FILE]` selects, except those that are `fatal`.

    Raises ConfigError if no plugin has that name, unless one was reported already (`reported`).
    """
    requested = tuple(requested)
    if name is not None and (name.endswith(".py") or os.sep in name):
        return [_file_target(name, requested, no_plugins)]
    registry = discover(PluginSelection.of(requested, no_plugins))
    if name is None:
        chosen = [r for r in registry.plugins if r.origin != BUILT_IN and r.status != "disabled"]
    else:
        offering = {(o.plugin, o.distribution) for o in registry.components if name in (o.spec.name, *o.spec.aliases)}
        exact = [r for r in registry.plugins if name in (r.name, r.distribution)]
        chosen = exact or [r for r in registry.plugins if (r.name, r.distribution) in offering]
        if not chosen:
            raise ConfigError(f"no installed plugin, distribution or component is named {name!r}",
                              hint=_hint_for_unknown(name, registry))  # fmt: skip
        if reported:  # only the plugins of the distribution that can be imported
            chosen = [r for r in chosen if r.status != "disabled"]
        elif chosen[0].status == "disabled":
            raise ConfigError(
                f"the plugin {name!r} is disabled",
                hint=f"omit -p no:{name}, and unset SMOLLM3_DISABLE_PLUGINS",
            )
    return [_target(record, registry, requested) for record in chosen]


def _hint_for_unknown(name: str, registry: Registry) -> str:
    """How to install a plugin of this name, or the name of an installed one that is meant."""
    names = {n for r in registry.plugins if r.origin != BUILT_IN for n in (r.name, r.distribution)}
    near = did_you_mean(name, [*sorted(names), *(o.spec.name for o in registry.components)])
    offered = {n: d for components in known_components().values() for n, d in components.items()}
    if directory := to_install(name):
        return directory
    if name in offered or name in offered.values():
        return install_command(name)
    install = f"{install_command(shlex.quote(name))}; to see what is installed: smollm3 plugins list"
    return f"did you mean {near!r}?" if near else install


def _target(record: PluginRecord, registry: Registry, requested: tuple[str, ...]) -> Target:
    return Target(
        name=record.name,
        distribution=record.distribution,
        requested=requested,
        record=record,
        error=record.exceptions[0] if record.exceptions else None,
        components=tuple(
            o for o in registry.components if (o.plugin, o.distribution) == (record.name, record.distribution)
        ),
        registry=registry,
    )  # fmt: skip


def _file_target(file: str, requested: tuple[str, ...], no_plugins: bool) -> Target:
    """The target for a `-p` file; also for a broken file, for which discovery raises."""
    wanted = (*requested, file)
    try:
        registry = discover(PluginSelection.of(wanted, no_plugins))
    except PluginError as e:
        rest = discover(PluginSelection.of(requested, no_plugins))
        stem = Path(file).stem
        return Target(
            name=stem, distribution=stem, requested=wanted, record=None, error=e, components=(), registry=rest
        )  # fmt: skip
    return _target(_record_of(file, registry), registry, wanted)


def _record_of(file: str, registry: Registry) -> PluginRecord:
    """The record of a `-p` file that discovery accepted: its own, or that of the plugin installed from it."""
    path = user_path(file, "the plugin file").resolve()
    own = (r for r in registry.plugins if r.origin == str(path))
    installed = (r for r in registry.plugins if r.origin != BUILT_IN and _is_from(path, _module(r)))
    return next(itertools.chain(own, installed))


def _is_from(path: Path, module: Any) -> bool:
    file = getattr(module, "__file__", None)
    return file is not None and Path(file).resolve() == path


def check(target: Target) -> list[Finding]:
    """All findings, in the order in which an author would fix them."""
    found = [*_light(target), *_hook_names(target)]
    if target.error is not None:
        cause = target.error.__cause__
        found.append(
            Finding(
                subject=target.name,
                check="it can be imported and its descriptors are valid",
                ok=False,
                found=sentence(cause) if cause else target.error.message,
                fix=_advice(cause),
            )
        )
        return found
    count = len(target.components)
    found.append(
        Finding(
            subject=target.name,
            check="it can be imported and its descriptors are valid",
            ok=bool(count),
            found=f"{count} component{'' if count == 1 else 's'}" if count else "its hooks offer nothing",
            fix="" if count else "return a descriptor from a hook; see smollm3_finetune.api.hookspecs",
        )
    )
    found += _shared_name(target)
    found += _deprecated_hooks(target)
    for component in target.components:
        found += component_findings(component, target.registry)
    return found


def _deprecated_hooks(target: Target) -> list[Finding]:
    """A warning for each deprecated hook that offers a component of the plugin."""
    used = dict.fromkeys(c.kind.hook for c in target.components)
    return [
        Finding(subject=target.name, check=f"its hook {hook} is not deprecated", ok=False, serious=False,
                found=f"{hook} is {warning}", fix=LIFETIMES[hook].instead)
        for hook in used if (warning := LIFETIMES[hook].warning())
    ]  # fmt: skip


def _light(target: Target) -> list[Finding]:
    if target.record is not None and target.record.origin == BUILT_IN:
        return []
    light = heavy_imports(_importable(target))
    if light.failed is not None:
        return [_finding(target, "its hooks and options can be imported", False, light.failed, "to see its traceback: "
                         f"python -X faulthandler -c 'import {target.name}'")]  # fmt: skip
    asked = "; ".join(dict.fromkeys(f"{module} at {where}" for module, where in light.heavy))
    found = [
        _finding(target, "its hooks and options do not import torch or another large library", not asked, asked,
                 "import it in the implementation, inside a function, or under `if TYPE_CHECKING:`"),
        _finding(target, f"importing its hooks and options takes less than {SLOW:g} s",
                 light.seconds < SLOW or bool(asked),
                 "" if light.seconds < SLOW else f"{light.seconds:.2f} s",
                 "to see which import takes long: python -X importtime"),
    ]  # fmt: skip
    found += _light_calls(target, light)
    if light.printed:
        found.append(_finding(target, "importing its hooks and options prints nothing", False, repr(light.printed),
                              "use logging: standard output is reserved for results"))  # fmt: skip
    return found


PLANNED = ("open",)
"""Functions that may import torch, although planning is faster without."""


def _light_calls(target: Target, light: Light) -> list[Finding]:
    """Findings about what the functions import that are called while a run is planned."""
    helps = [(f, m, w) for f, m, w in light.called if f.partition(" ")[0] == "--help"]
    must = [(f, m, w) for f, m, w in light.called if f.partition(" ")[0] not in (*PLANNED, "--help")]
    may = [(f, m, w) for f, m, w in light.called if f.partition(" ")[0] in PLANNED]
    check = "what is called while a run is planned does not import torch or transformers"
    fix = "decide it without them, or import them in the implementation"
    found = [_finding(target, check, not must, _imports(must), fix)]
    if any(c.kind is COMMAND for c in target.components):
        found.append(_finding(target, "the help of a command does not import torch or transformers", not helps,
                              _imports(helps), "import them inside the function of the command"))  # fmt: skip
    if may:
        found.append(Finding(subject=target.name, check="opening a model does not import torch or transformers",
                             ok=False, serious=False, found=_imports(may),
                             fix="import them in load and tokenizer, so that --dry-run stays fast"))  # fmt: skip
    return found


def _imports(called: Sequence[tuple[str, str, str]]) -> str:
    return "; ".join(dict.fromkeys(f"{function} imports {module} at {where}" for function, module, where in called))


def _finding(target: Target, check: str, ok: bool, found: str = "", fix: str = "") -> Finding:
    return Finding(subject=target.name, check=check, ok=ok, found=found, fix="" if ok else fix)


def _module(record: PluginRecord) -> Any:
    """The module of the plugin, or None if it cannot be imported."""
    if record.origin.endswith(".py"):
        return sys.modules.get(record.name)
    try:
        if record.origin != "entry point":
            return importlib.import_module(record.origin.rpartition(" ")[2])
        return next(p.load() for p in _entry_points(record))
    except (Exception, SystemExit):  # discovery reports the problem
        return None


def _importable(target: Target) -> str:
    """The file or the module of a plugin, as `-p` takes it."""
    if target.record is None:  # a broken file
        return target.requested[-1]
    if target.record.origin == "entry point":
        return next(p.module for p in _entry_points(target.record))
    return target.record.origin.removeprefix("module ")


def _entry_points(record: PluginRecord) -> list[importlib.metadata.EntryPoint]:
    points = importlib.metadata.entry_points(group=GROUP, name=record.name)
    return [p for p in points if p.dist is not None and p.dist.name == record.distribution]


def _hook_names(target: Target) -> list[Finding]:
    """Every name in the module that looks like a hook but is not one; discovery reports only the first."""
    if target.record is not None and target.record.origin == BUILT_IN:
        return []
    module = _module(target.record) if target.record is not None else sys.modules.get(target.name)
    if module is None:
        return []
    found = []
    for name in dir(module):
        value = getattr(module, name, None)
        marked = getattr(value, "smollm3_finetune_impl", None) is not None
        if not callable(value) or (name in HOOKS and marked):
            continue
        near = near_hook(name)
        if name in HOOKS:
            found.append((f"{name} has no @hookimpl", f"write @hookimpl above {name}"))
        elif marked or (name.startswith("smollm3_") and inspect.isfunction(value) and near):
            fix = f"did you mean {near}?" if near else f"the hooks are: {', '.join(HOOKS)}"
            found.append((f"there is no hook {name}", fix))
    if not found:
        return [_finding(target, "its hooks have known names and @hookimpl", True)]
    return [_finding(target, "its hooks have known names and @hookimpl", False, *one) for one in found]


def _advice(cause: BaseException | None) -> str:
    if isinstance(cause, SyntaxError):
        return f"{cause.filename}:{cause.lineno}"
    if cause is not None and (hint := hint_of(cause)) is not None:
        return hint
    if cause is not None and (line := own_line(cause)) is not None:
        return f"it was raised at {line}; to see the traceback: --debug"
    return "docs/hooks.md describes hooks and descriptors; to see the traceback: --debug"


def _shared_name(target: Target) -> list[Finding]:
    others = [r for r in target.registry.shared_names().get(target.name, []) if r.distribution != target.distribution]
    who = ", ".join(f"{r.distribution} {r.version}" for r in others)
    return [_finding(target, "no other distribution has its entry-point name", not others, who,
                     "choose another name in [project.entry-points.smollm3_finetune]")]  # fmt: skip
