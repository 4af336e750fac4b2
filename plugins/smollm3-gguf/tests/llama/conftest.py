"""Fixtures of tests that need llama-cpp-python: `nox -s gguf` runs them, elsewhere they skip."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from smollm3_gguf.exporter import GgufExporter
from smollm3_gguf.llama_process import OLDEST, PACKAGE, installed
from smollm3_gguf.options import GgufExportOptions

import smollm3_finetune
from smollm3_finetune.api import BuildContext, Exported, directory_source

EMBEDDED = Path(smollm3_finetune.__file__).parent / "builtin" / "tiny"
TEXTS = (
    "The capital of France is Paris, and the capital of Spain is Madrid.",
    "Write a haiku about the sea.\n\nWaves fold into foam,",
    "Numbers: 1, 22, 333. Code: `x = y[0] + 1`.",
)


@pytest.fixture(scope="session", autouse=True)
def library() -> None:
    """Skip without the library, and say so; fail where it must be installed."""
    if installed():
        return
    says = f"{PACKAGE} is not installed: run nox -s gguf, or pip install '{PACKAGE}>={OLDEST}'"
    if os.environ.get("SMOLLM3_LLAMA_REQUIRED"):
        pytest.fail(says)
    pytest.skip(says)


@pytest.fixture(autouse=True)
def few_random_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of random texts is for exports; one test uses it."""
    monkeypatch.setattr("smollm3_gguf.llama.FUZZED", 500)


def random_smollm3(directory: Path, *, tied: bool) -> Path:
    """A random SmolLM3 of 8 layers, NoPE in layers 3 and 7, with the embedded model's tokenizer."""
    from transformers import SmolLM3Config, SmolLM3ForCausalLM

    config = SmolLM3Config(
        vocab_size=2048, hidden_size=256, intermediate_size=512, num_hidden_layers=8, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, bos_token_id=0, eos_token_id=4, pad_token_id=2,
        tie_word_embeddings=tied,
    )  # fmt: skip
    torch.manual_seed(0)
    model = SmolLM3ForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(0, 0.08)
    model.save_pretrained(directory)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        shutil.copy(EMBEDDED / name, directory / name)
    return directory


def subject_of(name: str, directory: Path) -> Exported:
    source = directory_source(directory, ref=name)
    rows = [source.tokenizer()(text).input_ids for text in TEXTS]
    return Exported(
        model=source,
        name=name,
        texts=lambda: TEXTS,
        rows=lambda: [{"input_ids": r, "labels": r} for r in rows],
        prompts=lambda: rows,
    )


@pytest.fixture(scope="session")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Exported]:
    """Factory of subjects: `tiny`, `nope` and `untied`."""

    @cache
    def make(name: str) -> Exported:
        if name == "tiny":
            return subject_of(name, EMBEDDED)
        return subject_of(name, random_smollm3(tmp_path_factory.mktemp(name) / "model", tied=name == "nope"))

    return make


@pytest.fixture
def exported(
    subject: Callable[[str], Exported], tmp_path: Path, context: Callable[..., BuildContext]
) -> Callable[[str, str], Path]:
    """Writes a subject as a type; returns the directory with the file."""

    def write(name: str, kind: str) -> Path:
        out = tmp_path / f"{name}-{kind}"
        out.mkdir()
        GgufExporter(GgufExportOptions(type=kind)).write(subject(name), out, context())  # type: ignore[arg-type]
        return out

    return write


@pytest.fixture
def reload(subject: Callable[[str], Exported], context: Callable[..., BuildContext]) -> Callable[[str, Path], Any]:
    """Returns a function that reads an exported file back."""

    def make(name: str, out: Path) -> Any:
        exporter = GgufExporter(GgufExportOptions())
        return lambda: exporter.reload(subject(name), out, context())

    return make
