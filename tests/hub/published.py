"""A local Hub that the command of this process talks to, and directories that look like those of runs and models."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from local_hub import TOKEN, LocalHub, served
from safetensors.numpy import save_file

from smollm3_finetune.files.checksums import write_checksums

CARD = "---\nlibrary_name: peft\ntags:\n- smollm3-finetune\n---\n\n# An adapter\n"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LocalHub]:
    """A running Hub; the client of this process uses it, with a token."""
    from huggingface_hub import close_session, constants

    with served() as server:
        for name, value in {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1", "HF_TOKEN": TOKEN}.items():
            monkeypatch.setenv(name, value)
        for name, value in {
            "ENDPOINT": server.endpoint, "HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True,
            "HF_TOKEN_PATH": str(tmp_path / "no-token"),
        }.items():  # fmt: skip
            monkeypatch.setattr(constants, name, value)
        close_session()  # it was opened for other proxies
        yield server
        close_session()


def write_adapter(directory: Path, *, model: str = "HuggingFaceTB/SmolLM3-3B", card: str = CARD) -> Path:
    """A saved adapter as this package writes it, with weights of nothing."""
    directory.mkdir(parents=True)
    parts = {"name": "smollm3-finetune:none"}
    about = {
        "model": model, "loader": {"name": "smollm3-finetune:hf"}, "quant": parts, "adapter": {"name": "acme:shift"},
        "base_fingerprint": "0" * 32, "versions": {}, "given": {},
    }  # fmt: skip
    (directory / "smollm3.json").write_text(json.dumps(about, indent=2))
    config = {"base_model_name_or_path": model, "peft_type": "LORA"}
    (directory / "adapter_config.json").write_text(json.dumps(config, indent=2))
    (directory / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}, indent=2))
    save_file({"shift": np.arange(300_000, dtype=np.float32)}, str(directory / "adapter_model.safetensors"))
    (directory / "README.md").write_text(card)
    write_checksums(directory, without=("README.md",))
    return directory


def write_run(path: Path, *, finished: bool = True, **more: str) -> Path:
    """A run with an adapter, and with the other files of a run."""
    write_adapter(path / "adapter", **more)
    (path / "checkpoints" / "checkpoint-1").mkdir(parents=True)
    (path / "checkpoints" / "checkpoint-1" / "optimizer.pt").write_bytes(b"state")
    for name in ("metrics.jsonl", "samples.jsonl", "versions.json", "before.json", "cache.json", "report.html"):
        (path / name).write_text("{}\n")
    (path / "run.yaml").write_text(f"model: tiny\ndata: {{path: {Path.home()}/rows.jsonl}}\n")
    if finished:
        (path / "report.json").write_text("{}\n")
    return path


def write_model(directory: Path, *, files: dict[str, str], kind: str = "model") -> Path:
    """A model directory with a card of this package."""
    directory.mkdir(parents=True)
    save_file({"w": np.zeros(8, dtype=np.float32)}, str(directory / "model.safetensors"))
    card = f"---\ntags:\n- smollm3-finetune\n- {kind}\n---\n\n# A {kind}\n"
    for name, text in {"config.json": "{}", "tokenizer.json": "{}", "README.md": card, **files}.items():
        (directory / name).write_text(text)
    return directory
