"""`token_values`: functions of the logits of supervised tokens are those of all logits in float64, in any batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from smollm3_finetune.api import (
    IGNORE_INDEX,
    Base,
    BuildContext,
    Purpose,
    branch_rows,
    branched_example,
    flatten_branches,
    flatten_rows,
    pad_rows,
    token_logps,
    token_values,
)
from smollm3_finetune.batching.attention import attention_within_rows
from smollm3_finetune.batching.head import supervised_logits
from smollm3_finetune.components.discovery import PluginSelection, discover
from smollm3_finetune.components.kinds import ADAPTER
from smollm3_finetune.components.selection import choose
from smollm3_finetune.testing.small import SIZES, random_model

VOCABULARY = SIZES["vocab_size"]
K = 5
TOKENIZER: Any = SimpleNamespace(pad_token_id=0, eos_token_id=None)
EXACT = 1e-11
"""float64, but transformers computes norms in float32; the same in both."""
chance = torch.Generator().manual_seed(7)


def tokens(count: int) -> list[int]:
    return torch.randint(3, VOCABULARY, (count,), generator=chance).tolist()


def answer_to(prompt: list[int], count: int) -> Any:
    answer = tokens(count)
    return SimpleNamespace(input_ids=[*prompt, *answer], labels=[*[IGNORE_INDEX] * len(prompt), *answer])


PROMPTS = [tokens(6), tokens(3)]
EXAMPLES = [
    branched_example([answer_to(p, n) for n in counts]) for p, counts in zip(PROMPTS, ((4, 7), (5, 2)), strict=True)
]
ROWS = branch_rows(EXAMPLES)
COUNT = 4 + 7 + 5 + 2
IDS = torch.stack([torch.randperm(VOCABULARY, generator=chance)[:K] for _ in range(COUNT)])  # (N, k)
WEIGHTS = torch.rand(COUNT, K, generator=chance).double()


def at(logits: Tensor, targets: Tensor, ids: Tensor) -> Tensor:
    """The log-probabilities of given tokens. logits (n, V), ids (n, k)"""
    return logits.log_softmax(-1).gather(1, ids)


def weighted(logits: Tensor, targets: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    """One number for each token, from the same. (n,)"""
    return (at(logits, targets, ids) * weights).sum(1)


def several(logits: Tensor, targets: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return at(logits, targets, ids), logits.argmax(-1), targets


@contextmanager
def padded(model: Any) -> Iterator[dict[str, Any]]:
    yield pad_rows(ROWS, TOKENIZER)


@contextmanager
def flat(model: Any) -> Iterator[dict[str, Any]]:
    with attention_within_rows(model):
        yield flatten_rows(ROWS)


@contextmanager
def branched(model: Any) -> Iterator[dict[str, Any]]:
    with attention_within_rows(model, branches=True):
        yield flatten_branches(EXAMPLES)


def by_hand(model: Any) -> tuple[Tensor, Tensor]:
    """From all logits of each row alone: log-probabilities of IDS (N, k), and the likeliest token (N,)."""
    found, likeliest = [], []
    for row in ROWS:
        logits = model(input_ids=torch.tensor([row["input_ids"]]), use_cache=False).logits[0, :-1]  # (T - 1, V)
        kept = logits[torch.tensor(row["labels"][1:]) != IGNORE_INDEX]
        found.append(kept - kept.logsumexp(-1, keepdim=True))
        likeliest.append(kept.argmax(-1))
    return torch.cat(found).gather(1, IDS), torch.cat(likeliest)


def gradients(model: Any, value: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    value.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def with_adapter_on_the_head() -> Any:
    """LoRA on `lm_head` and other layers, moved from its initial values."""
    chosen = choose(
        discover(PluginSelection.of([])), ADAPTER, "lora", {"target_modules": ("lm_head", "q_proj"), "rank": 2}
    )
    none: Any = None
    context = BuildContext(purpose=Purpose.TRAIN, device="cpu", dtype="float64", seed=3, cache=none, progress=none)
    base = Base(model=random_model(std=0.2, tie_word_embeddings=False), fingerprint="small")
    model = chosen.create().attach(base, context, 20).model
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def frozen_head() -> Any:
    model: Any = random_model(std=0.2, tie_word_embeddings=False)
    model.lm_head.requires_grad_(False)
    return model


MODELS = {
    "tied": lambda: random_model(std=0.2),
    "frozen head": frozen_head,
    "adapter on the head": with_adapter_on_the_head,
}
MODEL = [
    pytest.param(MODELS[name], id=name, marks=[pytest.mark.plugins] if "adapter" in name else []) for name in MODELS
]


def inner(model: Any) -> Any:
    """The causal language model inside an adapter."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


@contextmanager
def heads(model: Any, tokens_at_once: int | None) -> Iterator[None]:
    """The model's own logits, or those of supervised tokens in pieces; the number of tokens in a piece."""
    if tokens_at_once is None:
        yield
        return
    with supervised_logits(inner(model), tokens_at_once * VOCABULARY * 8) as on:
        assert on
        yield


@pytest.mark.parametrize("made", MODEL)
@pytest.mark.parametrize("rows", [padded, flat, branched])
def test_values_and_gradients_are_those_of_all_logits(made: Any, rows: Any) -> None:
    model = made()
    wanted, likeliest = by_hand(model)
    expected = gradients(model, (wanted * WEIGHTS).sum())
    for tokens_at_once in (None, 4, 1000):
        with heads(model, tokens_at_once), rows(inner(model)) as batch:
            found = token_values(model, batch, at, IDS)
            parts = token_values(model, batch, several, IDS)
            own = {
                "k numbers": gradients(model, (found * WEIGHTS).sum()),
                "one number": gradients(model, token_values(model, batch, weighted, IDS, WEIGHTS).sum()),
            }
        assert found.shape == (COUNT, K) and found.dtype == torch.float64
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)  # transformers computes norms in float32
        assert torch.equal(parts[0], found) and torch.equal(parts[1], likeliest)
        labels = [label for row in ROWS for label in row["labels"] if label != IGNORE_INDEX]
        assert parts[2].tolist() == labels
        for which, had in own.items():
            assert had.keys() == expected.keys()
            for name, gradient in had.items():
                scale = float(expected[name].abs().max())
                assert float((gradient - expected[name]).abs().max()) <= 1e-5 * scale, (which, tokens_at_once, name)


