"""Plugins of several authors in one environment, and one run that uses a component of each of several kinds.

None of them names another. What is not in examples/plugins is left out of the run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gallery.cells import SHORT, cell
from gallery.environment import Environment
from gallery.plugins import Plugin, plugins
from gallery.records import FORMAT, failed, machine

NAME = "together"
PARTS = {
    "smollm3-vault": "--model vault://ours@1.0 --loader-opt folder=vault",
    "smollm3-tickets": "--formatter tickets --data $TICKETS",
    "smollm3-quanto": "--quant quanto --quant-opt weights=int4",
    "smollm3-reft": "--adapter reft",
    "smollm3-label-smoothing": "--objective label-smoothing",
    "smollm3-muon": "--optimizer muon",
    "smollm3-prometheus": "--tracker prometheus",
}
"""Name of a plugin to the options that use it in the run."""
VAULT = """
smollm3 train --output first $SHORT
smollm3 merge first --output vault/ours/1.0 --device cpu
(cd vault/ours/1.0; sha256sum * > SHA256SUMS)
"""


def script(installed: list[Plugin]) -> str:
    names = [p.name for p in installed]
    words = " ".join(options for name, options in PARTS.items() if name in names)
    train = f"smollm3 train {words} --output run $SHORT"
    lines = ["smollm3 generate run --prompt Hi --max-new-tokens 4 --device cpu"]
    if "smollm3-npz" in names:
        lines += [
            "smollm3 export first --to npz --output archive --device cpu",
            "smollm3 generate archive/*.npz --prompt Hi --max-new-tokens 4 --device cpu",
        ]
    return "\n".join([VAULT.strip(), train, *lines])


def together(environment: Environment, work: Path) -> dict[str, Any]:
    """Install every plugin of examples/plugins into one environment, check all of them, and do one run."""
    chosen = plugins()
    record: dict[str, Any] = {"format": FORMAT, "name": NAME, "plugins": [p.name for p in chosen], **machine()}
    installed = environment.install(chosen)
    if installed.code:
        return {**record, "cells": [failed("all are installed together", installed)]}
    first = {"cell": "all are installed together", "result": "works", "seconds": round(installed.seconds, 1)}
    strict = "SMOLLM3_STRICT_PLUGINS=1 smollm3 plugins list"
    listed = cell("no plugin is broken", environment.script(strict, work), strict)
    text = script(chosen)
    tickets = next((p.folder / "examples" / "tickets.jsonl" for p in chosen if p.name == "smollm3-tickets"), "")
    variables = f"SHORT='{SHORT}'\nTICKETS='{tickets}'\n"
    run = cell("one run uses components of many plugins", environment.script(variables + text, work), text)
    return {**record, "cells": [first, listed, run]}
