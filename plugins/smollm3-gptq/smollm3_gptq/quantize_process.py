"""Running the worker that quantizes, and showing what it does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from smollm3_finetune.api import Progress, SmolLM3Error


class QuantizingFailed(SmolLM3Error):
    """gptqmodel ended with an error."""


def quantize(
    source: Path,
    out: Path,
    options: Mapping[str, Any],
    calibration: Sequence[Sequence[int]],
    *,
    device: str,
    seed: int,
    title: str,
    progress: Progress,
) -> None:
    """Quantize the checkpoint in `source` into the empty directory `out`, shown layer by layer.

    `options` are those of gptqmodel's `QuantizeConfig`, `calibration` token ids. Raises QuantizingFailed with
    gptqmodel's own words, and keeps what it printed in a file that the hint names.
    """
    with tempfile.TemporaryDirectory(prefix="smollm3-gptq-") as name, ExitStack() as open_ends:
        scratch = Path(name)
        reader, writer = os.pipe()
        events = open_ends.enter_context(os.fdopen(reader, encoding="utf-8"))
        spec = scratch / "job.json"
        job = {
            "source": str(source.resolve()),
            "out": str(out.resolve()),
            "options": dict(options),
            "calibration": [list(row) for row in calibration],
            "device": device,
            "seed": seed,
            "events": writer,
        }
        spec.write_text(json.dumps(job), encoding="utf-8")
        log = scratch / "output.txt"
        with log.open("wb") as printed:
            worker = subprocess.Popen(
                [sys.executable, "-m", "smollm3_gptq.quantize_worker", str(spec)],
                stdin=subprocess.PIPE,
                stdout=printed,
                stderr=subprocess.STDOUT,
                pass_fds=(writer,),
                cwd=scratch,
                env=_environment(scratch),
            )
        os.close(writer)
        try:
            error = _shown(events, title, progress)
            code = worker.wait()
        finally:
            worker.kill()
            worker.wait()
            if worker.stdin is not None:
                worker.stdin.close()
        if error is not None or code != 0:
            kept = _kept(log)
            why = error or f"its process ended with code {code}, without a word (out of memory?)"
            raise QuantizingFailed(f"gptqmodel could not quantize {title}: {why}", hint=f"what it printed: {kept}")
    _tidy(out)


def _shown(events: Any, title: str, progress: Progress) -> str | None:
    """Show the worker's events until it ends; returns its error, if it told one."""
    error = None
    with ExitStack() as shown:
        task = None
        for line in events:
            event = json.loads(line)
            if "layers" in event:
                task = shown.enter_context(progress.task(f"quantizing {title}", event["layers"]))
            elif "layer" in event and task is not None:
                task.advance()
            elif "rounded" in event:
                names = event["rounded"]
                progress.say(
                    f"warning: gptqmodel rounded {len(names)} layers of {title} to nearest, without GPTQ, because the "
                    f"calibration did not reach or could not solve them: {', '.join(names[:5])}"
                )
            elif "error" in event:
                error = event["error"]
    return error


def _environment(scratch: Path) -> dict[str, str]:
    """gptqmodel's temporary files go into the scratch directory, and on two cores it must be told of two workers.

    How many threads add up decides the last bits of a sum, and these which code a weight gets: the number is the
    machine's and not that of the caller's OMP_NUM_THREADS, so that the same machine makes the same weights again.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 2
    env = {**os.environ, "TMPDIR": str(scratch), "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": str(cores)}
    env.pop("MKL_NUM_THREADS", None)
    env.setdefault("GPTQMODEL_CPU_WORKERS", str(max(2, cores)))
    return env


def _kept(log: Path) -> Path:
    """A copy of what the worker printed that outlives the scratch directory."""
    descriptor, name = tempfile.mkstemp(prefix="smollm3-gptq-", suffix=".txt")
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(log.read_bytes())
    return Path(name)


def _tidy(out: Path) -> None:
    """Leave nothing in the checkpoint that belongs to this machine or this run."""
    (out / "quant_log.csv").unlink(missing_ok=True)
    for name, inside in (("quantize_config.json", ()), ("config.json", ("quantization_config",))):
        file = out / name
        if not file.exists():
            continue
        whole = about = json.loads(file.read_text(encoding="utf-8"))
        for key in inside:
            about = about.get(key, {})
        about.get("meta", {}).pop("offload_to_disk_path", None)
        file.write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")
