"""Checks in a new process that `claims` of a descriptor imports nothing heavy: commands that list plugins would too."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from smollm3_finetune.components.kinds import Kind
from smollm3_finetune.testing.conformance import demand

LIGHT = """
import json, sys
from smollm3_finetune.components.discovery import PluginSelection, discover
from smollm3_finetune.components.kinds import KINDS
kind, files, name, argument = json.loads(sys.argv[1])
registry = discover(PluginSelection(files=tuple(files)))
registry.find(next(k for k in KINDS if k.name == kind), name).spec.claims(argument)
print(json.dumps(sorted({m.split(".")[0] for m in sys.modules} & {"torch", "transformers", "numpy", "safetensors"})))
"""


def check_light(kind: Kind, plugins: Sequence[str], component: str, argument: Any) -> None:
    """Fail the test if the module with the hooks, or `claims` with this argument, imports a heavy library."""
    job = json.dumps([kind.name, list(plugins), component, argument], default=str)
    done = subprocess.run([sys.executable, "-c", LIGHT, job], capture_output=True, text=True, check=False)
    demand(done.returncode == 0, f"claims() fails in a new process: {done.stderr[-300:]}")
    heavy = json.loads(done.stdout)
    demand(
        not heavy,
        f"the module with the hooks, or claims(), imports {', '.join(heavy)}: every command would import it, so "
        "move the import into the factory's module",
    )
