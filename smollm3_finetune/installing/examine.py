"""Checks what was installed, in a Python that sees it; run as a module, it prints the result as JSON.

python -P -m smollm3_finetune.installing.examine acme-quant
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from smollm3_finetune.checks.findings import Finding
from smollm3_finetune.components.discovery import GROUP, discover
from smollm3_finetune.components.registry import Registry
from smollm3_finetune.errors import SmolLM3Error
from smollm3_finetune.installing.process import Done, run

REQUIREMENTS = "its requirements are met"
BROKEN = "it can be imported and its descriptors are valid"


@dataclass(frozen=True, kw_only=True)
class Examined:
    """The result of `plugins check` for one plugin."""

    plugin: str
    distribution: str
    version: str
    components: tuple[str, ...]
    """`quantizer four`, …"""
    checks: int
    failed: tuple[str, ...]
    """A sentence for each failed check."""
    unmet: tuple[str, ...] = ()
    """Requirements of components that are not installed with the plugin."""
    broken: bool = False
    """Whether it cannot be imported, or its descriptors are not valid."""

    @property
    def ok(self) -> bool:
        return not self.failed and not self.broken

    def as_dict(self) -> dict[str, Any]:
        return {
            "plugin": self.plugin,
            "distribution": self.distribution,
            "version": self.version,
            "components": list(self.components),
            "checks": self.checks,
            "failed": list(self.failed),
            "unmet": list(self.unmet),
            "status": "broken" if self.broken else "failed" if self.failed else "ok",
        }


def examined(distributions: Sequence[str]) -> list[Examined]:
    """Check the plugins of these distributions in a new process, which also updates the snapshot of all plugins."""
    done = _child(distributions)
    try:
        rows = json.loads(done.out.splitlines()[-1])
    except (ValueError, IndexError) as e:
        last = next(iter(reversed(done.errors.strip().splitlines())), f"exit code {done.code}")
        raise SmolLM3Error(f"what was installed cannot be checked: {last}",
                           hint="smollm3 plugins check, and smollm3 plugins list") from e  # fmt: skip
    return [_from_json(row) for row in rows]


def _from_json(row: Mapping[str, Any]) -> Examined:
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in row.items()}
    return Examined(**values)


def refresh_snapshot() -> None:
    """Update the snapshot of what all plugins offer, in a new process; a plugin that ends it does no harm."""
    _child(())


def _child(distributions: Sequence[str]) -> Done:
    """Run this module, with all plugins and without the reports that variables ask for."""
    unset = {f"SMOLLM3_{name}_PLUGINS": "" for name in ("DISABLE", "STRICT", "TRACE")}
    return run([sys.executable, "-P", "-m", "smollm3_finetune.installing.examine", *distributions], **unset)


def main(distributions: Sequence[str]) -> None:
    from smollm3_finetune.components.snapshot import package_folders, write_snapshot

    before = package_folders()
    with contextlib.redirect_stdout(sys.stderr):  # plugins may print while they are imported
        rows, registries = [], []
        for name in distributions:
            found, registry = _examined(name)
            rows += found
            registries.append(registry)
        if not distributions:
            registries = [discover()]
    for registry in registries[:1]:
        if registry is not None:
            write_snapshot(registry, before)
    print(json.dumps(rows))


def _examined(distribution: str) -> tuple[list[dict[str, Any]], Registry | None]:
    """The rows of a distribution, and the plugins that were found; None: it has none that can be imported."""
    from smollm3_finetune.checks.findings import wrong
    from smollm3_finetune.checks.plugin import check, fatal, targets

    version = importlib.metadata.version(distribution)
    ends = fatal(distribution, (), False)
    rows = [
        {"plugin": one.finding.subject, "distribution": distribution, "version": version, "components": (), "checks": 1,
         "failed": (one.finding.found,), "broken": True}
        for one in ends if one.is_called(distribution)
    ]  # fmt: skip
    without = tuple(one.asked for one in ends)
    if rows and not any(p.name not in {r["plugin"] for r in rows} for p in _points(distribution)):
        return rows, None
    registry = None
    for target in targets(distribution, without, reported=bool(rows)):
        registry = target.registry
        found = check(target)
        bad = wrong(found)
        unmet = [f for f in bad if f.check.startswith(REQUIREMENTS)]
        rows.append({
            "plugin": target.name, "distribution": distribution, "version": version,
            "components": tuple(f"{c.kind.name} {c.spec.name}" for c in target.components), "checks": len(found),
            "failed": tuple(_said(f) for f in bad if f not in unmet),
            "unmet": tuple(f"{f.subject}: {f.found}" for f in unmet),
            "broken": target.error is not None,
        })  # fmt: skip
    return rows, registry


def _said(finding: Finding) -> str:
    """A failed check as `plugins check` prints it; the reason alone for a plugin that is broken."""
    if finding.check == BROKEN:
        return finding.found
    return ": ".join(filter(None, (finding.subject, finding.check, finding.found)))


def _points(distribution: str) -> list[importlib.metadata.EntryPoint]:
    return [p for p in importlib.metadata.distribution(distribution).entry_points if p.group == GROUP]


if __name__ == "__main__":
    main(sys.argv[1:])
