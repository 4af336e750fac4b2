"""Functions for objectives: the base without the adapter, log-probabilities. They import torch when called."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn


def without_adapter(model: nn.Module) -> AbstractContextManager[nn.Module]:
    """Return a context manager that gives the base: the model of a run, without its adapter.

    `model` is what an objective gets in `compute_loss` or `loss_sum`; it may be wrapped, by DDP or torch.compile. Call
    the value of the context as `model` is called. It computes what the base alone computes, in the precision of the
    training step, also under autocast and with sharded weights. Inside the context, the model is in evaluation mode,
    gradients are disabled and no key-value cache is kept; afterwards all is as it was. The base is not compiled.
    Contexts may be nested. In several processes, each must enter it equally often.

        with without_adapter(model) as base:
            reference = token_logps(base, batch)  # (B, T)

    Declare `reference="base"` in the `ObjectiveSpec`. Raises UnsupportedOp if the adapter cannot be disabled, as with
    `full`, or if neither a run nor `load_model` attached one to `model`.
    """
    from smollm3_finetune.api.adapter_switch import without_adapter

    return without_adapter(model)


def token_logps(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """The log-probability of each supervised token, in nats: one forward of `model`.

    `batch` has `input_ids` and `labels`, (B, T), on the model's device: padded with an `attention_mask`, or flat, as
    `pad_rows` and `flatten_rows` return it. Names of a batch that neither function returns are not passed to the model,
    except `token_type_ids`. Returns (B, T) in float32 or wider: at [b, t] the log-probability of `labels[b, t]` after
    the tokens before it in its row, and 0 where a label is IGNORE_INDEX or no token of the row is before it.

    Differentiable, unless gradients are disabled. With `train.logits=supervised`, the default, the output layer is
    computed at supervised tokens only, in pieces; the logits are never all in memory, and second derivatives are
    errors. Raises KeyError if the batch has no labels.

        loss = -token_logps(model, batch).sum() / num_items_in_batch  # the cross-entropy of `sft`
    """
    from smollm3_finetune.api.log_probabilities import token_logps

    return token_logps(model, batch)


def token_values(model: nn.Module, batch: Mapping[str, Any], function: Callable[..., Any], *given: Tensor) -> Any:
    """What `function` computes from the logits of each supervised token: one forward of `model`.

    For losses that need more than the log-probability of the label: those of other tokens, the most probable tokens, an
    entropy. `function(logits, targets, *given)` gets the logits (n, V) that predict n supervised tokens, in float32 or
    wider, their labels (n,), and the same n rows of each tensor of `given`, (N, …), on the device of the logits. It
    returns a tensor (n, …) or a tuple of them, and computes each token from its own row. It must work for n = 0.

    Returns the same for all N supervised tokens, in the order of the batch: row by row, as `row_sums` counts them. See
    `token_logps` for `batch`. Differentiable once. With `train.logits=supervised`, `function` is called on pieces of a
    fixed size and must not modify its arguments in place; if it returns one number for each token and the output layer
    is not trained, each piece of logits is computed once, otherwise again in the backward pass. Raises ValueError if a
    tensor of `given` has not N rows, KeyError if the batch has no labels.

        def at(logits, targets, ids):  # log-probabilities of k given tokens: (n, V), (n,), (n, k)
            return logits.log_softmax(-1).gather(1, ids)

        logps = token_values(model, batch, at, ids)  # (N, k)
    """
    from smollm3_finetune.api.log_probabilities import token_values

    return token_values(model, batch, function, *given)


def row_sums(values: Tensor, batch: Mapping[str, Any]) -> Tensor:
    """The sum of `values` over the tokens of each row of a padded or flat batch.

    `values` has the shape of `batch["labels"]`, (B, T), or (1, T) if the batch is flat. Returns (R,), for R rows.

        lengths = row_sums(batch["labels"] != IGNORE_INDEX, batch)  # supervised tokens of each row
    """
    from smollm3_finetune.api.log_probabilities import row_sums

    return row_sums(values, batch)


def row_logps(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """The log-probability of each row: the sum over its supervised tokens, (R,), in nats, in float32 or wider.

    It is `row_sums(token_logps(model, batch), batch)`; see `token_logps` for what `batch` holds, gradients and memory.

        chosen, rejected = row_logps(model, batch).view(-1, 2).unbind(1)  # rows in pairs
    """
    from smollm3_finetune.api.log_probabilities import row_sums, token_logps

    return row_sums(token_logps(model, batch), batch)
