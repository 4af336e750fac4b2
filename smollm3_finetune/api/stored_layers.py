"""Quantized layers in the cache, so that a model is quantized once: used by `load_layerwise`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from smollm3_finetune.errors import ModelError, SmolLM3Error

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from smollm3_finetune.api.models import BuildContext, StoredLayers
    from smollm3_finetune.api.places import Place


def quantize_once(
    places: Mapping[str, Place],
    quantize: Callable[[], None],
    stored: StoredLayers,
    *,
    ctx: BuildContext,
    kind: str,
    key: Mapping[str, Any],
) -> None:
    """Put the layers of the cache entry `key` in their places, or those of `quantize()`, which builds the entry.

    A cache that cannot be written does not prevent the run: the layers are quantized, and a line says why they are not
    stored.
    """
    names = list(places)
    begun = done = False

    def build(out: Path) -> None:
        nonlocal begun, done
        begun = True
        quantize()
        done = True
        for number, name in enumerate(names):
            _save(out / f"{number}.safetensors", name, stored.save(places[name].quantized()))

    try:
        entry = ctx.cache.get_or_build(kind, key, build)
    except SmolLM3Error as e:
        if begun and not done:
            raise
        if not done:
            quantize()
        ctx.progress.say(f"the quantized layers are not stored: {e.message}")
        return
    if not done:
        with ctx.progress.task(f"reading {len(names)} quantized layers", total=len(names)) as task:
            for number, name in enumerate(names):
                tensors = _read(entry / f"{number}.safetensors", name)
                places[name].put(stored.restore(places[name].dense(), tensors))
                task.advance()


def _save(file: Path, name: str, tensors: Mapping[str, Tensor]) -> None:
    from safetensors.torch import save_file

    save_file({k: t.detach().cpu().contiguous() for k, t in tensors.items()}, file, metadata={"layer": name})


def _read(file: Path, name: str) -> dict[str, Tensor]:
    """The tensors of a layer. Raises ModelError if the file is that of another layer."""
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        if (opened.metadata() or {}).get("layer") != name:
            raise ModelError(f"{file} is not of the layer {name}", hint=f"rm -r {file.parent}")
        return {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118  # not a mapping
