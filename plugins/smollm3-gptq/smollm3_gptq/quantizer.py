"""Quantizer `gptq`: a checkpoint that is quantized already, or one that is quantized first, into the cache."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packaging.version import Version
from safetensors import safe_open

from smollm3_finetune.api import (
    Base,
    BuildContext,
    ConfigError,
    DataError,
    MissingRequirementError,
    ModelError,
    ModelSource,
    fingerprint,
)
from smollm3_gptq.checkpoint import Checkpoint, described, open_checkpoint
from smollm3_gptq.options import GPTQOptions
from smollm3_gptq.quantize_worker import TOO_SHORT

if TYPE_CHECKING:
    from transformers import PreTrainedModel

KIND = "gptq"
"""The folder of the cache."""
WORK = 1
"""Raised when the same options lead to other weights; what is in the cache is then made anew."""
GPTQMODEL = ("7.5", "7.6")
"""The versions of gptqmodel that this plugin was written for: from, to below."""
GROUP_SIZES = (128, 64, 32, 16)
DIGEST = "weights.sha256"


class GPTQQuantizer:
    def __init__(self, options: GPTQOptions) -> None:
        if options.group_size == 0:
            raise ConfigError("quant.group_size: a group cannot be empty", hint="--quant-opt group_size=128")
        self.options = options

    def load(self, source: ModelSource, ctx: BuildContext) -> Base:
        """The frozen model with its layers as GPTQ codes; a full-precision source is quantized first.

        Raises ModelError for a checkpoint that is not whole; options that contradict one were refused by `check`.
        """
        stored = described(source)
        if stored is not None:
            checkpoint = open_checkpoint(source.path, stored)
            identity = _digest(source.path)
        else:
            directory = self._quantized(source, ctx)
            checkpoint = open_checkpoint(directory, _description(directory))
            identity = (directory / DIGEST).read_text(encoding="utf-8")
        base = fingerprint(KIND, identity, _rope_scaling(source.config))
        if self.options.kernel == "gptqmodel":
            from smollm3_gptq.gptqmodel_kernels import ops_for

            return Base(model=_with_gptqmodel(source, checkpoint, ctx), fingerprint=base, ops_for=ops_for)
        from smollm3_gptq.linear import ops_in
        from smollm3_gptq.loading import load_checkpoint

        model = load_checkpoint(source, checkpoint, ctx)
        return Base(model=model, fingerprint=base, ops_for=ops_in(ctx.torch_dtype))

    def write(self, source: ModelSource, out: Path, ctx: BuildContext) -> None:
        """Write the quantized checkpoint of a full-precision source into the empty directory `out`.

        Raises ConfigError where the source is quantized already, DataError where no calibration row is long enough.
        """
        if described(source) is not None:
            raise ConfigError(
                f"{source.ref!r} is quantized already", hint="name the full-precision checkpoint it was made from"
            )
        self._write(source, out, ctx, _calibration(ctx, source))

    def _quantized(self, source: ModelSource, ctx: BuildContext) -> Path:
        """The cache's entry for this source, these options and these calibration rows."""
        rows = _calibration(ctx, source)
        key = {
            "weights": source.fingerprint,
            "options": self._decisive(source),
            "calibration": hashlib.sha256(json.dumps(rows).encode()).hexdigest(),
            "gptqmodel": _installed("gptqmodel"),
            "work": WORK,
        }

        def build(out: Path) -> None:
            self._write(source, out, ctx, rows)
            (out / DIGEST).write_text(_digest(out), encoding="utf-8")

        return ctx.cache.get_or_build(KIND, key, build)

    def _decisive(self, source: ModelSource) -> dict[str, Any]:
        """The arguments of gptqmodel's `QuantizeConfig` that decide the weights."""
        options = self.options
        size = options.group_size
        if size is None:
            size = _fitting_group_size(source)
        return {
            "bits": options.bits or 4,
            "group_size": size,
            "desc_act": bool(options.desc_act),
            "act_group_aware": size != -1 and not options.desc_act,  # gptqmodel's default, which refuses whole rows
            "sym": options.sym is not False,
            "damp_percent": options.damp_percent,
            # v1 holds each zero point less one, which fails where an asymmetric one is 0
            "format": "gptq" if options.sym is not False else "gptq_v2",
        }

    def _write(self, source: ModelSource, out: Path, ctx: BuildContext, rows: Sequence[Sequence[int]]) -> None:
        from smollm3_gptq.quantize_process import quantize

        _check_gptqmodel()
        options = self._decisive(source)
        title = f"{Path(source.ref).name} to {options['bits']} bits"
        quantize(source.path, out, options, rows, device=ctx.device, seed=ctx.seed, title=title, progress=ctx.progress)


