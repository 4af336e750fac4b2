"""docs/gallery.md, from the results in docs/gallery/ and those of `nox -s compat`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gallery.plugins import BUNDLED, ROOT, Plugin, plugins

TEMPLATE = Path(__file__).with_name("page.md")
PAGE = ROOT / "docs" / "gallery.md"
MEASURED = ROOT / "smollm3_finetune" / "compatibility" / "measured.json"
TOGETHER = "together"
USES = ("train", "merge", "prefer")
SIGNS = {"works": "●", "fails": "✗", "refused": "–"}


def page(records: Mapping[str, Mapping[str, Any]]) -> str:
    """The text of the page."""
    own = [record for name, record in sorted(records.items()) if name != TOGETHER and is_example(record)]
    parts = {
        "overview": overview(own),
        "together": together(records[TOGETHER]) if TOGETHER in records else (),
        "sections": (line for record in own for line in section(record)),
        "bundled": bundled(records),
    }
    text = TEMPLATE.read_text(encoding="utf-8")
    for name, lines in parts.items():
        text = text.replace(f"{{{{{name}}}}}", "".join(f"{line}\n" for line in lines))
    return text


def is_example(record: Mapping[str, Any]) -> bool:
    return str(record.get("folder", "")).startswith("examples/")


def kinds(components: Sequence[Mapping[str, str]]) -> str:
    found: dict[str, list[str]] = {}
    for component in components:
        found.setdefault(component["kind"], []).append(f"`{component['name']}`")
    return "; ".join(f"{kind} {', '.join(names)}" for kind, names in found.items())


def count(record: Mapping[str, Any]) -> str:
    found = Counter(cell["result"] for cell in record["cells"])
    return ", ".join(f"{SIGNS[key]} {found[key]}" for key in SIGNS if found[key])


def passed(record: Mapping[str, Any]) -> str:
    tests = record.get("tests")
    if not tests:
        return "–"
    return f"{tests['passed']} passed" + (f", {tests['failed']} failed" if tests["failed"] else "")


def overview(records: list[Mapping[str, Any]]) -> Iterator[str]:
    yield "| plugin | version | offers | lines | tests | cells | measured |"
    yield "|---|---|---|---|---|---|---|"
    for r in records:
        link = f"[{r['name']}](../{r['folder']}/README.md)"
        row = (link, r["version"], kinds(r["components"]), r["lines"], passed(r), count(r), r["date"])
        yield f"| {' | '.join(map(str, row))} |"


def versions(record: Mapping[str, Any]) -> str:
    return (
        f"{record['date']}, Python {record['python']}, torch {record['torch']}, transformers {record['transformers']}, "
        f"smollm3-finetune {record['smollm3-finetune']}, {record['system']}, CPU"
    )


def cells(record: Mapping[str, Any]) -> Iterator[str]:
    yield "| cell | result | seconds |"
    yield "|---|---|---|"
    for cell in record["cells"]:
        note = f": {escaped(cell['note'])}" if "note" in cell else ""
        seconds = "" if cell["result"] == "refused" else f"{cell['seconds']:.0f}"
        yield f"| {escaped(cell['cell'])} | {SIGNS[cell['result']]}{note} | {seconds} |"
    yield ""


def escaped(text: str) -> str:
    return text.replace("|", "\\|")


def section(record: Mapping[str, Any]) -> Iterator[str]:
    yield f"## {record['name']}"
    yield ""
    yield f"{record['summary'].rstrip('.')}. [README](../{record['folder']}/README.md)"
    yield ""
    yield from (f"* {c['kind']} `{c['name']}`: {c['summary']}" for c in record["components"])
    yield f"* requires {', '.join(f'`{r}`' for r in record['requires']) or 'no other packages'}"
    if tests := record.get("tests"):
        note = f": {tests['note']}" if "note" in tests else ""
        yield f"* tests: {passed(record)}, {tests['skipped']} skipped, {tests['seconds']:.0f} s{note}"
    yield f"* measured {versions(record)}"
    yield ""
    yield from cells(record)


def together(record: Mapping[str, Any]) -> Iterator[str]:
    yield "## All of them together"
    yield ""
    what = f"{len(record['plugins'])} plugins in one environment, and one run that uses several of them"
    yield f"{what}: {versions(record)}."
    yield ""
    yield from cells(record)
    script = next((c["command"] for c in record["cells"] if c["cell"].startswith("one run")), "")
    if script:
        yield "The run:"
        yield ""
        yield "```sh"
        yield from script.split(" && ")
        yield "```"
        yield ""


def bundled(records: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """The plugins that are released with smollm3-finetune."""
    yield "| plugin | version | offers | requires | trains | merges | prefers | measured |"
    yield "|---|---|---|---|---|---|---|---|"
    results = json.loads(MEASURED.read_text(encoding="utf-8"))["results"]
    for plugin in plugins(BUNDLED):
        found = [r for r in results if plugin.name in (r["quantizer"].split(":")[0], r["adapter"].split(":")[0])]
        dates = sorted({r["date"] for r in found})
        row = (
            f"[{plugin.name}](../{plugin.place}/README.md)",
            plugin.version,
            offers(plugin),
            ", ".join(f"`{r}`" for r in plugin.requires),
            *(share(found, use) for use in USES),
            dates[-1] if dates else passed(records[plugin.name]) if plugin.name in records else "",
        )
        yield f"| {' | '.join(row)} |"


def offers(plugin: Plugin) -> str:
    components = plugin.components
    shown = kinds(components[:6])
    return f"{shown} and {len(components) - 6} more" if len(components) > 6 else shown


def share(results: list[Mapping[str, Any]], use: str) -> str:
    found = [r["holds"] for r in results if r["purpose"] == use]
    return f"{sum(found)} of {len(found)}" if found else ""
