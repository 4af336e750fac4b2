"""Exporter `safetensors`: a dense model in Hugging Face's layout, each tensor rounded once to the dtype that is asked.

Weights are taken from the files of the model one by one, so memory holds one file. `verify` reads every tensor back and
compares it bit for bit, then loads both models and compares their logits.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smollm3_finetune.api import (
    BuildContext,
    Check,
    ConfigError,
    Exported,
    IncompatibleError,
    ModelError,
    StoredTensors,
    copy_model_files,
    evaluating,
    open_checkpoint,
    read_json,
    same_bits,
    write_tensors,
)
from smollm3_finetune.builtin.exporters.same_files import same_model_files
from smollm3_finetune.builtin.options import SafetensorsOptions
from smollm3_finetune.files.json import write_json

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel

SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(I?)B?", re.IGNORECASE)
FACTORS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
LIMIT = 1e-5
"""The largest relative difference of logits between two models with equal weights."""
NAMED = 3


class SafetensorsExporter:
    def __init__(self, options: SafetensorsOptions) -> None:
        self.options = options
        self.shard_bytes = bytes_of(options.max_shard_size)

    def write(self, subject: Exported, out: Path, ctx: BuildContext) -> None:
        stored = open_checkpoint(subject.model)
        write_tensors(out, self._rounded(stored), max_bytes=self.shard_bytes)
        write_config(subject.model.path / "config.json", out / "config.json", self.options.dtype)
        copy_model_files(subject.model.path, out, ctx.progress.say)

    def _rounded(self, stored: StoredTensors) -> Iterator[tuple[str, Tensor]]:
        for name in sorted(stored):
            yield name, self.rounded(name, stored[name])

    def rounded(self, name: str, tensor: Tensor) -> Tensor:
        """The tensor as it is written. Raises IncompatibleError if its values exceed the dtype."""
        import torch

        if self.options.dtype is None or not tensor.is_floating_point():
            return tensor
        found = tensor.to(getattr(torch, self.options.dtype))
        if not bool(torch.isfinite(found).all()) and bool(torch.isfinite(tensor).all()):
            raise IncompatibleError(
                f"{name} has values up to {float(tensor.abs().max()):.3g}, which {self.options.dtype} cannot represent",
                hint="--to-opt dtype=bfloat16",
            )
        return found

    def verify(self, subject: Exported, out: Path, ctx: BuildContext) -> Sequence[Check]:
        return [self._weights(subject, out), *same_model_files(subject, out), self._logits(subject, out, ctx)]

    def _weights(self, subject: Exported, out: Path) -> Check:
        """Every tensor is there, and equals that of the source rounded to the dtype, bit for bit."""
        try:
            wanted, found = open_checkpoint(subject.model), StoredTensors(out)
            if missing := sorted(set(wanted) - set(found)):
                return Check(name="weights", passed=False, says=f"the files lack {named(missing)}")
            if more := sorted(set(found) - set(wanted)):
                return Check(name="weights", passed=False, says=f"the model has no tensor {named(more)}")
            changed = [name for name in wanted if not same_bits(self.rounded(name, wanted[name]), found[name])]
        except ModelError as e:
            return Check(name="weights", passed=False, says=e.message)
        if changed:
            return Check(name="weights", passed=False, says=f"the values of {named(changed)} differ from the model's")
        dtype = self.options.dtype or "their dtype"
        return Check(
            name="weights",
            passed=True,
            says=f"{len(wanted)} tensors equal the model's in {dtype}, bit for bit",
            figures={"tensors": len(wanted)},
        )

    def _logits(self, subject: Exported, out: Path, ctx: BuildContext) -> Check:
        """The files load in transformers, and compute what the rounded weights of the source compute."""
        import torch

        expected = _logits(self._as_written(subject, ctx), subject.prompts())
        try:
            found = _logits(self.reload(subject, out, ctx), subject.prompts())
        except ModelError as e:
            return Check(name="logits", passed=False, says=e.message)
        difference = float(torch.linalg.vector_norm(found - expected) / torch.linalg.vector_norm(expected))
        about = {"difference": difference, "limit": LIMIT, "positions": len(expected)}
        clause = f"transformers computes logits that differ by {difference:.1e} (limit {LIMIT:.0e})"
        return Check(name="logits", passed=difference <= LIMIT, says=clause, figures=about)

    def _as_written(self, subject: Exported, ctx: BuildContext) -> PreTrainedModel:
        """The source with every stored weight rounded to the dtype, computing in float32."""
        import torch

        model = subject.model.load(dtype=_exact(ctx)).to(ctx.device)
        with torch.no_grad():
            for name, value in model.state_dict().items():
                value.copy_(self.rounded(name, value))
        return model

    def reload(self, subject: Exported, out: Path, ctx: BuildContext) -> PreTrainedModel:
        model: Any = subject.model.at(out).load(dtype=_exact(ctx))
        loaded: PreTrainedModel = model.to(ctx.device)
        return loaded


def bytes_of(text: str) -> int:
    """The number of bytes in a text such as `5GB`. Raises ConfigError if it is not a size."""
    found = SIZE.fullmatch(text.strip())
    size = 0 if found is None else int(float(found[1]) * (1024 if found[3] else 1000) ** FACTORS[found[2].upper()])
    if size < 1:
        raise ConfigError(
            f"max_shard_size: expected a size such as 5GB, got {text!r}", hint="--to-opt max_shard_size=5GB"
        )
    return size


def write_config(source: Path, out: Path, dtype: str | None) -> None:
    """Write the `config.json` of a model, with another dtype if there is one."""
    config = read_json(source)
    if dtype is not None:
        config.pop("torch_dtype", None)  # the former name of `dtype`
        config["dtype"] = dtype
    write_json(out, config)


def _exact(ctx: BuildContext) -> torch.dtype:
    import torch

    return torch.float64 if ctx.dtype == "float64" else torch.float32


def _logits(model: Any, rows: Sequence[Sequence[int]]) -> Tensor:
    """The logits of all rows one after the other, (positions, V), on the CPU."""
    import torch

    device = next(model.parameters()).device
    with evaluating(model), torch.no_grad():
        parts = [model(input_ids=torch.tensor([row], device=device), use_cache=False).logits[0].cpu() for row in rows]
    return torch.cat(parts)


def named(names: Sequence[str]) -> str:
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")
