"""What would be published, and what was, in a few lines."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

UNITS = ("B", "kB", "MB", "GB", "TB")


def shown_size(size: float) -> str:
    """`1.3 MB`"""
    for unit in UNITS[:-1]:
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} {UNITS[-1]}"


def shown_plan(report: Mapping[str, Any]) -> str:
    """What `--dry-run` prints."""
    files = report["files"]
    total = shown_size(sum(file["bytes"] for file in files))
    private = "private " if report["private"] else ""
    branch = "" if report["revision"] == "main" else f", branch {report['revision']}"
    lines = [
        "",
        f"{report['kind']} in {report['directory']}, to {private}{report['repo']}{branch}",
        "",
        f"published: {len(files)} files, {total}",
        *(f"  {shown_size(file['bytes']):>9}  {file['name']}" for file in files),
    ]
    if report["left_out"]:
        width = max(len(_printable(one["name"])) for one in report["left_out"])
        lines += ["", "left out:"]
        lines += [f"  {_printable(one['name']):<{width}}  {one['why']}" for one in report["left_out"]]
    return "\n".join([*lines, *_notes(report), "", "nothing was published: --dry-run"])


def shown_push(report: Mapping[str, Any]) -> str:
    """The report of an upload as human-readable text."""
    size = shown_size(sum(file["bytes"] for file in report["files"]))
    state = f"commit {report['commit'][:12]}" if report["changed"] else "unchanged: the repository has these files"
    lines = [
        "",
        f"published      {report['kind']} in {report['directory']}: {len(report['files'])} files, {size}",
        f"repository     {state}, in {report['seconds']} s",
        *_notes(report),
        "",
        f"look at it     {report['url']}",
    ]
    return "\n".join(lines)


def _notes(report: Mapping[str, Any]) -> Iterator[str]:
    if report["notes"]:
        yield ""
        yield from (f"note: {note}" for note in report["notes"])


def _printable(name: str) -> str:
    """A name in one line, without control characters."""
    return name if name.isprintable() else json.dumps(name)
