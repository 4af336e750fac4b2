"""Discovers plugins: the built-in one, then entry points sorted by name, then the files and modules of `-p`.

A plugin that cannot be imported or breaks the contract is contained: it becomes a `broken` record without components.
Nothing in the working directory is executed unless `-p` names it.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import inspect
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pluggy

from smollm3_finetune import stopping
from smollm3_finetune.api import API_VERSION, ComponentSpec, hookspecs
from smollm3_finetune.components.kinds import KINDS, Kind
from smollm3_finetune.components.registry import PluginRecord, RegisteredComponent, Registry
from smollm3_finetune.errors import ConfigError, PluginError, did_you_mean
from smollm3_finetune.paths import user_path
from smollm3_finetune.version import __version__

GROUP = "smollm3_finetune"
CORE_DISTRIBUTION = "smollm3-finetune"
NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


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
        disabled = os.environ.get("SMOLLM3_DISABLE_PLUGINS", "")
        if disabled in ("1", "all", "true"):
            no_plugins = True
        else:
            blocked |= {n.strip() for n in disabled.split(",") if n.strip() and n.strip() != "0"}
        files = tuple(r for r in requested if not r.startswith("no:"))
        return cls(files=files, blocked=frozenset(blocked), entry_points=not no_plugins)


@dataclass(frozen=True, kw_only=True)
class _Candidate:
    """A plugin that was found but not imported yet."""

    name: str
    distribution: str
    version: str
    origin: str
    load: Callable[[], Any]

    def record(self, status: str, components: Iterable[str] = (), error: str | None = None) -> PluginRecord:
        return PluginRecord(
            name=self.name,
            distribution=self.distribution,
            version=self.version,
            origin=self.origin,
            status=status,
            components=tuple(components),
            error=error,
        )


def discover(selection: PluginSelection = PluginSelection()) -> Registry:
    """Import the hook module of every selected plugin and collect its components.

    Raises ConfigError if a `-p` plugin does not exist, and PluginError if a `-p` plugin is broken or, with
    `SMOLLM3_STRICT_PLUGINS=1`, if any plugin is broken.
    """
    manager = pluggy.PluginManager("smollm3_finetune")
    manager.add_hookspecs(hookspecs)
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
            plugin = candidate.load()
            if candidate.origin != "entry point" and any(plugin is other for other in seen):
                continue  # named twice, or both named and installed
            found = _collect(manager, candidate, plugin)
        except KeyboardInterrupt:
            raise
        except BaseException as e:  # including SystemExit at import: one plugin must not end the tool
            stopping.check()
            named = candidate.origin not in ("built in", "entry point")
            disable = "" if named else f"to disable it: -p no:{candidate.name}; "
            error = PluginError(
                f"plugin {candidate.name!r} ({candidate.distribution} {candidate.version}, {candidate.origin}) "
                f"is broken: {_brief(e)}",
                hint=f"{disable}to see its traceback: --debug",
            )
            error.__cause__ = e
            if strict or named:
                raise error from e
            records.append(candidate.record("broken", error=_brief(e)))
            records[-1].exceptions.append(error)
        else:
            seen.append(plugin)
            components += found
            records.append(candidate.record("active", [f"{o.kind.name} {o.spec.name}" for o in found]))
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
            raise ConfigError(f"the plugin file {text!r} {wrong}", hint="-p PATH/TO/plugin.py")
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
        raise PluginError(f"the plugin module {text!r} cannot be imported: {_brief(e)}") from e
    if found is None:
        raise ConfigError(f"the plugin module {text!r} cannot be found", hint="-p PATH/TO/plugin.py")
    version = _file_version(Path(found.origin)) if found.origin and Path(found.origin).is_file() else "0"
    return _Candidate(
        name=text,
        distribution=text,
        version=version,
        origin=f"module {text}",
        load=lambda: importlib.import_module(text),
    )


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
        raise ConfigError(f"the name {name!r} is taken by another module", hint=f"rename {path}")
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
    _check_hook_names(manager, plugin)
    if not any(manager.parse_hookimpl_opts(plugin, name) is not None for name in dir(plugin)):
        raise TypeError("it has no hook: define a function such as smollm3_adapters, with @hookimpl")
    unique = f"{candidate.distribution}:{candidate.name}:{candidate.origin}"
    try:
        manager.register(plugin, name=unique)
        components = [
            RegisteredComponent(
                kind=kind,
                spec=_checked(spec, kind),
                distribution=candidate.distribution,
                version=candidate.version,
                plugin=candidate.name,
            )
            for kind in KINDS
            for spec in _ask(manager, plugin, kind)
        ]
        _check_twice(components)
        return components
    except BaseException:
        if manager.has_plugin(unique):  # a failed register() leaves it half registered
            manager.unregister(name=unique)
        raise


def _check_hook_names(manager: pluggy.PluginManager, plugin: Any) -> None:
    """Raises TypeError for a misspelled or undecorated hook, which pluggy ignores silently."""
    hooks = [k.hook for k in KINDS]
    for name in dir(plugin):
        if manager.parse_hookimpl_opts(plugin, name) is not None:
            if name not in hooks:
                near = did_you_mean(name, hooks)
                raise TypeError(f"there is no hook {name!r}" + (f"; did you mean {near!r}?" if near else ""))
        elif name in hooks and callable(getattr(plugin, name)):
            raise TypeError(f"the hook {name!r} is not decorated with @hookimpl")
        elif name.startswith("smollm3_") and inspect.isfunction(getattr(plugin, name)) and did_you_mean(name, hooks):
            raise TypeError(f"there is no hook {name!r}; did you mean {did_you_mean(name, hooks)!r}, with @hookimpl?")


def _ask(manager: pluggy.PluginManager, plugin: Any, kind: Kind) -> list[Any]:
    """The descriptors of one plugin's hook; a generator is consumed here, so that its errors are attributed."""
    caller = getattr(manager.hook, kind.hook)
    found: list[Any] = []
    for implementation in caller.get_hookimpls():
        if implementation.plugin is not plugin:
            continue
        if implementation.hookwrapper or implementation.wrapper:
            raise TypeError(f"{kind.hook} cannot be a wrapper: hooks return descriptors")
        answer = implementation.function()
        if answer is None or isinstance(answer, str | bytes) or not isinstance(answer, Iterable):
            raise TypeError(f"{kind.hook} must return an iterable of descriptors, but returned {answer!r}")
        found += list(answer)
    return found


