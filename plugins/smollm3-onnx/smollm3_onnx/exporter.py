"""The exporter `onnx`: `model.onnx` with its weights beside it, config, tokenizer and generation config."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from smollm3_finetune.api import BuildContext, Check, Exported, ModelError, NoOptions, copy_model_files, model_files
from smollm3_onnx.checks import check_files, check_graph, check_logits, check_weights, stored_weights
from smollm3_onnx.graph import save, traced

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class OnnxExporter:
    def __init__(self, options: NoOptions) -> None:
        self.options = options

    def write(self, subject: Exported, out: Path, ctx: BuildContext) -> None:
        import torch

        ctx.progress.say("tracing the model for ONNX, which may take minutes")
        save(traced(subject.model.load(dtype=torch.float32).eval()), out)
        shutil.copyfile(subject.model.path / "config.json", out / "config.json")
        copy_model_files(subject.model.path, out, ctx.progress.say)

    def verify(self, subject: Exported, out: Path, ctx: BuildContext) -> Sequence[Check]:
        checks = [check_graph(out), check_files(beside(subject), out)]
        if checks[0].passed:
            checks.append(check_weights(subject, out))
        if all(check.passed for check in checks):
            checks.append(check_logits(subject, out))
        return checks

    def reload(self, subject: Exported, out: Path, ctx: BuildContext) -> PreTrainedModel:
        import torch

        model = subject.model.load(dtype=torch.float32)
        found, state = stored_weights(out), model.state_dict()
        known = {name: tensor for name, tensor in found.items() if name in state}
        missing = set(model.load_state_dict(known, strict=False).missing_keys)
        model.tie_weights()
        places = {state[name].data_ptr() for name in known}
        if lacking := sorted(name for name in missing if state[name].data_ptr() not in places):
            raise ModelError(f"the graph has no weight {lacking[0]!r}", hint="export again")
        return model.to(ctx.device)  # type: ignore[arg-type, return-value, unused-ignore]


def beside(subject: Exported) -> list[Path]:
    """The files of the model that are copied unchanged: `config.json` and those beside it."""
    return [subject.model.path / "config.json", *model_files(subject.model.path)]
