"""The components of the active plugins, and their lookup by name."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from smollm3_finetune.api import AdapterSpec, ComponentSpec
from smollm3_finetune.components.contract import described, leave_out, sentence
from smollm3_finetune.components.earlier_versions import accepts, current
from smollm3_finetune.components.kinds import QUANTIZER, Kind
from smollm3_finetune.errors import (
    MissingRequirementError,
    PluginConflictError,
    PluginError,
    PluginTimeoutError,
    Problems,
    SmolLM3Error,
    UnknownComponentError,
    did_you_mean,
    first_line,
    is_resource_error,
)
from smollm3_finetune.model_files.imports import quick_imports

T = TypeVar("T")
INDEX_FILE = Path(__file__).parents[1] / "installing" / "index.json"
"""The plugins of this project and what each offers; `scripts/plugin_index.py` writes it."""
INDEX_VARIABLE = "SMOLLM3_PLUGIN_INDEX"
"""The variable with the file or address of a newer index, which `plugins index` writes."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """Why a component was chosen that the user did not name."""

    reason: str
    """`its claims accepted the reference 'org/model'`"""
    other: str
    """How to choose another one: `choose another with --loader hf`."""


@dataclass(frozen=True, kw_only=True)
class RegisteredComponent:
    """A component and the plugin that offers it."""

    kind: Kind
    spec: ComponentSpec
    distribution: str
    version: str
    plugin: str
    origin: str = "entry point"
    """`built in`, `entry point`, the path of a plugin file, or `module NAME`."""
    claim: Claim | None = field(default=None, compare=False)
    """Why it was chosen for this run; None: the user named it."""

    @property
    def is_file(self) -> bool:
        """Whether the plugin is a file of `-p`."""
        return self.origin.endswith(".py")

    @property
    def full_name(self) -> str:
        """`distribution:name`, which is unambiguous whatever else is installed; saved configurations use it."""
        return f"{self.distribution}:{self.spec.name}"

    @property
    def title(self) -> str:
        """The component's name in messages: `quantizer 'none'`."""
        return f"{self.kind.name} {self.spec.name!r}"

    @property
    def who(self) -> str:
        """The component and its plugin in messages: `quantizer 'mine' (acme 1.2)`."""
        return f"{self.title} ({self.distribution} {self.version})"

    @property
    def note(self) -> str | None:
        """Why a component of a plugin was chosen and how to choose another, for errors that come from it."""
        if self.claim is None or self.origin == "built in":
            return None
        return f"{self.title} was chosen because {self.claim.reason}; {self.claim.other}"

    def waited(self, function: Callable[[], T], doing: str) -> T:
        """The result of a light function of the component, which is named if it is slow. Raises PluginTimeoutError."""
        if self.origin == "built in":
            return function()
        from smollm3_finetune.components.waiting import waited

        return waited(function, plugin=self.plugin, origin=self.origin, doing=f"{doing} of {self.title}")

    def options_class(self) -> type:
        """The options dataclass. Raises PluginError if it cannot be imported."""
        cls = self._import("options")
        if not isinstance(cls, type):
            raise PluginError(f"{self.who}: options {self.spec.options} is {described(cls)}, not a class",
                              hint="name a frozen dataclass: options='package.module:Class'")  # fmt: skip
        if not is_dataclass(cls):
            raise PluginError(f"{self.who}: options {self.spec.options} is not a dataclass",
                              hint="@dataclass(frozen=True, kw_only=True)")  # fmt: skip
        return cls

    def create(self, options: Any) -> Any:
        """The component, made from its validated options, with the methods of the current version of the plugin API.

        Raises PluginError if its factory fails or lacks methods.
        """
        factory = self._import("factory")
        if problem := _uncallable(factory):
            raise PluginError(f"{self.who}: the factory {self.spec.factory} {problem}",
                              hint="a factory takes the options: def __init__(self, options)")  # fmt: skip
        with attributed_to(self, "its factory"):
            made = factory(options)
        methods = [*self.kind.methods, *(["merge"] if getattr(self.spec, "merges", False) else [])]
        self.check_methods(made, methods, f"the factory {self.spec.factory}")
        made = current(made, self.spec)
        if isinstance(self.spec, AdapterSpec) and not accepts(made.restore, 4):
            raise PluginError(
                f"{self.who} states api={self.spec.api}, but its restore() does not accept (base, path, ctx, "
                "total_steps)",
                hint="def restore(self, base, path, ctx, total_steps), or api=1",
            )
        return made

    def command(self) -> Any:
        """The `click.Command` of a component of the kind `command`. Raises PluginError if its factory is another."""
        found = self._import("factory")
        if isinstance(found, type) or not all(callable(getattr(found, n, None)) for n in self.kind.methods):
            raise PluginError(f"{self.who}: the factory {self.spec.factory} is {described(found)}, not a click command",
                              hint="decorate the function with @click.command()")  # fmt: skip
        return found

    def check_methods(self, made: Any, methods: Iterable[str], maker: str) -> None:
        """Raises PluginError if `made`, which `maker` returned, lacks one of the methods; names the first."""
        for name in methods:
            if not callable(getattr(made, name, None)):
                raise PluginError(
                    f"{self.who}: {maker} returned {described(made)}, which has no method {name!r}",
                    hint=_method_hint(made, name),
                )

    def _import(self, label: str) -> Any:
        dotted: str = getattr(self.spec, label)
        module, _, name = dotted.partition(":")
        try:
            with quick_imports():
                imported = importlib.import_module(module)
        except KeyboardInterrupt:
            raise
        except BaseException as e:
            package = ((e.name or "") if isinstance(e, ModuleNotFoundError) else "").partition(".")[0]
            if package and package != module.partition(".")[0]:
                raise MissingRequirementError(
                    f"{self.title} needs the package {package!r}, which is not installed", hint=f"pip install {package}"
                ) from e
            from smollm3_finetune.components.locations import raised_at

            near = _near_module(module) if isinstance(e, ModuleNotFoundError) else None
            line = raised_at(e)
            raise PluginError(
                f"the {label} of {self.who}, {dotted}, cannot be imported: {sentence(e)}",
                hint=f"did you mean {near + ':' + name!r}?" if near
                else f"{f'it was raised at {line}; ' if line else ''}to see the traceback: --debug",
            ) from e  # fmt: skip
        try:
            return getattr(imported, name)
        except AttributeError as e:
            near = did_you_mean(name, [n for n in vars(imported) if not n.startswith("__")])
            raise PluginError(
                f"the {label} of {self.who}, {dotted}, cannot be imported: {module} has no {name!r}",
                hint=f"did you mean {module + ':' + near!r}?" if near else f"define {name} in {module}",
            ) from e


