"""Runs the conformance kit on a plugin's components in a separate pytest process; with weights, it takes minutes."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from smollm3_finetune.checks.findings import Finding
from smollm3_finetune.checks.plugin import Target
from smollm3_finetune.components.kinds import (
    ADAPTER,
    COMMAND,
    EVALUATOR,
    EXPORTER,
    FORMATTER,
    LAUNCHER,
    LOADER,
    OBJECTIVE,
    OPTIMIZER,
    QUANTIZER,
    TRACKER,
)
from smollm3_finetune.components.registry import RegisteredComponent
from smollm3_finetune.errors import MissingRequirementError

CLASSES = {
    QUANTIZER: "QuantizerConformance", ADAPTER: "AdapterConformance", FORMATTER: "FormatterConformance",
    OBJECTIVE: "ObjectiveConformance", EXPORTER: "ExporterConformance",
    LAUNCHER: "LauncherConformance", OPTIMIZER: "OptimizerConformance", TRACKER: "TrackerConformance",
    COMMAND: "CommandConformance",
}  # fmt: skip
"""The kit's test classes."""
NEED_REFERENCE = {LOADER: "model", EVALUATOR: "task"}
"""Kinds whose test class needs a reference, which only the author of the component can provide."""
SECONDS = 600
"""The time limit for each component."""
TEST = """

class TestComponent{number}({cls}):
    component = {component!r}
    plugins = {plugins!r}
    dtype = "float32"  # some libraries do not compute in float64
"""
CHECK = "it passes the conformance kit"


def require_kit() -> None:
    """Raises MissingRequirementError if pytest is not installed."""
    if importlib.util.find_spec("pytest") is None:
        raise MissingRequirementError("--deep runs the conformance kit in pytest, which is not installed",
                                      hint="pip install 'pytest>=8.3'")  # fmt: skip


def deep_findings(target: Target) -> list[Finding]:
    """One finding for each component of a kind that the kit can be run on, with its failed tests."""
    testable = [o for o in target.components if o.kind in CLASSES]
    found = _run(testable, target) if testable else []
    return [*found, *(_not_run(o) for o in target.components if o.kind in NEED_REFERENCE)]


def _not_run(component: RegisteredComponent) -> Finding:
    kind = component.kind.name
    return Finding(
        subject=component.title,
        check=CHECK,
        ok=False,
        serious=False,
        found=f"not run: the kit has no {NEED_REFERENCE[component.kind]} for this {kind} to open",
        fix=f"use {kind.capitalize()}Conformance in your own tests, as smollm3 plugins new {kind} does",
    )


def _run(components: Sequence[RegisteredComponent], target: Target) -> list[Finding]:
    """Run all components in one process, with one class for each."""
    files = tuple(str(Path(r).resolve()) if r.endswith(".py") else r for r in target.requested if r[:3] != "no:")
    with tempfile.TemporaryDirectory(prefix="smollm3-check-") as directory:
        test, results = Path(directory) / "test_conformance.py", Path(directory) / "results.xml"
        names = ", ".join(sorted({CLASSES[o.kind] for o in components}))
        classes = [
            TEST.format(number=n, cls=CLASSES[o.kind], component=o.full_name, plugins=files)
            for n, o in enumerate(components)
        ]
        test.write_text(f"from smollm3_finetune.testing import {names}\n" + "".join(classes), encoding="utf-8")
        command = [sys.executable, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", directory,
                   "-c", os.devnull, f"--junitxml={results}", str(test)]  # fmt: skip
        environment = {**os.environ, "SMOLLM3_CACHE": f"{directory}/cache"}
        try:
            limit = SECONDS * len(components)
            done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False,
                                  env=environment)  # fmt: skip
        except subprocess.TimeoutExpired:
            return [_finding(o, False, f"it did not finish within {SECONDS * len(components)} s") for o in components]
        if not results.exists():
            last = next(iter(reversed((done.stderr or done.stdout).strip().splitlines())), "it printed nothing")
            return [_finding(o, False, f"pytest ended with {done.returncode}: {last}") for o in components]
        cases = list(ElementTree.parse(results).iter("testcase"))
    return [
        _judged(o, [c for c in cases if c.get("classname", "").endswith(f"TestComponent{n}")])
        for n, o in enumerate(components)
    ]


def _judged(component: RegisteredComponent, cases: Sequence[ElementTree.Element]) -> Finding:
    bad: list[str] = []
    skipped = 0
    for case in cases:
        skipped += case.find("skipped") is not None
        for word in ("failure", "error"):
            problem = case.find(word)
            if problem is not None:
                bad.append(f"{case.get('name')}: {' '.join((problem.get('message') or '').split())[:400]}")
    passed = len(cases) - skipped - len(bad)
    if not cases:
        return _finding(component, False, "none of its tests ran")
    if bad:
        return _finding(component, False, "; ".join(bad))
    return _finding(component, True, f"{passed} tests passed, {skipped} do not apply")


def _finding(component: RegisteredComponent, ok: bool, found: str) -> Finding:
    fix = "" if ok else "to debug, run the same tests from your own class: smollm3 plugins new writes one"
    return Finding(subject=component.title, check=CHECK, ok=ok, found=found, fix=fix)
