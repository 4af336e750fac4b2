"""Run the worker process that quantizes, and show its progress."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smollm3_finetune.api import (
    IncompatibleError,
    Progress,
    SmolLM3Error,
    is_resource_error,
    linear_shapes,
    stacked_weights,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class QuantizingFailed(SmolLM3Error):
    """gptqmodel failed."""


def quantize(
    source: Path,
    out: Path,
    options: Mapping[str, Any],
    calibration: Sequence[Sequence[int]],
    *,
    architecture: PreTrainedModel | None,
    device: str,
    seed: int,
    title: str,
    progress: Progress,
) -> None:
    """Quantize the checkpoint in `source` into the empty directory `out`, with one progress step per layer.

    `options` are arguments of gptqmodel's `QuantizeConfig`; `calibration` contains token ids. `architecture` is
    the model without weights that the checkpoint will be read into; None: not known. Raises IncompatibleError
    before quantizing if they lack a layer that gptqmodel would write, QuantizingFailed with gptqmodel's message; the
    hint names a file with gptqmodel's output.
    """
    with tempfile.TemporaryDirectory(prefix="smollm3-gptq-") as name, ExitStack() as stack:
        scratch = Path(name)
        reader, writer = os.pipe()
        events = stack.enter_context(os.fdopen(reader, encoding="utf-8"))
        spec = scratch / "job.json"
        job = {
            "source": str(source.resolve()),
            "out": str(out.resolve()),
            "options": dict(options),
            "architecture": None if architecture is None else linear_shapes(architecture),
            "stacks": {} if architecture is None else _stack_shapes(architecture),
            "parameters": [] if architecture is None else _parameters(architecture),
            "calibration": [list(row) for row in calibration],
            "device": device,
            "seed": seed,
            "events": writer,
        }
        spec.write_text(json.dumps(job), encoding="utf-8")
        log = scratch / "output.txt"
        with log.open("wb") as output:
            worker = subprocess.Popen(
                [sys.executable, "-m", "smollm3_gptq.quantize_worker", str(spec)],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=(writer,),
                cwd=scratch,
                env=_environment(scratch),
                start_new_session=True,  # so that the compilers of its kernels can be ended with it
            )
        os.close(writer)
        try:
            error = _show_events(events, title, progress)
            code = worker.wait()
        finally:
            with suppress(ProcessLookupError):
                os.killpg(worker.pid, signal.SIGKILL)
            worker.wait()
            if worker.stdin is not None:
                worker.stdin.close()
        if error is not None and is_resource_error(failure := RuntimeError(error)):
            raise failure  # a full disk, or too little memory: core reports it
        if error is not None or code != 0:
            kept = _keep_output(log)
            why = error or f"its process exited with code {code} and no error message (out of memory?)"
            raise QuantizingFailed(f"gptqmodel could not quantize {title}: {why}", hint=f"see its output: {kept}")
    _remove_local_traces(out)


def _stack_shapes(model: PreTrainedModel) -> dict[str, tuple[int, int, int]]:
    """The stacked weights of experts whose rows can be joined from parts: (experts, out, in)."""
    return {name: weight.sizes for name, weight in stacked_weights(model).items() if not weight.interleaved}


def _parameters(model: PreTrainedModel) -> list[str]:
    """The names of all parameters, also of those that are tied to another: gptqmodel may untie them."""
    return [name for name, _ in model.named_parameters(remove_duplicate=False)]


def _show_events(events: Any, title: str, progress: Progress) -> str | None:
    """Show the worker's events until it ends; returns its error, or None."""
    error = None
    with ExitStack() as stack:
        task = None
        for line in events:
            event = json.loads(line)
            if "layers" in event:
                task = stack.enter_context(progress.task(f"quantizing {title}", event["layers"]))
            elif "layer" in event and task is not None:
                task.advance()
            elif "rounded" in event:
                names = event["rounded"]
                progress.say(
                    f"warning: gptqmodel rounded {len(names)} layers of {title} to nearest, without GPTQ, because the "
                    f"calibration did not reach them or GPTQ failed on them: {', '.join(names[:5])}"
                )
            elif "refused" in event:
                raise IncompatibleError(
                    f"gptq cannot quantize {title}: its checkpoint would have {event['refused']}, so it could not be "
                    "loaded",
                    hint="choose a quantizer that quantizes while loading: smollm3 plugins list",
                )
            elif "error" in event:
                error = event["error"]
    return error


def _environment(scratch: Path) -> dict[str, str]:
    """The environment of the worker: temporary files go to the scratch directory; gptqmodel needs at least two workers.

    The number of threads affects the last bits of a sum, and these can affect the code of a weight. Therefore the
    number is that of the machine's cores, not the caller's OMP_NUM_THREADS: the same machine gives the same weights.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 2
    env = {**os.environ, "TMPDIR": str(scratch), "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": str(cores)}
    env.pop("MKL_NUM_THREADS", None)
    env.setdefault("GPTQMODEL_CPU_WORKERS", str(max(2, cores)))
    return env


def _keep_output(log: Path) -> Path:
    """Copy the worker's output to a file outside the scratch directory, which is deleted."""
    descriptor, name = tempfile.mkstemp(prefix="smollm3-gptq-", suffix=".txt")
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(log.read_bytes())
    return Path(name)


def _remove_local_traces(out: Path) -> None:
    """Remove logs and paths of this machine from the checkpoint."""
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
