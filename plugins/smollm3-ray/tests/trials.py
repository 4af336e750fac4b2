"""Runs the trials of a directory with the launcher `ray`, as `smollm3 sweep` does, and prints how each ended."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from smollm3_ray.launcher import RayLauncher
from smollm3_ray.options import RayOptions

from smollm3_finetune.api import Launch, Trial

if __name__ == "__main__":
    root, options = Path(sys.argv[1]), json.loads(sys.argv[2])
    trials = [
        Trial(name=run.name, values={}, launch=Launch(run=run, command=("python",), worker="stand_in:work"))
        for run in sorted(root.iterdir())
    ]
    ends: dict[str, str | None] = {}
    RayLauncher(RayOptions(**options)).launch_trials(trials, ends.__setitem__)
    print(json.dumps(ends))
