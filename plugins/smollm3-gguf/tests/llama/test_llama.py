"""What llama.cpp computes with exported files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from smollm3_gguf.checks import stops_of
from smollm3_gguf.exporter import GgufExporter, file_in
from smollm3_gguf.llama import check_tokens, checks_with_llama_cpp
from smollm3_gguf.llama_limits import K_TYPES, precision
from smollm3_gguf.llama_process import llama
from smollm3_gguf.options import GgufExportOptions
from smollm3_gguf.pretokenizers import SPLIT, WORDS
from smollm3_gguf.types import K_QUANTS

from smollm3_finetune.api import BuildContext, Exported, directory_source

CHECKS = ("llama.cpp tokens", "llama.cpp logits", "llama.cpp predictions")


@pytest.mark.parametrize("name", ["tiny", "nope", "untied"])
@pytest.mark.parametrize("kind", ["f32", "bf16", "q4_0", "q3_k_m"])
def test_exported_files_pass(
    name: str, kind: str, exported: Any, reload: Any, subject: Any, context: Callable[..., BuildContext]
) -> None:
    out = exported(name, kind)
    checks = checks_with_llama_cpp(subject(name), out, context(), reload(name, out))
    assert tuple(c.name for c in checks) == CHECKS
    assert all(c.passed for c in checks), [c.says for c in checks]


def test_float32_is_exact(exported: Any, subject: Any, context: Callable[..., BuildContext]) -> None:
    _, logits, predictions = checks_with_llama_cpp(subject("nope"), exported("nope", "f32"), context())
    assert logits.figures["difference"] < 2e-5
    assert predictions.figures["kl"] < 1e-8
    assert predictions.figures["top1"] == 1
    assert predictions.figures["perplexity"] == pytest.approx(predictions.figures["source_perplexity"], rel=1e-5)


SMOLLM = [{"type": "Digits", "individual_digits": True}, WORDS]


@pytest.mark.parametrize(
    ("steps", "ignore_merges", "pre"),
    [(SMOLLM, False, "smollm"), ([WORDS], False, "gpt-2"), (SPLIT, False, "smaug-bpe"), (SPLIT, True, "llama-bpe")],
)
def test_every_pre_tokenizer_is_llama_cpps(
    steps: list[dict[str, Any]],
    ignore_merges: bool,
    pre: str,
    subject: Any,
    tmp_path: Path,
    context: Callable[..., BuildContext],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """5000 random texts have the ids of the tokenizer, for each name that the exporter writes."""
    monkeypatch.setattr("smollm3_gguf.llama.FUZZED", 5000)
    directory, out = tmp_path / "model", tmp_path / "out"
    shutil.copytree(subject("tiny").model.path, directory)
    file = directory / "tokenizer.json"
    definition = json.loads(file.read_text(encoding="utf-8"))
    definition["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [{"trim_offsets": True, **step} if step["type"] == "ByteLevel" else step for step in steps],
    }
    definition["model"]["ignore_merges"] = ignore_merges
    file.write_text(json.dumps(definition), encoding="utf-8")
    made = Exported(model=directory_source(directory, ref=pre), name=pre, prompts=subject("tiny").prompts)
    out.mkdir()
    GgufExporter(GgufExportOptions(type="q8_0")).write(made, out, context())
    with llama() as engine:
        engine.open(file_in(out), 64)
        check = check_tokens(engine, made)
    assert check.passed, check.says
    assert check.figures["random texts"] == 5000
    assert pre.encode() in file_in(out).read_bytes()


def test_coarser_types_cost_more(exported: Any, subject: Any, context: Callable[..., BuildContext]) -> None:
    def cost(kind: str) -> float:
        (_, predictions) = (
            c for c in checks_with_llama_cpp(subject("tiny"), exported("tiny", kind), context()) if c.name in CHECKS
        )
        return float(predictions.figures["kl"])  # type: ignore[arg-type]

    assert 1e-7 < cost("q8_0") < cost("q4_0") < 1


def test_k_quants_are_what_llama_cpp_wrote(exported: Any) -> None:
    kind = precision(file_in(exported("nope", "q4_k_m")))
    assert "Q4_K" in kind.tensors
    assert "Q6_K" in kind.tensors
    assert set(K_TYPES) == set(K_QUANTS)


def test_the_greedy_answer_is_transformers(subject: Any, exported: Any) -> None:
    made: Exported = subject("tiny")
    tokenizer, stops = made.model.tokenizer(), stops_of(made)
    model: Any = made.model.load(dtype=torch.float32).eval()
    with llama() as engine:
        engine.open(file_in(exported("tiny", "f32")), 256)
        for question in ("What is 2 + 3?", "Say hello.", "What is the capital of France?"):
            messages = [{"role": "user", "content": question}]
            ids = list(tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"])
            expected = model.generate(
                input_ids=torch.tensor([ids]),
                attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                do_sample=False,
                max_new_tokens=24,
            )
            assert engine.greedy(ids, 24, stops) == expected[0, len(ids) :].tolist()


def test_llama_cpp_prints_nothing(exported: Any, capfd: pytest.CaptureFixture[str]) -> None:
    file = file_in(exported("nope", "q6_k"))
    capfd.readouterr()
    with llama() as engine:
        engine.open(file, 64)
        assert engine.logits([1, 2, 3]).shape == (3, 2048)
    assert capfd.readouterr() == ("", "")
