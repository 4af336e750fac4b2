"""The results of the gallery: a JSON file for each plugin in docs/gallery/."""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from gallery.cells import results
from gallery.environment import Environment, Outcome
from gallery.plugins import ROOT, Plugin

RECORDS = ROOT / "docs" / "gallery"
FORMAT = 1


def path_of(name: str) -> Path:
    return RECORDS / f"{name}.json"


def read_records() -> dict[str, dict[str, Any]]:
    """Name of the plugin to its record."""
    found = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(RECORDS.glob("*.json"))]
    return {record["name"]: record for record in found}


def write_record(record: Mapping[str, Any]) -> None:
    RECORDS.mkdir(parents=True, exist_ok=True)
    text = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
    path_of(str(record["name"])).write_text(text, encoding="utf-8")


def about(plugin: Plugin) -> dict[str, Any]:
    """What does not need a run."""
    return {
        "format": FORMAT,
        "name": plugin.name,
        "version": plugin.version,
        "summary": str(plugin.project["description"]),
        "folder": plugin.place,
        "components": plugin.components,
        "requires": plugin.requires,
        "lines": plugin.lines,
    }


def machine() -> dict[str, str]:
    packages = {name: version(name) for name in ("torch", "transformers", "smollm3-finetune")}
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "python": platform.python_version(),
        **packages,
        "system": f"{platform.system()} {platform.machine()}",
        "device": "cpu",
    }


def measured(plugin: Plugin, environment: Environment, work: Path, *, long: bool = False) -> dict[str, Any]:
    """Install the plugin, run its checks, its tests and its cells, and return its record."""
    record = {**about(plugin), **machine()}
    installed = environment.install([plugin])
    if installed.code:
        return {**record, "cells": [failed("installs with its requirements", installed)]}
    cells = [{"cell": "installs with its requirements", "result": "works", "seconds": round(installed.seconds, 1)}]
    own = sorted(plugin.project["entry-points"]["smollm3_finetune"])
    command = ["smollm3", "plugins", "check", own[0], "--json"]
    checked = environment.run(command, work)
    cells.append(
        {"cell": "passes plugins check", "result": "works", "seconds": round(checked.seconds, 1)}
        if checked.code == 0
        else failed("passes plugins check", checked)
    )
    record["tests"] = tests(plugin, environment, work, long=long)
    record["cells"] = [*cells, *results(plugin, environment, work)]
    return record


def failed(title: str, outcome: Outcome) -> dict[str, Any]:
    print(outcome.output[-3000:])
    return {"cell": title, "result": "fails", "seconds": round(outcome.seconds, 1), "note": outcome.reason}


def tests(plugin: Plugin, environment: Environment, work: Path, *, long: bool) -> dict[str, Any]:
    """Run the tests of the plugin on its installed wheel, without those that are marked long unless `long`."""
    report = work / "tests.xml"
    options = ["-q", "--import-mode=importlib", "-p", "no:cacheprovider", f"--rootdir={plugin.folder}"]
    config = ["-c", str(plugin.folder / "pyproject.toml")]
    chosen = [] if long else ["-m", "not long"]
    command = [str(environment.python), "-m", "pytest", *config, *options, *chosen, f"--junitxml={report}"]
    done = environment.run([*command, str(plugin.folder / "tests")], work)
    if not report.is_file():
        return {"passed": 0, "failed": 1, "skipped": 0, "seconds": round(done.seconds, 1), "note": done.reason}
    suite = next(ElementTree.parse(report).getroot().iter("testsuite"))
    count = {key: int(suite.get(key, "0")) for key in ("tests", "failures", "errors", "skipped")}
    bad = count["failures"] + count["errors"]
    found = {"passed": count["tests"] - bad - count["skipped"], "failed": bad, "skipped": count["skipped"]}
    if bad or done.code:
        print(done.output[-3000:])
        lines = re.findall(r"^(?:FAILED|ERROR) (.*)$", done.output, re.MULTILINE)
        return {**found, "seconds": round(done.seconds, 1), "note": "; ".join(lines) or done.reason}
    return {**found, "seconds": round(done.seconds, 1)}
