"""The cross-entropy at supervised positions, compared with torch's."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from smollm3_finetune.batching.cross_entropy import supervised_cross_entropy


def example(dtype: torch.dtype, rows: int = 7, vocabulary: int = 1000) -> tuple[Tensor, Tensor]:
    """Logits (N, V), some of them far apart, and targets (N,), two of them equal."""
    chance = torch.Generator().manual_seed(0)
    logits = (30 * torch.randn(rows, vocabulary, generator=chance, dtype=torch.float64)).to(dtype)
    targets = torch.randint(vocabulary, (rows,), generator=chance)
    targets[1] = targets[0]
    return logits.requires_grad_(), targets


@pytest.mark.parametrize("factor", [1.0, 65536.0, 1 / 300])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_value_and_gradient_equal_torchs(dtype: torch.dtype, factor: float) -> None:
    """For logits in half precision, torch's loss is in float32. `factor` multiplies the loss, as a loss scale does."""
    logits, targets = example(dtype)
    wide = logits.double() if dtype == torch.float64 else logits.float()
    plain = F.cross_entropy(wide, targets, reduction="sum")
    (wanted,) = torch.autograd.grad(factor * plain, logits)
    loss = supervised_cross_entropy(logits, targets)
    (gradient,) = torch.autograd.grad(factor * loss, logits)
    assert (loss.dtype, gradient.dtype) == (plain.dtype, dtype)
    exact = 1e-14 if dtype == torch.float64 else 1e-6
    assert loss.item() == pytest.approx(plain.item(), rel=exact)
    rounding = {torch.bfloat16: 2**-8, torch.float16: 2**-10}.get(dtype, exact)  # one rounding to the logits' dtype
    least = factor * (2**-24 if dtype == torch.float16 else exact)
    torch.testing.assert_close(gradient, wanted, rtol=rounding, atol=least)


def test_the_gradient_equals_finite_differences() -> None:
    logits, targets = example(torch.float64, rows=3, vocabulary=11)
    assert torch.autograd.gradcheck(lambda x: supervised_cross_entropy(x / 30, targets), logits)


def test_the_value_without_a_gradient_is_the_same() -> None:
    logits, targets = example(torch.float32)
    with torch.no_grad():
        alone = supervised_cross_entropy(logits, targets)
    assert not alone.requires_grad
    assert alone.item() == supervised_cross_entropy(logits, targets).item()
    assert torch.equal(logits, example(torch.float32)[0]), "the logits belong to whoever made them"


@pytest.mark.parametrize("factor", [1.0, 3.0])
def test_a_second_backward_pass_gives_the_same_gradient(factor: float) -> None:
    logits, targets = example(torch.float64)
    loss = factor * supervised_cross_entropy(logits, targets)
    (first,) = torch.autograd.grad(loss, logits, retain_graph=True)
    kept = first.clone()
    (second,) = torch.autograd.grad(2 * loss, logits)
    assert torch.equal(second, 2 * kept)
    assert torch.equal(first, kept)


class Made(TorchDispatchMode):
    """Counts the operations that create a tensor of at least `elements`."""

    def __init__(self, elements: int) -> None:
        super().__init__()
        self.elements, self.names, self.seen = elements, [], set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        given = {t.untyped_storage().data_ptr() for t in args if isinstance(t, Tensor)}
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple) else (result,):
            large = isinstance(tensor, Tensor) and tensor.numel() >= self.elements
            if large and tensor.untyped_storage().data_ptr() not in given:
                self.names.append(str(function))
        return result


def test_only_one_tensor_as_large_as_the_logits_is_created() -> None:
    logits, targets = example(torch.float32)
    with Made(logits.numel()) as made:
        torch.autograd.grad(supervised_cross_entropy(logits, targets), logits)
    assert made.names == ["aten._log_softmax.default"]
    with Made(logits.numel()) as made:
        torch.autograd.grad(F.cross_entropy(logits, targets, reduction="sum"), logits)
    assert len(made.names) == 3, "what the module says of torch's own"
