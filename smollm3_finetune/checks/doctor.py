"""Checks that this machine can run smollm3: versions, devices, packages, plugins, cache, environment.

Nothing heavy is imported here. Libraries are imported in a separate process, so that a crash or a hang is a finding
like any other.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from smollm3_finetune.cache.entries import entries, leftovers
from smollm3_finetune.cache.store import default_root
from smollm3_finetune.checks.findings import Finding, wrong
from smollm3_finetune.checks.probe import SECONDS, Probe, run_pieces
from smollm3_finetune.components.discovery import CORE_DISTRIBUTION
from smollm3_finetune.components.kinds import ADAPTER
from smollm3_finetune.components.registry import Registry
from smollm3_finetune.components.requirements import (
    conflicts,
    installed_version,
    modules_of,
    requirement_problems,
    requirements,
)
from smollm3_finetune.config.schema import DEFAULT_ADAPTER
from smollm3_finetune.errors import ConfigError, PluginError, SmolLM3Error
from smollm3_finetune.files.room import shown_size
from smollm3_finetune.version import __version__

KNOWN = Path(__file__).with_name("known_problems.json")
ESSENTIAL = ("torch", "transformers", "accelerate", "safetensors", "datasets")
"""The packages that every run needs."""
PREFIXES = ("SMOLLM3_", "OMP_", "GOMP_", "MKL_", "HF_", "TRANSFORMERS_", "CUDA_", "PYTORCH_", "TOKENIZERS_", "NCCL_")
SINGLE = (
    "THP_MEM_ALLOC_ENABLE",
    "WORLD_SIZE",
    "RANK",
    "LOCAL_RANK",
    "XDG_CACHE_HOME",
    "LD_LIBRARY_PATH",
    "PYTHONPATH",
    "NO_COLOR",
)
SECRET = re.compile(r"TOKEN(?!IZERS)|SECRET|PASSWORD|_KEY$|CREDENTIAL")
LOW_DISK = 5e9
"""In bytes: about the size of a converted or quantized model with three billion weights."""
DEVICES = """
import torch
answer = {"torch": torch.__version__, "threads": torch.get_num_threads(), "devices": []}
if torch.cuda.is_available():
    for i in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(i)
        name = torch.cuda.get_device_name(i)
        answer["devices"].append({"name": f"cuda:{i}", "title": name, "free": free, "total": total,
                                  "bfloat16": torch.cuda.is_bf16_supported()})
elif torch.version.cuda:
    answer["note"] = f"torch was built for CUDA {torch.version.cuda} but finds no device"
if getattr(torch.backends, "mps", None) and torch.backends.mps.is_available():
    answer["devices"].append({"name": "mps", "title": "Apple GPU"})
if hasattr(torch, "xpu") and torch.xpu.is_available():
    for i in range(torch.xpu.device_count()):
        answer["devices"].append({"name": f"xpu:{i}", "title": torch.xpu.get_device_name(i)})
