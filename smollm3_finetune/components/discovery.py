"""Discovers plugins: the built-in one, then entry points sorted by name, then the files and modules of `-p`.

A plugin that cannot be imported or breaks the contract is contained: it becomes a `broken` record without components.
Nothing in the working directory is executed unless `-p` names it.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import pluggy

from smollm3_finetune import stopping
from smollm3_finetune.components.contract import (
    Violation,
    check_reserved,
    check_twice,
    descriptors,
    hint_of,
    hook_functions,
    leave_out,
    sentence,
)
from smollm3_finetune.components.kinds import KINDS
from smollm3_finetune.components.registry import PluginRecord, RegisteredComponent, Registry, install_command
from smollm3_finetune.components.snapshot import disabled_by_environment
from smollm3_finetune.errors import ConfigError, PluginError, PluginTimeoutError, did_you_mean
from smollm3_finetune.paths import user_path
from smollm3_finetune.version import __version__

GROUP = "smollm3_finetune"
CORE_DISTRIBUTION = "smollm3-finetune"
PROJECT_FILES = ("pyproject.toml", "setup.py")
"""What the directory of a package has."""
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class PluginSelection:
    """The plugins that a user adds to the installed ones, and those that a user disables."""

    files: tuple[str, ...] = ()
    """`-p`: paths of Python files, or importable module names."""
    blocked: frozenset[str] = frozenset()
    """`-p no:NAME`: entry-point names or distributions that are not imported."""
    entry_points: bool = True
    """False for `--no-plugins`."""

    @classmethod
    def of(cls, requested: Sequence[str], no_plugins: bool = False) -> PluginSelection:
        """The selection for the values of `-p`, the flag `--no-plugins` and `SMOLLM3_DISABLE_PLUGINS`."""
        blocked = {r[3:] for r in requested if r.startswith("no:")}
        everything, names = disabled_by_environment()
        files = tuple(r for r in requested if not r.startswith("no:"))
        return cls(files=files, blocked=frozenset(blocked | names), entry_points=not (no_plugins or everything))


@dataclass(frozen=True, kw_only=True)
class _Candidate:
    """A plugin that was found but not imported yet."""

    name: str
    distribution: str
    version: str
    origin: str
    load: Callable[[], Any]

    @property
    def named(self) -> bool:
        """Whether the user named it with `-p`."""
        return self.origin not in ("built in", "entry point")

    def waited(self, function: Callable[[], T], doing: str) -> T:
        """The result of a function of the plugin, which is named if it is slow. Raises PluginTimeoutError."""
        if self.origin == "built in":
            return function()
        from smollm3_finetune.components.waiting import waited

        return waited(function, plugin=self.name, origin=self.origin, doing=doing)

    def broken(self, error: BaseException) -> PluginError:
        """The error of a run that needs this plugin."""
        where = "" if self.named else f", {self.origin}"
        hint = hint_of(error) or _advice(error)
        if self.origin == "entry point":
            hint += f"; {leave_out(self.name, self.origin)}"
        found = PluginError(
            f"plugin {self.name!r} ({self.distribution} {self.version}{where}) is broken: {sentence(error)}", hint=hint
        )
        found.__cause__ = error
        return found

    def record(
        self, status: str, components: Iterable[str] = (), error: BaseException | None = None, module: Any = None
    ) -> PluginRecord:
        return PluginRecord(
            name=self.name,
            distribution=self.distribution,
            version=self.version,
            origin=self.origin,
            status=status,
            components=tuple(components),
            error=sentence(error) if error is not None else None,
            hint=(hint_of(error) or _advice(error)) if error is not None else None,
            file=getattr(module, "__file__", None),
            exceptions=[self.broken(error)] if error is not None else [],
        )


def _check_name(candidate: _Candidate, records: Iterable[PluginRecord]) -> None:
    """Raises Violation for a `-p` plugin whose components would have the full names of an installed distribution."""
    for record in records if candidate.named else ():
        if (
            record.distribution == candidate.distribution
            and record.origin == "entry point"
            and record.status == "active"
        ):
            raise Violation(f"its name is that of the installed distribution {record.distribution} {record.version}",
                            f"rename it, or disable the installed one: -p no:{record.name}")  # fmt: skip


def _check_shadowed(plugin: Any) -> None:
    """Raises Violation for a file that Python imports in place of an installed module, as if it were installed."""
    name, own = getattr(plugin, "__name__", ""), getattr(plugin, "__file__", None)
    for point in importlib.metadata.entry_points(group=GROUP):
        if point.module != name or own is None or point.dist is None:
            continue
        parts = "/".join(name.split("."))
        for file in point.dist.files or ():
            if (
                str(file) in (f"{parts}.py", f"{parts}/__init__.py")
                and Path(str(file.locate())).resolve() != Path(own).resolve()
            ):
                raise Violation(f"{own} hides the module {name!r} of {point.dist.name} {point.dist.version}",
                                f"rename it, or disable the installed one: -p no:{point.name}")  # fmt: skip


def _advice(error: BaseException) -> str:
    from smollm3_finetune.components.locations import raised_at

    line = raised_at(error)
    return f"{f'it was raised at {line}; ' if line else ''}to see its traceback: --debug"


def discover(selection: PluginSelection = PluginSelection()) -> Registry:
    """Import the hook module of every selected plugin and collect its components.

    Raises ConfigError if a `-p` plugin does not exist, and PluginError if a plugin does not return within the limit, if
    a `-p` plugin is broken or, with `SMOLLM3_STRICT_PLUGINS=1`, if any plugin is broken.
    """
    manager = pluggy.PluginManager("smollm3_finetune")
    trace = os.environ.get("SMOLLM3_TRACE_PLUGINS", "") not in ("", "0")
    strict = os.environ.get("SMOLLM3_STRICT_PLUGINS", "") not in ("", "0")
    records: list[PluginRecord] = []
    components: list[RegisteredComponent] = []
    seen: list[Any] = []
    candidates = _candidates(selection)
    _check_blocked(selection, candidates)
    for candidate in candidates:
        if {candidate.name, candidate.distribution} & selection.blocked and candidate.origin != "built in":
            records.append(candidate.record("disabled"))
            continue
        began = time.perf_counter()
        try:
            plugin = candidate.waited(candidate.load, "its import")
            if candidate.origin != "entry point" and any(plugin is other for other in seen):
                _check_shadowed(plugin)
                continue  # named twice, or both named and installed
            _check_name(candidate, records)
            found = _collect(manager, candidate, plugin)
        except (KeyboardInterrupt, PluginTimeoutError):
            raise
        except BaseException as e:  # including SystemExit at import: one plugin must not end the tool
            stopping.check()
            if strict or candidate.named:
                raise candidate.broken(e) from e
            records.append(candidate.record("broken", error=e))
        else:
            seen.append(plugin)
            components += found
            records.append(candidate.record("active", [f"{o.kind.name} {o.spec.name}" for o in found], module=plugin))
        if trace:
            took = (time.perf_counter() - began) * 1000
            print(f"smollm3: plugin {candidate.name}: {records[-1].status}, {took:.1f} ms", file=sys.stderr)
    return Registry(components=tuple(components), plugins=tuple(records), entry_points=selection.entry_points)


def _check_blocked(selection: PluginSelection, candidates: Sequence[_Candidate]) -> None:
    """Raises ConfigError, before any plugin is imported, if a `-p no:NAME` disables nothing."""
    if selection.blocked & {"builtin", CORE_DISTRIBUTION}:
        raise ConfigError("the built-in components cannot be disabled", hint="name an installed plugin: -p no:NAME")
    known = {n for c in candidates for n in (c.name, c.distribution)}
    for name in sorted(selection.blocked - known) if selection.entry_points else ():
        installed = sorted({c.name for c in candidates if c.origin == "entry point"})
        near = did_you_mean(name, installed)
        hint = f"did you mean -p no:{near}?" if near else f"installed plugins: {', '.join(installed) or 'none'}"
        raise ConfigError(f"there is no plugin {name!r} to disable", hint=hint)


def _candidates(selection: PluginSelection) -> list[_Candidate]:
    """Every plugin to consider, in order; nothing is imported yet."""
    builtin = _Candidate(
        name="builtin",
        distribution=CORE_DISTRIBUTION,
        version=__version__,
        origin="built in",
        load=lambda: importlib.import_module("smollm3_finetune.builtin"),
    )
    installed = []
    if selection.entry_points:
        for point in importlib.metadata.entry_points(group=GROUP):
            distribution = point.dist
            installed.append(
                _Candidate(
                    name=point.name,
                    distribution=distribution.name if distribution else "unknown",
                    version=distribution.version if distribution else "unknown",
                    origin="entry point",
                    load=point.load,
                )
            )
    installed.sort(key=lambda c: (c.name, c.distribution))
    return [builtin, *installed, *(_named(text) for text in selection.files)]


def _named(text: str) -> _Candidate:
    """The plugin of `-p TEXT`: a Python file or an importable module."""
    if text.endswith(".py") or os.sep in text:
        path = user_path(text, "the plugin file")
        if not path.is_file() or path.suffix != ".py":
            wrong = "is not a Python file" if path.exists() else "does not exist"
            raise ConfigError(f"the plugin file {text!r} {wrong}", hint=to_install(text) or "-p PATH/TO/plugin.py")
        path = path.resolve()
        return _Candidate(
            name=path.stem,
            distribution=path.stem,
            version=_file_version(path),
            origin=str(path),
            load=lambda: _import_file(path),
        )
    try:
        found = importlib.util.find_spec(text)
    except (ImportError, ValueError):
        found = None
    except Exception as e:  # find_spec("a.b") imports `a`
        raise PluginError(f"the plugin module {text!r} cannot be imported: {sentence(e)}") from e
    if found is None:
        hint = to_install(text) or "-p PATH/TO/plugin.py"
        raise ConfigError(f"the plugin module {text!r} cannot be found", hint=hint)
    version = _file_version(Path(found.origin)) if found.origin and Path(found.origin).is_file() else "0"
    return _Candidate(
        name=text,
        distribution=text,
        version=version,
        origin=f"module {text}",
        load=lambda: importlib.import_module(text),
    )


def to_install(text: str) -> str | None:
    """The command that installs the wheel or the directory of a package at this path; None if it is neither."""
    wheel = text.endswith(".whl") and os.path.isfile(text)
    if not wheel and not any(os.path.isfile(os.path.join(text, file)) for file in PROJECT_FILES):
        return None
    return install_command(shlex.quote(text if os.sep in text or text.startswith(".") else f".{os.sep}{text}"))


def _file_version(path: Path) -> str:
    """A version for a plugin file, derived from its content: cache entries of an older content are not reused.

    Raises ConfigError if the file cannot be read.
    """
    from smollm3_finetune.files.json import file_sha256

    try:
        return f"0+{file_sha256(path)[:8]}"
    except OSError as e:
        import shlex

        raise ConfigError(f"the plugin file {str(path)!r} cannot be read: {e.strerror or e}",
                          hint=f"chmod u+r {shlex.quote(str(path))}") from e  # fmt: skip


def _import_file(path: Path) -> ModuleType:
    """Import a plugin file as the module of its stem, so that its dotted strings (`my_plugin:Factory`) resolve."""
    name = path.stem
    known = sys.modules.get(name)
    if known is not None and getattr(known, "__file__", None) == str(path):
        return known
    importable = None if known is not None else importlib.util.find_spec(name)
    if importable is not None and importable.origin == str(path):  # its folder is already on sys.path
        return importlib.import_module(name)
    if known is not None or importable is not None:
        other = getattr(known, "__file__", None) or (importable.origin if importable is not None else None)
        raise ConfigError(f"the name {name!r} is taken by another module" + (f", {other}" if other else ""),
                          hint=f"rename {path}")  # fmt: skip
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _collect(manager: pluggy.PluginManager, candidate: _Candidate, plugin: Any) -> list[RegisteredComponent]:
    """Call each hook of one imported plugin. Raises the first violation of the contract, or what a hook raises."""
    functions = hook_functions(manager, plugin)
    components: list[RegisteredComponent] = []
    for kind in KINDS:
        if (function := functions.get(kind.hook)) is None:
            continue
        specs = candidate.waited(partial(descriptors, function, kind), kind.hook)
        check_twice(kind, specs)
        check_reserved(kind, specs)
        components += [
            RegisteredComponent(
                kind=kind,
                spec=spec,
                distribution=candidate.distribution,
                version=candidate.version,
                plugin=candidate.name,
                origin=candidate.origin,
            )
            for spec in specs
        ]
    return components