@pytest.mark.parametrize("made", MODEL)
def test_the_pieces_are_exact(made: Any) -> None:
    """The same model and the same batch: only the pieces differ, so nothing but float64 rounding may."""
    model = made()
    found = {}
    with flat(inner(model)) as batch:
        for tokens_at_once in (None, 4):
            with heads(model, tokens_at_once):
                values = token_values(model, batch, at, IDS)
                losses = token_values(model, batch, weighted, IDS, WEIGHTS)
                found[tokens_at_once] = (values.detach(), gradients(model, (losses**2).sum()))
    assert float((found[None][0] - found[4][0]).abs().max()) < EXACT
    assert found[None][1].keys() == found[4][1].keys()
    assert max(float((found[None][1][n] - g).abs().max()) for n, g in found[4][1].items()) < EXACT


class Watched(nn.Module):
    """An output layer that notes how many positions it computes."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head, self.weight = head, head.weight
        self.seen: list[int] = []

    def forward(self, hidden: Tensor) -> Tensor:
        self.seen.append(hidden.shape[1])
        return self.head(hidden)  # type: ignore[no-any-return]


@pytest.mark.parametrize(("function", "again"), [(weighted, False), (at, True)], ids=["one number", "k numbers"])
def test_a_frozen_output_layer_is_computed_once_for_one_number_of_each_token(function: Any, again: bool) -> None:
    model = frozen_head()
    with heads(model, 4), flat(model) as batch:
        model.lm_head = Watched(model.lm_head)
        given = (IDS, WEIGHTS) if function is weighted else (IDS,)
        token_values(model, batch, function, *given).sum().backward()
    pieces = [4, 4, 4, 4, 2]
    assert sorted(model.lm_head.seen) == sorted(
        [1, *pieces, *(pieces if again else [])]
    )  # one token shows what is trained


def test_a_weight_inside_the_function_gets_its_gradient() -> None:
    model, scale = frozen_head(), torch.tensor(2.0, dtype=torch.float64, requires_grad=True)

    def scaled(logits: Tensor, targets: Tensor, ids: Tensor) -> Tensor:
        return at(logits * scale, targets, ids).sum(1)

    found = []
    for tokens_at_once in (None, 4):
        scale.grad = None
        with heads(model, tokens_at_once), flat(model) as batch:
            token_values(model, batch, scaled, IDS).sum().backward()
        assert scale.grad is not None
        found.append(float(scale.grad))
    assert found[0] == pytest.approx(found[1], rel=1e-12)


def test_the_label_is_one_of_the_given_tokens() -> None:
    """`token_logps` is the same function of the same logits."""
    model = random_model(std=0.2)
    for tokens_at_once in (None, 4):
        with heads(model, tokens_at_once), flat(model) as batch:
            values = token_values(model, batch, lambda logits, targets: at(logits, targets, targets[:, None])[:, 0])
            logps = token_logps(model, batch)[batch["labels"] != IGNORE_INDEX]
        torch.testing.assert_close(values, logps, rtol=0, atol=EXACT)


def test_half_precision_gives_float32_to_the_function() -> None:
    model, dtypes = random_model(torch.bfloat16), []

    def noted(logits: Tensor, targets: Tensor) -> Tensor:
        dtypes.append(logits.dtype)
        return logits.logsumexp(-1)

    for tokens_at_once in (None, 4):
        with heads(model, tokens_at_once):
            assert token_values(model, pad_rows(ROWS, TOKENIZER), noted).dtype == torch.float32
    assert set(dtypes) == {torch.float32}


def test_a_batch_without_supervised_tokens_has_no_values() -> None:
    model = random_model()
    rows = [{"input_ids": tokens(4), "labels": [IGNORE_INDEX] * 4}]
    for tokens_at_once in (None, 4):
        with heads(model, tokens_at_once):
            found = token_values(model, flatten_rows(rows), at, IDS[:0])
            assert found.shape == (0, K)
            found.sum().backward()  # as in a process that has no rows left


def test_tensors_with_values_of_other_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="18 supervised tokens, but a tensor has values of 17"):
        token_values(random_model(), pad_rows(ROWS, TOKENIZER), at, IDS[1:])


def test_each_function_is_new_to_a_compiled_model_only_once() -> None:
    """A function that is an argument of the model would be compiled at each step."""
    compiled: list[int] = []

    def backend(graph: Any, inputs: Any) -> Any:
        compiled.append(1)
        return graph.forward

    torch._dynamo.reset()
    model = random_model(std=0.2)
    batch: Mapping[str, Any] = pad_rows(ROWS, TOKENIZER)
    plain = token_values(model, batch, at, IDS).detach()
    with heads(model, 4):
        fast = torch.compile(model, backend=backend)
        counts = []
        for factor in (1.0, 2.0, 3.0):
            found = token_values(fast, batch, lambda logits, targets, ids, f=factor: f * at(logits, targets, ids), IDS)
            counts.append(len(compiled))
            torch.testing.assert_close(found.detach(), factor * plain, rtol=1e-6, atol=1e-6)
    assert counts[0] > 0 and counts[2] == counts[0]