def _calibration(ctx: BuildContext, source: ModelSource) -> list[list[int]]:
    """The calibration rows that gptqmodel will use. Raises DataError where there are none."""
    rows = [list(row) for row in ctx.calibration()]
    size = source.config.get("vocab_size")
    for n, row in enumerate(rows):
        if any(i < 0 or (isinstance(size, int) and i >= size) for i in row):
            raise DataError(f"calibration row {n} holds token ids outside the vocabulary of {size} tokens")
    usable = [row for row in rows if len(row) > TOO_SHORT]
    if not usable:
        raise DataError(
            f"none of the {len(rows)} calibration rows is longer than {TOO_SHORT} tokens, which gptqmodel leaves out",
            hint="--set calibration.length=2048, or --set calibration.path=FILE with longer rows",
        )
    return usable


def _fitting_group_size(source: ModelSource) -> int:
    """The largest usual group size that divides the input of every layer. Reads the headers of the weight files."""
    inputs: set[int] = set()
    for file in sorted(source.path.glob("*.safetensors")):
        with safe_open(str(file), framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  (no mapping)
                shape = tensors.get_slice(name).get_shape()
                if len(shape) == 2 and ".layers." in f".{name}" and name.endswith(".weight"):
                    inputs.add(int(shape[1]))
    for size in GROUP_SIZES:
        if all(n % size == 0 for n in inputs):
            return size
    return -1


def _description(directory: Path) -> Mapping[str, Any]:
    description: Mapping[str, Any] = json.loads((directory / "config.json").read_text(encoding="utf-8"))[
        "quantization_config"
    ]
    return description


def _rope_scaling(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """How a model's positions are stretched, where they are: with the same weights it is another base."""
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
    """Raises MissingRequirementError where gptqmodel or what it needs is not installed."""
    found = _installed("gptqmodel")
    low, high = GPTQMODEL
    if found is None or not Version(low) <= Version(found) < Version(high):
        what = "which is not installed" if found is None else f"and {found} is installed"
        raise MissingRequirementError(
            f"quantizing with gptq needs gptqmodel>={low},<{high}, {what}",
            hint=f"pip install 'gptqmodel>={low},<{high}' optimum requests",
        )
    for name in ("optimum", "requests"):
        if _installed(name) is None:
            raise MissingRequirementError(f"gptqmodel needs {name}, which is not installed", hint=f"pip install {name}")


def _with_gptqmodel(source: ModelSource, checkpoint: Checkpoint, ctx: BuildContext) -> PreTrainedModel:
    """The model on gptqmodel's own kernels, for generating; through transformers' GPTQ path."""
    from smollm3_gptq.checkpoint import view

    _check_gptqmodel()
    about = {k: v for k, v in checkpoint.description.items() if k not in ("is_marlin_format", "meta")}
    about = {**about, "quant_method": "gptq", "checkpoint_format": "gptq" if checkpoint.zeros_less_one else "gptq_v2"}
    with view(checkpoint, about) as directory:
        model = source.at(directory).load(dtype=ctx.torch_dtype, device_map={"": ctx.device})
    if not any("Linear" in type(m).__name__ and hasattr(m, "qweight") for m in model.modules()):
        raise ModelError(f"gptqmodel put no quantized layer into {source.ref!r}")
    model.requires_grad_(False)
    return model
