"""Pairs of answers for a tiny model in float64, their log-probabilities by hand, and the objectives to check."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from smollm3_preference import kto, methods, options
from torch import Tensor, nn

from smollm3_finetune.api import IGNORE_INDEX, branched_example
from smollm3_finetune.batching.attention import attention_within_rows
from smollm3_finetune.testing.small import SIZES, random_model

TOKENIZER: Any = SimpleNamespace(pad_token_id=0, eos_token_id=None)
chance = torch.Generator().manual_seed(3)


def tokens(count: int) -> list[int]:
    return torch.randint(3, SIZES["vocab_size"], (count,), generator=chance).tolist()


def encoded(prompt: list[int], answer: list[int]) -> Any:
    return SimpleNamespace(input_ids=[*prompt, *answer], labels=[*[IGNORE_INDEX] * len(prompt), *answer])


PROMPTS = tuple(tokens(n) for n in (9, 4, 1, 6, 2, 7, 3, 5))
ANSWERS = tuple((tokens(a), tokens(b)) for a, b in ((5, 8), (7, 2), (1, 4), (3, 3), (6, 5), (2, 9), (4, 1), (8, 6)))
ROWS = [[encoded(p, a) for a in answers] for p, answers in zip(PROMPTS, ANSWERS, strict=True)]
PAIRS = [branched_example(rows) for rows in ROWS]
LABELED = [
    {
        "input_ids": rows[n % 2].input_ids, "labels": rows[n % 2].labels, "prompt": [len(prompt)],
        "max_length": [12], "desirable": [int(n % 3 != 1)],
    }
    for n, (rows, prompt) in enumerate(zip(ROWS, PROMPTS, strict=True))
]  # fmt: skip


def model(seed: float = 0.0) -> Any:
    """A SmolLM3 in float64; transformers computes its normalization in float32, so torch's own is used."""
    made = random_model(torch.float64, std=0.2)
    for module in list(made.modules()):
        for name, child in list(module.named_children()):
            if type(child).__name__ == "SmolLM3RMSNorm":
                norm = nn.RMSNorm(child.weight.shape, eps=child.variance_epsilon, dtype=torch.float64)
                setattr(module, name, norm)
    if seed:
        noise = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for p in made.parameters():
                p += seed * torch.randn(p.shape, generator=noise, dtype=p.dtype)
    return made.eval()


def by_hand(model: Any, row: Mapping[str, Any]) -> tuple[Tensor, int]:
    """The log-probability of the supervised tokens of a row, and their number, from one plain call."""
    found = tokens_by_hand(model, row)
    return sum(found[1:], found[0]), len(found)


def tokens_by_hand(model: Any, row: Mapping[str, Any]) -> list[Tensor]:
    """The log-probability of each supervised token of a row."""
    ids, labels = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"])
    logits = model(input_ids=ids, use_cache=False).logits[0]
    supervised = [t for t in range(1, len(labels)) if labels[t] != IGNORE_INDEX]
    return [logits[t - 1, labels[t]] - logits[t - 1].logsumexp(0) for t in supervised]


@contextmanager
def layout(kind: str, objective: Any, model: Any) -> Iterator[Callable[[list[Any]], dict[str, Any]]]:
    """The collator of a kind of batches, while the model's attention supports it. `packed`: two examples in an item."""
    from smollm3_finetune.batching.packing import unpacked

    if kind == "padded":
        yield objective.collator(TOKENIZER)
        return
    with attention_within_rows(model, branches=kind == "branched"):
        collate = (objective.branched_collator if kind == "branched" else objective.flat_collator)(TOKENIZER)
        if kind == "packed":
            yield lambda examples: collate(
                unpacked([{"rows": examples[i : i + 2]} for i in range(0, len(examples), 2)])
            )
        else:
            yield collate


def with_reference(objective: Any, reference: Any, batch: dict[str, Any]) -> dict[str, Any]:
    """The batch as core passes it: with the values of the reference, if the objective has one."""
    if not hasattr(objective, "reference_values"):
        return batch
    with torch.no_grad():
        return {**batch, "reference": objective.reference_values(reference, batch)}


def sigmoid(x: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-x))


Formula = Callable[[Tensor, Tensor, Tensor, Tensor, int, int], Tensor]
"""Of log-probabilities of chosen and rejected, those of the reference, and the numbers of tokens."""
B, EPS, GAMMA, ALPHA = 0.3, 0.1, 0.7, 0.4


def odds(mean: Tensor) -> Tensor:
    return torch.exp(mean) / (1 - torch.exp(mean))


