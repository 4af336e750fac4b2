"""What is written: RoPE as mlx-lm reads it, several files, refusals; and with mlx-lm, its logits."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from smollm3_mlx import exporter, refine_export, smollm3_exporters
from smollm3_mlx.config import mlx_config
from smollm3_mlx.exporter import MlxExporter
from smollm3_mlx.installed import INSTALL, check_source, installed
from smollm3_mlx.options import MlxOptions

from smollm3_finetune.api import (
    Check,
    Env,
    Exported,
    IncompatibleError,
    MissingRequirementError,
    Purpose,
    StoredTensors,
    directory_source,
)
from smollm3_finetune.testing import ExporterConformance

needs_mlx = pytest.mark.skipif(installed() is None, reason=INSTALL)


class Kit(ExporterConformance):
    component = "mlx"
    __test__ = False


def subject_of(tmp_path: Path, llama: bool = False) -> Exported:
    """A small SmolLM3, or a Llama with the same sizes and another base of RoPE."""
    subject = Kit().subject(tmp_path)
    if llama:
        from transformers import LlamaConfig, LlamaForCausalLM

        config = LlamaConfig(
            vocab_size=2048, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, bos_token_id=0, eos_token_id=4, pad_token_id=2,
            rope_parameters={
                "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
            },
        )  # fmt: skip
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(subject.model.path)
        subject = replace(subject, model=directory_source(subject.model.path, ref="llama"))
    return subject


def export(subject: Exported, tmp_path: Path, **options: Any) -> tuple[Path, dict[str, Check]]:
    out, ctx = tmp_path / "out", Kit().context(tmp_path)
    out.mkdir()
    made = MlxExporter(MlxOptions(**options))
    made.write(subject, out, ctx)
    return out, {check.name: check for check in made.verify(subject, out, ctx)}


def test_rope_is_stated_as_mlx_reads_it() -> None:
    plain = mlx_config({"model_type": "smollm3", "rope_parameters": {"rope_theta": 5e6, "rope_type": "default"}})
    assert plain["rope_theta"] == 5e6
    assert plain["rope_scaling"] is None
    assert plain["no_rope_layers"][:4] == [1, 1, 1, 0]
    scaled = {"rope_theta": 1e4, "rope_type": "linear", "factor": 4.0}
    found = mlx_config({"model_type": "llama", "rope_parameters": scaled})
    assert found["rope_scaling"] == {"rope_type": "linear", "factor": 4.0}
    assert found["tie_word_embeddings"] is False  # mlx-lm's default for a Llama is True


def weights_in(directory: Path) -> int:
    return sum(file.stat().st_size for file in directory.rglob("*.safetensors"))


@pytest.mark.parametrize(
    "options",
    [
        {"dtype": "float32"},
        {"dtype": "bfloat16"},
        pytest.param({"dtype": "bfloat16", "bits": 8, "group_size": 32}, marks=needs_mlx),
        pytest.param({"dtype": "float32", "bits": 4, "group_size": 32}, marks=needs_mlx),
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_the_stated_bytes_are_those_that_writing_needs(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (spec,) = smollm3_exporters()
    refined = refine_export(spec, MlxOptions(**options), Env(device="cpu", purpose=Purpose.EXPORT))
    assert refined.loads == ("bits" not in options), "transformers knows no codes of mlx"
    subject, out, ctx = subject_of(tmp_path), tmp_path / "out", Kit().context(tmp_path)
    out.mkdir()
    most: list[int] = []
    written = exporter.write_tensors

    def write_tensors(directory: Path, *arguments: Any, **others: Any) -> None:
        written(directory, *arguments, **others)
        most.append(weights_in(out))

    monkeypatch.setattr(exporter, "write_tensors", write_tensors)
    MlxExporter(MlxOptions(**options)).write(subject, out, ctx)
    assert refined.disk is not None
    needed = refined.disk * sum(p.numel() for p in subject.model.load().parameters())
    assert len(most) == (2 if "bits" in options else 1)
    assert needed == pytest.approx(max(most), rel=0.03)


def test_without_mlx_the_check_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smollm3_mlx.checks.installed", lambda: None)
    out, checks = export(subject_of(tmp_path), tmp_path, dtype="float16")
    assert {n: c.passed for n, c in checks.items()} == {
        "weights": True, "config": True, "tokenizer": True, "mlx-lm": None,
    }  # fmt: skip
    assert INSTALL in checks["mlx-lm"].says
    assert next(iter(StoredTensors(out).values())).dtype == torch.float16


def test_bits_without_mlx_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smollm3_mlx.installed.installed", lambda: None)
    with pytest.raises(MissingRequirementError, match="mlx-lm"):
        check_source(MlxOptions(bits=4), subject_of(tmp_path).model)


def test_values_beyond_float16_are_refused(tmp_path: Path) -> None:
    with pytest.raises(IncompatibleError, match="cannot represent"):
        MlxExporter(MlxOptions(dtype="float16")).rounded("w", torch.tensor([1e6]))


@needs_mlx
@pytest.mark.parametrize("llama", [False, True], ids=["smollm3", "llama"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_mlx_computes_the_same(tmp_path: Path, llama: bool, dtype: str) -> None:
    out, checks = export(subject_of(tmp_path, llama), tmp_path, dtype=dtype)
    print(checks["mlx-lm"].says)
    assert all(check.passed for check in checks.values()), checks
    config = json.loads((out / "config.json").read_text())
    config["rope_theta"] = 777.0
    (out / "config.json").write_text(json.dumps(config))
    from smollm3_mlx.checks import check_logits

    subject, options = subject_of(tmp_path / "again", llama), MlxOptions(dtype=dtype)  # type: ignore[arg-type]
    assert check_logits(subject, out, options, lambda: subject.model.load(dtype=torch.float32)).passed is False


@needs_mlx
@pytest.mark.parametrize("bits", [4, 8])
def test_mlx_computes_the_quantized_model(tmp_path: Path, bits: int) -> None:
    out, checks = export(subject_of(tmp_path), tmp_path, bits=bits, group_size=32)
    print(checks["mlx-lm"].says, checks["weights"].figures)
    assert all(check.passed for check in checks.values()), checks
    assert json.loads((out / "config.json").read_text())["quantization"]["bits"] == bits
    assert checks["weights"].figures["quantized"] == 15
