"""Quantize with gptqmodel in a separate process: `python -m smollm3_gptq.quantize_worker SPEC`.

gptqmodel prints, patches transformers, safetensors and the environment, and writes logs to the working directory. The
separate process keeps all this away from training. SPEC is a JSON file with the job that `quantize_process` writes. The
worker writes events as JSON lines to the file descriptor `events` of the job: `{"layers": n}`, `{"layer": i}`,
`{"rounded": names}`, `{"refused": text}`, `{"error": text}`, `{"done": true}`.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from smollm3_finetune.api import ModelError, linear_shapes, place_layers

TOO_SHORT = 10
"""gptqmodel skips calibration rows of at most this many tokens."""


def main(spec: Path) -> int:
    job = json.loads(spec.read_text(encoding="utf-8"))
    events = os.fdopen(job["events"], "w", encoding="utf-8", buffering=1)

    def send(**event: Any) -> None:
        print(json.dumps(event), file=events, flush=True)

    threading.Thread(target=_end_with_parent, args=[spec.parent], daemon=True).start()
    try:
        _quantize(job, send)
    except BaseException as e:
        lines = str(e).strip().splitlines()
        send(error=f"{type(e).__name__}: {lines[0] if lines else ''}".rstrip(": "))
        raise
    send(done=True)
    return 0


def _end_with_parent(scratch: Path) -> None:
    """Exit with every process of this session when the parent exits.

    The parent holds the other end of standard input and never writes, so EOF means its end.
    """
    os.read(0, 1)  # not sys.stdin, whose lock must be free when Python exits
    shutil.rmtree(scratch, ignore_errors=True)  # gptqmodel's temporary files are as large as the model
    if os.getpgid(0) == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


def _quantize(job: dict[str, Any], send: Any) -> None:
    import torch
    from gptqmodel import GPTQModel, QuantizeConfig

    torch.manual_seed(job["seed"])
    device = torch.device(job["device"])
    model = GPTQModel.load(job["source"], QuantizeConfig(**job["options"], device=device))
    if job["architecture"] is not None:
        try:
            stacks = {name: (count, out, inputs) for name, (count, out, inputs) in job["stacks"].items()}
            layers = {name: (out, inputs) for name, (out, inputs) in job["architecture"].items()}
            quantized = _to_quantize(model)
            place_layers(quantized, layers, stacks)
            _check_others(model, quantized, set(job["parameters"]))
        except ModelError as e:
            send(refused=e.message.removeprefix("the checkpoint has "))
            return
    send(layers=int(model.model.config.get_text_config().num_hidden_layers))

    class LayerCallback:
        def layer_complete(self, *, layer_idx: int, submodule_finalized: bool, **more: Any) -> None:
            if submodule_finalized:
                send(layer=layer_idx)

    model.layer_callback = LayerCallback()
    rows = [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in job["calibration"]]
    model.quantize(rows, batch_size=1, calibration_data_min_length=TOO_SHORT)
    if rounded := [f"{e['layer']}.{e['module']}" for e in model.quant_log if "fallback" in str(e.get("loss"))]:
        send(rounded=rounded)
    model.save(job["out"])


def _check_others(model: Any, quantized: dict[str, Any], architecture: set[str]) -> None:
    """Raises ModelError if gptqmodel split a weight that it does not quantize: the part has no place in the model."""
    for name, _ in model.model.named_parameters():
        if name.rpartition(".")[0] not in quantized and name not in architecture:
            raise ModelError(f"the checkpoint has a weight {name!r}, which the architecture lacks")


def _to_quantize(model: Any) -> dict[str, tuple[int, int]]:
    """The layers that gptqmodel will quantize, with their shapes: the named ones inside of each decoder layer."""
    groups = model.simple_layer_modules(model_config=model.model.config, quantize_config=model.quantize_config)
    inner = {name for group in groups for name in group}
    stacks = model.extract_layers_node()
    starts = tuple(f"{stack}." for stack in ([stacks] if isinstance(stacks, str) else stacks))
    found = {}
    for name, shape in linear_shapes(model.model).items():
        for start in starts:
            index, _, rest = name.removeprefix(start).partition(".")
            if name.startswith(start) and index.isdigit() and rest in inner:
                found[name] = shape
    return found


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
