"""The components of the active plugins, and their lookup by name."""

from __future__ import annotations

import contextlib
import importlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from smollm3_finetune.api import AdapterSpec, ComponentSpec
from smollm3_finetune.components.earlier_versions import accepts, current
from smollm3_finetune.components.kinds import Kind
from smollm3_finetune.errors import (
    MissingRequirementError,
    PluginConflictError,
    PluginError,
    SmolLM3Error,
    UnknownComponentError,
    did_you_mean,
    first_line,
    is_resource_error,
)
from smollm3_finetune.model_files.imports import quick_imports

KNOWN_FILE = Path(__file__).with_name("known_components.json")


@dataclass(frozen=True, kw_only=True)
class RegisteredComponent:
    """A component and the plugin that offers it."""

    kind: Kind
    spec: ComponentSpec
    distribution: str
    version: str
    plugin: str

    @property
    def full_name(self) -> str:
        """`distribution:name`, which is unambiguous whatever else is installed; saved configurations use it."""
        return f"{self.distribution}:{self.spec.name}"

    @property
    def title(self) -> str:
        """The component's name in messages: `quantizer 'none'`."""
        return f"{self.kind.name} {self.spec.name!r}"

    def options_class(self) -> type:
        """The options dataclass. Raises PluginError if it cannot be imported."""
        cls = self._import("options")
        if not isinstance(cls, type):
            raise PluginError(f"{self.title} ({self.distribution} {self.version}): {self.spec.options} is not a class")
        return cls

    def create(self, options: Any) -> Any:
        """The component, made from its validated options, with the methods of the current version of the plugin API.

        Raises PluginError if its factory fails or lacks methods.
        """
        factory = self._import("factory")
        with attributed_to(self, "its factory"):
            made = factory(options)
        methods = [*self.kind.methods, *(["merge"] if getattr(self.spec, "merges", False) else [])]
        self.check_methods(made, methods, f"the factory {self.spec.factory}")
        made = current(made, self.spec)
        if isinstance(self.spec, AdapterSpec) and not accepts(made.restore, 4):
            raise PluginError(
                f"{self.title} ({self.distribution} {self.version}) states api={self.spec.api}, but its restore() does "
                "not accept (base, path, ctx, total_steps)",
                hint="see 'Version 2' in docs/api-versions.md",
            )
        return made

    def check_methods(self, made: Any, methods: Iterable[str], maker: str) -> None:
        """Raises PluginError if `made`, which `maker` returned, lacks one of the methods; names the first."""
        for name in methods:
            if not callable(getattr(made, name, None)):
                raise PluginError(
                    f"{self.title} ({self.distribution} {self.version}): {maker} returned an object of type "
                    f"{type(made).__name__}, which has no method {name!r}",
                    hint="see the protocols in smollm3_finetune.api",
                )

    def _import(self, label: str) -> Any:
        dotted: str = getattr(self.spec, label)
        module, _, name = dotted.partition(":")
        try:
            with quick_imports():
                return getattr(importlib.import_module(module), name)
        except KeyboardInterrupt:
            raise
        except BaseException as e:
            package = ((e.name or "") if isinstance(e, ModuleNotFoundError) else "").partition(".")[0]
            if package and package != module.partition(".")[0]:
                raise MissingRequirementError(
                    f"{self.title} needs the package {package!r}, which is not installed", hint=f"pip install {package}"
                ) from e
            raise PluginError(
                f"the {label} of {self.title} ({self.distribution} {self.version}), {dotted}, cannot be imported: "
                f"{type(e).__name__}: {e}",
                hint=f"smollm3 plugins info {self.spec.name}",
            ) from e


@contextlib.contextmanager
def attributed_to(component: RegisteredComponent, doing: str = "", where: str = "") -> Iterator[None]:
    """Turn an exception that a component did not raise on purpose into a PluginError that names the component.

    `doing` is the plugin's function that is called, `where` the location of the row that it gets. Exceptions for a full
    disk or for lack of memory pass unchanged.
    """
    try:
        yield
    except SmolLM3Error:
        raise
    except Exception as e:
        if is_resource_error(e):
            raise
        raise PluginError(
            f"{where}{': ' if where else ''}{component.title} ({component.distribution} {component.version}) failed"
            f"{' in ' if doing else ''}{doing}: {type(e).__name__}: {first_line(e)}",
            hint="to see the traceback: --debug",
        ) from e


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
    exceptions: list[PluginError] = field(default_factory=list, repr=False, compare=False)
    """For a broken plugin: the error to raise if a run needs it."""