def _near_module(module: str) -> str | None:
    """The importable module that a module which does not exist was probably meant to be."""
    import pkgutil

    parent, _, last = module.rpartition(".")
    names = [n for n in sys.modules if "." not in n]
    if parent:
        paths = getattr(sys.modules.get(parent), "__path__", None)
        if paths is None:
            return None
        names = [m.name for m in pkgutil.iter_modules(paths)]
    near = did_you_mean(last, names)
    return f"{parent}.{near}" if near and parent else near


def _uncallable(factory: Any) -> str | None:
    """Why a factory cannot be called with the options; None if it can, or if nobody knows."""
    if not callable(factory):
        return f"is {described(factory)}, which cannot be called"
    try:
        inspect.signature(factory).bind(None)
    except TypeError as e:
        return f"cannot be called with the options: {e}"
    except ValueError:  # a builtin without a signature
        return None
    return None


def _method_hint(made: Any, name: str) -> str:
    if isinstance(made, type):
        return "return an object, not a class"
    near = did_you_mean(name, [n for n in dir(made) if not n.startswith("__")])
    return f"did you mean {near!r}? Its name must be {name!r}" if near else "docs/hooks.md shows the protocol"


@contextlib.contextmanager
def attributed_to(component: RegisteredComponent, doing: str = "", where: str = "") -> Iterator[None]:
    """Turn an exception that a component did not raise on purpose into a PluginError that names the component.

    `doing` is the plugin's function that is called, `where` the location of the row that it gets. Exceptions for a full
    disk or for lack of memory pass unchanged. Errors of a component of a plugin that the user did not name say why it
    was chosen.
    """
    try:
        yield
    except SmolLM3Error as e:
        explain_choice(component, e)
        raise
    except (Exception, SystemExit) as e:
        if is_resource_error(e):
            raise
        error = PluginError(
            f"{where}{': ' if where else ''}{component.who} failed"
            f"{' in ' if doing else ''}{doing}: {type(e).__name__}: {first_line(e)}",
            hint="to see the traceback: --debug",
        )
        explain_choice(component, error)
        raise error from e


