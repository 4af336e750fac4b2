"""Quantizer `gptq`: loads a quantized checkpoint, or quantizes a model into the cache and loads it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packaging.version import Version

from smollm3_finetune.api import (
    Base,
    BuildContext,
    ConfigError,
    DataError,
    IncompatibleError,
    MissingRequirementError,
    ModelError,
    ModelSource,
    architecture_of,
    directory_source,
    fingerprint,
    layer_shapes,
    linear_shapes,
    read_json,
)
from smollm3_gptq.checkpoint import Checkpoint, described, open_checkpoint
from smollm3_gptq.memory import GROUP_SIZES
from smollm3_gptq.options import GPTQOptions
from smollm3_gptq.quantize_worker import TOO_SHORT

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from smollm3_gptq.round_trip import GPTQRoundTrip

KIND = "gptq"
"""The kind of the cache entries."""
WORK = 1
"""Increase this when the same options lead to other weights; cache entries are then rebuilt."""
GPTQMODEL = ("7.5", "7.6")
"""The supported versions of gptqmodel: lower bound, exclusive upper bound."""
DIGEST = "weights.sha256"


class GPTQQuantizer:
    def __init__(self, options: GPTQOptions) -> None:
        if options.group_size == 0:
            raise ConfigError(
                "quant.group_size is 0, but a group needs at least one input feature", hint="--quant-opt group_size=128"
            )
        self.options = options

    def load(self, source: ModelSource, ctx: BuildContext) -> Base:
        """The frozen model with GPTQ layers; a full-precision source is quantized first.

        Raises ModelError if a checkpoint is incomplete. `check` has already refused options that contradict it.
        """
        checkpoint, identity = self._checkpoint(source, ctx)
        base = fingerprint(KIND, identity, _rope_scaling(source.config))
        if self.options.kernel == "gptqmodel":
            from smollm3_gptq.gptqmodel_kernels import ops_for

            return Base(model=_with_gptqmodel(source, checkpoint, ctx), fingerprint=base, ops_for=ops_for)
        from smollm3_gptq.loading import load_checkpoint

        return replace(load_checkpoint(source, checkpoint, ctx), fingerprint=base)

    def _checkpoint(self, source: ModelSource, ctx: BuildContext) -> tuple[Checkpoint, str]:
        """The checkpoint of a source, which is made if the source is full-precision; and the digest of its weights."""
        stored = described(source)
        if stored is not None:
            checkpoint = open_checkpoint(source.path, stored)
            identity = _digest(source.path)
        else:
            directory = self._quantized(source, ctx)
            checkpoint = open_checkpoint(directory, _description(directory))
            identity = (directory / DIGEST).read_text(encoding="utf-8")
        from smollm3_gptq.zero_points import with_format_of_zeros

        return with_format_of_zeros(checkpoint, Path(source.ref).name, ctx.progress.say), identity

    def round_trip(self, source: ModelSource, ctx: BuildContext) -> GPTQRoundTrip:
        """Rounds to the grid of the checkpoint of `source`, which is calibrated and cached if it is full-precision.

        With `ctx.grids`, those of a run, nothing is calibrated. See `smollm3_finetune.api.RoundTripMaker`.
        """
        from smollm3_gptq.round_trip import GPTQRoundTrip

        @cache
        def checkpoint() -> Checkpoint:
            return self._checkpoint(source, ctx)[0]

        def names() -> Collection[str]:
            return list(checkpoint().layers() if ctx.grids is None else ctx.grids)

        return GPTQRoundTrip(names, checkpoint)

    def write(self, source: ModelSource, out: Path, ctx: BuildContext) -> None:
        """Write the quantized checkpoint of a full-precision source into the empty directory `out`.

        With `ctx.grids`, weights are rounded to them, without calibration and without gptqmodel. Raises ConfigError if
        the source is already quantized, DataError if no calibration row is long enough.
        """
        if described(source) is not None:
            raise ConfigError(
                f"{source.ref!r} is already quantized", hint="use the full-precision checkpoint it was made from"
            )
        if ctx.grids is not None:
            from smollm3_gptq.writing import write_on_grids

            write_on_grids(source, out, ctx, ctx.grids)
            return
        self._write(source, out, ctx, _calibration(ctx, source))

    def _quantized(self, source: ModelSource, ctx: BuildContext) -> Path:
        """The cache entry for this source, these options and these calibration rows."""
        rows = _calibration(ctx, source)
        key = {
            "weights": source.fingerprint,
            "options": self._weight_options(source),
            "calibration": hashlib.sha256(json.dumps(rows).encode()).hexdigest(),
            "gptqmodel": _installed("gptqmodel"),
            "work": WORK,
        }

        def build(out: Path) -> None:
            self._write(source, out, ctx, rows)
            (out / DIGEST).write_text(_digest(out), encoding="utf-8")

        return ctx.cache.get_or_build(KIND, key, build)

    def _weight_options(self, source: ModelSource) -> dict[str, Any]:
        """The arguments of gptqmodel's `QuantizeConfig` that determine the weights."""
        options = self.options
        size = options.group_size
        if size is None:
            size = _fitting_group_size(source)
        return {
            "bits": options.bits,
            "group_size": size,
            "desc_act": options.desc_act,
            "act_group_aware": size != -1 and not options.desc_act,  # gptqmodel's default; not supported for whole rows
            "sym": options.sym,
            "damp_percent": options.damp_percent,
            # v1 stores each zero point minus one, which fails if an asymmetric zero point is 0
            "format": "gptq" if options.sym else "gptq_v2",
        }

    def _write(self, source: ModelSource, out: Path, ctx: BuildContext, rows: Sequence[Sequence[int]]) -> None:
        from smollm3_gptq.quantize_process import quantize

        _check_gptqmodel()
        options = self._weight_options(source)
        title = f"{Path(source.ref).name} to {options['bits']} bits"
        quantize(
            source.path,
            out,
            options,
            rows,
            architecture=architecture_of(source),
            device=ctx.device,
            seed=ctx.seed,
            title=title,
            progress=ctx.progress,
        )