def _claims(component: RegisteredComponent, subject: Any) -> bool:
    claims = getattr(component.spec, "claims", None)
    try:
        return claims is not None and bool(claims(subject))
    except Exception as e:
        import logging

        logging.getLogger("smollm3_finetune").warning(
            "warning: %s (%s %s) is ignored: its claims() raised %s: %s",
            component.title, component.distribution, component.version, type(e).__name__, e,
        )  # fmt: skip
        return False


def known_components() -> dict[str, dict[str, str]]:
    """For each kind, the names of published components and the argument of `pip install` for each."""
    known: dict[str, dict[str, str]] = json.loads(KNOWN_FILE.read_text(encoding="utf-8"))
    return known


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

    def claiming(self, kind: Kind, subject: Any) -> list[RegisteredComponent]:
        """The components of a kind that claim `subject`; of several, those of the highest rank.

        A component whose `claims` raises is skipped with a warning: it must not stop runs that do not name it.
        """
        found = [o for o in self.of(kind) if _claims(o, subject)]
        highest = max((getattr(o.spec, "rank", 0) for o in found), default=0)
        return [o for o in found if getattr(o.spec, "rank", 0) == highest]

    def broken(self) -> Iterator[PluginRecord]:
        return (p for p in self.plugins if p.status == "broken")

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
        """The component that a user calls `name`: a name, an alias, or `distribution:name`.

        Raises PluginConflictError if two distributions offer a bare name, PluginError if the plugin that would offer
        it is broken, and UnknownComponentError with a suggestion if no plugin offers it.
        """
        distribution, colon, bare = name.rpartition(":")
        components = [o for o in self.of(kind) if bare in (o.spec.name, *o.spec.aliases)]
        if colon:
            components = [o for o in components if o.distribution == distribution]
        if len(components) == 1:
            return components[0]
        if components:
            who = " and ".join(f"{o.distribution} {o.version}" for o in components)
            choices = " or ".join(f"{kind.flag} {o.full_name}" for o in components)
            raise PluginConflictError(f"the {kind.name} {name!r} is offered by {who}", hint=choices)
        raise self._unknown(kind, name, bare)

    def _unknown(self, kind: Kind, name: str, bare: str) -> Exception:
        install = known_components().get(kind.name, {}).get(bare)
        for record in self.plugins:
            offers_it = record.distribution == name.rpartition(":")[0] or (
                install is not None and record.distribution == install.rpartition("/")[2]
            )
            if offers_it and record.status == "broken":
                return record.exceptions[0]
            if offers_it and record.status == "disabled":
                return UnknownComponentError(
                    f"the {kind.name} {name!r} is offered by the plugin {record.name!r}, which is disabled",
                    hint=f"omit -p no:{record.name}, and unset SMOLLM3_DISABLE_PLUGINS",
                )
        if install is not None and not self.entry_points and _is_installed(package := install.rpartition("/")[2]):
            return UnknownComponentError(
                f"the {kind.name} {name!r} is in {package}, but installed plugins are disabled",
                hint="omit --no-plugins, and unset SMOLLM3_DISABLE_PLUGINS",
            )
        if install is not None:
            return UnknownComponentError(f"the {kind.name} {name!r} is not installed", hint=f"pip install {install}")
        distribution = name.rpartition(":")[0]
        if distribution and distribution not in {r.distribution for r in self.plugins}:
            offering = {o.distribution for o in self.of(kind) if bare in (o.spec.name, *o.spec.aliases)}
            near = did_you_mean(distribution, sorted(offering))
            hint = f"pip install {distribution}, or for a plugin of your own: -p {distribution}.py or -p {distribution}"
            return UnknownComponentError(
                f"the {kind.name} {name!r} is not installed", hint=f"did you mean '{near}:{bare}'?" if near else hint
            )
        names = sorted({n for o in self.of(kind) for n in (o.spec.name, *o.spec.aliases)})
        near = did_you_mean(bare, [*names, *known_components().get(kind.name, {})])
        broken = [p.name for p in self.broken()]
        aside = f" (broken plugins that may offer it: {', '.join(broken)})" if broken else ""
        hint = f"did you mean {near!r}?" if near else f"installed: {', '.join(names) or 'none'}"
        return UnknownComponentError(f"there is no {kind.name} {name!r}{aside}", hint=hint)
