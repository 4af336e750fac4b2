"""How a run's rows become batches: packed or not, padded or not, with all logits or some; and why not, where not."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from smollm3_finetune.components.negotiation import refined
from smollm3_finetune.config.schema import TrainConfig
from smollm3_finetune.data.examples import Examples
from smollm3_finetune.errors import ConfigError, IncompatibleError, UnsupportedOp

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from smollm3_finetune.api import Env, Objective
    from smollm3_finetune.api.batches import Collate
    from smollm3_finetune.batching.packing import Ints
    from smollm3_finetune.components.selection import SelectedComponent
    from smollm3_finetune.config.schema import RunConfig
    from smollm3_finetune.model.load import LoadedModel


ROUNDED_AT_MOST = 0.3
"""How far layers that round activations may move logits, relative; rows that see each other do so by 1 or so."""


def check_batches(train: TrainConfig, adapter: SelectedComponent, env: Env) -> None:
    """Raises ConfigError for options that exclude each other, IncompatibleError for an adapter that mixes rows."""
    if train.packing and train.padding == "always":
        raise ConfigError("train.packing=true leaves nothing to pad, and train.padding=always was asked for")
    if train.packing and train.group_by_length:
        raise ConfigError("train.packing=true decides the batches, so train.group_by_length=true cannot")
    wanted = _wanted(train)
    if wanted is not None and not refined(adapter, env).packs:
        raise IncompatibleError(
            f"{wanted} puts rows into one sequence, in which {adapter.component.title} would mix them",
            hint=_otherwise(train),
        )


def check_objective(train: TrainConfig, objective: Objective, title: str) -> None:
    """Raises IncompatibleError where rows are to share a sequence and the objective makes padded batches only."""
    wanted = _wanted(train)
    if wanted is not None and not _flattens(objective):
        raise IncompatibleError(
            f"{wanted} needs more than {title} offers: it has no flat_collator()", hint=_otherwise(train)
        )


def training_items(config: RunConfig, examples: Examples) -> Any:
    """What the Trainer draws from: the examples, or with packing the sequences that hold them."""
    if not config.train.packing:
        return examples
    from smollm3_finetune.batching.packing import Packed

    return Packed(examples, lengths_of(examples), config.data.max_length, config.seed)


def lengths_of(examples: Examples) -> Ints:
    """Tokens of each example, four bytes each."""
    import numpy as np

    return np.fromiter(examples.each_length(), dtype=np.int32, count=len(examples))


@dataclass(frozen=True)
class Batches:
    """What makes a batch of items, and how."""

    collate: Collate
    padded: bool
    """Whether rows are padded to the longest of their batch; else they follow each other in one sequence."""
    logits: str
    """`supervised` or `all`: where the output layer is computed."""

    def __call__(self, items: list[dict[str, Any]]) -> dict[str, Any]:
        from smollm3_finetune.batching.filler import without_fills

        return self.collate(without_fills(items))


@contextmanager
def batching(
    train: TrainConfig,
    loaded: LoadedModel,
    objective: Objective,
    tokenizer: PreTrainedTokenizerBase,
    say: Callable[[str], None],
) -> Iterator[Batches]:
    """Fit the model to the run's batches while the context is open, and give what makes a batch of items.

    What the model cannot do is said in one line, unless the configuration insists on it: then it raises UnsupportedOp.
    """
    from smollm3_finetune.batching.attention import RowsNotApart

    with ExitStack() as stack:
        make, padded, logits = objective.collator(tokenizer), True, "all"
        if train.padding != "always":
            try:
                make = stack.enter_context(_flat(loaded, objective, tokenizer))
                padded = False
            except RowsNotApart as e:
                _fall_back(train, loaded, str(e), say)
        if train.logits == "supervised" and _supervise(loaded, stack, say):
            logits = "supervised"
        yield Batches(make, padded, logits)


@contextmanager
def _flat(loaded: LoadedModel, objective: Objective, tokenizer: PreTrainedTokenizerBase) -> Iterator[Collate]:
    """The model with its attention inside rows, and the objective's flat batches. Raises RowsNotApart."""
    from smollm3_finetune.api import FlatObjective
    from smollm3_finetune.batching.attention import RowsNotApart, attention_within_rows
    from smollm3_finetune.batching.probe import RowProbe

    adapter = loaded.plan.adapter
    assert adapter is not None
    if not refined(adapter, loaded.plan.env).packs:
        raise RowsNotApart(f"{adapter.component.title} would mix rows that share a sequence")
    if not isinstance(objective, FlatObjective):
        raise RowsNotApart("the objective has no flat_collator()")
    if not _passes_on(loaded.model.forward):
        raise RowsNotApart(f"the forward of {type(loaded.model).__name__} takes no position_ids")
    base = loaded.base.model
    probe = RowProbe(loaded.model, int(base.config.get_text_config().vocab_size))
    with attention_within_rows(base):
        probe.check(*_tolerances(loaded))
        yield objective.flat_collator(tokenizer)


def _supervise(loaded: LoadedModel, stack: ExitStack, say: Callable[[str], None]) -> bool:
    """Whether the output layer is computed at supervised positions from now on."""
    from smollm3_finetune.batching.head import supervised_logits

    if not _passes_on(loaded.model.forward):
        say(f"logits   at every token: the forward of {type(loaded.model).__name__} passes no labels on")
        return False
    if not getattr(loaded.base.model, "accepts_loss_kwargs", True):
        say("logits   at every token: this model takes no count of the tokens in a step")
        return False
    if not stack.enter_context(supervised_logits(loaded.base.model)):
        say("logits   at every token: this model's logits or loss are more than its output layer gives")
        return False
    return True


def _fall_back(train: TrainConfig, loaded: LoadedModel, reason: str, say: Callable[[str], None]) -> None:
    wanted = _wanted(train)
    if wanted is not None:
        raise UnsupportedOp(f"{wanted} cannot be had with {loaded.plan.ref!r}: {reason}", hint=_otherwise(train))
    say(f"padding  rows are padded: {reason}")


def _wanted(train: TrainConfig) -> str | None:
    """The setting that insists on rows that share a sequence."""
    if train.packing:
        return "train.packing=true"
    return "train.padding=never" if train.padding == "never" else None


def _otherwise(train: TrainConfig) -> str:
    return "--set train.packing=false" if train.packing else "--set train.padding=auto"


def _flattens(objective: Objective) -> bool:
    return hasattr(objective, "flat_collator")


def _passes_on(forward: Callable[..., Any]) -> bool:
    """Whether a forward takes arguments by any name."""
    return any(p.kind is inspect.Parameter.VAR_KEYWORD for p in inspect.signature(forward).parameters.values())


def _tolerances(loaded: LoadedModel) -> tuple[float, float]:
    """How far logits may move by rounding, in other shapes, and in equal ones with another row beside them.

    The first is the arithmetic's rounding, and ten times what quantized layers round. The second is next to nothing,
    but for layers that round activations, which may do so by the whole batch. Rows that see each other are further.
    """
    base = loaded.base
    views = (base.ops_for(layer) for layer in base.model.modules())
    wide = loaded.plan.context.dtype in ("float32", "float64")
    layers = min(10 * max((view.forward_rtol for view in views if view is not None), default=0.0), ROUNDED_AT_MOST)
    return (1e-3 if wide else 5e-2) + layers, (1e-5 if wide else 1e-3) + layers
