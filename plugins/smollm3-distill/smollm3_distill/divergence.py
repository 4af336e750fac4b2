"""Divergences of two distributions over k + 1 outcomes: k tokens, and all other tokens together.

Both distributions are exact: the probability of the last outcome is the sum over all tokens that are not among the k,
computed from their logits. Merging outcomes never increases a divergence, so each is a lower bound of the divergence
over the whole vocabulary, and equals it if the k tokens are the vocabulary; there is then no other outcome.
Source: data processing inequality, Cover and Thomas, Elements of Information Theory, section 2.8.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


def outcomes(logits: Tensor, ids: Tensor, temperature: float = 1.0) -> Tensor:
    """The log-probabilities of the tokens `ids` and of all others together: (n, k + 1), or (n, V) if k = V.

    logits (n, V), ids (n, k), each token once in its row.
    """
    scaled = logits if temperature == 1 else logits / temperature
    found = scaled.gather(1, ids)  # (n, k)
    if ids.shape[1] < logits.shape[1]:
        others = scaled.scatter(1, ids, -math.inf).logsumexp(1, keepdim=True)  # (n, 1)
        found = torch.cat([found, others], 1)
    return found.log_softmax(1)


def divergence(teacher: Tensor, student: Tensor, kind: str, beta: float = 0.5) -> Tensor:
    """The divergence of each row, in nats: (n,). teacher and student are log-probabilities (n, outcomes).

    `jsd` is beta KL(teacher || m) + (1 - beta) KL(student || m), with m = beta teacher + (1 - beta) student.
    Source: generalized Jensen-Shannon divergence, arXiv:2306.13649, equation 1.
    """
    if kind == "forward-kl":
        return kl(teacher, student)
    if kind == "reverse-kl":
        return kl(student, teacher)
    mixture = torch.logaddexp(teacher + math.log(beta), student + math.log1p(-beta))
    return beta * kl(teacher, mixture) + (1 - beta) * kl(student, mixture)


def kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) of log-probabilities (n, outcomes), all finite: (n,)."""
    return (p.exp() * (p - q)).sum(1)