def _check_twice(components: Iterable[RegisteredComponent]) -> None:
    """Raises ValueError if a plugin uses a name twice in one kind: `dist:name` would be ambiguous."""
    taken = set()
    for component in components:
        for name in {component.spec.name, *component.spec.aliases}:
            if (component.kind, name) in taken:
                raise ValueError(f"it offers the {component.kind.name} {name!r} twice")
            taken.add((component.kind, name))


def _checked(spec: Any, kind: Kind) -> ComponentSpec:
    """The descriptor, if it follows the contract. Raises TypeError or ValueError that names the field."""
    if not isinstance(spec, kind.spec):
        raise TypeError(f"{kind.hook} must return {kind.spec.__name__} objects, but returned {spec!r}")
    if type(spec.api) is not int or spec.api < 1:
        raise TypeError(f"{spec.name!r}: api must be {API_VERSION}, but is {spec.api!r}")
    if spec.api > API_VERSION:
        raise ValueError(
            f"{spec.name!r} was written for api {spec.api}, but this smollm3-finetune has api {API_VERSION}: "
            "upgrade smollm3-finetune"
        )
    tuples = {"aliases": spec.aliases, **vars(spec.requires)}
    for label, values in tuples.items():
        if isinstance(values, str) or not all(isinstance(v, str) for v in values):
            raise TypeError(f"{spec.name!r}: {label} must be a tuple of strings, got {values!r}")
    for name in (spec.name, *spec.aliases):
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise ValueError(f"the name {name!r} must be lower-case words joined by single hyphens")
    for label, dotted in (("factory", spec.factory), ("options", spec.options)):
        if not isinstance(dotted, str) or not DOTTED.fullmatch(dotted):
            raise ValueError(f"{spec.name!r}: {label} must be 'package.module:Class', got {dotted!r}")
    if not spec.summary:
        raise ValueError(f"{spec.name!r} has no summary")
    return spec


def _brief(error: BaseException) -> str:
    """An exception as one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