def explain_choice(component: RegisteredComponent, error: SmolLM3Error) -> None:
    """Add to the hint of an error why the component that it comes from was chosen, unless the user named it."""
    note = component.note
    for one in error.problems if isinstance(error, Problems) else (error,):
        if note is not None and note not in (one.hint or ""):
            one.hint = f"{one.hint}; {note}" if one.hint else note


@dataclass(frozen=True, kw_only=True)
class PluginRecord:
    """One plugin as `plugins list` shows it."""

    name: str
    distribution: str
    version: str
    origin: str
    status: str
    """`active`, `disabled` or `broken`."""
    components: tuple[str, ...] = ()
    error: str | None = None
    hint: str | None = None
    """For a broken plugin: what to do, for its author."""
    file: str | None = field(default=None, compare=False)
    """The file of its hook module; None if it was not imported."""
    exceptions: list[PluginError] = field(default_factory=list, repr=False, compare=False)
    """For a broken plugin: the error to raise if a run needs it."""


def _claims(component: RegisteredComponent, subject: Any) -> bool:
    claims = getattr(component.spec, "claims", None)
    if claims is None:
        return False
    try:
        return component.waited(lambda: bool(claims(subject)), "claims")
    except PluginTimeoutError:
        raise
    except (Exception, SystemExit) as e:
        import logging

        logging.getLogger("smollm3_finetune").warning(
            "warning: %s is ignored: its claims() raised %s: %s", component.who, type(e).__name__, first_line(e),
        )  # fmt: skip
        return False


def known_components() -> dict[str, dict[str, str]]:
    """For each kind, the names of the index's components and the distribution of each; see `install_command`.

    The file of the variable adds to those of this project, unless it is damaged: `plugins install` says so. An address
    in it is not read: only commands that install or search use a network.
    """
    known = _components_of(INDEX_FILE)
    if (more := os.environ.get(INDEX_VARIABLE)) and "://" not in more:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError):
            for kind, names in _components_of(Path(more).expanduser()).items():
                known[kind] = {**names, **known.get(kind, {})}
    return known


def _components_of(file: Path) -> dict[str, dict[str, str]]:
    plugins = json.loads(file.read_text(encoding="utf-8"))["plugins"]
    known: dict[str, dict[str, str]] = {}
    for plugin in sorted(plugins, key=lambda p: not p.get("published", True)):
        for component in plugin.get("components", ()):
            for name in (component["name"], *component.get("aliases", ())):
                known.setdefault(component["kind"], {}).setdefault(str(name), str(plugin["name"]))
    return known


def install_command(name: str) -> str:
    """The command that installs the plugin which offers a component of this name, for a hint."""
    return f"smollm3 plugins install {name}"


