"""`token_logps` and `row_logps`: the log-probabilities of a float64 softmax by hand, in padded and flat batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from smollm3_finetune.api import IGNORE_INDEX, flatten_rows, pad_rows, row_logps, row_sums, token_logps
from smollm3_finetune.batching.attention import attention_within_rows
from smollm3_finetune.batching.head import supervised_logits
from smollm3_finetune.testing.small import SIZES, random_model

VOCABULARY = SIZES["vocab_size"]
THREE_TOKENS = 3 * VOCABULARY * 8
"""Bytes of the float64 logits of three tokens."""
LENGTHS = (9, 14, 5)
chance = torch.Generator().manual_seed(2)
IDS = [torch.randint(3, VOCABULARY, (n,), generator=chance).tolist() for n in LENGTHS]
ROWS = [{"input_ids": ids, "labels": [t if i % 3 else IGNORE_INDEX for i, t in enumerate(ids)]} for ids in IDS]
ROWS[2]["labels"] = IDS[2]  # its first label too, which no token predicts
TOKENIZER: Any = SimpleNamespace(pad_token_id=0, eos_token_id=None)
EXACT = 1e-11
"""float64, but transformers computes norms in float32; the same in both."""


@contextmanager
def flat(model: Any) -> Iterator[dict[str, Any]]:
    with attention_within_rows(model):
        yield flatten_rows(ROWS)


@contextmanager
def padded(model: Any) -> Iterator[dict[str, Any]]:
    yield pad_rows(ROWS, TOKENIZER)


@contextmanager
def padded_on_the_left(model: Any) -> Iterator[dict[str, Any]]:
    longest = max(LENGTHS)

    def left(values: Sequence[int], filler: int) -> list[int]:
        return [filler] * (longest - len(values)) + list(values)

    batch = {
        "input_ids": [left(r["input_ids"], 0) for r in ROWS],
        "labels": [left(r["labels"], IGNORE_INDEX) for r in ROWS],
        "attention_mask": [left([1] * len(r["labels"]), 0) for r in ROWS],
    }
    yield {name: torch.tensor(values) for name, values in batch.items()}


@contextmanager
def unchanged(model: Any) -> Iterator[bool]:
    yield True


@contextmanager
def pieces(model: Any) -> Iterator[bool]:
    with supervised_logits(model, THREE_TOKENS) as on:
        yield on


def by_hand(model: Any) -> list[Tensor]:
    """For each row alone: the log-probability of each label that a token of the row predicts, else 0."""
    found = []
    for row in ROWS:
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"])
        logps = model(input_ids=ids, use_cache=False).logits[0].double().log_softmax(-1)  # (T, V)
        picked = logps[:-1].gather(1, labels[1:].clamp(min=0)[:, None])[:, 0]
        found.append(torch.cat([torch.zeros(1).double(), picked * (labels[1:] != IGNORE_INDEX)]))
    return found


def gradients(model: Any, value: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    value.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def in_rows(values: Tensor, batch: Mapping[str, Any]) -> list[Tensor]:
    """The values of the tokens of each row. values (B, T)"""
    if "attention_mask" in batch:
        return [v[m == 1] for v, m in zip(values, batch["attention_mask"], strict=True)]
    return list(values[0].split(LENGTHS))


@pytest.mark.parametrize("head", [unchanged, supervised_logits, pieces])
@pytest.mark.parametrize("rows", [padded, padded_on_the_left, flat])
def test_values_and_gradients_are_those_of_each_row_alone(rows: Any, head: Any) -> None:
    model = random_model(std=0.2)
    wanted = by_hand(model)
    weights = torch.tensor([0.3, -1.7, 2.0]).double()
    expected = gradients(model, sum((w * row.sum() for w, row in zip(weights, wanted, strict=True)), torch.tensor(0.0)))
    with head(model) as on, rows(model) as batch:
        assert on
        tokens = token_logps(model, batch)
        assert tokens.shape == batch["labels"].shape
        for ours, theirs in zip(in_rows(tokens, batch), wanted, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
        sums = row_logps(model, batch)
        torch.testing.assert_close(sums, torch.stack([w.sum() for w in wanted]), rtol=1e-6, atol=0)
        found = gradients(model, (weights * sums).sum())
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=0, atol=1e-5 * float(expected[name].abs().max()))
    assert row_sums(batch["labels"] != IGNORE_INDEX, batch).tolist() == [6, 9, 4 + (rows is padded_on_the_left)]


@pytest.mark.parametrize("rows", [padded, flat])
def test_the_pieces_are_exact(rows: Any) -> None:
    """The same model and the same batch: only the pieces differ, so nothing but float64 rounding may."""
    model = random_model(std=0.2)
    with rows(model) as batch:
        plain = token_logps(model, batch)
        expected = gradients(model, (plain**2).sum())
        with pieces(model) as on:
            assert on
            found = token_logps(model, batch)
            same = gradients(model, (found**2).sum())
    assert same.keys() == expected.keys()
    assert max(float((same[n] - expected[n]).abs().max()) for n in same) < EXACT
    assert float((found - plain).abs().max()) < EXACT


class Watched(nn.Module):
    """An output layer that notes how many positions it computes."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head, self.weight = head, head.weight
        self.seen: list[int] = []

    def forward(self, hidden: Tensor) -> Tensor:
        self.seen.append(hidden.shape[1])
        return self.head(hidden)  # type: ignore[no-any-return]


@pytest.mark.parametrize("trained", [True, False])
def test_the_output_layer_is_computed_at_supervised_tokens_in_pieces(trained: bool) -> None:
    """A frozen layer once for each piece; a trained one again in the backward pass, because its gradient is large."""
    model: Any = random_model(tie_word_embeddings=False)
    model.lm_head.requires_grad_(trained)
    weights = torch.arange(1.0, 4.0, dtype=torch.float64)
    expected = gradients(model, (weights * row_logps(model, pad_rows(ROWS, TOKENIZER))).sum())
    with pieces(model):
        model.lm_head = Watched(model.lm_head)
        total = (weights * row_logps(model, pad_rows(ROWS, TOKENIZER))).sum()
        forward = list(model.lm_head.seen)
        found = gradients(model, total)
    in_pieces, probe = [3] * 6 + [1], [] if trained else [1]  # one token shows whether the layer uses a trained weight
    assert forward == probe + in_pieces
    assert sorted(model.lm_head.seen) == sorted(forward + (in_pieces if trained else []))
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name.replace("lm_head.head", "lm_head")], rtol=0, atol=1e-10)


def test_half_precision_gives_float32() -> None:
    model = random_model(torch.bfloat16)
    batch = pad_rows(ROWS, TOKENIZER)
    for head in (unchanged, pieces):
        with head(model):
            assert row_logps(model, batch).dtype == torch.float32


def test_a_batch_without_supervised_tokens_has_log_probabilities_of_zero() -> None:
    model = random_model()
    rows = [{"input_ids": IDS[0], "labels": [IGNORE_INDEX] * LENGTHS[0]}]
    for head in (unchanged, pieces):
        with head(model):
            assert row_logps(model, flatten_rows(rows)).tolist() == [0.0]


def test_other_names_of_a_batch_are_not_passed_to_the_model() -> None:
    model = random_model()
    batch = pad_rows(ROWS, TOKENIZER)
    more = {**batch, "margin": torch.ones(3), "input_embeds": None}
    assert torch.equal(token_logps(model, more), token_logps(model, batch))
