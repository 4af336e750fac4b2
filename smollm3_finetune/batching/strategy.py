"""How a run's rows become batches: packed, padded or neither, with logits at all or at supervised positions only."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from smollm3_finetune.components.negotiation import refined
from smollm3_finetune.config.schema import TrainConfig
from smollm3_finetune.errors import ConfigError, IncompatibleError, UnsupportedOp
from smollm3_finetune.model.quantized_layers import forward_rtol

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from smollm3_finetune.api import Env, Objective
    from smollm3_finetune.api.batches import Collate
    from smollm3_finetune.batching.packing import Ints
    from smollm3_finetune.components.selection import SelectedComponent
    from smollm3_finetune.config.schema import RunConfig
    from smollm3_finetune.model.load import LoadedModel


ROUNDED_AT_MOST = 0.3
"""Largest relative change of the logits by layers that round activations. Rows that influence each other change them by
about 1."""


def check_batches(train: TrainConfig, adapter: SelectedComponent, env: Env) -> None:
    """Raises ConfigError if options are mutually exclusive, IncompatibleError if the adapter mixes rows."""
    if train.packing and train.padding == "always":
        raise ConfigError(
            "train.packing=true and train.padding=always are mutually exclusive: packed rows are not padded"
        )
    if train.packing and train.group_by_length:
        raise ConfigError(
            "train.packing=true and train.group_by_length=true are mutually exclusive: both select the rows of a batch"
        )
    setting = _no_padding_setting(train)
    if setting is not None and not refined(adapter, env).packs:
        raise IncompatibleError(
            f"{setting} needs an adapter that keeps packed rows separate; {adapter.component.title} does not",
            hint=_without_setting(train),
        )


def check_objective(train: TrainConfig, objective: Objective, title: str) -> None:
    """Raises IncompatibleError if a setting requires batches without padding and the objective has padded ones only."""
    setting = _no_padding_setting(train)
    if setting is not None and not _has_flat_collator(objective):
        raise IncompatibleError(
            f"{setting} needs an objective with flat_collator(); {title} does not have it", hint=_without_setting(train)
        )


def training_items(config: RunConfig, examples: Any) -> Any:
    """The dataset of the Trainer: the examples, or with packing the sequences of examples.

    `examples` are `Examples`, which may be numbered.
    """
    if not config.train.packing:
        return examples
    from smollm3_finetune.batching.packing import Packed

    return Packed(examples, lengths_of(examples), config.data.max_length, config.seed)


def lengths_of(examples: Any) -> Ints:
    """The number of tokens of each example, as int32."""
    import numpy as np

    return np.fromiter(examples.each_length(), dtype=np.int32, count=len(examples))


@dataclass(frozen=True)
class Batches:
    """The collate function of a run and its properties."""

    collate: Collate
    padded: bool
    """Whether rows are padded to the longest row of their batch; if not, they follow each other in one sequence."""
    shares_prompts: bool
    """Whether several answers to one prompt share a sequence, so that the prompt is computed once."""
    logits: str
    """`supervised` or `all`: the positions at which the output layer is computed."""

    def __call__(self, items: list[dict[str, Any]]) -> dict[str, Any]:
        from smollm3_finetune.batching.filler import IDLE, without_fills

        examples, idle = without_fills(items)
        batch = self.collate(examples)
        return {**batch, IDLE: True} if idle else batch


@contextmanager
def batching(
    train: TrainConfig,
    loaded: LoadedModel,
    objective: Objective,
    tokenizer: PreTrainedTokenizerBase,
    say: Callable[[str], None],
) -> Iterator[Batches]:
    """Adapt the model to the run's batches while the context is open; yields the collate function.

    If the model does not support padding-free batches or supervised logits, one line reports it. Raises UnsupportedOp
    if the configuration requires batches without padding.
    """
    from smollm3_finetune.batching.attention import RowsNotApart

    with ExitStack() as stack:
        collate, padded, shares, logits = objective.collator(tokenizer), True, False, "all"
        if train.padding != "always":
            try:
                collate, shares = stack.enter_context(_flat(loaded, objective, tokenizer, say))
                padded = False
            except RowsNotApart as e:
                _report_padding(train, loaded, str(e), say)
        if train.logits == "supervised" and _supervise(loaded, stack, say):
            logits = "supervised"
        yield Batches(collate, padded, shares, logits)


@contextmanager
def _flat(
    loaded: LoadedModel, objective: Objective, tokenizer: PreTrainedTokenizerBase, say: Callable[[str], None]
) -> Iterator[tuple[Collate, bool]]:
    """Keep the model's attention inside rows and yield the objective's collator without padding.

    The second value is whether answers share their prompt; if the objective asks for it and the model does not support
    it, one line reports it. Raises RowsNotApart.
    """
    from smollm3_finetune.api import BranchedObjective, FlatObjective
    from smollm3_finetune.batching.attention import RowsNotApart, attention_within_rows
    from smollm3_finetune.batching.probe import RowProbe

    adapter = loaded.plan.adapter
    if adapter is not None and not refined(adapter, loaded.plan.env).packs:
        raise RowsNotApart(f"{adapter.component.title} would mix rows that share a sequence")
    if not isinstance(objective, FlatObjective):
        raise RowsNotApart("the objective has no flat_collator()")
    if not _accepts_any_keyword(loaded.model.forward):
        raise RowsNotApart(f"the forward of {type(loaded.model).__name__} does not accept position_ids")
    base = loaded.base.model
    probe = RowProbe(loaded.model, int(base.config.get_text_config().vocab_size))
    if isinstance(objective, BranchedObjective):
        with ExitStack() as stack:
            try:
                stack.enter_context(attention_within_rows(base, branches=True))
                probe.check(*_tolerances(loaded))
                probe.check_branches(*_tolerances(loaded))
            except RowsNotApart as e:
                reason = str(e)
            else:
                yield objective.branched_collator(tokenizer), True
                return
    with attention_within_rows(base):
        probe.check(*_tolerances(loaded))
        if isinstance(objective, BranchedObjective):
            say(f"prompt   computed once for each answer: {reason}")
        yield objective.flat_collator(tokenizer), False


def _supervise(loaded: LoadedModel, stack: ExitStack, say: Callable[[str], None]) -> bool:
    """Compute the output layer at supervised positions only until `stack` is closed; returns whether it does."""
    from smollm3_finetune.batching.head import supervised_logits

    if not _accepts_any_keyword(loaded.model.forward):
        say(f"logits   computed at every token: the forward of {type(loaded.model).__name__} does not pass on labels")
        return False
    if not getattr(loaded.base.model, "accepts_loss_kwargs", True):
        say("logits   computed at every token: the model's loss does not accept num_items_in_batch")
        return False
    if not stack.enter_context(supervised_logits(loaded.base.model)):
        say("logits   computed at every token: the model changes its logits or its loss after the output layer")
        return False
    return True


def _report_padding(train: TrainConfig, loaded: LoadedModel, reason: str, say: Callable[[str], None]) -> None:
    """Report that rows are padded. Raises UnsupportedOp if the configuration requires batches without padding."""
    setting = _no_padding_setting(train)
    if setting is not None:
        raise UnsupportedOp(f"{setting} does not work with {loaded.plan.ref!r}: {reason}", hint=_without_setting(train))
    say(f"padding  rows are padded: {reason}")


def _no_padding_setting(train: TrainConfig) -> str | None:
    """The setting that requires batches without padding; None if there is none."""
    if train.packing:
        return "train.packing=true"
    return "train.padding=never" if train.padding == "never" else None


def _without_setting(train: TrainConfig) -> str:
    """The option that removes the requirement of `_no_padding_setting`."""
    return "--set train.packing=false" if train.packing else "--set train.padding=auto"


def _has_flat_collator(objective: Objective) -> bool:
    return hasattr(objective, "flat_collator")


def _accepts_any_keyword(forward: Callable[..., Any]) -> bool:
    """Whether a forward accepts `**kwargs`."""
    return any(p.kind is inspect.Parameter.VAR_KEYWORD for p in inspect.signature(forward).parameters.values())


def _tolerances(loaded: LoadedModel) -> tuple[float, float]:
    """The largest relative changes of logits by rounding: if shapes differ, and if only another row changes.

    The first is the rounding of the arithmetic plus ten times that of quantized layers. The second is near zero, except
    for layers that round activations, whose scale may depend on the whole batch. Rows that influence each other exceed
    both.
    """
    wide = loaded.plan.context.dtype in ("float32", "float64")
    layers = min(10 * forward_rtol(loaded.base), ROUNDED_AT_MOST)
    return (1e-3 if wide else 5e-2) + layers, (1e-5 if wide else 1e-3) + layers
