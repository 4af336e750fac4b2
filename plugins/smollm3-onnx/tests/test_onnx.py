"""What ONNX Runtime computes with exported graphs, what is found if they are changed, and what is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from smollm3_finetune.api import Check, Exported, IncompatibleError, NoOptions, directory_source
from smollm3_finetune.testing import ExporterConformance

pytest.importorskip("onnxscript", reason="pip install ./plugins/smollm3-onnx[onnx,onnxruntime]")

import onnx
from smollm3_onnx import smollm3_exporters
from smollm3_onnx.checks import INSTALL, check_logits, installed
from smollm3_onnx.exporter import OnnxExporter
from smollm3_onnx.graph import DATA, FILE, quiet, traced

needs_runtime = pytest.mark.skipif(installed() is None, reason=INSTALL)


class Kit(ExporterConformance):
    component = "onnx"
    __test__ = False


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Exported, Path]]:
    """Exports a model of a type once: a small SmolLM3, or a Llama that scales RoPE."""
    made: dict[str, tuple[Exported, Path]] = {}

    def export(kind: str) -> tuple[Exported, Path]:
        if kind not in made:
            directory = tmp_path_factory.mktemp(kind)
            subject = Kit().subject(directory)
            if kind == "llama":
                subject = as_llama(subject)
            out = directory / "out"
            out.mkdir()
            OnnxExporter(NoOptions()).write(subject, out, Kit().context(directory))
            made[kind] = subject, out
        return made[kind]

    return export


def as_llama(subject: Exported) -> Exported:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=2048, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, bos_token_id=0, eos_token_id=4, pad_token_id=2,
        rope_parameters={"rope_type": "linear", "rope_theta": 500000.0, "factor": 4.0},
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(subject.model.path)
    return replace(subject, model=directory_source(subject.model.path, ref="llama"))


def checked(subject: Exported, out: Path, tmp_path: Path) -> dict[str, Check]:
    checks = OnnxExporter(NoOptions()).verify(subject, out, Kit().context(tmp_path))
    return {check.name: check for check in checks}


@needs_runtime
@pytest.mark.parametrize("kind", ["smollm3", pytest.param("llama", marks=pytest.mark.long)])
def test_onnx_runtime_computes_the_same(exported: Any, kind: str, tmp_path: Path) -> None:
    subject, out = exported(kind)
    checks = checked(subject, out, tmp_path)
    print(checks["onnxruntime"].says)
    assert all(check.passed for check in checks.values()), checks
    assert max(float(checks["onnxruntime"].figures[k]) for k in ("whole rows", "with the cache", "padded batch")) < 1e-5  # type: ignore[arg-type]


def test_names_and_dimensions(exported: Any) -> None:
    _, out = exported("smollm3")
    graph = onnx.load(out / FILE, load_external_data=False).graph
    dims = {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in graph.input}
    assert dims["input_ids"] == ["batch", "length"]
    assert dims["attention_mask"] == ["batch", "total"]
    assert dims["past_key_values.0.key"] == ["batch", 1, "past", 32]
    assert {"logits", "present.0.key", "present.1.value"} <= {v.name for v in graph.output}


def test_the_stated_bytes_are_those_of_the_weights(exported: Any) -> None:
    subject, out = exported("smollm3")
    (spec,) = smollm3_exporters()
    assert spec.disk is not None
    needed = spec.disk * sum(p.numel() for p in subject.model.load().parameters())
    assert needed == pytest.approx((out / DATA).stat().st_size, rel=0.03)


def test_no_path_of_this_machine(exported: Any) -> None:
    _, out = exported("smollm3")
    assert b".py" not in (out / FILE).read_bytes()


@needs_runtime
def test_a_changed_constant_is_found(exported: Any, tmp_path: Path) -> None:
    """A graph with the right weights whose norm has another epsilon."""
    subject, out = exported("smollm3")
    changed = tmp_path / "changed"
    shutil.copytree(out, changed)
    model = onnx.load(changed / FILE, load_external_data=False)
    node = next(n for n in model.graph.node if n.op_type == "ReduceMean")
    user = next(n for n in model.graph.node if node.output[0] in n.input and n.op_type == "Add")
    user.op_type = "Sub"
    onnx.save(model, changed / FILE)
    check = checked(subject, changed, tmp_path)["onnxruntime"]
    assert check.passed is False, check.says


def test_without_onnx_runtime_the_check_says_what_to_install(
    exported: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smollm3_onnx.checks.installed", lambda: None)
    subject, out = exported("smollm3")
    checks = checked(subject, out, tmp_path)
    assert {n: c.passed for n, c in checks.items()} == {
        "graph": True, "tokenizer": True, "weights": True, "onnxruntime": None,
    }  # fmt: skip
    assert INSTALL in checks["onnxruntime"].says


@needs_runtime
def test_a_graph_that_does_not_run_is_a_failed_check(exported: Any, tmp_path: Path) -> None:
    subject, out = exported("smollm3")
    broken = tmp_path / "broken"
    shutil.copytree(out, broken)
    (broken / FILE).write_bytes(b"nothing")
    assert check_logits(subject, broken).passed is False


def test_a_state_space_model_is_refused() -> None:
    from transformers import MambaConfig, MambaForCausalLM

    config = MambaConfig(vocab_size=64, hidden_size=16, state_size=4, num_hidden_layers=1)
    with quiet():
        model = MambaForCausalLM(config).eval()
    with pytest.raises(IncompatibleError, match="cannot export"):
        traced(model)
