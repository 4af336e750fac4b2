"""The child process of a trial: reads one job on each line, tries its pairs, and prints a line of JSON for each."""

from __future__ import annotations

import gc
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from smollm3_finetune.compatibility.children import answers


def main() -> None:
    """Read `{"plugins", "no_plugins", "device", "dtype"}`, write `{"machine": …}` or `{"error": …}`.

    Then, for each line `{"quantizer", "adapter"}`, write the fields of a result.
    """
    out = answers()

    def say(**event: Any) -> None:
        print(json.dumps(event), file=out, flush=True)

    about = json.loads(sys.stdin.readline())

    from smollm3_finetune.components.discovery import PluginSelection, discover
    from smollm3_finetune.components.kinds import ADAPTER, QUANTIZER
    from smollm3_finetune.errors import SmolLM3Error
    from smollm3_finetune.model.device import resolve_device, resolve_dtype
    from smollm3_finetune.model_files.loading import quiet_transformers

    plugins = tuple(about["plugins"])
    try:
        device = resolve_device(about["device"])
        dtype = resolve_dtype(about["dtype"], device)
    except SmolLM3Error as e:
        say(error=e.message, hint=e.hint, code=e.exit_code)
        return
    from smollm3_finetune.trial.machine import machine

    say(machine=machine(device), dtype=dtype)
    quiet_transformers()
    registry = discover(PluginSelection.of(plugins, about["no_plugins"]))
    from smollm3_finetune.trial.measure import try_pair
    from smollm3_finetune.trial.training import Site

    with tempfile.TemporaryDirectory(dir=about["work"]) as work:
        site = Site(registry=registry, plugins=plugins, device=device, dtype=dtype, work=Path(work))
        for line in sys.stdin:
            pair, began = json.loads(line), time.monotonic()
            quantizer, adapter = registry.find(QUANTIZER, pair["quantizer"]), registry.find(ADAPTER, pair["adapter"])
            found = try_pair(site, quantizer, adapter)
            gc.freeze()  # what was imported stays: each collection would examine it, which takes longer than a step
            say(**found, seconds=round(time.monotonic() - began, 1))


if __name__ == "__main__":
    main()
