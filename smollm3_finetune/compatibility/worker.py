"""The child process of a sweep: reads pairs from standard input, measures them, and prints a line of JSON for each.

It is a separate process, so that a pair that crashes or hangs does not affect the others.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from smollm3_finetune.compatibility.children import answers, one_line


def main() -> None:
    """Read `{"plugins", "no_plugins", "device", "work", "pairs"}`, write `{"begins": i}` and `{"ended": i, …}`."""
    out = answers()
    job = json.load(sys.stdin)

    def say(**event: Any) -> None:
        print(json.dumps(event), file=out, flush=True)

    from smollm3_finetune.compatibility.measure import Bench, measure
    from smollm3_finetune.compatibility.results import Use
    from smollm3_finetune.components.discovery import PluginSelection, discover
    from smollm3_finetune.errors import ConfigError, MissingRequirementError, SmolLM3Error
    from smollm3_finetune.model_files.loading import quiet_transformers

    quiet_transformers()
    registry = discover(PluginSelection.of(tuple(job["plugins"]), job["no_plugins"]))
    work = Path(job["work"])
    for index, pair in enumerate(job["pairs"]):
        say(begins=index)
        bench = Bench(registry=registry, model=Path(pair["model"]), device=job["device"], work=work)
        try:
            found = measure(
                bench,
                pair["quantizer"],
                pair["adapter"],
                pair["options"],
                Use(pair["purpose"]),
                force=pair["force"],
            )
        except (ConfigError, MissingRequirementError) as e:  # an option that must be set, a package
            say(ended=index, figures={}, skipped=True, fault=one_line(e.message))
        except Exception as e:
            text = e.message if isinstance(e, SmolLM3Error) else f"{type(e).__name__}: {e}"
            say(ended=index, figures={}, fault=one_line(text))
        else:
            say(ended=index, figures=found.figures, fault=found.fault)


if __name__ == "__main__":
    main()
