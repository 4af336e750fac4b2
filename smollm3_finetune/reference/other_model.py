"""Another model as the reference: planned with the run, evaluated, and freed before the trained model is loaded."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import TYPE_CHECKING

from smollm3_finetune.api import Purpose
from smollm3_finetune.components.kinds import OBJECTIVE, QUANTIZER
from smollm3_finetune.components.negotiation import refined
from smollm3_finetune.components.selection import SelectedComponent, choose
from smollm3_finetune.errors import IncompatibleError, SmolLM3Error
from smollm3_finetune.model.plan import (
    OWN_NO_QUANTIZER,
    ModelPlan,
    ModelRequest,
    claiming_quantizers,
    plan_model,
    select_model,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from smollm3_finetune.api import Env, ReferenceObjective
    from smollm3_finetune.components.registry import Registry
    from smollm3_finetune.config.schema import TrainConfig
    from smollm3_finetune.reference.whole import Evaluated


NAMED = "MODEL"
"""The place of a model in a hint."""


def plan_other_model(registry: Registry, objective: SelectedComponent, ref: str, model: ModelPlan) -> ModelPlan:
    """The plan of the reference model `ref`, without an adapter, for the rows of `model`.

    A checkpoint that is quantized is loaded by its quantizer, any other one is not quantized. Raises IncompatibleError
    if the vocabularies differ: token ids would then mean different tokens.
    """
    request = ModelRequest(ref=ref, purpose=Purpose.INFER)
    context = replace(model.context, purpose=Purpose.INFER)
    found = plan_model(registry, select_model(registry, request), context)
    ours, theirs = (plan.tokenizer().get_vocab() for plan in (model, found))
    if ours != theirs:
        differing = len(ours.items() ^ theirs.items())
        raise IncompatibleError(
            f"the reference model {found.ref!r} has another vocabulary than {model.ref!r}: {differing:,} entries "
            "differ",
            hint=f"{_asked(objective, model.env)}, a model with the tokenizer of {model.ref!r}",
        )
    return found


def own_model(registry: Registry, objective: SelectedComponent, model: ModelPlan) -> ModelPlan:
    """The plan of the own source of `model` as the reference: neither quantized nor adapted.

    Raises IncompatibleError if the source is a quantized checkpoint.
    """
    if claiming_quantizers(registry, model.source):
        raise IncompatibleError(
            f"{OBJECTIVE.flag} {objective.spec.name} compares the model with its unquantized self, but {model.ref!r} "
            "is a quantized checkpoint",
            hint=_asked(objective, model.env),
        )
    return without_parts(model, choose(registry, QUANTIZER, OWN_NO_QUANTIZER, {}))


def without_parts(model: ModelPlan, none: SelectedComponent) -> ModelPlan:
    """The source of `model` alone; `none` is the quantizer that loads it as it is."""
    context = replace(model.context, purpose=Purpose.INFER)
    return replace(model, quantizer=none, adapter=None, saved=None, context=context)


def _asked(objective: SelectedComponent, env: Env) -> str:
    """What names another reference model: the option with which the objective's `refine` declares it.

    If there is none, the reference follows from the trained model.
    """
    for option in fields(objective.options):
        if not isinstance(getattr(objective.options, option.name), str | None):
            continue
        with contextlib.suppress(SmolLM3Error, TypeError, ValueError):  # not an option that holds any text
            named = replace(objective, options=replace(objective.options, **{option.name: NAMED}))
            if refined(named, env).reference_model == NAMED:
                return f"--objective-opt {option.name}={NAMED}"
    return f"--model {NAMED}"


@contextlib.contextmanager
def loaded_model(
    plan: ModelPlan, objective: ReferenceObjective, tokenizer: PreTrainedTokenizerBase, train: TrainConfig
) -> Iterator[Evaluated]:
    """Load the reference model; it is freed when the context ends."""
    import torch

    from smollm3_finetune.api import evaluating
    from smollm3_finetune.batching.strategy import batching
    from smollm3_finetune.model.device import free_memory
    from smollm3_finetune.model.load import compose
    from smollm3_finetune.reference.whole import Evaluated

    settings = replace(train, packing=False, padding="always" if train.padding == "always" else "auto")
    loaded = compose(plan)
    try:
        with (
            batching(settings, loaded, objective, tokenizer, lambda line: None) as batches,
            evaluating(loaded.model),
            torch.no_grad(),
        ):
            yield Evaluated(
                model=loaded.model, objective=objective, batches=batches, batch_size=train.batch_size,
                device=plan.context.device, dtype=plan.context.dtype,
            )  # fmt: skip
    finally:
        del loaded
        free_memory()
