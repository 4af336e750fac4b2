"""Collects published results: from a file that core ships, and from a file next to the module of each active plugin.

    acme_scale/__init__.py    acme_scale/compat.json
    acme_scale.py             acme_scale.compat.json

Discovery has already imported the plugin's light module; nothing more is imported here. A plugin may publish results
only for pairs that include one of its own components.
"""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from smollm3_finetune.compatibility.results import Result, read
from smollm3_finetune.components.discovery import CORE_DISTRIBUTION, GROUP
from smollm3_finetune.components.registry import PluginRecord, Registry
from smollm3_finetune.components.requirements import installed_version

FILE = "compat.json"
OWN_FILE = Path(__file__).with_name("measured.json")
"""Results of the bundled plugins, written by `nox -s compat`; a data file, so that the code names no plugin."""

Key = tuple[str, str, str]
"""Quantizer, adapter (both `distribution:name`) and purpose."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """A result and the distribution that published it."""

    result: Result
    source: str
    """A distribution and its version."""
    changed: Mapping[str, tuple[str, str | None]]
    """Distributions whose version differs from the measured one: the measured and the installed version."""

    @property
    def stale(self) -> bool:
        return bool(self.changed)


@dataclass(frozen=True, kw_only=True)
class Collected:
    """All published results."""

    by_pair: Mapping[Key, tuple[Evidence, ...]]
    """The results of each pair and purpose: first those with the installed versions, newest first, then the others."""
    problems: tuple[str, ...]
    """One line for each file with results that cannot be used."""

    def adding(self, results: Iterable[Result], source: str) -> Collected:
        """With more results, such as those that somebody sent in; `source` says whose they are."""
        found = {key: list(many) for key, many in self.by_pair.items()}
        for result in results:
            now = {name: installed_version(name) for name in result.versions}
            key = (result.quantizer, result.adapter, result.purpose.value)
            found.setdefault(key, []).append(Evidence(result=result, source=source, changed=result.changed(now)))
        return Collected(by_pair=_ordered(found), problems=self.problems)

    def of(self, quantizer: str, adapter: str, purpose: str, device: str | None = None) -> tuple[Evidence, ...]:
        found = self.by_pair.get((quantizer, adapter, purpose), ())
        return tuple(e for e in found if device in (None, e.result.device))


def evidence_file(module_file: Path) -> Path:
    """The file with the results of the plugin whose module is `module_file`."""
    if module_file.name == "__init__.py":
        return module_file.with_name(FILE)
    return module_file.with_name(f"{module_file.stem}.{FILE}")


def collect(registry: Registry) -> Collected:
    """The results of core and of every active plugin. An invalid file is reported in `problems` and never raises."""
    found: dict[Key, list[Evidence]] = {}
    problems: list[str] = []
    # plugin files belong to no installed distribution; other versions are looked up once, about 1 ms each
    versions: dict[str, str | None] = {record.distribution: record.version for record in registry.plugins}
    for record, file in _files(registry):
        try:
            results = read(file) if file.is_file() else []
        except (OSError, ValueError, TypeError) as e:
            reason = " ".join(str(e).split())
            problems.append(
                f"the results of plugin {record.name!r} ({record.distribution} {record.version}) are ignored: "
                f"{file.name}: {reason}"
            )
            continue
        for name in {n for r in results for n in r.versions} - versions.keys():
            versions[name] = installed_version(name)
        foreign = 0
        for result in results:
            theirs = {r.partition(":")[0] for r in (result.quantizer, result.adapter)}
            if record.distribution not in theirs and record.distribution != CORE_DISTRIBUTION:
                foreign += 1
                continue
            source = f"{record.distribution} {record.version}"
            key = (result.quantizer, result.adapter, result.purpose.value)
            found.setdefault(key, []).append(Evidence(result=result, source=source, changed=result.changed(versions)))
        if foreign:
            problems.append(
                f"{foreign} results of plugin {record.name!r} ({record.distribution} {record.version}) are ignored: "
                "they include none of its own components"
            )
    return Collected(by_pair=_ordered(found), problems=tuple(problems))


def _ordered(found: Mapping[Key, Iterable[Evidence]]) -> dict[Key, tuple[Evidence, ...]]:
    """The results of each pair, the best first."""
    return {key: tuple(sorted(many, key=_rank, reverse=True)) for key, many in found.items()}


def _rank(evidence: Evidence) -> tuple[bool, str]:
    return not evidence.stale, evidence.result.date


def _files(registry: Registry) -> Iterator[tuple[PluginRecord, Path]]:
    modules = {
        (point.name, point.dist.name if point.dist else "unknown"): point.module
        for point in importlib.metadata.entry_points(group=GROUP)
    }
    for record in registry.plugins:
        if record.status != "active":
            continue
        if record.origin == "built in":
            yield record, OWN_FILE
            continue
        if record.origin == "entry point":
            file = _module_file(modules.get((record.name, record.distribution), ""))
        elif record.origin.startswith("module "):
            file = _module_file(record.origin.removeprefix("module "))
        else:
            file = Path(record.origin)
        if file is not None:
            yield record, evidence_file(file)


def _module_file(name: str) -> Path | None:
    """The file of an imported module, for a package its `__init__.py`; None if it is not imported."""
    file = getattr(sys.modules.get(name), "__file__", None)
    return Path(file) if file else None