"""


@dataclass(frozen=True, kw_only=True)
class Report:
    """The results of all checks."""

    versions: Mapping[str, str | None]
    devices: tuple[Mapping[str, Any], ...]
    cache: Mapping[str, Any]
    environment: Mapping[str, str]
    findings: tuple[Finding, ...] = field(default=())

    @property
    def possible(self) -> bool:
        """Whether a run is possible."""
        return not wrong(self.findings)


def examine(
    registry: Registry, device: str | None = None, seconds: float = SECONDS, broken: Sequence[PluginError] = ()
) -> Report:
    """Run all checks. `device` is the device that components are checked for; default: the best available.

    `broken` are the errors of plugin files that were named and cannot be used.
    """
    named = _distributions(registry)
    pieces = {"devices": DEVICES}
    for name in named:
        if installed_version(name) is not None:
            pieces |= {f"import {m}": f"import {m}" for m in modules_of(name)[:1] if m != "smollm3_finetune"}
    problems = [p for p in _known() if all(installed_version(n) is not None for n in p["installed"])]
    pieces |= {f"known {i}": p["python"] for i, p in enumerate(problems) if "python" in p}
    probes = run_pieces(pieces, seconds)
    devices = _devices(probes["devices"])
    device = device or (devices[1]["name"] if len(devices) > 1 else "cpu")
    cache, cache_findings = _cache()
    findings = [
        *_torch_findings(probes["devices"], device, devices),
        *_imports(named, probes),
        *_conflicts(named),
        *_known_findings(problems, probes),
        *_plugins(registry),
        *(_finding("plugin", "the named plugin file can be used", False, e.message, e.hint or "") for e in broken),
        *_requirements(registry, device),
        *cache_findings,
        *_environment_findings(),
    ]
    shown = [*named, *(n for p in problems for n in p["installed"])]
    versions = {CORE_DISTRIBUTION: __version__, **{n: installed_version(n) for n in shown if n != CORE_DISTRIBUTION}}
    return Report(
        versions=versions, devices=tuple(devices), cache=cache, environment=_environment(), findings=tuple(findings)
    )  # fmt: skip


def _distributions(registry: Registry) -> list[str]:
    """The distributions to check: the requirements of core, the plugins and their requirements."""
    roots = [CORE_DISTRIBUTION, *(r.distribution for r in registry.plugins if r.status == "active")]
    names = [*ESSENTIAL, *(r for r in roots if installed_version(r) is not None)]
    for root in roots:
        names += [w.name for w in requirements(root)]
    for component in registry.components:
        names += [re.split(r"[^A-Za-z0-9._-]", text.strip())[0] for text in component.spec.requires.distributions]
    unique: dict[str, str] = {}
    for name in names:
        unique.setdefault(name.lower().replace("_", "-"), name)
    return list(unique.values())


def _known() -> list[dict[str, Any]]:
    problems: list[dict[str, Any]] = json.loads(KNOWN.read_text(encoding="utf-8"))
    return problems


# ------------------------------------------------------------------------------------------------ devices


def _devices(probe: Probe) -> list[Mapping[str, Any]]:
    """The CPU, then the devices that torch finds."""
    import psutil

    memory = psutil.virtual_memory()
    cpu = {"name": "cpu", "title": f"{os.cpu_count()} cores, {platform.machine()}", "free": memory.available,
           "total": memory.total}  # fmt: skip
    return [cpu, *((probe.answer or {}).get("devices", []))]


def _torch_findings(probe: Probe, device: str, devices: Iterable[Mapping[str, Any]]) -> list[Finding]:
    if probe.problem is not None:
        return [_finding("torch", "torch works", False, probe.problem, "pip install --force-reinstall torch")]
    names = ", ".join(d["name"] for d in devices)
    note = probe.answer.get("note", "")
    found = [_finding("torch", f"torch works, on {names}", True)]
    if note:
        found.append(_finding("torch", "torch finds the GPU that it was built for", False, note,
                              "check the driver with nvidia-smi, or use --device cpu", serious=False))  # fmt: skip
    return found


# ----------------------------------------------------------------------------------------------- packages


def _imports(named: Iterable[str], probes: Mapping[str, Probe]) -> list[Finding]:
    found, imported = [], 0
    for name in named:
        if installed_version(name) is None:
            if name in ESSENTIAL:
                found.append(_finding(name, f"{name} is installed", False, "", f"pip install {name}"))
            continue
        for module in modules_of(name)[:1]:
            probe = probes.get(f"import {module}")
            if probe is None or probe.problem is None:
                imported += 1
                continue
            found.append(_finding(name, f"{name} {installed_version(name)} can be imported", False, probe.problem,
                                  f"pip install --force-reinstall {name}", serious=name in ESSENTIAL))  # fmt: skip
    return [_finding("packages", f"{imported} packages can be imported", bool(imported)), *found]


def _conflicts(named: Iterable[str]) -> list[Finding]:
    found = conflicts(named)
    if not found:
        return [_finding("packages", "the requirements of all packages are met", True)]
    core = {w.name for w in requirements(CORE_DISTRIBUTION)}
    return [
        _finding(c.distribution, "its requirements are met", False, c.text, f"pip install '{c.requirement}'",
                 serious=c.distribution == CORE_DISTRIBUTION or (c.found is None and c.distribution in core))
        for c in found
    ]  # fmt: skip


def _known_findings(problems: Iterable[Mapping[str, Any]], probes: Mapping[str, Probe]) -> list[Finding]:
    found = []
    for i, p in enumerate(problems):
        missing = [n for n in p.get("needs", ()) if installed_version(n) is None]
        broken = probes[f"known {i}"].problem if "python" in p else None
        title = " and ".join(f"{n} {installed_version(n)}" for n in p["installed"])
        problem = f"missing: {', '.join(missing)}" if missing else broken or ""
        fix = f"pip install {' '.join(missing)}" if missing else p.get("fix", "")
        found.append(_finding(p["installed"][0], f"{title}: no known problem", not problem,
                              f"{p['says']} ({problem})" if problem else "", fix, serious=False))  # fmt: skip
    return found


# ------------------------------------------------------------------------------------------------ plugins


def _plugins(registry: Registry) -> list[Finding]:
    broken = list(registry.broken())
    active = sum(r.status == "active" for r in registry.plugins)
    found = [_finding("plugins", f"{active} plugins are active", bool(active))]
    for r in broken:
        found.append(_finding(r.name, f"the plugin {r.name} ({r.distribution} {r.version}) works", False,
                              r.error or "", f"smollm3 plugins check {r.name}", serious=False))  # fmt: skip
    if not any(o.spec.name == DEFAULT_ADAPTER for o in registry.of(ADAPTER)):
        found.append(_finding("plugins", f"the default adapter {DEFAULT_ADAPTER} is installed", False, "no plugin "
                              "offers it, so every run must name an adapter", "to see what to install: smollm3 train "
                              f"--adapter {DEFAULT_ADAPTER}", serious=False))  # fmt: skip
    return found


def _requirements(registry: Registry, device: str) -> list[Finding]:
    """Whether each component can be used on `device`."""
    found, usable = [], 0
    for component in registry.components:
        try:
            problems = requirement_problems(component.title, component.spec.requires, device)
            texts = [(p.message, p.hint or "") for p in problems]
        except SmolLM3Error as e:
            texts = [(e.message, e.hint or "")]
        usable += not texts
        title = f"{component.title} can be used on {device}"
        found += [_finding(component.title, title, False, message, hint, serious=False)
                  for message, hint in texts]  # fmt: skip
    return [_finding("plugins", f"{usable} components can be used on {device}", bool(usable)), *found]


# ----------------------------------------------------------------------------------- cache and environment


def _cache() -> tuple[dict[str, Any], list[Finding]]:
    try:
        root = default_root()
    except ConfigError as e:
        nothing = {"root": None, "entries": 0, "bytes": 0, "writable": False, "free": 0, "leftovers": 0}
        return nothing, [_finding("cache", "the cache can be read", False, e.message, e.hint or "")]
    existing = next(p for p in (root, *root.absolute().parents) if p.exists())
    problem = _write_problem(existing)
    free = shutil.disk_usage(existing).free
    finished, partial = entries(root), leftovers(root)
    size = sum(e.size for e in finished)
    about = {"root": str(root), "entries": len(finished), "bytes": size, "writable": not problem, "free": free,
             "leftovers": len(partial)}  # fmt: skip
    hint = "set SMOLLM3_CACHE=DIR to a writable directory"
    found = [_finding("cache", f"the cache {root} can be written", not problem, problem, hint)]
    if free < LOW_DISK:
        found.append(_finding("cache", "the disk of the cache has enough space", False, f"{shown_size(free)} free",
                              "smollm3 cache clean, or SMOLLM3_CACHE=DIR on another disk", serious=False))  # fmt: skip
    if partial:
        found.append(_finding("cache", "no killed build left files in the cache", False, f"{len(partial)} directories",
                              "smollm3 cache clean", serious=False))  # fmt: skip
    return about, found


def _write_problem(directory: Path) -> str:
    """Why a directory cannot be written; empty if it can."""
    try:
        with tempfile.TemporaryFile(dir=directory):
            return "" if directory.is_dir() else "it is not a directory"
    except OSError as e:
        return e.strerror or str(e)


def _environment() -> dict[str, str]:
    """The relevant variables; the values of secrets are not shown."""
    names = [n for n in sorted(os.environ) if n.startswith(PREFIXES) or n in SINGLE]
    return {n: "(set, not shown)" if SECRET.search(n) else os.environ[n] for n in names}


def _environment_findings() -> list[Finding]:
    found = []
    if sys.flags.optimize:
        found.append(_finding("environment", "assertions are enabled", False, "PYTHONOPTIMIZE or -O is set",
                              "unset PYTHONOPTIMIZE", serious=False))  # fmt: skip
    for name in ("OMP_NUM_THREADS", "WORLD_SIZE", "RANK", "LOCAL_RANK"):
        value = os.environ.get(name)
        if value is not None and not value.split(",")[0].strip().isdigit():
            found.append(_finding("environment", f"{name} is a number", False, f"it is {value!r}", f"unset {name}",
                                  serious=name == "WORLD_SIZE"))  # fmt: skip
    if os.environ.get("WORLD_SIZE", "1") != "1" and "MASTER_ADDR" not in os.environ:
        found.append(_finding("environment", "no launcher variables are left over", False, "WORLD_SIZE is "
                              f"{os.environ['WORLD_SIZE']} but MASTER_ADDR is not set", "unset WORLD_SIZE",
                              serious=False))  # fmt: skip
    return found


def _finding(subject: str, check: str, ok: bool, found: str = "", fix: str = "", serious: bool = True) -> Finding:
    return Finding(subject=subject, check=check, ok=ok, found=found, fix="" if ok else fix, serious=serious)
