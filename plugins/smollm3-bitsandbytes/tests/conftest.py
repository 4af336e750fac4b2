"""Fixtures for the tests of both quantizers: a tiny random SmolLM3 on disk, a build context, token ids."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, SmolLM3Config, SmolLM3ForCausalLM

from smollm3_finetune.api import BuildContext, ModelSource, Purpose, directory_source

torch.set_num_threads(1)


class Silent:
    """A `Progress` that shows nothing."""

    @contextlib.contextmanager
    def task(self, description: str, total: int | None = None) -> Iterator[Any]:
        yield self

    def advance(self, steps: int = 1) -> None: ...

    def say(self, message: str) -> None: ...


@pytest.fixture(scope="session")
def context() -> Callable[..., BuildContext]:
    """Factory of BuildContexts for the CPU; these quantizers use no cache."""

    def make(dtype: str = "float32", purpose: Purpose = Purpose.TRAIN) -> BuildContext:
        cache: Any = None
        return BuildContext(purpose=purpose, device="cpu", dtype=dtype, seed=0, cache=cache, progress=Silent())

    return make


@pytest.fixture(scope="session")
def dense() -> PreTrainedModel:
    """A random SmolLM3 of four layers (one of them without RoPE), tied embeddings, widths divisible by 128."""
    torch.manual_seed(0)
    config = SmolLM3Config(
        vocab_size=128,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        tie_word_embeddings=True,
    )
    model: PreTrainedModel = SmolLM3ForCausalLM(config)
    # At the usual initialization (0.02) every layer is nearly linear and errors hide.
    for parameter in model.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.08)
    return model


@pytest.fixture(scope="session")
def source(dense: PreTrainedModel, tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    path: Path = tmp_path_factory.mktemp("tiny")
    dense.save_pretrained(path)
    return directory_source(path, ref="tiny")


@pytest.fixture(scope="session")
def ids() -> torch.Tensor:
    """(2, 16) token ids."""
    return torch.randint(3, 128, (2, 16), generator=torch.Generator().manual_seed(1))
