"""What is run with a plugin: pairs of quantizer and adapter, and commands on the built-in model.

The cells follow from the kind of each component. A plugin adds cells of its own, and those of kinds that need rows or a
reference, in its pyproject.toml:

    [tool.smollm3-gallery.cells]
    "opens a model of a vault" = "smollm3 generate vault://ours@1.0 --prompt Hi"

Each is a shell script that runs in an empty directory; `$FOLDER` is the folder of the plugin, and `$SHORT` are options
for a short training run.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gallery.environment import Environment, Outcome
from gallery.plugins import Plugin

SHORT = "--device cpu --max-steps 4 --batch-size 2 --set data.held_out=0.05 --set train.sample_tokens=4"
PARTNERS = {"quantizer": ("lora", "dora", "full"), "adapter": ("none", "bnb-4bit", "gptq")}
"""Names of adapters that a quantizer is paired with, and of quantizers that an adapter is paired with."""
COMMANDS = {
    "objective": {
        "{name} trains with lora": "smollm3 train --objective {name} --adapter lora --output run $SHORT",
        "{name} trains with dora on bnb-4bit, packed": (
            "smollm3 train --objective {name} --quant bnb-4bit --adapter dora --set train.packing=true "
            "--output run $SHORT"
        ),
        "{name} trains the weights themselves": (
            "smollm3 train --objective {name} --adapter full --set train.padding=always --output run $SHORT"
        ),
    },
    "optimizer": {
        "{name} trains with lora, and resumes": (
            "smollm3 train --optimizer {name} --adapter lora --output run --set train.save_every=2 $SHORT\n"
            "smollm3 train --resume run --max-steps 6"
        ),
        "{name} trains with dora on bnb-4bit": (
            "smollm3 train --optimizer {name} --quant bnb-4bit --adapter dora --output run $SHORT"
        ),
    },
    "exporter": {
        "{name} exports a trained run": (
            "smollm3 train --adapter lora --output run $SHORT\nsmollm3 export run --to {name} --output out --device cpu"
        )
    },
    "tracker": {"{name} follows a run": "smollm3 train --tracker {name} --adapter lora --output run $SHORT"},
    "command": {"{name} shows its help": "smollm3 {name} --help"},
}
"""Kind to the cells of each of its components: name to script."""
WORKS = re.compile(
    r"^\d+/\d+ .* (?P<purpose>train|merge|prefer): (?P<result>.*) \((?P<seconds>[\d.]+) s\)$", re.MULTILINE
)


def results(plugin: Plugin, environment: Environment, work: Path) -> Iterator[dict[str, Any]]:
    """Run each cell, and yield its name, result, seconds and, if it did not work, the reason."""
    evidence = work / "compat.json"
    for component in plugin.components:
        kind, name = component["kind"], component["name"]
        for partner in PARTNERS.get(kind, ()):
            pair = (name, partner) if kind == "quantizer" else (partner, name)
            yield from pairs(pair, environment, work, evidence)
        for title, script in COMMANDS.get(kind, {}).items():
            if not any(title.format(name=name) == own for own in plugin.own_cells):
                yield command(title.format(name=name), script.format(name=name), plugin, environment, work)
    for title, script in plugin.own_cells.items():
        yield command(title, script, plugin, environment, work)


def command(title: str, script: str, plugin: Plugin, environment: Environment, work: Path) -> dict[str, Any]:
    """Run one script in an empty directory."""
    lines = f"FOLDER={shlex.quote(str(plugin.folder))}\nSHORT={shlex.quote(SHORT)}\n{script}"
    where = work / re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
    return cell(title, environment.script(lines, where), script)


def cell(title: str, outcome: Outcome, script: str) -> dict[str, Any]:
    found: dict[str, Any] = {"cell": title, "result": "works" if outcome.code == 0 else "fails"}
    found["seconds"] = round(outcome.seconds, 1)
    found["command"] = " && ".join(script.replace("$SHORT", SHORT).splitlines())
    if outcome.code:
        found["note"] = outcome.reason
        print(outcome.output[-2000:])
    return found


def pairs(pair: tuple[str, str], environment: Environment, work: Path, evidence: Path) -> Iterator[dict[str, Any]]:
    """Measure a pair as `smollm3 compat --measure` does. What planning refuses is a result too, with its reason."""
    quant, adapter = pair
    words = ["smollm3", "compat", "--quant", quant, "--adapter", adapter, "--device", "cpu"]
    title = f"{quant} with {adapter}"
    planned = environment.run([*words, "--json"], work)
    try:
        states = json.loads(planned.output)["cells"]
    except (ValueError, KeyError, TypeError):
        yield {**cell(title, planned, shlex.join(words)), "result": "fails", "note": planned.reason}
        return
    refused = {s["purpose"]: s["reason"] for s in states if s["state"] == "refused"}
    if len(refused) < len(states):
        done = environment.run([*words, "--measure", str(evidence)], work)
        found = {match["purpose"]: match for match in WORKS.finditer(done.output)}
        if not found:
            yield {**cell(title, done, shlex.join(words)), "result": "fails", "note": done.reason}
        for purpose, match in found.items():
            works = match["result"] == "works"
            line: dict[str, Any] = {"cell": f"{title}: {purpose}", "result": "works" if works else "fails"}
            line |= {"seconds": float(match["seconds"]), "command": shlex.join([*words, "--measure", evidence.name])}
            yield line if works else {**line, "note": match["result"]}
    if len(set(refused.values())) == 1 and len(refused) == len(states):
        refused = {"": next(iter(refused.values()))}
    for purpose, reason in refused.items():
        name = f"{title}: {purpose}" if purpose else title
        yield {"cell": name, "result": "refused", "seconds": 0.0, "command": shlex.join(words), "note": reason}