def _mentions(record: PluginRecord, name: str) -> bool:
    """Whether the hook module of an installed plugin contains a name as text; the module is not imported."""
    import importlib.metadata
    import importlib.util

    for point in importlib.metadata.entry_points(group="smollm3_finetune", name=record.name):
        if point.dist is None or point.dist.name != record.distribution:
            continue
        top, *rest = point.module.split(".")
        with contextlib.suppress(ImportError, ValueError, OSError, UnicodeDecodeError):
            found = importlib.util.find_spec(top)
            folders = list(found.submodule_search_locations or ()) if found is not None else []
            files = [Path(folder, *rest) for folder in folders]
            files = [file for f in files for file in (f / "__init__.py", f.with_suffix(".py"))]
            files += [Path(found.origin)] if found is not None and found.origin and not rest else []
            texts = [f.read_text(encoding="utf-8") for f in files if f.is_file()]
            return any(f"{quote}{name}{quote}" in text for text in texts for quote in "\"'")
    return False


def _is_installed(distribution: str) -> bool:
    from smollm3_finetune.components.requirements import installed_version  # only for an error: --help stays fast

    return installed_version(distribution) is not None


@dataclass(frozen=True, kw_only=True)
class Registry:
    """Every component that a run can name."""

    components: tuple[RegisteredComponent, ...]
    plugins: tuple[PluginRecord, ...] = ()
    entry_points: bool = True
    """False if installed plugins were left out: `--no-plugins`."""

    def of(self, kind: Kind) -> list[RegisteredComponent]:
        """The components of a kind, sorted by name and distribution."""
        return sorted((o for o in self.components if o.kind is kind), key=lambda o: (o.spec.name, o.distribution))

    def claiming(self, kind: Kind, subject: Any, accepted: str = "it") -> list[RegisteredComponent]:
        """The components of a kind that claim `subject`, in words `accepted`; of several, those of the highest rank.

        Each knows the reason of its choice. A component whose `claims` raises is skipped with a warning: it must not
        stop runs that do not name it.
        """
        found = sorted((o for o in self.of(kind) if _claims(o, subject)), key=lambda o: -getattr(o.spec, "rank", 0))
        highest = [o for o in found if getattr(o.spec, "rank", 0) == getattr(found[0].spec, "rank", 0)]
        reason = f"its claims accepted {accepted}"
        return [replace(o, claim=Claim(reason=reason, other=self._other(o, found))) for o in highest]

    def _other(self, component: RegisteredComponent, claiming: Iterable[RegisteredComponent]) -> str:
        """How to choose another component than one that was chosen because it claims."""
        other = next((o for o in claiming if o is not component), None)
        if component.kind is QUANTIZER and other is None:
            return leave_out(component.plugin, component.origin)
        if other is None:
            return f"choose another with {component.kind.flag} NAME"
        shared = sum(o.spec.name == other.spec.name for o in self.of(component.kind)) > 1
        return f"choose another with {component.kind.flag} {other.full_name if shared else other.spec.name}"

    def broken(self) -> Iterator[PluginRecord]:
        return (p for p in self.plugins if p.status == "broken")

    def broken_offering(self, name: str) -> PluginError | None:
        """The error of the broken plugin that would offer a component of this name, as far as its source tells."""
        for record in self.broken():
            if name in (record.name, record.distribution) or _mentions(record, name):
                return record.exceptions[0]
        return None

    def warnings(self) -> list[str]:
        """A sentence for each broken plugin, and for each plugin name that several distributions use."""
        out = [
            f"the plugin {r.name!r} ({r.distribution} {r.version}) is broken and was skipped: {r.error}"
            for r in self.broken()
        ]
        for name, records in self.shared_names().items():
            who = " and ".join(f"{r.distribution} {r.version}" for r in records)
            out.append(f"the plugin name {name!r} is used by {who}")
        return out

    def shared_names(self) -> dict[str, list[PluginRecord]]:
        """Entry-point names that several distributions use: `-p no:NAME` disables all of them."""
        by_name: dict[str, list[PluginRecord]] = {}
        for record in self.plugins:
            by_name.setdefault(record.name, []).append(record)
        return {name: records for name, records in by_name.items() if len(records) > 1}

    def find(self, kind: Kind, name: str) -> RegisteredComponent:
        """The component that a user calls `name`: a name, an alias, or `distribution:name`, present or former.

        Raises PluginConflictError if two distributions offer a bare name, PluginError if the plugin that would offer
        it is broken, and UnknownComponentError with a suggestion if no plugin offers it.
        """
        distribution, colon, bare = name.rpartition(":")
        components = [o for o in self.of(kind) if bare in (o.spec.name, *o.spec.aliases)]
        if colon:
            components = [o for o in components if o.distribution == distribution]
            components = components or [o for o in self.of(kind) if name in o.spec.replaces]
        if len(components) == 1:
            return components[0]
        if components:
            who = " and ".join(f"{o.distribution} {o.version}" for o in components)
            choices = " or ".join(f"{kind.flag} {o.full_name}" for o in components)
            raise PluginConflictError(f"the {kind.name} {name!r} is offered by {who}", hint=choices)
        raise self._unknown(kind, name, bare)

    def _unknown(self, kind: Kind, name: str, bare: str) -> Exception:
        ours = known_components().get(kind.name, {}).get(bare)
        if ":" not in name and (error := self.broken_offering(bare)) is not None:
            return error
        for record in self.plugins:
            offers_it = record.distribution in (name.rpartition(":")[0], ours)
            if offers_it and record.status == "broken":
                return record.exceptions[0]
            if offers_it and record.status == "disabled":
                return UnknownComponentError(
                    f"the {kind.name} {name!r} is offered by the plugin {record.name!r}, which is disabled",
                    hint=f"omit -p no:{record.name}, and unset SMOLLM3_DISABLE_PLUGINS",
                )
        if ours is not None and not self.entry_points and _is_installed(ours):
            return UnknownComponentError(
                f"the {kind.name} {name!r} is in {ours}, but installed plugins are disabled",
                hint="omit --no-plugins, and unset SMOLLM3_DISABLE_PLUGINS",
            )
        if ours is not None:
            return UnknownComponentError(f"the {kind.name} {name!r} is not installed", hint=install_command(bare))
        distribution = name.rpartition(":")[0]
        if distribution and distribution not in {r.distribution for r in self.plugins}:
            offering = {o.distribution for o in self.of(kind) if bare in (o.spec.name, *o.spec.aliases)}
            near = did_you_mean(distribution, sorted(offering))
            hint = install_command(distribution)
            if all(part.isidentifier() for part in distribution.split(".")):  # it may be a file or a module of -p
                hint += f", or for a plugin of your own: -p {distribution}.py or -p {distribution}"
            return UnknownComponentError(
                f"the {kind.name} {name!r} is not installed", hint=f"did you mean '{near}:{bare}'?" if near else hint
            )
        names = sorted({n for o in self.of(kind) for n in (o.spec.name, *o.spec.aliases)})
        near = did_you_mean(bare, [*names, *known_components().get(kind.name, {})])
        broken = [p.name for p in self.broken()]
        aside = f" (broken plugins that may offer it: {', '.join(broken)})" if broken else ""
        hint = f"did you mean {near!r}?" if near else f"installed: {', '.join(names) or 'none'}"
        return UnknownComponentError(f"there is no {kind.name} {name!r}{aside}", hint=hint)


def once(find: Callable[[Sequence[str]], Registry]) -> Callable[[Sequence[str]], Registry]:
    """`find`, which is called once for each set of names, so that its warnings are printed once."""
    found: dict[tuple[str, ...], Registry] = {}

    def registry(names: Sequence[str]) -> Registry:
        key = tuple(dict.fromkeys(names))
        if key not in found:
            found[key] = find(key)
        return found[key]

    return registry
