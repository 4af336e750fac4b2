"""Exporter `gguf-lora`: llama.cpp's adapter file from a saved PEFT LoRA adapter."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from smollm3_finetune.api import BuildContext, Check, Exported, IncompatibleError, ModelError, NoOptions
from smollm3_gguf.exporter import file_in
from smollm3_gguf.families import check_config, stated
from smollm3_gguf.llama import ROW, logits_of, row_logits
from smollm3_gguf.llama_limits import EXACT
from smollm3_gguf.llama_process import LlamaRefusedError, LlamaUnusableError, llama
from smollm3_gguf.lora_adapter import LoraAdapter, read_adapter
from smollm3_gguf.lora_file import float32, read_file, write_adapter
from smollm3_gguf.lora_reference import peft_logits
from smollm3_gguf.predictions import difference

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ROUNDING = 1e-4
"""Relative difference of logits between the adapter beside its base and added to it, in float32.

The limit of the merge check for float32: both compare a sum of weights with a sum of outputs, whose rounding grows with
the depth of the model.
"""


class GgufLoraExporter:
    """Writes `NAME.gguf`, which llama.cpp applies to a GGUF file of the base: `--lora NAME.gguf`."""

    def __init__(self, options: NoOptions) -> None:
        self.options = options

    def write(self, subject: Exported, out: Path, ctx: BuildContext) -> None:
        """Write the adapter in float32.

        Raises IncompatibleError for an adapter that is not plain LoRA on linear layers that the base's file has.
        """
        check_config(stated(subject.model.config))
        adapter = read_adapter(_saved(subject))
        write_adapter(adapter, subject.model.config, subject.name, out / f"{subject.name}.gguf")

    def verify(self, subject: Exported, out: Path, ctx: BuildContext) -> Sequence[Check]:
        """Compare the factors in the file bit for bit, and what the base computes with them with PEFT's logits."""
        factors = check_factors(read_adapter(_saved(subject)), read_file(file_in(out), subject.model.config))
        if not factors.passed:
            return [factors]
        prompts = [list(p)[:ROW] for p in subject.prompts()]
        expected = peft_logits(subject.model, _saved(subject), prompts, ctx)
        merged = self.reload(subject, out, ctx)
        found = [row_logits(merged, p) for p in prompts]
        del merged
        return [
            factors,
            _check_logits("logits", "the base with the file's factors", found, expected, ROUNDING),
            _check_with_llama_cpp(subject, file_in(out), prompts, expected, ctx),
        ]

    def reload(self, subject: Exported, out: Path, ctx: BuildContext) -> PreTrainedModel:
        """The base with the factors of the file added to its weights, in float32."""
        model = subject.model.load(dtype=torch.float32).to(ctx.device).eval()
        adapter = read_file(file_in(out), subject.model.config)
        with torch.no_grad():
            for layer, (a, b) in adapter.factors.items():
                weight = model.get_submodule(layer).weight
                weight += (adapter.alpha / a.shape[0] * (b @ a)).to(weight.device)
        return model


def _saved(subject: Exported) -> Path:
    if subject.adapter is None:
        raise ModelError("gguf-lora exports a saved adapter, and none was passed", hint="name a run, not a model")
    return subject.adapter


def check_factors(expected: LoraAdapter, found: LoraAdapter) -> Check:
    """Whether a file has alpha and the factors of an adapter, bit for bit."""
    name = "factors"
    if found.alpha != float32(expected.alpha):
        return Check(name=name, passed=False, says=f"alpha is {found.alpha:g} instead of {expected.alpha:g}")
    if odd := sorted(expected.factors.keys() ^ found.factors.keys()):
        where = "the file" if odd[0] in expected.factors else "the adapter"
        return Check(name=name, passed=False, says=f"{where} has no factors for {odd[0]}")
    for layer, pair in expected.factors.items():
        for letter, mine, theirs in zip("AB", pair, found.factors[layer], strict=True):
            if mine.shape != theirs.shape or not torch.equal(mine, theirs):
                return Check(name=name, passed=False, says=f"{letter} of {layer} differs from the adapter's")
    says = f"{2 * len(expected.factors)} factors and alpha equal the adapter's bit for bit"
    return Check(name=name, passed=True, says=says, figures={"layers": len(expected.factors), "alpha": found.alpha})


def _check_logits(name: str, what: str, found: Sequence[Tensor], expected: Sequence[Tensor], limit: float) -> Check:
    largest = max(difference(e, f) for e, f in zip(expected, found, strict=True))
    says = f"{what} differs by {largest:.1e} from transformers' base with PEFT's adapter (limit {limit:.0e})"
    return Check(name=name, passed=largest <= limit, says=says, figures={"difference": largest, "limit": limit})


def _check_with_llama_cpp(
    subject: Exported, file: Path, prompts: Sequence[list[int]], expected: Sequence[Tensor], ctx: BuildContext
) -> Check:
    """Apply the adapter in llama.cpp to a float32 file of the base, which is removed afterwards."""
    from smollm3_gguf.exporter import GgufExporter
    from smollm3_gguf.options import GgufExportOptions

    name = "llama.cpp logits"
    try:
        with llama() as engine, tempfile.TemporaryDirectory(dir=file.parent, prefix=".base-") as directory:
            base = Path(directory)
            GgufExporter(GgufExportOptions(type="f32")).write(Exported(model=subject.model, name="base"), base, ctx)
            engine.open(file_in(base), ROW, adapter=file)
            found = [logits_of(engine, p) for p in prompts]
    except LlamaUnusableError as e:
        return Check(name=name, passed=None, says=e.with_remedy)
    except IncompatibleError as e:  # of the base: llama.cpp may still apply the adapter to a file made elsewhere
        return Check(name=name, passed=None, says=f"not compared, because the base has no file here: {e}")
    except LlamaRefusedError as e:
        return Check(name=name, passed=False, says=f"llama.cpp refuses the adapter: {e}")
    return _check_logits(name, "llama.cpp with base and adapter", found, expected, EXACT)