def _calibration(ctx: BuildContext, source: ModelSource) -> list[list[int]]:
    """The calibration rows that gptqmodel will use. Raises DataError if there are none."""
    rows = [list(row) for row in ctx.calibration()]
    size = source.config.get("vocab_size")
    for n, row in enumerate(rows):
        if any(i < 0 or (isinstance(size, int) and i >= size) for i in row):
            raise DataError(f"calibration row {n} contains token ids outside the vocabulary of {size} tokens")
    usable = [row for row in rows if len(row) > TOO_SHORT]
    if not usable:
        raise DataError(
            f"none of the {len(rows)} calibration rows is longer than {TOO_SHORT} tokens; gptqmodel skips shorter rows",
            hint="--set calibration.length=2048, or --set calibration.path=FILE with longer rows",
        )
    return usable


def _fitting_group_size(source: ModelSource) -> int:
    """The largest of GROUP_SIZES that divides the input width of every layer, or -1. Reads only file headers."""
    layers = layer_shapes(directory_source(source.path, ref=source.ref)) or {}
    inputs = {layer.in_features for layer in layers.values()}
    return next((size for size in GROUP_SIZES if all(n % size == 0 for n in inputs)), -1)


def _description(directory: Path) -> Mapping[str, Any]:
    description: Mapping[str, Any] = read_json(directory / "config.json")["quantization_config"]
    return description


def _rope_scaling(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The RoPE scaling of a model, or None; the same weights with another scaling are another base."""
    about = config.get("rope_parameters") or config.get("rope_scaling") or {}
    return about if about.get("rope_type", about.get("type", "default")) != "default" else None


def _digest(directory: Path) -> str:
    """SHA-256 of the weights in a directory."""
    digest = hashlib.sha256()
    for file in sorted(directory.glob("*.safetensors")):
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def _installed(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _check_gptqmodel() -> None:
    """Raises MissingRequirementError if gptqmodel or one of its requirements is not installed."""
    found = _installed("gptqmodel")
    low, high = GPTQMODEL
    if found is None or not Version(low) <= Version(found) < Version(high):
        what = "which is not installed" if found is None else f"but {found} is installed"
        raise MissingRequirementError(
            f"quantizing with gptq needs gptqmodel>={low},<{high}, {what}",
            hint=f"pip install 'gptqmodel>={low},<{high}' optimum requests",
        )
    for name in ("optimum", "requests"):
        if _installed(name) is None:
            raise MissingRequirementError(f"gptqmodel needs {name}, which is not installed", hint=f"pip install {name}")


def _with_gptqmodel(source: ModelSource, checkpoint: Checkpoint, ctx: BuildContext) -> PreTrainedModel:
    """The model with gptqmodel's own kernels, for inference, loaded by transformers' GPTQ support."""
    from smollm3_gptq.checkpoint import view

    _check_gptqmodel()
    model = architecture_of(source)
    if model is not None and (split := set(checkpoint.layers()) - set(linear_shapes(model))):
        raise IncompatibleError(
            f"gptqmodel's kernels cannot load {source.ref!r}: {min(split)!r} is part of a fused layer",
            hint="leave --quant-opt kernel=gptqmodel out",
        )
    about = {k: v for k, v in checkpoint.description.items() if k not in ("is_marlin_format", "meta")}
    about = {**about, "quant_method": "gptq", "checkpoint_format": "gptq" if checkpoint.zeros_less_one else "gptq_v2"}
    with view(checkpoint, about) as directory:
        model = source.at(directory).load(dtype=ctx.torch_dtype, device_map={"": ctx.device})
    if not any("Linear" in type(m).__name__ and hasattr(m, "qweight") for m in model.modules()):
        raise ModelError(f"gptqmodel created no quantized layer in {source.ref!r}")
    model.requires_grad_(False)
    return model
