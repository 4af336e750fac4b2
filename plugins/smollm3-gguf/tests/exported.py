"""Writes models and exports them, for the tests of the exporter."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from smollm3_gguf.exporter import GgufExporter, file_in
from smollm3_gguf.options import GgufExportOptions

from smollm3_finetune.api import BuildContext, Check, Exported, directory_source, seeded

TINY = Path(__file__).parents[3] / "smollm3_finetune" / "builtin" / "tiny"
SIZES: dict[str, Any] = {
    "vocab_size": 2048, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "bos_token_id": 0, "eos_token_id": 4, "pad_token_id": 2,
}  # fmt: skip
FUZZED = 200


def write_model(directory: Path, model_type: str = "smollm3", **changes: Any) -> Path:
    """A random model with the tokenizer of the embedded one; every fourth layer of a SmolLM3 has no RoPE."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(model_type, **{**SIZES, "tie_word_embeddings": True, **changes})
    with seeded(0):
        model = AutoModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, 0.08, generator=generator)
            elif name.endswith("bias"):
                parameter.normal_(0, 0.5, generator=generator)
            else:
                parameter.uniform_(0.5, 1.5, generator=generator)
    directory.mkdir(parents=True)
    config.dtype = torch.float32
    config.save_pretrained(directory)
    weights = {n: p.detach().contiguous() for n, p in model.named_parameters()}
    save_file(weights, str(directory / "model.safetensors"), metadata={"format": "pt"})
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        shutil.copy(TINY / name, directory / name)
    return directory


def subject_of(directory: Path, texts: Sequence[str] = ()) -> Exported:
    """What the exporter receives for a model directory."""
    return Exported(model=directory_source(directory, ref="model"), name="model", texts=lambda: texts)


def export(directory: Path, out: Path, ctx: BuildContext, **options: Any) -> Path:
    """Export a model directory into `out`; returns the file."""
    out.mkdir(parents=True)
    GgufExporter(GgufExportOptions(**options)).write(subject_of(directory), out, ctx)
    return file_in(out)


def checked(directory: Path, file: Path, ctx: BuildContext, texts: Sequence[str] = (), fuzzed: int = FUZZED) -> Any:
    """Name to check of a file, without llama.cpp; its type is that of the name."""
    from smollm3_gguf.checks import check_file

    option = file.stem.rpartition("-")[2].lower()
    checks: list[Check] = check_file(subject_of(directory, texts), file, option, fuzzed, ctx)
    return {check.name: check for check in checks}


def edit_json(file: Path, **changes: Any) -> None:
    """Change keys of a JSON file."""
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
