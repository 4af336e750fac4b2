"""Answers that share a prompt: one sequence, in which each answer is computed as if it followed the prompt alone."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import BloomConfig, Gemma2Config, GPT2Config, LlamaConfig, MistralConfig

from smollm3_finetune.api import (
    IGNORE_INDEX,
    branch_rows,
    branched_example,
    flatten_branches,
    flatten_rows,
    pad_rows,
    row_logps,
)
from smollm3_finetune.api.data import BRANCHES
from smollm3_finetune.batching.attention import RowsNotApart, attention_within_rows
from smollm3_finetune.batching.head import supervised_logits
from smollm3_finetune.batching.probe import RowProbe
from smollm3_finetune.batching.segments import Span, calls
from smollm3_finetune.testing.small import SIZES, random_model

VOCABULARY = SIZES["vocab_size"]
TOKENIZER: Any = SimpleNamespace(pad_token_id=0, eos_token_id=None)
EXACT = 1e-11
"""float64, but transformers computes norms in float32; the same in both."""
chance = torch.Generator().manual_seed(5)


def tokens(count: int) -> list[int]:
    return torch.randint(3, VOCABULARY, (count,), generator=chance).tolist()


def encoded(prompt: list[int], answer: list[int]) -> Any:
    return SimpleNamespace(input_ids=[*prompt, *answer], labels=[*[IGNORE_INDEX] * len(prompt), *answer])


PROMPTS = (tokens(11), tokens(4), tokens(1))
ANSWERS = ((tokens(6), tokens(9)), (tokens(12), tokens(3)), (tokens(2), tokens(5)))
ROWS = [[encoded(p, a) for a in answers] for p, answers in zip(PROMPTS, ANSWERS, strict=True)]
EXAMPLES = [branched_example(rows) for rows in ROWS]


def small(config: Any = None, attention: str = "sdpa", dtype: torch.dtype = torch.float64) -> Any:
    # with the usual standard deviation of 0.02, rows would influence each other too little
    return random_model(dtype, config, std=0.2, attention=attention).eval()


def by_hand(model: Any) -> Tensor:
    """The log-probability of each answer after its prompt, from one call for each. (R,)"""
    found = []
    for row in (row for pair in ROWS for row in pair):
        ids, labels = torch.tensor([row.input_ids]), torch.tensor(row.labels)
        logps = model(input_ids=ids, use_cache=False).logits[0].double().log_softmax(-1)  # (T, V)
        picked = logps[:-1].gather(1, labels[1:].clamp(min=0)[:, None])[:, 0]
        found.append(picked[labels[1:] != IGNORE_INDEX].sum())
    return torch.stack(found)


def gradients(model: Any, value: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    value.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def test_an_example_holds_each_shared_token_once_and_the_last_of_them_before_each_answer() -> None:
    prompt, (first, second) = PROMPTS[0], ANSWERS[0]
    example = EXAMPLES[0]
    assert example[BRANCHES] == [len(prompt) - 1, 1 + len(first), 1 + len(second)]
    assert example["input_ids"] == [*prompt[:-1], prompt[-1], *first, prompt[-1], *second]
    ignored = [IGNORE_INDEX] * len(prompt)
    assert example["labels"] == [*ignored, *first, IGNORE_INDEX, *second]
    rows = branch_rows([example])
    assert [r["input_ids"] for r in rows] == [r.input_ids for r in ROWS[0]]
    assert [r["labels"] for r in rows] == [r.labels for r in ROWS[0]]


@pytest.mark.parametrize(
    ("answers", "prefix"),
    [(([7, 8], [7, 9]), 3), (([7, 8], [7, 8, 9]), 3), (([7], [7]), 3)],
    ids=["same first token", "one continues the other", "equal"],
)
def test_supervised_tokens_are_never_shared(answers: tuple[list[int], list[int]], prefix: int) -> None:
    example = branched_example([encoded([1, 2, 3, 4], a) for a in answers])
    assert example[BRANCHES] == [prefix, *(1 + len(a) for a in answers)]
    assert [i for i in example["labels"] if i != IGNORE_INDEX] == [*answers[0], *answers[1]]


def test_rows_without_a_shared_token_have_an_empty_prefix() -> None:
    one, other = encoded([1, 2], [3]), encoded([4, 5], [6])
    example = branched_example([one, other])
    assert example[BRANCHES] == [0, 3, 3] and example["input_ids"] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("branches", [[3, 3], [-1, 3, 3], [2, 0, 3], [5]], ids=str)
def test_lengths_that_are_not_those_of_the_example_are_refused(branches: list[int]) -> None:
    example = {"input_ids": [1, 2, 3, 4, 5], "labels": [1, 2, 3, 4, 5], BRANCHES: branches}
    for function in (flatten_branches, branch_rows):
        with pytest.raises(ValueError, match="branches"):
            function([example])


def test_positions_continue_those_of_the_prefix() -> None:
    batch = flatten_branches(EXAMPLES[:1])
    prefix, first, second = EXAMPLES[0][BRANCHES]
    expected = [*range(prefix), *range(prefix, prefix + first), *range(prefix, prefix + second)]
    assert batch["position_ids"][0].tolist() == expected
    assert batch["segment_parents"].tolist() == [-1, 0, 0]


def test_the_prefix_and_its_first_branch_are_one_call() -> None:
    assert calls([0, 3, 5], None) == [Span(0, 3), Span(3, 5)]
    assert calls([0, 3, 5, 9], [-1, 0, 0]) == [Span(0, 5), Span(5, 9, ((0, 3),))]
    assert calls([0, 0, 2, 4, 6], [-1, 0, 0, -1]) == [Span(0, 2), Span(2, 4), Span(4, 6)]
    # a branch that branches: 0 → 1 → 2, and 1 → 3
    assert calls([0, 2, 4, 5, 7], [-1, 0, 1, 1]) == [Span(0, 5), Span(5, 7, ((0, 2), (2, 4)))]


CONFIGS = [
    (None, "sdpa"),
    (None, "eager"),
    (LlamaConfig(**SIZES), "sdpa"),
    (MistralConfig(**{**SIZES, "sliding_window": 4}), "sdpa"),
    (GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=VOCABULARY, n_positions=64), "sdpa"),
    (Gemma2Config(**SIZES, head_dim=8, attn_logit_softcapping=5.0), "eager"),
]


@pytest.mark.parametrize(
    ("config", "attention"), CONFIGS, ids=["smollm3", "smollm3-eager", "llama", "sliding window", "gpt2", "gemma2"]
)
def test_every_answer_has_the_log_probability_it_has_after_the_prompt_alone(config: Any, attention: str) -> None:
    model = small(config, attention)
    expected = by_hand(model)
    weights = torch.arange(1.0, 7.0).double()
    wanted = gradients(model, (expected * weights).sum())
    rows = branch_rows(EXAMPLES)
    with attention_within_rows(model, branches=True):
        found = {
            "branches": row_logps(model, flatten_branches(EXAMPLES)),
            "flat": row_logps(model, flatten_rows(rows)),
        }
        with supervised_logits(model, 3 * VOCABULARY * 8):  # in pieces of three tokens
            found["pieces"] = row_logps(model, flatten_branches(EXAMPLES))
        had = {name: gradients(model, (logps * weights).sum()) for name, logps in found.items()}
    found["padded"] = row_logps(model, pad_rows(rows, TOKENIZER))
    had["padded"] = gradients(model, (found["padded"] * weights).sum())
    for name, logps in found.items():
        close = EXACT if attention == "sdpa" else 1e-6  # eager attention computes its softmax in float32
        torch.testing.assert_close(
            logps.double(), expected, rtol=close, atol=close, msg=lambda m, name=name: f"{name}: {m}"
        )
        for parameter, gradient in had[name].items():
            scale = float(wanted[parameter].abs().max()) or 1.0
            furthest = float((gradient - wanted[parameter]).abs().max())
            assert furthest <= 1e-6 * scale, (name, parameter)  # the gradients of norms are float32


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("config", "attention"), CONFIGS[:2], ids=["sdpa", "eager"])
def test_replacing_one_answer_does_not_change_the_other_by_one_bit(
    config: Any, attention: str, dtype: torch.dtype
) -> None:
    model = small(config, attention, dtype)
    prompt, (first, second) = PROMPTS[0], ANSWERS[0]
    other_first, other_second = ([t + 1 for t in answer] for answer in (first, second))

    def logits(*answers: list[int]) -> Tensor:
        batch = flatten_branches([branched_example([encoded(prompt, a) for a in answers])])
        del batch["labels"]
        with torch.no_grad(), attention_within_rows(model, branches=True):
            found: Tensor = model(**batch).logits[0]
        return found

    had = logits(first, second)
    own = len(prompt) + len(first)  # tokens of the prompt and of the first answer
    assert torch.equal(logits(first, other_second)[:own], had[:own])
    assert torch.equal(logits(other_first, second)[own:], had[own:])
    assert not torch.equal(logits(first, other_second)[own:], had[own:])


def test_a_model_that_cannot_share_a_prompt_is_detected() -> None:
    model = small(BloomConfig(hidden_size=32, n_layer=2, n_head=2, vocab_size=VOCABULARY), "eager", torch.float32)
    with pytest.raises(RowsNotApart, match="registry"), attention_within_rows(model, branches=True):
        pass


def test_the_probe_tells_a_model_whose_rows_are_apart_but_whose_answers_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As with kernels that take row boundaries and know no shared prefix."""
    from smollm3_finetune.batching import attention

    model = small(dtype=torch.float32)
    probe = RowProbe(model, VOCABULARY)
    with attention_within_rows(model, branches=True):
        probe.check(1e-3, 0.0)
        probe.check_branches(1e-3, 0.0)
        monkeypatch.setattr(attention, "calls", lambda edges, parents: calls(edges, None))
        probe.check(1e-3, 0.0)
        with pytest.raises(RowsNotApart, match="after a shared prompt differ"):
            probe.check_branches(1e-3, 0.0)
