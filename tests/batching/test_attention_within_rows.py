"""Attention within each row: sliding windows, soft caps, other architectures, and models that would mix rows."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import (
    BloomConfig,
    Gemma2Config,
    GPT2Config,
    MambaConfig,
    MistralConfig,
)

from smollm3_finetune.api.batches import flatten
from smollm3_finetune.api.data import IGNORE_INDEX
from smollm3_finetune.batching import attention
from smollm3_finetune.batching.attention import PREFIX, RowsNotApart, attention_within_rows
from smollm3_finetune.batching.probe import RowProbe
from smollm3_finetune.testing.small import SIZES, random_model

VOCABULARY = SIZES["vocab_size"]

Row = dict[str, list[int]]


def small(dtype: torch.dtype = torch.float64, config: Any = None, attention: str = "sdpa", **changes: Any) -> Any:
    """A random SmolLM3 whose second layer has no RoPE, or a model of another configuration."""
    # with the usual standard deviation of 0.02, rows would influence each other too little
    return random_model(dtype, config, std=0.2, attention=attention, **changes)


def rows(count: int, longest: int = 40, masked: float = 0.4, seed: int = 0) -> list[Row]:
    """Rows of different length; a part of their tokens is not supervised."""
    rng = random.Random(seed)
    made = []
    for _ in range(count):
        ids = [rng.randrange(3, VOCABULARY) for _ in range(rng.randrange(5, longest + 1))]
        labels = [IGNORE_INDEX if rng.random() < masked else i for i in ids]
        labels[-1] = ids[-1]
        made.append({"input_ids": ids, "labels": labels})
    return made


def test_without_the_switched_attention_rows_see_each_other() -> None:
    """Shows that the tests above would fail without the switched attention."""
    model = small()
    batch = flatten(rows(2))
    del batch["labels"]
    with torch.no_grad():
        own = model(**{**batch, "attention_mask": torch.ones_like(batch["input_ids"])}).logits
        with attention_within_rows(model):
            apart = model(**batch).logits
    assert float((own - apart).abs().max()) > 0.1


@pytest.mark.parametrize("labels", [[5, 6], [5, 6, 7, 8]])
def test_a_label_too_few_or_too_many_is_told(labels: list[int]) -> None:
    with pytest.raises(ValueError, match=f"an example has 3 input_ids but {len(labels)} labels"):
        flatten([{"input_ids": [5, 6, 7], "labels": labels}])


def test_a_sliding_window_applies_within_each_row() -> None:
    """Mistral with a window of 4 tokens: rows of up to 12 tokens, compared with the model's own padded mask."""
    for kind in ("sdpa", "eager"):
        model = small(torch.float64, MistralConfig(**SIZES, sliding_window=4), kind)
        examples = rows(3, longest=12)
        with torch.no_grad():
            alone = [model(input_ids=torch.tensor([e["input_ids"]]), use_cache=False).logits[0] for e in examples]
            with attention_within_rows(model):
                batch = flatten(examples)
                del batch["labels"]
                together = model(**batch).logits[0]
        assert float((torch.cat(alone) - together).abs().max()) < (1e-10 if attention == "sdpa" else 1e-5)


def test_generation_is_unchanged_with_the_switched_attention() -> None:
    model = small().eval()
    ids, mask = torch.tensor([[0, 0, 5, 6], [7, 8, 9, 10]]), torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    arguments: Any = {"input_ids": ids, "attention_mask": mask, "max_new_tokens": 6, "do_sample": False}
    before = model.generate(**arguments)
    with attention_within_rows(model):
        assert torch.equal(model.generate(**arguments), before)
        assert PREFIX not in str(model.config.to_dict())
    assert model.config._attn_implementation == "sdpa"


def kept_apart(model: Any) -> None:
    probe = RowProbe(model, VOCABULARY)
    with attention_within_rows(model):
        probe.check(1e-3, 0.0)


@pytest.mark.parametrize(
    "config",
    [GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=VOCABULARY, n_positions=64), MistralConfig(**SIZES),
     Gemma2Config(**SIZES, head_dim=8, attn_logit_softcapping=5.0)],
    ids=lambda c: c.model_type,
)  # fmt: skip
def test_other_architectures_keep_rows_separate(config: Any) -> None:
    kept_apart(small(torch.float32, config, "eager" if config.model_type == "gemma2" else "sdpa"))


@pytest.mark.parametrize(
    ("config", "why"),
    [(BloomConfig(hidden_size=32, n_layer=2, n_head=2, vocab_size=VOCABULARY), "registry"),
     (MambaConfig(hidden_size=32, num_hidden_layers=2, vocab_size=VOCABULARY, state_size=4),
      "the logits of a row change by")],
    ids=["bloom", "mamba"],
)  # fmt: skip
def test_models_that_would_mix_rows_are_detected(config: Any, why: str) -> None:
    model = small(torch.float32, config, "eager")
    with pytest.raises(RowsNotApart, match=why):
        kept_apart(model)
    assert model.config._attn_implementation == "eager"


@pytest.mark.parametrize(
    ("change", "why"),
    [({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, "the longest row of a batch"),
     ({"attention_chunk_size": 8}, "chunks of the whole sequence")],
)  # fmt: skip
def test_limits_longer_than_the_probe_are_read_from_the_configuration(change: dict[str, Any], why: str) -> None:
    with pytest.raises(RowsNotApart, match=why):
        kept_apart(small(**change))


@pytest.mark.parametrize(
    ("device", "dtype", "autocast", "expected"),
    [
        ("cuda", torch.bfloat16, False, True),
        ("cuda", torch.float32, False, False),
        ("cuda", torch.float32, True, True),
        ("cpu", torch.bfloat16, True, False),
    ],
)
def test_varlen_kernels_are_used_in_half_precision_on_a_gpu(
    monkeypatch: pytest.MonkeyPatch, device: str, dtype: torch.dtype, autocast: bool, expected: bool
) -> None:
    """Only the choice of the kernel, with stubs: trained weights stay in float32, and autocast uses half precision."""
    monkeypatch.setattr(attention, "is_flash_attn_2_available", lambda: True)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: autocast)
    model: Any = SimpleNamespace(device=torch.device(device), dtype=dtype, _supports_flash_attn=True)
    assert attention._flash_usable(model) is expected


def test_row_boundaries_are_computed_once_per_batch() -> None:
    class Counted(torch.Tensor):
        reads = 0

        def tolist(self) -> Any:
            Counted.reads += 1
            return super().tolist()

    model = small()
    for n in (1, 2):
        batch = flatten([{"input_ids": [5, 6, 7], "labels": [5, 6, 7]}, {"input_ids": [8, 9], "labels": [8, 9]}])
        batch["cu_seq_lens_q"] = batch["cu_seq_lens_q"].as_subclass(Counted)
        with attention_within_rows(model), torch.no_grad():
            model(**batch)
        assert Counted.reads == n