def cases() -> dict[str, tuple[Any, Formula]]:
    """Each objective, and its loss written from the paper."""
    dpo, apo = options.DPOOptions, options.APOOptions
    log, exp = torch.log, torch.exp
    return {
        "dpo": (methods.DPO(dpo(beta=B)), lambda c, r, cr, rr, n, m: -log(sigmoid(B * ((c - cr) - (r - rr))))),
        "dpo-conservative": (
            methods.DPO(dpo(beta=B, label_smoothing=EPS)),
            lambda c, r, cr, rr, n, m: (
                -(1 - EPS) * log(sigmoid(B * (c - cr - r + rr))) - EPS * log(sigmoid(B * (r - rr - c + cr)))
            ),
        ),
        "dpo-sft": (
            methods.DPO(dpo(beta=B, sft_weight=ALPHA)),
            lambda c, r, cr, rr, n, m: -log(sigmoid(B * (c - cr - r + rr))) - ALPHA * c / n,
        ),
        "dpo-norm": (
            methods.DPO(dpo(beta=B, loss_type="sigmoid_norm")),
            lambda c, r, cr, rr, n, m: -log(sigmoid(B * ((c - cr) / n - (r - rr) / m))),
        ),
        "dpo-hinge": (
            methods.DPO(dpo(beta=B, loss_type="hinge")),
            lambda c, r, cr, rr, n, m: torch.maximum(torch.zeros_like(c), 1 - B * (c - cr - r + rr)),
        ),
        "dpo-ipo": (
            methods.DPO(dpo(beta=B, loss_type="ipo")),
            lambda c, r, cr, rr, n, m: ((c - cr) / n - (r - rr) / m - 1 / (2 * B)) ** 2,
        ),
        "dpo-robust": (
            methods.DPO(dpo(beta=B, loss_type="robust", label_smoothing=EPS)),
            lambda c, r, cr, rr, n, m: (
                (-(1 - EPS) * log(sigmoid(B * (c - cr - r + rr))) + EPS * log(sigmoid(-B * (c - cr - r + rr))))
                / (1 - 2 * EPS)
            ),
        ),
        "apo-zero": (
            methods.APOZero(apo(beta=B)),
            lambda c, r, cr, rr, n, m: (1 - sigmoid(B * (c - cr))) + sigmoid(B * (r - rr)),
        ),
        "apo-down": (
            methods.APODown(apo(beta=B)),
            lambda c, r, cr, rr, n, m: sigmoid(B * (c - cr)) + 1 - sigmoid(B * ((c - cr) - (r - rr))),
        ),
        "orpo": (
            methods.ORPO(options.ORPOOptions(beta=B)),
            lambda c, r, cr, rr, n, m: -c / n - B * log(sigmoid(log(odds(c / n) / odds(r / m)))),
        ),
        "simpo": (
            methods.SimPO(options.SimPOOptions(beta=B, gamma=GAMMA)),
            lambda c, r, cr, rr, n, m: -log(sigmoid(B * c / n - B * r / m - GAMMA)),
        ),
        "cpo": (
            methods.CPO(options.CPOOptions(beta=B)),
            lambda c, r, cr, rr, n, m: log(1 + exp(-B * (c - r))) - c / n,
        ),
        "cpo-hinge": (
            methods.CPO(options.CPOOptions(beta=B, loss_type="hinge", sft_weight=0.0)),
            lambda c, r, cr, rr, n, m: torch.maximum(torch.zeros_like(c), 1 - B * (c - r)),
        ),
        "cpo-ipo": (
            methods.CPO(options.CPOOptions(beta=B, loss_type="ipo", sft_weight=0.0)),
            lambda c, r, cr, rr, n, m: (c / n - r / m - 1 / (2 * B)) ** 2,
        ),
    }


def kto_case() -> Any:
    return kto.KTO(options.KTOOptions(beta=B, desirable_weight=1.5, undesirable_weight=0.75))


def kto_by_hand(model: Any, reference: Any, groups: list[list[Mapping[str, Any]]], *, kl: bool = True) -> Tensor:
    """The mean loss of rows that are computed in `groups`, each with its own KL term."""
    losses = []
    for rows in groups:
        gains = []
        for n, row in enumerate(rows):
            other, (start,), (limit,) = rows[n - 1], row["prompt"], row["max_length"]
            answer = other["input_ids"][other["prompt"][0] :]
            ids = row["input_ids"][:start] + answer
            mixed = {"input_ids": ids[:limit], "labels": ([IGNORE_INDEX] * start + answer)[:limit]}
            with torch.no_grad():
                gains.append(by_hand(model, mixed)[0] - by_hand(reference, mixed)[0])
        z = max(float(sum(gains)) / len(gains), 0.0) if kl and len(rows) > 1 else 0.0
        for row in rows:
            with torch.no_grad():
                base = by_hand(reference, row)[0]
            gain = by_hand(model, row)[0] - base
            good = row["desirable"] == [1]
            value = sigmoid(B * (gain - z)) if good else sigmoid(B * (z - gain))
            losses.append((1.5 if good else 0.75) * (1 - value))
    return sum(losses[1:], losses[0]) / math.fsum([1.0] * len(losses))


def gradients(model: Any, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def largest_error(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """The largest difference of two sets of gradients, relative to the largest gradient."""
    assert found.keys() == expected.keys()
    scale = max(float(g.abs().max()) for g in expected.values())
    return max(float((found[n] - g).abs().max()) for n, g in expected.items()) / scale
