"""Another model as the reference: planned with the run, evaluated, and freed before the trained model is loaded."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from smollm3_finetune.api import Purpose
from smollm3_finetune.components.kinds import OBJECTIVE
from smollm3_finetune.config.schema import ComponentConfig
from smollm3_finetune.errors import IncompatibleError
from smollm3_finetune.model.plan import NO_QUANTIZER, ModelPlan, ModelRequest, plan_model, select_model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from smollm3_finetune.api import ReferenceObjective
    from smollm3_finetune.components.registry import Registry
    from smollm3_finetune.components.selection import SelectedComponent
    from smollm3_finetune.config.schema import TrainConfig
    from smollm3_finetune.reference.whole import Evaluated


def plan_other_model(registry: Registry, objective: SelectedComponent, ref: str | None, model: ModelPlan) -> ModelPlan:
    """The plan of the reference model: `ref`, or the own source of `model`, neither quantized nor adapted.

    A checkpoint that is quantized itself is loaded by its quantizer. Raises IncompatibleError if the own source is one,
    or if the vocabularies differ: token ids would then mean different tokens.
    """
    own = ref is None
    request = ModelRequest(
        ref=model.ref if ref is None else ref,
        loader=model.pinned_loader() if own else ComponentConfig(),
        purpose=Purpose.INFER,
    )
    context = replace(model.context, purpose=Purpose.INFER)
    found = plan_model(registry, select_model(registry, request), context)
    flag = f"{OBJECTIVE.flag} {objective.spec.name}"
    if own and found.quantizer.component.spec.name != NO_QUANTIZER:
        raise IncompatibleError(
            f"{flag} compares the model with its unquantized self, but {model.ref!r} is a quantized checkpoint",
            hint=_named(objective, None, "MODEL"),
        )
    ours, theirs = (plan.tokenizer().get_vocab() for plan in (model, found))
    if ours != theirs:
        differing = len(ours.items() ^ theirs.items())
        raise IncompatibleError(
            f"the reference model {found.ref!r} has another vocabulary than {model.ref!r}: {differing:,} entries "
            "differ",
            hint=_named(objective, ref, "MODEL") + f", a model with the tokenizer of {model.ref!r}",
        )
    return found


def _named(objective: SelectedComponent, value: str | None, shown: str) -> str:
    """The option of the objective that names the reference model, as it is typed."""
    names = [name for name, given in vars(objective.options).items() if given == value and (given or "model" in name)]
    return f"--objective-opt {names[0] if names else 'MODEL_OPTION'}={shown}"


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
            batches = None  # type: ignore[assignment]
    finally:
        del loaded
        free_memory()
